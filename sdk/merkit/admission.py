"""May this bundle run here? Asked before a single weight is loaded.

A bundle that opened is whole. It may still be somebody else's, or one that failed its own gate
and was kept for study. Both are refused here, for the embedded pipeline and for the server alike,
so that no way of running a bundle is laxer than another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from merkit.bundle import Bundle
from merkit.errors import UnreleasableBundleError
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
            MERKIT_TRUSTED_KEYS names. Where neither names any, signatures are not asked for.
        allow_unreleasable: run it although it failed its gate.

    Raises:
        SignatureError: keys are configured, and none of them vouches for this bundle.
        UnreleasableBundleError: it failed its gate.
        InvalidInputError: a trusted key cannot be read.
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
    """What MERKIT_TRUSTED_KEYS names; None where it names nothing."""
    named = [path for path in environment.get(TRUSTED_KEYS, "").split(os.pathsep) if path]
    return named or None


def releasable(bundle: Bundle) -> bool:
    """Whether the bundle passed its gate; those written before there was one count as passed."""
    validation = bundle.manifest.get("validation")
    stated = validation.get("releasable", True) if isinstance(validation, dict) else True
    return stated is True


def _why(bundle: Bundle) -> str:
    reasons = bundle.manifest["validation"].get("unreleasable_because")
    return str(reasons[0]) if isinstance(reasons, list) and reasons else "no reason is stated"
