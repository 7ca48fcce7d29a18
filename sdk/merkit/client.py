"""The client: a clip goes in, a `Prediction` comes out, whoever executes the pipeline.

Without it each application would decode, find faces, name tensors and check contracts by itself,
once for the embedded pipeline and once for the served one.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import Backend, strings
from merkit.bundle import open_bundle
from merkit.errors import (
    ClipLimitError,
    ClipNotFoundError,
    ClipUnreadableError,
    ContractMismatchError,
    DeadlineExceededError,
    InvalidInputError,
    MerkitError,
    ServerNotReadyError,
    ServerUnavailableError,
)
from merkit.limits import Limits
from merkit.pipeline import DECODED_IN
from merkit.results import Prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merkit.faces import FaceDetector
    from merkit.media import Decoded

PathLike = str | os.PathLike[str]
Decode = Literal["server", "client"]
UNAVAILABLE = (ServerUnavailableError, ServerNotReadyError, DeadlineExceededError)


@dataclass(frozen=True)
class Clip:
    """One request: media (a path, bytes or a `Decoded`), words, or both.

    Attributes:
        media: the clip, or None for words alone.
        text: what is said in it.
        source: what to call it in the result; default: the path.
    """

    media: PathLike | bytes | Decoded | None = None
    text: str | None = None
    source: str | None = None

    @property
    def name(self) -> str:
        """The source as results and errors name it."""
        if self.source is not None:
            return self.source
        if isinstance(self.media, str | os.PathLike):
            return os.fspath(self.media)
        if self.media is None:
            return "text"
        return "bytes" if isinstance(self.media, bytes) else "decoded clip"


@dataclass
class _Given:
    """What the backend is asked, and what of the answer the client knows already."""

    tensors: dict[str, NDArray[Any]]
    detail: dict[str, NDArray[Any]] = field(default_factory=dict)
    frames: dict[float, NDArray[Any]] = field(default_factory=dict)


class Client:
    """Predicts emotions of clips. Made by `merkit.load` and `merkit.connect`.

    Safe to share between threads. Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        decode: Decode = "client",
        detector: FaceDetector | None = None,
        limits: Limits | None = None,
        fallback: Client | None = None,
    ) -> None:
        """Wraps a backend.

        Args:
            backend: executes the pipeline.
            decode: `client` decodes the clip and finds faces here and sends tensors; `server`
                sends the clip's bytes.
            detector: finds faces where decoding is done here; default: OpenCV's Haar cascade.
            limits: what a clip may be at most; default: `Limits()`.
            fallback: answers when the backend is unavailable. Must share the contract.
        """
        if decode not in ("client", "server"):
            raise InvalidInputError(f"decode is {decode!r}", "'client' or 'server'", "choose one")
        if decode == "server" and detector is not None:
            raise InvalidInputError(
                "a face detector together with decoding on the server",
                "decode='client' with a detector of one's own",
                "choose where the clip is decoded",
            )
        self.backend = backend
        self._decode, self._detector, self._limits = decode, detector, limits or Limits()
        self._fallback = fallback
        if fallback is not None:
            _same_contract(fallback.backend.contract.contract_id, backend.contract.contract_id)

    def predict(
        self,
        clip: PathLike | bytes | Decoded | None = None,
        text: str | None = None,
        *,
        source: str | None = None,
        keep_frames: bool = False,
    ) -> Prediction:
        """The emotion of one clip, of words, or of both together.

        Args:
            clip: a path or the bytes of anything FFmpeg reads (video, sound, image), a `Decoded`,
                or None for words alone.
            text: what is said.
            source: what to call the clip in the result; default: its path.
            keep_frames: keep the frames in which faces were found, for a report.

        Raises:
            InputError: the clip cannot be read, exceeds a limit, or holds nothing to judge.
            BundleError: client and server speak different contracts.
            BackendError: the pipeline failed or did not answer in time.
            MissingExtraError: decoding needs a package that is not installed.
        """
        request = Clip(clip, text, source)
        try:
            return self._predict(request, keep_frames)
        except UNAVAILABLE as error:
            if self._fallback is None:
                raise
            answer = self._fallback._predict(request, keep_frames)
            note = f"the server did not answer ({error.found}); the embedded bundle did"
            return replace(answer, warnings=(*answer.warnings, note))

    def predict_many(
        self,
        clips: Iterable[Clip | PathLike | bytes],
        *,
        workers: int = 2,
        keep_frames: bool = False,
    ) -> Generator[Prediction | MerkitError, None, None]:
        """Predictions in the order of the clips, several at a time.

        A clip that cannot be predicted yields its error in its place and costs the others
        nothing. At most twice `workers` clips are taken ahead of the one that is yielded.
        """
        if workers < 1:
            raise InvalidInputError(f"workers is {workers}", "at least 1", "give 1 or more")
        return self._predict_many(clips, workers, keep_frames)

    def close(self) -> None:
        """Releases the backend and the fall-back. Safe to call twice."""
        self.backend.close()
        if self._fallback is not None:
            self._fallback.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _predict(self, clip: Clip, keep_frames: bool) -> Prediction:
        start = time.perf_counter()
        timings: dict[str, float] = {}
        _check_text(clip.text)
        if clip.media is None and clip.text is None:
            raise InvalidInputError("neither a clip nor a text", "at least one", "give one")
        given = self._given(clip, timings, keep_frames)
        outputs = self.backend.infer(given.tensors, timings)
        timings["total"] = (time.perf_counter() - start) * 1e3
        return Prediction.from_outputs(
            {**given.detail, **outputs},
            self.backend.contract,
            source=clip.name,
            transcript=clip.text,
            timings_ms=timings,
            bundle=self.backend.identity,
            frames=given.frames,
        )

    def _predict_many(
        self, clips: Iterable[Clip | PathLike | bytes], workers: int, keep_frames: bool
    ) -> Generator[Prediction | MerkitError, None, None]:
        pending: deque[Future[Prediction | MerkitError]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="merkit-client") as pool:
            try:
                for clip in clips:
                    pending.append(pool.submit(self._predict_or_error, clip, keep_frames))
                    if len(pending) > 2 * workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _predict_or_error(
        self, clip: Clip | PathLike | bytes, keep_frames: bool
    ) -> Prediction | MerkitError:
        c = clip if isinstance(clip, Clip) else Clip(clip)
        try:
            return self.predict(c.media, c.text, source=c.source, keep_frames=keep_frames)
        except MerkitError as error:
            return error

    def _given(self, clip: Clip, timings: dict[str, float], keep_frames: bool) -> _Given:
        text = clip.text or ""
        if clip.media is None:
            if self._decode == "server":
                return _Given({"clip": np.zeros((1, 0), np.uint8), "text": strings(text)})
            return _Given(self._without_media(text))
        if self._decode == "server":
            return _Given({"clip": _clip_bytes(clip.media, self._limits), "text": strings(text)})
        return self._decoded(clip.media, text, timings, keep_frames)

    def _decoded(
        self,
        media: PathLike | bytes | Decoded,
        text: str,
        timings: dict[str, float],
        keep_frames: bool,
    ) -> _Given:
        from merkit.faces import find_faces
        from merkit.media import Decoded, decode_clip
        from merkit.steps import decoded_tensors

        p = self.backend.contract.preprocessing
        start = time.perf_counter()
        decoded = media if isinstance(media, Decoded) else decode_clip(media, p, self._limits)
        middle = time.perf_counter()
        faces = find_faces(decoded.frames, decoded.frame_times, p, self._detector)
        timings["decode"] = (middle - start) * 1e3
        timings["faces"] = (time.perf_counter() - middle) * 1e3
        tensors = decoded_tensors(decoded, faces, text)
        entry = {name: tensors.pop(name) for name in DECODED_IN}
        frames = {}
        if keep_frames:
            seen = {float(t) for t in faces.times}
            times = map(float, decoded.frame_times)
            frames = {t: f for t, f in zip(times, decoded.frames, strict=True) if t in seen}
        return _Given(entry, tensors, frames)

    def _without_media(self, text: str) -> dict[str, NDArray[Any]]:
        """Entry tensors for words alone, for which no codec needs to be installed."""
        size = self.backend.contract.preprocessing.face_size
        return {
            "face_crops": np.zeros((1, 0, size, size, 3), np.uint8),
            "face_count": np.zeros((1, 1), np.int64),
            "waveform": np.zeros((1, 0), np.float32),
            "waveform_length": np.zeros((1, 1), np.int64),
            "text": strings(text),
        }


