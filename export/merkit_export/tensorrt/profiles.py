"""The shapes a plan takes, derived from the contract, so that no clip it admits is refused.

TensorRT chooses kernels for the usual shape of a profile and refuses what lies outside. Written
by hand, profiles go wrong at the edges: the longest clip, the largest batch. Here they follow from
the contract's limits and the host's batch size. Sound varies most, from a tenth of a second to
twenty, so it gets several profiles by length, each with kernels for its own usual length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from merkit.bundle import Bundle, onnx_steps
from merkit.contract import Contract, StepSpec
from merkit.errors import InvalidInputError
from merkit.plans import Profile, Shape
from merkit.ragged import graph_inputs
from merkit.serving.deployment import Deployment, read_deployment
from merkit.steps.tokenize import Tokenize

TOKEN_SECONDS = 0.06
"""A recogniser's input, which holds a token at most or hardly more."""
HALVINGS = 3
"""Default buckets: the longest sound, and this many times half as long."""
Range = tuple[int, int, int]


@dataclass(frozen=True)
class Sizes:
    """How large batches and clips are.

    Attributes:
        max_batch: rows of the largest batch.
        buckets: longest sound of each profile in seconds, shortest first; empty: from the
            contract's longest, by halves.
    """

    max_batch: int = 16
    buckets: tuple[float, ...] = ()


def profiles_of(
    bundle: Bundle, deploy: Path | None, max_batch: int | None, buckets: tuple[float, ...]
) -> Callable[[str], tuple[Profile, ...]]:
    """A function that gives the profiles of a step by name.

    Args:
        bundle: an opened bundle.
        deploy: a host.toml, whose `max_batch_size` of each step counts; default: its defaults.
        max_batch: rows of the largest batch of every step, instead.
        buckets: see `Sizes`.

    Raises:
        InvalidInputError: from that function: an unknown step, or sizes that cannot be.
    """
    host = read_deployment(deploy) if deploy else Deployment()
    steps = {step.name: step for step in onnx_steps(bundle.contract)}

    def of(name: str) -> tuple[Profile, ...]:
        if name not in steps:
            raise InvalidInputError(
                f"{name!r} is no ONNX step of the bundle", f"one of {', '.join(steps)}", "choose"
            )
        chosen = host.of(name).max_batch_size or 1  # 0: Triton batches nothing
        most = chosen if max_batch is None else max_batch
        return step_profiles(bundle, steps[name], Sizes(most, buckets))

    return of


def step_profiles(bundle: Bundle, step: StepSpec, sizes: Sizes) -> tuple[Profile, ...]:
    """The profiles of a step's plan, narrow before wide.

    Raises:
        InvalidInputError: a size below 1, or buckets that do not reach the longest sound.
    """
    if sizes.max_batch < 1:
        raise InvalidInputError(f"the largest batch is {sizes.max_batch}", "1 or more", "raise it")
    contract = bundle.contract
    inputs = graph_inputs(step, contract.tensors)
    lengths = _lengths(bundle)
    p = contract.preprocessing
    shortest = max(1, round(p.min_audio_seconds * p.sample_rate))  # less is padded to it
    open_sounds = _names(step, contract) & {"audio_samples", "speech_samples"}
    sounds = audio_buckets(contract, sizes) if open_sounds else [0]
    profiles = []
    for longest in sounds:
        ranges = {
            **lengths,
            "audio_samples": _range(shortest, longest),
            "speech_samples": _range(0, longest),  # 0: nothing that is to be recognised
        }
        ranges["batch"] = (1, max(1, sizes.max_batch // 2), sizes.max_batch)
        for ragged in step.ragged:
            (width,) = contract.tensors[ragged.values].shape[1:]
            ranges[f"{ragged.values}_total"] = _total(ranges["batch"], ranges[str(width)])
        profiles.append({name: _shapes(spec.shape, ranges) for name, spec in inputs.items()})
    return tuple(profiles)


def audio_buckets(contract: Contract, sizes: Sizes) -> list[int]:
    """The longest sound of each profile, in samples, shortest first."""
    p = contract.preprocessing
    longest = round(p.max_audio_seconds * p.sample_rate)
    if not sizes.buckets:
        halves = [longest >> halving for halving in range(HALVINGS, 0, -1)]
        return [*(half for half in halves if half > _shortest(contract)), longest]
    found = [round(seconds * p.sample_rate) for seconds in sizes.buckets]
    if found != sorted(set(found)) or found[0] < _shortest(contract) or found[-1] != longest:
        raise InvalidInputError(
            f"the buckets are {', '.join(f'{s:g}' for s in sizes.buckets)} s",
            f"rising lengths from {p.min_audio_seconds:g} s on, of which the last is "
            f"{p.max_audio_seconds:g} s, the longest sound",
            "correct --buckets",
        )
    return found


def _shortest(contract: Contract) -> int:
    """Samples of the shortest sound; less is padded to it."""
    p = contract.preprocessing
    return max(1, round(p.min_audio_seconds * p.sample_rate))


def _lengths(bundle: Bundle) -> dict[str, Range]:
    """Smallest, usual and largest size of each dimension that a clip's words decide."""
    p = bundle.contract.preprocessing
    words, around = p.max_text_tokens, _prompt_tokens(bundle)
    return {
        "words_said": _range(1, math.ceil(p.max_audio_seconds / TOKEN_SECONDS)),
        "tokens": _range(1, words),
        "joint_tokens": (1, around + words // 4 + 1, max(1, around + words)),
    }


def _prompt_tokens(bundle: Bundle) -> int:
    """How many tokens stand around the words of the joint model's prompt."""
    if "tokenize" not in {step.name for step in bundle.contract.steps}:
        return 0
    tokenize = Tokenize(bundle.contract, bundle.resources("tokenize"))
    return len(tokenize.prompt.around([]))


def _names(step: StepSpec, contract: Contract) -> set[int | str]:
    return {size for name in step.inputs for size in contract.tensors[name].shape}


def _range(smallest: int, largest: int) -> Range:
    """Usual is three quarters of the largest: kernels are chosen for it, shorter ones follow."""
    return smallest, max(smallest, largest * 3 // 4), largest


def _total(batch: Range, width: Range) -> Range:
    """Values of a batch end to end; rows may be empty, so the smallest total is 0."""
    return 0, batch[1] * width[1], batch[2] * width[2]


def _shapes(shape: Sequence[int | str], ranges: Mapping[str, Range]) -> tuple[Shape, Shape, Shape]:
    sizes = [ranges[n] if isinstance(n, str) else (n, n, n) for n in shape]
    smallest, usual, largest = zip(*sizes, strict=True)
    return smallest, usual, largest
