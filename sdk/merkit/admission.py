"""May this bundle run here? Asked before a single weight is loaded.

A bundle that opened is whole. It may still be somebody else's, or one that failed its own gate
and was kept for study. Both are refused here, for the embedded pipeline and for the server alike,
so that no way of running a bundle is laxer than another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from merkit.bundle import Bundle
from merkit.errors import InvalidInputError, UnreleasableBundleError
from merkit.signing import Keys, check_signature, read_public_keys

TRUSTED_KEYS = "MERKIT_TRUSTED_KEYS"
"""Environment variable: paths of trusted public keys, or folders of them, as in PATH."""


def admit(
    bundle: Bundle, trusted_keys: Keys | None = None, allow_unreleasable: bool = False
) -> Bundle:
    """The bundle itself, if it may run here.

    Args:
        bundle: an opened bundle.
        trusted_keys: public keys of which one must have signed it; default: those that
            MERKIT_TRUSTED_KEYS names. Where neither is set, signatures are not asked for.
        allow_unreleasable: run it although it failed its gate.

    Raises:
        SignatureError: keys are configured, and none of them vouches for this bundle.
        UnreleasableBundleError: it failed its gate.
        InvalidInputError: a trusted key cannot be read, or MERKIT_TRUSTED_KEYS is set to none.
        MissingExtraError: keys are configured, and cryptography is not installed.
    """
    keys = configured_keys() if trusted_keys is None else trusted_keys
    if keys is not None:
        check_signature(bundle, read_public_keys(keys))
    if not releasable(bundle) and not allow_unreleasable:
        raise UnreleasableBundleError(
            f"{bundle.root} failed its gate ({_why(bundle)})",
            "a bundle that passed merkit-export's gate",
            "export it again; to study this one, pass allow_unreleasable=True",
        )
    return bundle


def configured_keys(environment: Mapping[str, str] = os.environ) -> list[str] | None:
    """What MERKIT_TRUSTED_KEYS names; None where it is not set.

    Raises:
        InvalidInputError: it is set and names nothing: whoever set it wanted signatures checked,
            and a variable of a script that was empty must not admit everybody.
    """
    stated = environment.get(TRUSTED_KEYS)
    if stated is None:
        return None
    named = [path for path in stated.split(os.pathsep) if path.strip()]
    if not named:
        raise InvalidInputError(
            f"{TRUSTED_KEYS} is set to {stated!r}, which names no key",
            f"public keys or folders of them, separated by {os.pathsep!r}",
            "name at least one; to ask for no signature, unset it",
        )
    return named


def releasable(bundle: Bundle) -> bool:
    """Whether the bundle passed its gate; those written before there was one count as passed."""
    validation = bundle.manifest.get("validation")
    stated = validation.get("releasable", True) if isinstance(validation, dict) else True
    return stated is True


def _why(bundle: Bundle) -> str:
    reasons = bundle.manifest["validation"].get("unreleasable_because")
    return str(reasons[0]) if isinstance(reasons, list) and reasons else "no reason is stated"