def load(
    bundle: PathLike,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    detector: FaceDetector | None = None,
    limits: Limits | None = None,
) -> Client:
    """Opens a bundle to be run in this process, on ONNX Runtime.

    Args:
        bundle: the bundle's folder. Every content file is checked against its manifest.
        providers: ONNX Runtime execution providers in order of preference (`cpu`, `cuda`, ...).
        threads: budget of threads; default: the cores this process may use.
        detector: finds faces; default: OpenCV's Haar cascade.
        limits: what a clip may be at most.

    Raises:
        BundleError: no bundle there, or a file of it is missing, changed or foreign.
        MissingExtraError: ONNX Runtime is not installed.
        InvalidInputError: an unknown provider or no thread.
    """
    from merkit.backends.embedded import EmbeddedBackend

    backend = EmbeddedBackend(open_bundle(bundle), providers, threads)
    return Client(backend, detector=detector, limits=limits)


def connect(
    url: str,
    *,
    deadline: float = 10.0,
    decode: Decode = "server",
    contract_id: str | None = None,
    detector: FaceDetector | None = None,
    limits: Limits | None = None,
    fallback: PathLike | None = None,
) -> Client:
    """Connects to a Triton server that serves a bundle.

    Args:
        url: `grpc://host:port`.
        deadline: seconds within which each whole call must be answered.
        decode: where clips are decoded and faces found: `server` sends the clip's bytes,
            `client` sends face crops and sound, and keeps the picture here.
        contract_id: the contract to insist on; default: whatever the server speaks.
        detector: with `decode="client"`, finds faces; default: OpenCV's Haar cascade.
        limits: what a clip may be at most.
        fallback: a bundle of the same contract that answers, embedded, when the server does not.

    Raises:
        ServerUnavailableError: nothing answers at the address.
        ServerNotReadyError: a server answers, but it does not serve a bundle, or not yet.
        ContractMismatchError: the server, or the fall-back, speaks another contract.
        MissingExtraError: tritonclient is not installed.
    """
    from merkit.backends.triton import TritonBackend

    spare = None if fallback is None else load(fallback, detector=detector, limits=limits)
    try:
        backend = TritonBackend(url, deadline=deadline, contract_id=contract_id)
        return Client(backend, decode=decode, detector=detector, limits=limits, fallback=spare)
    except MerkitError:
        if spare is not None:
            spare.close()
        raise


