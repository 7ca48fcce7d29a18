"""merkit: multimodal emotion recognition, embedded or served from one bundle.

    import merkit
    with merkit.load("triton_repo/models") as client:
        print(client.predict("clip.mp4", text="I did not expect that!").label)

Names load when first used, so that `import merkit` costs next to nothing and an application pays
only for the backend that it opens.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; importing typing would cost 10 ms
if TYPE_CHECKING:
    from merkit import errors
    from merkit.backends.observed import CallCounters
    from merkit.backends.security import Security
    from merkit.backends.tracing import traceparent
    from merkit.client import Client
    from merkit.entry import Clip
    from merkit.errors import MerkitError
    from merkit.opening import connect, load
    from merkit.results import Face, Prediction, Vote

__version__ = "0.1.0"
__all__ = [
    "CallCounters",
    "Client",
    "Clip",
    "Face",
    "MerkitError",
    "Prediction",
    "Security",
    "Vote",
    "__version__",
    "connect",
    "errors",
    "load",
    "traceparent",
]

_HOMES = {
    "Client": "merkit.client",
    "Clip": "merkit.entry",
    "connect": "merkit.opening",
    "load": "merkit.opening",
    "Face": "merkit.results",
    "Prediction": "merkit.results",
    "Vote": "merkit.results",
    "MerkitError": "merkit.errors",
    "CallCounters": "merkit.backends.observed",
    "Security": "merkit.backends.security",
    "traceparent": "merkit.backends.tracing",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "errors":
        return import_module("merkit.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'merkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
