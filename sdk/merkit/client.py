"""The client: a clip goes in, a `Prediction` comes out, whoever executes the pipeline.

Without it each application would decode, find faces, name tensors and check contracts by itself,
once for the embedded pipeline and once for the served one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from merkit.backends.base import Backend
from merkit.entry import Clip, Entry, PathLike, bytes_entry, check_text, decoded_entry
from merkit.errors import (
    ContractMismatchError,
    DeadlineExceededError,
    InferenceError,
    InputError,
    InvalidInputError,
    MerkitError,
    ServerNotReadyError,
    ServerUnavailableError,
)
from merkit.media.container import NAMELESS
from merkit.media.limits import Limits
from merkit.pipeline import entry_points
from merkit.results import Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from merkit.faces import FaceDetector
    from merkit.media import Decoded

Decode = Literal["server", "client"]
UNAVAILABLE = (ServerUnavailableError, ServerNotReadyError, DeadlineExceededError)


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
            limits: what a clip may be at most; default: `Limits()`. With `decode="server"` only
                `max_bytes` can differ from it: the server decodes within its own.
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
        if decode == "server" and limits and limits != Limits(limits.max_bytes):
            raise InvalidInputError(
                "limits other than of bytes together with decoding on the server",
                "Limits(max_bytes=...) alone, as the server decodes within its own limits",
                "set only max_bytes, or decode='client'",
            )
        self.backend = backend
        self._decode, self._detector, self._limits = decode, detector, limits or Limits()
        self._fallback = fallback
        if fallback is not None:
            same_contract(fallback.backend.contract.contract_id, backend.contract.contract_id)

    def predict(
        self,
        clip: PathLike | bytes | Decoded | None = None,
        text: str | None = None,
        *,
        source: str | None = None,
        keep_frames: bool = False,
        hear: bool = True,
    ) -> Prediction:
        """The emotion of one clip, of words, or of both together.

        Args:
            clip: a path or the bytes of anything FFmpeg reads (video, sound, image), a `Decoded`,
                or None for words alone.
            text: what is said.
            source: what to call the clip in the result; default: its path.
            keep_frames: keep the frames in which faces were found, for a report.
            hear: where the bundle can, recognise what is said in a clip that comes without text.
                A server that is sent whole clips always does; `False` is refused there.

        Raises:
            InputError: the clip cannot be read, exceeds a limit, or holds nothing to judge.
            BundleError: client and server speak different contracts.
            BackendError: the pipeline failed or did not answer in time.
            MissingExtraError: decoding needs a package that is not installed.
        """
        request = Clip(clip, text, source)
        try:
            return self._predict(request, keep_frames, hear)
        except UNAVAILABLE as error:
            if self._fallback is None:
                raise
            answer = self._fallback._predict(request, keep_frames, hear)
            note = f"the server did not answer ({error.found}); the embedded bundle did"
            return replace(answer, warnings=(*answer.warnings, note))

    def features(
        self,
        clip: PathLike | bytes | Decoded | None = None,
        text: str | None = None,
        *,
        faces_only: bool = False,
        hear: bool = True,
    ) -> dict[str, NDArray[Any]]:
        """What `predict_features` takes: the encoders' answers in place of the clip (design 3).

        For a device that keeps faces, or everything, to itself: it runs the pipeline up to the
        encoders and sends a few hundred numbers. Only a bundle that runs here can do that.

        Args:
            clip: as `predict` takes it.
            text: what is said.
            faces_only: run the encoders of faces alone, and pass sound and words on; the words
                that were heard here stand for the caller's.
            hear: as `predict` takes it.

        Raises:
            InvalidInputError: this client asks a server; or `faces_only` of a clip that is not to
                be listened to, as who is sent its sound does.
            MerkitError: as `predict`.
        """
        compute = getattr(self.backend, "compute", None)
        if compute is None:
            raise InvalidInputError(
                "features of a client that asks a server",
                "a bundle that runs here",
                "make them with merkit.load(bundle).features(...), and send them with this one",
            )
        contract = self.backend.contract
        entry = self._entry(Clip(clip, text), keep_frames=False, hear=hear).tensors
        names = entry_points(contract)["merkit_edge" if faces_only else "merkit_features"].inputs
        if faces_only and "text" not in entry:
            raise InvalidInputError(
                "faces_only together with hear=False, of a clip without text",
                "all features, or a clip that may be listened to",
                "leave one of the two out, or give the text",
            )
        asked = [name for name in names if name not in entry]
        if faces_only and contract.hearing:
            asked.append("words")
        made = dict(compute(entry, asked))
        if "words" in made:
            made["text"] = made.pop("words")
        return {name: made[name] if name in made else entry[name] for name in names}

    def predict_features(
        self, features: Mapping[str, NDArray[Any]], *, source: str = "features"
    ) -> Prediction:
        """The emotion of a clip of which `features` were computed elsewhere.

        Args:
            features: what `features` returned, there or here.
            source: what to call the clip in the result.

        Raises:
            InvalidInputError: other tensors than those.
            MerkitError: as `predict`.
        """
        contract, start = self.backend.contract, time.perf_counter()
        timings: dict[str, float] = {}
        points = entry_points(contract)
        taken = [set(points[name].inputs) for name in ("merkit_features", "merkit_edge")]
        if set(features) not in taken or len(features["presence"]) != 1:
            raise InvalidInputError(
                f"the features {sorted(features)}",
                f"of one clip, {sorted(taken[0])} or {sorted(taken[1])}",
                "give what merkit.load(bundle).features(...) returned",
            )
        outputs = self.backend.infer(features, timings)
        timings["total"] = (time.perf_counter() - start) * 1e3
        return Prediction.from_outputs(
            outputs,
            contract,
            source=source,
            transcript=str(features["text"][0, 0]) if "text" in features else None,
            timings_ms=timings,
            bundle=self.backend.identity,
        )

    def predict_many(
        self,
        clips: Iterable[Clip | PathLike | bytes],
        *,
        workers: int = 2,
        keep_frames: bool = False,
        hear: bool = True,
    ) -> Generator[Prediction | MerkitError, None, None]:
        """Predictions in the order of the clips, several at a time.

        A clip that cannot be predicted yields its error in its place and costs the others
        nothing. At most twice `workers` clips are taken ahead of the one that is yielded.
        `keep_frames` and `hear` are as in `predict`.
        """
        if workers < 1:
            raise InvalidInputError(f"workers is {workers}", "at least 1", "give 1 or more")
        predict = partial(self._predict_or_error, keep_frames=keep_frames, hear=hear)
        return _side_by_side(predict, clips, workers)

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

    def _predict(self, clip: Clip, keep_frames: bool, hear: bool) -> Prediction:
        start = time.perf_counter()
        entry = self._entry(clip, keep_frames, hear)
        timings = dict(entry.timings_ms)
        try:
            outputs = self.backend.infer(entry.tensors, timings)
        except InputError as error:  # a server is sent the clip's bytes, not its name
            if NAMELESS not in error.found or isinstance(clip.media, bytes):
                raise
            found = error.found.replace(NAMELESS, clip.name)
            raise type(error)(found, error.expected, error.action) from error
        timings["total"] = (time.perf_counter() - start) * 1e3
        return Prediction.from_outputs(
            {**entry.detail, **outputs},
            self.backend.contract,
            source=clip.name,
            transcript=clip.text,
            timings_ms=timings,
            bundle=self.backend.identity,
            frames=entry.frames,
        )

    def _predict_or_error(
        self, clip: Clip | PathLike | bytes, keep_frames: bool, hear: bool
    ) -> Prediction | MerkitError:
        c = clip if isinstance(clip, Clip) else Clip(clip)
        options: dict[str, Any] = {"keep_frames": keep_frames, "hear": hear}
        try:
            return self.predict(c.media, c.text, source=c.source, **options)
        except MerkitError as error:
            return error
        except MemoryError:
            raise
        except Exception as error:
            failure = InferenceError.of("the prediction", error)
            failure.__cause__ = error
            return failure

    def _entry(self, clip: Clip, keep_frames: bool, hear: bool) -> Entry:
        check_text(clip.text)
        if clip.media is None and clip.text is None:
            raise InvalidInputError("neither a clip nor a text", "at least one", "give one")
        contract = self.backend.contract
        unheard = not hear and contract.hearing is not None and not (clip.text or "").strip()
        if self._decode == "server":
            if unheard and clip.media is not None:
                raise InvalidInputError(
                    "hear=False for a server that is sent whole clips, and listens to them",
                    "hear=False with clips that are decoded here",
                    "connect with decode='client', or give the text",
                )
            return bytes_entry(clip, self._limits)
        found = decoded_entry(
            clip, contract.preprocessing, self._limits, self._detector, keep_frames
        )
        return found.unheard() if unheard else found


def _side_by_side(
    predict: Callable[[Clip | PathLike | bytes], Prediction | MerkitError],
    clips: Iterable[Clip | PathLike | bytes],
    workers: int,
) -> Generator[Prediction | MerkitError, None, None]:
    """What `predict` makes of each clip, in order, several at a time."""
    pending: deque[Future[Prediction | MerkitError]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="merkit-client") as pool:
        try:
            for clip in clips:
                run = copy_context().run  # the caller's trace goes on in the worker
                pending.append(pool.submit(run, predict, clip))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def same_contract(found: str, expected: str) -> None:
    """Raises ContractMismatchError where a fall-back would speak another contract."""
    if found != expected:
        raise ContractMismatchError(
            f"the fall-back bundle has the contract {found}",
            f"{expected}, the one to be served",
            "give the bundle that the server serves",
        )