def _same_contract(found: str, expected: str) -> None:
    if found != expected:
        raise ContractMismatchError(
            f"the fall-back bundle has the contract {found}",
            f"{expected}, the server's",
            "give the bundle that the server serves",
        )


def _check_text(text: Any) -> None:
    if text is not None and not isinstance(text, str):
        raise InvalidInputError(
            f"text is of type {type(text).__name__}", "a string or None", "give the words as str"
        )


def _clip_bytes(media: Any, limits: Limits) -> NDArray[np.uint8]:
    """The clip as a tensor [1, n]; size is checked before anything is read."""
    if not isinstance(media, str | os.PathLike | bytes):
        raise InvalidInputError(
            f"a clip of type {type(media).__name__} for a server that decodes",
            "a path or bytes",
            "connect with decode='client' to send what is decoded already",
        )
    if not isinstance(media, bytes):
        media = _read(Path(media), limits)
    if not media:
        raise ClipUnreadableError("the clip is empty (0 bytes)", "a media file", "give another")
    _check_size(len(media), limits)
    return np.frombuffer(media, np.uint8)[None]


def _read(path: Path, limits: Limits) -> bytes:
    try:
        _check_size(path.stat().st_size, limits)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ClipNotFoundError(f"there is no file {path}", "a clip", "check the path") from None
    except (OSError, ValueError) as error:
        raise ClipUnreadableError(
            f"{path} cannot be read ({error})", "a readable media file", "check the path"
        ) from None


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise ClipLimitError(
            f"a clip of {size} bytes",
            f"at most {limits.max_bytes}",
            "give a shorter clip, or raise Limits.max_bytes",
        )
