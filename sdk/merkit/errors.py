"""Every error a user of merkit can meet, in one vocabulary.

Without this module a caller would meet av, onnxruntime, grpc and cv2 exceptions, a different
set for each backend. Each error here says what was found, what was expected and what to do,
and travels over the wire unchanged, so that the embedded and the served pipeline fail alike.

    MerkitError
    ├── InputError                 the clip or an argument is at fault
    │   ├── ClipNotFoundError      no such file
    │   ├── ClipUnreadableError    not media, or nothing in it can be decoded
    │   ├── ClipLimitError         larger or longer than the stated limits
    │   ├── NoEvidenceError        no face, no audible sound and no words: nothing to judge
    │   └── InvalidInputError      an argument or tensor of the wrong type, shape or value
    ├── BundleError                the bundle is at fault
    │   ├── BundleNotFoundError    no bundle at that path
    │   ├── BundleCorruptError     a file is missing, changed or malformed
    │   ├── ContractMismatchError  two sides speak different contracts
    │   ├── UnreleasableBundleError it failed its gate and is kept for study
    │   └── SignatureError         no trusted key vouches for it
    │       ├── UnsignedBundleError     it carries no signature
    │       ├── SignerUnknownError      none of its signatures is by a trusted key
    │       ├── SignatureAlteredError   a trusted key signed something else
    │       └── SignatureMalformedError its signatures cannot be read
    ├── BackendError               execution is at fault
    │   ├── ServerUnavailableError nothing answers at the address
    │   ├── ServerNotReadyError    a server answers, but the model is not ready
    │   ├── DeadlineExceededError  no answer within the deadline
    │   ├── CertificateError       TLS: one side does not accept the other's certificate
    │   ├── AccessDeniedError      the server refuses this client, or its token
    │   └── InferenceError         a step failed while running
    └── MissingExtraError          an optional dependency is not installed
"""

from __future__ import annotations

import json
from typing import ClassVar


class MerkitError(Exception):
    """Base of all merkit errors.

    Args:
        found: what was found, as a clause ("clip.mp4 holds no streams").
        expected: what was expected instead, as a noun phrase.
        action: what the reader can do about it, as an imperative.
    """

    kinds: ClassVar[dict[str, type[MerkitError]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        MerkitError.kinds[cls.__name__] = cls

    def __init__(self, found: str, expected: str = "", action: str = "") -> None:
        self.found, self.expected, self.action = found, expected, action
        parts = [found, f"expected {expected}" if expected else "", action]
        super().__init__("; ".join(part for part in parts if part))

    def __reduce__(self) -> tuple[type[MerkitError], tuple[str, str, str]]:
        return type(self), (self.found, self.expected, self.action)

    def to_wire(self) -> str:
        """One line of JSON, which a server puts into its error message."""
        fields = {"kind": type(self).__name__, "found": self.found}
        fields |= {"expected": self.expected, "action": self.action}
        return WIRE_MARK + json.dumps(fields, ensure_ascii=True)

    @staticmethod
    def from_wire(message: str) -> MerkitError | None:
        """The typed error inside a server's message, or None if it carries none."""
        _, mark, rest = message.partition(WIRE_MARK)
        if not mark:
            return None
        try:
            fields, _ = json.JSONDecoder().raw_decode(rest)
            kind = MerkitError.kinds[fields["kind"]]
            return kind(str(fields["found"]), str(fields["expected"]), str(fields["action"]))
        except (ValueError, KeyError, TypeError):
            return None


WIRE_MARK = "merkit-error:"


class InputError(MerkitError):
    """The clip or an argument is at fault."""


class ClipNotFoundError(InputError):
    """No file at the given path."""

    @classmethod
    def at(cls, path: object) -> ClipNotFoundError:
        """The error for a clip that is not at `path`."""
        return cls(
            f"there is no file {path}",
            "a readable file",
            "check the path; clips are read from files, not from addresses",
        )


class ClipUnreadableError(InputError):
    """The bytes are not media, or nothing in them can be decoded."""


class ClipLimitError(InputError):
    """The clip exceeds a stated limit of size, length or pixels."""


class NoEvidenceError(InputError):
    """No face, no audible sound and no words: there is nothing to judge."""


class InvalidInputError(InputError):
    """An argument or tensor has the wrong type, shape or value."""


class BundleError(MerkitError):
    """The bundle is at fault."""


class BundleNotFoundError(BundleError):
    """No bundle at the given path."""


class BundleCorruptError(BundleError):
    """A file of the bundle is missing, changed or malformed."""


class ContractMismatchError(BundleError):
    """Two sides speak different contracts."""


class UnreleasableBundleError(BundleError):
    """The bundle failed its gate and is kept for study."""


class SignatureError(BundleError):
    """No trusted key vouches for the bundle."""


class UnsignedBundleError(SignatureError):
    """A signature is required, and the bundle carries none."""


class SignerUnknownError(SignatureError):
    """The bundle is signed, but by no trusted key."""


class SignatureAlteredError(SignatureError):
    """A trusted key signed something else."""


class SignatureMalformedError(SignatureError):
    """The bundle's signatures cannot be read."""


class BackendError(MerkitError):
    """Execution is at fault."""


class ServerUnavailableError(BackendError):
    """Nothing answers at the address."""


class ServerNotReadyError(BackendError):
    """A server answers, but the model is not loaded or not ready."""


class DeadlineExceededError(BackendError):
    """No answer within the deadline."""


class CertificateError(BackendError):
    """One side of a TLS connection does not accept the other's certificate."""


class AccessDeniedError(BackendError):
    """The server refuses this client: no token, a wrong or an expired one."""


class InferenceError(BackendError):
    """A step failed while running."""

    @classmethod
    def of(cls, what: str, error: Exception) -> InferenceError:
        """The error for `what` in which another package's exception arose."""
        first = (str(error).strip() or "no message").splitlines()[0]
        return cls(
            f"{what} failed ({type(error).__name__}: {first})",
            "a result or an error of merkit's own",
            "try another clip; if it fails for each, check the packages' versions",
        )


class MissingExtraError(MerkitError):
    """An optional dependency is not installed."""

    @classmethod
    def of(cls, package: str, extra: str) -> MissingExtraError:
        """The error for an import of `package` that `merkit[extra]` would satisfy."""
        return cls(
            f"the package {package!r} is not installed",
            f"merkit with its {extra!r} extra",
            f"run: pip install 'merkit[{extra}]'",
        )
