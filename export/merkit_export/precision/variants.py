"""One step in one precision, as a file that can stand in for the exported one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from merkit.bundle import Bundle
from merkit.contract import StepSpec, canonical
from merkit.errors import MerkitError
from merkit_export import graphs, storage
from merkit_export.compact import compact
from merkit_export.precision import blocks, fuse, half, qdq, ranges
from merkit_export.precision.fold import fold, read
from merkit_export.precision.kinds import REFERENCE, Precision, Target

Feeds = Iterable[dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Calibration:
    """How ranges of activations are found."""

    method: ranges.Method = "percentile"
    clips: int = 64
    """Clips of the training split that are run."""
    weight_bits: int = 8
    """7 for CPUs without VNNI, whose 8-bit products saturate."""


@dataclass(frozen=True)
class Variant(Bundle):
    """A bundle of which some steps are taken from files elsewhere: how candidates are tried."""

    elsewhere: Mapping[str, Path]

    def model_path(self, step: str) -> Path:
        """See `Bundle.model_path`."""
        return self.elsewhere.get(step) or super().model_path(step)


def variant(bundle: Bundle, elsewhere: Mapping[str, Path]) -> Variant:
    """The bundle with other files for some of its steps."""
    return Variant(bundle.root, bundle.contract, bundle.manifest, elsewhere)


@dataclass(frozen=True)
class Maker:
    """Writes candidates of one bundle for one target.

    Attributes:
        bundle: the reference, in float32.
        target: where it is to run.
        calibration: how ranges are found.
        feeds: the inputs of a step on calibration clips, to be walked through several times.
        folder: where candidates go: `STEP/PRECISION-MARK/model.onnx`.
        threads: of the sessions that calibrate.
    """

    bundle: Bundle
    target: Target
    calibration: Calibration
    feeds: Callable[[StepSpec], Feeds]
    folder: Path
    threads: int

    def path(self, step: str, precision: str) -> Path:
        """Where a candidate lies; the reference lies in the bundle."""
        if precision == REFERENCE:
            return self.bundle.model_path(step)
        facts = [self.bundle.manifest["step_digests"][step], asdict(self.calibration)]
        mark = hashlib.sha256(canonical([*facts, self.target.name])).hexdigest()[:8]
        return self.folder / step / f"{precision}-{mark}" / "model.onnx"

    def make(self, step: StepSpec, precision: Precision) -> Path:
        """Writes a candidate, if it is not there yet; MerkitError says why it cannot be."""
        path = self.path(step.name, precision.name)
        if path.exists():
            return path
        source = self.bundle.model_path(step.name)
        model = self._folded(step.name)
        try:
            changed = self._convert(model, step, precision, path.parent)
        except (ValueError, RuntimeError, KeyError, AssertionError) as error:
            raise MerkitError(
                f"{step.name!r} cannot be made {precision.name} ({error})",
                "a graph of operators that have it",
                "leave this precision out with --precisions",
            ) from error
        if changed is None:
            raise MerkitError(f"nothing in {step.name!r} can be made {precision.name}")
        _finish(changed, source)
        storage.save(changed, path)
        for left in path.parent.glob("*.onnx*"):
            if left.name not in (path.name, f"{path.name}.data"):
                left.unlink()
        return path

    def forget(self, step: StepSpec) -> None:
        """Drops what its candidates were made from, once all have been."""
        shutil.rmtree(self._base(step.name), ignore_errors=True)

    def _base(self, step: str) -> Path:
        mark = str(self.bundle.manifest["step_digests"][step])[:8]
        return self.folder / step / f"folded-{mark}"

    def _folded(self, step: str) -> onnx.ModelProto:
        """The folded graph, which is made once for all candidates: of a large one that takes as
        long as its quantisation."""
        found = self._base(step)
        if found.exists():
            return read(found / "model.onnx")
        begun = found.with_name(f"{found.name}.tmp")
        shutil.rmtree(begun, ignore_errors=True)
        model = fold(self.bundle.model_path(step), begun / "model.onnx")
        begun.rename(found)
        return model

    def _convert(
        self, model: onnx.ModelProto, step: StepSpec, precision: Precision, folder: Path
    ) -> onnx.ModelProto | None:
        """The graph in another precision; None where it has nothing to change."""
        cpu = self.target.provider == "cpu"
        fused = fuse.fuse(model, cpu) if self.target.contrib else 0
        if precision.name == "fp32-fused":
            return model if fused else None
        if precision.name in ("fp16", "bf16"):
            return half.halve(model, brain=precision.name == "bf16")
        if precision.name == "int8-qdq":
            style = qdq.CPU if self.target.contrib else qdq.TENSORRT
            style = replace(style, weight_bits=self.calibration.weight_bits)
            names = qdq.activations(model, style)
            if not names:
                return None
            found = ranges.measure(
                model,
                folder / "watched.onnx",
                step,
                names,
                self.feeds(step),
                self.calibration.method,
                self.threads,
            )
            qdq.quantise(model, found, style)
            return model
        if precision.name == "int8-dynamic":
            return model if blocks.dynamic_products(model) else None
        return model if blocks.block_weights(model, precision.bits) else None


def _finish(model: onnx.ModelProto, source: Path) -> None:
    """Stores what weights remain in few bytes, and names contract and makers as `source` does."""
    compact(model)
    reference = onnx.load(source, load_external_data=False)
    model.producer_name, model.producer_version = (
        reference.producer_name,
        reference.producer_version,
    )
    model.doc_string = ""
    graphs.strip(model.graph)
    model.graph.name = reference.graph.name
    del model.metadata_props[:]
    model.metadata_props.extend(reference.metadata_props)
    for values, known in ((model.graph.input, reference.graph.input),
                          (model.graph.output, reference.graph.output)):  # fmt: skip
        del values[:]
        values.extend(known)
