"""`load` and `connect`: a client of a bundle on disk, or of a server.

Which backend a client gets, what it insists on and what it falls back to is decided here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from merkit.admission import admit
from merkit.backends.base import Backend
from merkit.bundle import open_bundle
from merkit.client import UNAVAILABLE, Client, Decode, same_contract
from merkit.contract import Contract
from merkit.entry import PathLike
from merkit.errors import MerkitError
from merkit.media.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from merkit.backends.observed import Observer
    from merkit.backends.security import Security
    from merkit.faces import FaceDetector
    from merkit.signing import Keys


def load(
    bundle: PathLike,
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    lazy: bool = False,
    detector: FaceDetector | None = None,
    limits: Limits | None = None,
    trusted_keys: Keys | None = None,
    allow_unreleasable: bool = False,
) -> Client:
    """Opens a bundle to be run in this process, on ONNX Runtime.

    Args:
        bundle: the bundle's folder. Every content file is checked against its manifest.
        providers: ONNX Runtime execution providers in order of preference (`cpu`, `cuda`, ...), or
            `tensorrt` for the plans that lie in the bundle; what has none that fits falls back.
        threads: budget of threads; default: the cores this process may use.
        lazy: ask no branch whose vote cannot change the label, and run only the encoders needed.
        detector: finds faces; default: OpenCV's Haar cascade.
        limits: what a clip may be at most.
        trusted_keys: public keys (files or folders of `*.pub`) of which one must have signed the
            bundle; default: those that MERKIT_TRUSTED_KEYS names, if any.
        allow_unreleasable: run a bundle that failed its gate, to study it.

    Raises:
        BundleError: no bundle there, or a file of it is missing, changed or foreign; or it failed
            its gate.
        SignatureError: keys are configured, and none of them vouches for the bundle.
        MissingExtraError: ONNX Runtime is not installed.
        InvalidInputError: an unknown provider, no thread, or a key that cannot be read.
    """
    from merkit.backends.embedded import EmbeddedBackend

    admitted = admit(open_bundle(bundle), trusted_keys, allow_unreleasable)
    backend = EmbeddedBackend(admitted, providers, threads, lazy)
    return _or_close(backend, detector=detector, limits=limits)


def connect(
    url: str,
    *,
    deadline: float = 10.0,
    decode: Decode = "server",
    contract_id: str | None = None,
    detector: FaceDetector | None = None,
    limits: Limits | None = None,
    fallback: PathLike | None = None,
    security: Security | None = None,
    observe: Observer | None = None,
    lazy: bool = False,
    bundle: str | None = None,
    priority: int = 0,
) -> Client:
    """Connects to a Triton server that serves a bundle.

    Args:
        url: `grpc://host:port`, or `grpcs://host:port` for TLS.
        deadline: seconds within which each whole call must be answered.
        decode: where clips are decoded and faces found: `server` sends the clip's bytes,
            `client` sends face crops and sound, and keeps the picture here.
        contract_id: the contract to insist on; default: whatever the server speaks.
        detector: with `decode="client"`, finds faces; default: OpenCV's Haar cascade.
        limits: what a clip may be at most; with `decode="server"` only its `max_bytes` is free.
        fallback: a bundle of the same contract that answers, embedded, when the server does not.
        security: whom to trust, and what proves who this client is.
        observe: called after each request to the server, `CallCounters()` for one.
        lazy: have the server ask no branch whose vote cannot change the label; see `load`.
        bundle: the first digits (8 or more) of a bundle_id, where the server has several bundles.
        priority: of these requests in the server's queues, 1 the most urgent; 0 leaves it to it.

    Raises:
        ServerUnavailableError: nothing answers at the address.
        ServerNotReadyError: a server answers, but it does not serve a bundle, or not yet.
        ContractMismatchError: the server, or the fall-back, speaks another contract.
        CertificateError, AccessDeniedError: one side does not trust the other.
        MissingExtraError: tritonclient is not installed.
    """
    from merkit.backends.observed import ObservedBackend
    from merkit.backends.triton import TritonBackend

    def served(contract_id: str | None) -> Backend:
        opened = TritonBackend(
            url,
            deadline=deadline,
            contract_id=contract_id,
            security=security,
            lazy=lazy,
            bundle=bundle,
            priority=priority,
        )
        return ObservedBackend(opened, observe) if observe else opened

    if fallback is None:
        backend = served(contract_id)
        return _or_close(backend, decode=decode, detector=detector, limits=limits)
    spare = load(fallback, lazy=lazy, detector=detector, limits=limits)
    expected = spare.backend.contract
    try:
        if contract_id is not None:
            same_contract(expected.contract_id, contract_id)
        backend = _now_or_late(lambda: served(expected.contract_id), expected)
    except MerkitError:
        spare.close()
        raise
    return _or_close(backend, decode=decode, detector=detector, limits=limits, fallback=spare)


def _now_or_late(open_backend: Callable[[], Backend], contract: Contract) -> Backend:
    """The backend if it is available, else one that will be opened when it is."""
    try:
        return open_backend()
    except UNAVAILABLE:
        from merkit.backends.late import LateBackend

        return LateBackend(open_backend, contract)


def _or_close(backend: Backend, **options: Any) -> Client:
    """A client of `backend`; nothing stays open if the options are refused."""
    try:
        return Client(backend, **options)
    except MerkitError:
        for opened in filter(None, (backend, options.get("fallback"))):
            opened.close()
        raise
