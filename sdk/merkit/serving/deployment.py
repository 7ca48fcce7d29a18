"""What one host chooses for itself: flavours, instances, batching, queues, caches, warm-up.

A bundle says what is computed; where and how depends on the host, and a choice made by editing
rendered files would be lost at the next rendering. So each choice is a field here, read from a
`host.toml` in which every key is checked: a misspelt one would otherwise be a choice not made.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from merkit.errors import InvalidInputError
from merkit.media.limits import Limits

Flavour = Literal["onnxruntime", "tensorrt", "python"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
Kind = Literal["auto", "cpu", "gpu"]
Overflow = Literal["reject", "delay"]
MOST = 2**31 - 1
"""No whole number of a Triton config is larger; some may be, but no host can want that."""


@dataclass(frozen=True)
class QueuePolicy:
    """What a batching step does with requests that it cannot run at once."""

    max_size: int = 0
    """Requests that may wait; one more is refused. 0: any number."""
    timeout_ms: float = 0
    """How long a request may wait. 0: for ever."""
    on_timeout: Overflow = "reject"
    """What becomes of a request that waited too long: refused, or served after all others."""
    priorities: int = 0
    """Levels of priority, 1 the most urgent. 0: none."""
    default_priority: int = 0
    """The level of requests that name none; 0: the least urgent."""


@dataclass(frozen=True)
class StepDeployment:
    """How one step runs. `Deployment.of` gives it with every field filled in."""

    flavour: Flavour | None = None
    """What executes an ONNX step; steps in Python are not asked."""
    instances: int = 1
    """Copies that run side by side (of each GPU, where the kind is `gpu`)."""
    kind: Kind = "auto"
    """Where they run; `auto` takes a GPU where Triton finds one and the backend can use it."""
    gpus: tuple[int, ...] = ()
    """Which GPUs; empty: all."""
    max_batch_size: int | None = None
    """The largest batch; 0 switches batching off."""
    queue_delay_us: int | None = None
    """How long a request may wait for others to share a batch with, in microseconds."""
    queue: QueuePolicy | None = None
    """Its queue."""
    response_cache: bool | None = None
    """Whether Triton answers a request it has seen from its cache."""
    warm_up: bool | None = None
    """Whether it runs on samples before it counts as ready."""
    precision: str | None = None
    """The precision that this host insists on; a bundle that stores another is not rendered."""


@dataclass(frozen=True)
class CustomCut:
    """An entry point on request: tensors that come in and tensors that are wanted out."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Deployment:
    """How one host runs a bundle; step by step where `steps` says so, else as stated here."""

    flavour: Flavour = "onnxruntime"
    """What executes ONNX steps: Triton's ONNX Runtime, TensorRT or Python backend."""
    threads: int = 0
    """Intra-op threads of each ONNX session, and clips that `decode` and `faces` compute side by
    side; 0 takes every core."""
    max_batch_size: int = 16
    """The largest batch of encoders, fusion and voting, and the most requests that a step in
    Python takes at once; 0 switches both off."""
    queue_delay_us: int = 1000
    """How long a request may wait for others to share a run with, in microseconds; steps that
    compute clip by clip do not wait."""
    queue: QueuePolicy = QueuePolicy()
    """Queues of batching steps; limits hold for steps that run alone (see `limit_parallel`)."""
    limit_parallel: bool = False
    """Whether limits of queues hold for steps, too, that run beside others, as encoders do. Triton
    24.10 dies when such a queue turns a request away (server PR #8631 of 2026 mends it)."""
    response_cache: bool = False
    """Whether Triton's response cache is asked (the server needs --cache-config, too)."""
    warm_up: bool = False
    """Whether steps run on samples, rendered beside them, before they count as ready."""
    warm_up_clips: tuple[Path, ...] = ()
    """Media to make the samples of; none: generated ones."""
    views: bool = False
    """Whether to render the single-modality views, which answer with features."""
    ensembles: Mapping[str, CustomCut] = field(default_factory=dict)
    """Further entry points, by name."""
    steps: Mapping[str, StepDeployment] = field(default_factory=dict)
    """Choices for single steps, by name."""
    limits: Limits = field(default_factory=Limits)
    """What a clip may be at most that this server decodes."""

    def of(self, step: str) -> StepDeployment:
        """The choices for `step` with the general ones where it has none of its own."""
        own = self.steps.get(step, StepDeployment())
        general = ("flavour", "max_batch_size", "queue_delay_us", "queue", "response_cache")
        missing = {
            name: getattr(self, name)
            for name in (*general, "warm_up")
            if getattr(own, name) is None
        }
        return replace(own, **missing)


DEFAULT = Deployment()
"""A host that makes no choices."""


