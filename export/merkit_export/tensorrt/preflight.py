"""Would TensorRT take these graphs? Asked of a table, anywhere, before a GPU hour is spent.

The parser stops at the first node it does not know, and a build at the first shape it cannot
bound. Here every node of every graph is held against what TensorRT publishes (`checks`), each
finding names the node and says what to do, and none needs TensorRT or a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from merkit.bundle import Bundle, onnx_steps
from merkit.errors import InvalidInputError
from merkit.plans import ON_HOST, Profile
from merkit_export.tensorrt.checks import examine
from merkit_export.tensorrt.graph import Finding, Graph
from merkit_export.tensorrt.operators import MAX_ELEMENTS


@dataclass(frozen=True)
class Verdict:
    """What is to be expected of one step."""

    step: str
    nodes: int
    planned: bool
    """Whether a plan is to be built; the others stay on ONNX Runtime whatever is found."""
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found that TensorRT would refuse."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "passed": self.passed}


def preflight(
    bundle: Bundle,
    profiles: Callable[[str], Sequence[Profile]],
    steps: Sequence[str] | None = None,
) -> list[Verdict]:
    """Examines the ONNX graphs of a bundle.

    Args:
        bundle: an opened bundle.
        profiles: gives the shapes that a step's plan would take.
        steps: those to build plans for; default: all but `plans.ON_HOST`.

    Raises:
        InvalidInputError: an unknown step.
        BundleCorruptError: a graph cannot be read.
    """
    known = [step.name for step in onnx_steps(bundle.contract)]
    wanted = planned_steps(bundle) if steps is None else list(steps)
    for name in wanted:
        if name not in known:
            raise InvalidInputError(
                f"{name!r} is no ONNX step of the bundle", f"one of {', '.join(known)}", "choose"
            )
    verdicts = []
    for name in known:
        graph = Graph.read(name, bundle.model_path(name))
        findings = [*examine(graph)]
        if name in wanted:
            findings += profile_findings(graph, profiles(name))
        nodes = len(graph.model.graph.node)
        verdicts.append(Verdict(name, nodes, name in wanted, tuple(findings)))
    return verdicts


def summary(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each kind of finding: the first of those with one repair, and how many follow."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        alike.setdefault((finding.severity, finding.step, finding.fix), []).append(finding)
    for first, *more in alike.values():
        yield first.line() + (f" (and {len(more)} more such nodes)" if more else "")


def planned_steps(bundle: Bundle) -> list[str]:
    """The steps that plans are built for by default."""
    return [s.name for s in onnx_steps(bundle.contract) if s.name not in ON_HOST]


def profile_findings(graph: Graph, profiles: Sequence[Profile]) -> Iterator[Finding]:
    """Whether the profiles name every input of open size, in its rank, and stay within limits."""
    for index, profile in enumerate(profiles):
        for name, value in graph.inputs.items():
            dims = value.type.tensor_type.shape.dim
            sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in dims]
            if name not in profile:
                if -1 in sizes:
                    fix = "give it a range of sizes"
                    yield graph.finding(f"input {name}", f"profile {index} lacks it", fix)
                continue
            yield from _profile_input(graph, index, name, sizes, profile)


def _profile_input(
    graph: Graph, index: int, name: str, sizes: list[int], profile: Profile
) -> Iterator[Finding]:
    low, usual, high = profile[name]
    where = f"input {name}"
    if not len(low) == len(usual) == len(high) == len(sizes):
        found = f"profile {index} has rank {len(low)}, the graph {len(sizes)}"
        yield graph.finding(where, found, "export the bundle again")
        return
    ordered = all(0 <= a <= b <= c for a, b, c in zip(low, usual, high, strict=True))
    fixed = all(n in (-1, a) and n in (-1, c) for n, a, c in zip(sizes, low, high, strict=True))
    if not (ordered and fixed):
        found = f"profile {index} asks for {low} to {high}, usually {usual}; the graph has {sizes}"
        yield graph.finding(where, found, "let 0 <= smallest <= usual <= largest")
    if np.prod([float(n) for n in high]) > MAX_ELEMENTS:
        found = f"profile {index} lets it grow to {high}, more than {MAX_ELEMENTS} elements"
        yield graph.finding(where, found, "lower --max-batch")
