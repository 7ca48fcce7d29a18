"""Who vouches for a bundle: ed25519 signatures over its manifest, which hashes all content.

Hashes show that a bundle is whole, not whose it is: whoever changes a weight can write the hash
anew. A signature by a key that the host trusts closes that gap. What is signed is the manifest as
values, in one canonical form, so it survives reformatting and nothing else; deployment files
differ per host and stay outside, so a host renders its own.

    bundle.sig   {"schema": 1, "signatures": [{"algorithm", "key_id", "manifest", "signature"}]}
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merkit.bundle import SIGNATURES, Bundle
from merkit.contract import canonical
from merkit.errors import (
    InvalidInputError,
    MissingExtraError,
    SignatureAlteredError,
    SignatureMalformedError,
    SignerUnknownError,
    UnsignedBundleError,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SCHEMA = 1
ALGORITHM = "ed25519"
PURPOSE = b"merkit bundle manifest, schema 1\0"
"""Precedes what is signed, so that no other use of a key can be passed off as a bundle's."""
KEY_ID_DIGITS = 16
PUBLIC_SUFFIX = ".pub"
PathLike = str | os.PathLike[str]
Keys = PathLike | Sequence[PathLike]
SIGN_AGAIN = "fetch an unchanged copy, or sign the bundle again: merkit-export sign"


@dataclass(frozen=True)
class Signature:
    """One entry of `bundle.sig`.

    Attributes:
        key_id: whose key made it, see `key_id`.
        manifest: sha256 of the canonical manifest it was made for.
        value: 64 bytes.
    """

    key_id: str
    manifest: str
    value: bytes

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        told = base64.b64encode(self.value).decode("ascii")
        return {
            "algorithm": ALGORITHM,
            "key_id": self.key_id,
            "manifest": self.manifest,
            "signature": told,
        }


def generate_keys(private: Path, password: bytes | None = None) -> tuple[Path, str]:
    """Writes a new key pair: `private` (PKCS 8, mode 0600) and `private`.pub beside it.

    Args:
        private: where the private key goes; must not exist.
        password: encrypts the private key; None leaves it readable to whoever reads the file.

    Returns:
        The public key's path and the key's id.

    Raises:
        InvalidInputError: a file of that name exists, or the password is empty.
        MissingExtraError: cryptography is not installed.
    """
    serialization, ed25519 = _cryptography()
    public = private.with_name(private.name + PUBLIC_SUFFIX)
    for path in (private, public):
        if path.exists():
            raise InvalidInputError(
                f"{path} exists", "a new name: a lost key cannot be had again", "choose another"
            )
    if password is not None and not password:
        raise InvalidInputError("the password is empty", "at least one letter", "give one")
    key = ed25519.Ed25519PrivateKey.generate()
    lock = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password)
    )
    encoding, kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.parent.mkdir(parents=True, exist_ok=True)
    _write_new(private, key.private_bytes(encoding, kinds, lock), 0o600)
    shown = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write_new(public, shown, 0o644)
    return public, key_id(key.public_key())