def read_deployment(path: Path) -> Deployment:
    """Reads a `host.toml`: the fields of `Deployment`, with tables `queue`, `steps.NAME` and
    `ensembles.NAME`. Paths in it are relative to its folder.

    Raises:
        InvalidInputError: no such file, not TOML, or a key that is unknown or of a wrong value.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(
            f"{path} cannot be read ({error})",
            "a TOML file of a host's choices",
            "correct the path, or the line named; docs/host.toml shows all",
        ) from None
    clips = values.get("warm_up_clips")
    if isinstance(clips, list) and all(isinstance(clip, str) for clip in clips):
        values["warm_up_clips"] = [str(path.parent / clip) for clip in clips]
    made: Deployment = _read(Deployment, values, str(path))
    check_choices(made, str(path))
    return made


def check_choices(deployment: Deployment, where: str = "the deployment") -> None:
    """Refuses values that no host can want; InvalidInputError names the first.

    Which steps and tensors there are depends on the bundle: rendering checks that.
    """
    _check_range(deployment, where, "threads", 0)
    _check_common(deployment, where, "")
    for limit in fields(Limits):
        _check_range(deployment.limits, where, limit.name, 1, "limits.", most=math.inf)
    for name, step in deployment.steps.items():
        prefix = f"steps.{name}."
        _check_common(step, where, prefix)
        _check_range(step, where, "instances", 1, prefix)
        if step.gpus and (step.kind != "gpu" or min(step.gpus) < 0 or max(step.gpus) > MOST):
            raise _wrong(where, f"{prefix}gpus", step.gpus, "numbers from 0 on, and kind = 'gpu'")


def _check_common(part: Deployment | StepDeployment, where: str, prefix: str) -> None:
    if part.flavour is not None and part.flavour not in FLAVOURS:
        raise _wrong(where, f"{prefix}flavour", part.flavour, f"one of {', '.join(FLAVOURS)}")
    for name in ("max_batch_size", "queue_delay_us"):
        _check_range(part, where, name, 0, prefix)
    if part.queue is not None:
        _check_queue(part.queue, where, f"{prefix}queue.")


def _check_queue(queue: QueuePolicy, where: str, prefix: str) -> None:
    for name in ("max_size", "timeout_ms", "priorities", "default_priority"):
        _check_range(queue, where, name, 0, prefix)
    if queue.default_priority > queue.priorities:
        expected = f"at most {queue.priorities}, the priorities beside it"
        raise _wrong(where, f"{prefix}default_priority", queue.default_priority, expected)


def _check_range(
    part: Any, where: str, name: str, least: int, prefix: str = "", most: float = MOST
) -> None:
    value = getattr(part, name)
    if value is None or least <= value <= most:  # not a number is neither
        return
    expected = f"{least} or more" if not value > most else f"at most {most:.0f}"
    raise _wrong(where, f"{prefix}{name}", value, expected)


def _read(kind: type[Any], values: object, where: str, prefix: str = "") -> Any:
    """An instance of the dataclass `kind` out of a TOML table; every key and type is checked."""
    if not isinstance(values, Mapping):
        raise _wrong(where, prefix.rstrip("."), values, "a table")
    known = [f.name for f in fields(kind)]
    if unknown := sorted(set(values) - set(known)):
        raise InvalidInputError(
            f"{where} has the key {prefix + unknown[0]!r}",
            f"one of {', '.join(prefix + name for name in known)}",
            "correct or remove it",
        )
    if kind is CustomCut and (missing := {"inputs", "outputs"} - set(values)):
        raise _wrong(where, prefix.rstrip("."), values, f"the key {min(missing)!r} in it")
    return kind(**{key: _value(key, v, where, prefix + key) for key, v in values.items()})


_TABLES: Mapping[str, type[Any]] = {"steps": StepDeployment, "ensembles": CustomCut}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "flavour": FLAVOURS,
    "kind": get_args(Kind),
    "on_timeout": get_args(Overflow),
}
_SWITCHES = ("limit_parallel", "response_cache", "warm_up", "views")
_NAMES = ("inputs", "outputs")


def _value(key: str, value: Any, where: str, name: str) -> Any:
    """One value, converted to its field's type."""
    if key == "limits":
        return _read(Limits, value, where, f"{name}.")
    if key == "queue":
        return _read(QueuePolicy, value, where, f"{name}.")
    if key in _TABLES:
        if not isinstance(value, Mapping):
            raise _wrong(where, name, value, f"tables [{name}.NAME]")
        return {k: _read(_TABLES[key], v, where, f"{name}.{k}.") for k, v in value.items()}
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise _wrong(where, name, value, f"one of {', '.join(_CHOICES[key])}")
        return value
    if key in _SWITCHES:
        return _typed(value, bool, where, name, "true or false")
    if key == "precision":
        return _typed(value, str, where, name, "a name")
    if key in (*_NAMES, "warm_up_clips"):
        texts = _list(value, str, where, name)
        return texts if key in _NAMES else tuple(Path(text) for text in texts)
    if key == "gpus":
        return _list(value, int, where, name)
    if key in ("timeout_ms", "max_seconds") and isinstance(value, float):
        return value
    return _typed(value, int, where, name, "a whole number")


def _typed(value: Any, kind: type, where: str, name: str, expected: str) -> Any:
    if type(value) is not kind:
        raise _wrong(where, name, value, expected)
    return value


def _list(value: Any, kind: type, where: str, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value or any(type(v) is not kind for v in value):
        raise _wrong(where, name, value, f"a list of {kind.__name__}")
    return tuple(value)


def _wrong(where: str, name: str, value: object, expected: str) -> InvalidInputError:
    return InvalidInputError(f"{name} is {value!r} in {where}", expected, "correct it")