def key_id(key: Ed25519PublicKey) -> str:
    """16 hexadecimal digits by which signatures and messages name a public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:KEY_ID_DIGITS]


def sign(bundle: Bundle, private: Path, password: bytes | None = None) -> Signature:
    """Adds a signature to `bundle.sig`; those made for another manifest are dropped.

    Raises:
        InvalidInputError: no usable private key there, or a wrong password.
        SignatureMalformedError: the signatures that are there cannot be read.
        MissingExtraError: cryptography is not installed.
    """
    key = _read_private(private, password)
    message = canonical(dict(bundle.manifest))
    digest = hashlib.sha256(message).hexdigest()
    made = Signature(key_id(key.public_key()), digest, key.sign(PURPOSE + message))
    kept = [s for s in read_signatures(bundle) if s.manifest == digest and s.key_id != made.key_id]
    table = {"schema": SCHEMA, "signatures": [s.to_json() for s in (*kept, made)]}
    path = bundle.root / SIGNATURES
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    temporary.replace(path)
    return made


def read_signatures(bundle: Bundle) -> tuple[Signature, ...]:
    """What `bundle.sig` holds, unchecked; nothing where there is no such file.

    Raises:
        SignatureMalformedError: the file is no list of signatures.
    """
    path = bundle.root / SIGNATURES
    try:
        table = json.loads(path.read_text("utf-8"))
        if table["schema"] != SCHEMA:
            raise ValueError(f"schema {table['schema']!r}")
        return tuple(_parse(entry) for entry in table["signatures"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SignatureMalformedError(
            f"{path} cannot be read ({type(error).__name__}: {error})",
            f"signatures of schema {SCHEMA}, as merkit-export sign writes them",
            SIGN_AGAIN,
        ) from None


def read_public_keys(keys: Keys) -> dict[str, Ed25519PublicKey]:
    """Public keys by id.

    Args:
        keys: files that `generate_keys` wrote, or folders with such files (`*.pub`).

    Raises:
        InvalidInputError: none given, or one that is no ed25519 public key.
        MissingExtraError: cryptography is not installed.
    """
    named = [keys] if isinstance(keys, str | os.PathLike) else list(keys)
    paths: list[Path] = []
    for path in map(Path, named):
        paths += sorted(path.glob(f"*{PUBLIC_SUFFIX}")) if path.is_dir() else [path]
    if not paths:
        raise InvalidInputError(
            f"no trusted key in {', '.join(map(str, named)) or 'an empty list'}",
            f"public keys (*{PUBLIC_SUFFIX})",
            "name at least one; without a key, leave trusted_keys out",
        )
    found = [_read_public(path) for path in paths]
    return {key_id(key): key for key in found}


def check_signature(bundle: Bundle, keys: Mapping[str, Ed25519PublicKey]) -> str:
    """The id of a trusted key that signed exactly this manifest.

    The manifest that was read when the bundle was opened is what is checked, not the file anew.

    Raises:
        UnsignedBundleError: the bundle carries no signature.
        SignerUnknownError: signatures, but none by a trusted key.
        SignatureAlteredError: a trusted key signed something else.
        SignatureMalformedError: the signatures cannot be read.
    """
    from cryptography.exceptions import InvalidSignature

    signatures = read_signatures(bundle)
    where = bundle.root / SIGNATURES
    trusted = ", ".join(sorted(keys))
    if not signatures:
        raise UnsignedBundleError(
            f"{bundle.root} carries no signature",
            f"one by a trusted key ({trusted})",
            "fetch the signed bundle, or sign it: merkit-export sign",
        )
    ours = [s for s in signatures if s.key_id in keys]
    if not ours:
        raise SignerUnknownError(
            f"{where} holds signatures by {', '.join(s.key_id for s in signatures)}",
            f"one by a trusted key ({trusted})",
            "add the signer's public key to the trusted ones if you know whose it is",
        )
    message = PURPOSE + canonical(dict(bundle.manifest))
    for signature in ours:
        try:
            keys[signature.key_id].verify(signature.value, message)
        except InvalidSignature:
            continue
        return signature.key_id
    raise SignatureAlteredError(
        f"the manifest of {bundle.root} is not the one that {ours[0].key_id} signed",
        "the manifest as it was signed",
        SIGN_AGAIN,
    )


def _parse(entry: Any) -> Signature:
    if entry["algorithm"] != ALGORITHM:
        raise ValueError(f"algorithm {entry['algorithm']!r}")
    names = [entry["key_id"], entry["manifest"], entry["signature"]]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a field is no text")
    try:
        return Signature(names[0], names[1], base64.b64decode(names[2], validate=True))
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Writes a file that did not exist, readable from its first byte on to `mode` alone."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _read_private(path: Path, password: bytes | None) -> Ed25519PrivateKey:
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password)
    except OSError as error:
        raise InvalidInputError(
            f"the key {path} cannot be read ({error.strerror})",
            "a private key",
            "make one: merkit-export keygen",
        ) from None
    except TypeError:  # a password for a plain key, or none for an encrypted one
        found = "is encrypted" if password is None else "is not encrypted"
        told = "give its password" if password is None else "give no password"
        raise InvalidInputError(f"the key {path} {found}", "a password to match", told) from None
    except ValueError as error:
        first = str(error).partition("\n")[0]
        raise InvalidInputError(
            f"the key {path} cannot be opened ({first[:120]})",
            "a private key in PEM, and its password",
            "correct the password, or give another key",
        ) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InvalidInputError(f"{path} holds a {type(key).__name__}", "an ed25519 key")
    private: Ed25519PrivateKey = key
    return private


def _read_public(path: Path) -> Ed25519PublicKey:
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else "no public key in PEM"
        raise InvalidInputError(
            f"the trusted key {path} cannot be read ({told})",
            f"a public key, as merkit-export keygen writes into a *{PUBLIC_SUFFIX}",
            "correct the path; a private key never belongs on a host that only checks",
        ) from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InvalidInputError(f"{path} holds a {type(key).__name__}", "an ed25519 public key")
    public: Ed25519PublicKey = key
    return public


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingExtraError.of("cryptography", "sign") from None
    return serialization, ed25519
