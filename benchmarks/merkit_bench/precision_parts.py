"""What the precision benchmark times, made once and kept: a run, its graphs, their candidates.

Two billion random weights take minutes to make, to export and to quantise, before anything is
timed. So every part lies in the work folder, is taken up again by the next call, and belongs to
one recipe. Nothing is proven here but what is measured: each contender's cosine to PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from merkit.bundle import MANIFEST, Bundle, open_bundle, sha256_file, write_manifest
from merkit.contract import StepSpec, canonical
from merkit.errors import InvalidInputError, MerkitError
from merkit_export.build import export_steps, manifest_details, take_files
from merkit_export.origin import read_origin
from merkit_export.precision import admit
from merkit_export.precision.judge import Judge
from merkit_export.precision.kinds import PRECISIONS, REFERENCE, candidates, target
from merkit_export.precision.material import (
    CALIBRATION,
    CARD,
    JUDGEMENT,
    corpus_material,
    made_up_material,
)
from merkit_export.precision.search import Budget
from merkit_export.precision.variants import Calibration, Maker
from merkit_export.storage import file_bytes
from merkit_export.tolerance import LEAST_COSINE
from merkit_training.recipe import Recipe, load_recipe
from merkit_training.runs import read_json, write_json
from merkit_training.stages import SPEECH
from merkit_training.untrained import write_untrained_run

CLIPS = 12
"""To calibrate on, and as many to judge by."""
Say = Callable[[str], None]


def without_chain(recipe: Recipe) -> Recipe:
    """The recipe's encoders alone. Whoever gives the words runs none of what hears them, in PyTorch
    or here; those steps have a benchmark of their own (`merkit_bench.hearing`)."""
    silent = {name: replace(getattr(recipe, name), epochs=0, checkpoint="") for name in SPEECH}
    model = replace(recipe.language_model, order=0)
    return replace(recipe, **silent, language_model=model, hearing=type(recipe.hearing)())


def untrained(path: Path, run: Path) -> Path:
    """A run of the recipe's shapes at random weights.

    Raises:
        InvalidInputError: the folder holds another recipe's.
    """
    recipe = without_chain(load_recipe(path))
    if not (run / "tokenizer" / "tokenizer.json").exists():  # written last
        return write_untrained_run(recipe, run)
    if read_json(run / "recipe.json") != json.loads(json.dumps(recipe.to_json())):
        raise InvalidInputError(
            f"{run} holds another recipe than {path}",
            "a work folder of its own for each recipe",
            "give another --work, or remove it",
        )
    return run


def reference(run: Path, out: Path, say: Say) -> Bundle:
    """The run's graphs in float32 as a bundle, written one by one."""
    if (out / MANIFEST).exists():
        return open_bundle(out)
    origin, done = read_origin(run), out / "digests.json"
    kept = read_json(done) if done.exists() else {}
    digests = export_steps(origin, out, say, kept, lambda found: write_json(done, _graphs(found)))
    done.unlink(missing_ok=True)
    return write_manifest(out, origin.contract, digests, manifest_details(origin, None))


def _graphs(digests: Mapping[str, str]) -> dict[str, str]:
    """Digests of graphs; python steps have theirs of files that cost nothing to write again."""
    return {name: digest for name, digest in digests.items() if name != "tokenize"}


@dataclass(frozen=True)
class Candidate:
    """An encoder in one precision."""

    precision: str
    bytes: int = 0
    cosine: float = 1.0
    """The least of a clip's features with those in float32."""
    neighbour: float = 0.0
    """Change beside loud neighbours, relative to the largest feature."""
    refused: str = ""

    @property
    def passes(self) -> bool:
        """Whether a build with random weights might take it."""
        return not self.refused and close(self.precision, self.cosine)


def close(precision: str, cosine: float) -> bool:
    """Whether features this near to float32 are the same by the gate of random weights."""
    least = max(Budget().cosine, LEAST_COSINE.get(precision, 0.0))
    return precision == REFERENCE or cosine >= least


class Workshop:
    """Makes candidates of a bundle's encoders for CPUs, and compares their features.

    Args:
        bundle: the reference, in float32.
        folder: where candidates and features lie, those of a corpus apart.
        threads: of every session.
        corpus: its `train` clips calibrate, its `val` clips judge; None: made-up ones do.
    """

    def __init__(self, bundle: Bundle, folder: Path, threads: int, corpus: Path | None) -> None:
        contract = bundle.contract
        self.clips = sha256_file(corpus / CARD) if corpus else "made up"
        if corpus:
            folder, cache = folder / self.clips[:12], folder / "clips"
            calibrating, judging = (
                corpus_material(corpus, split, CLIPS, contract, cache)
                for split in (CALIBRATION, JUDGEMENT)
            )
        else:
            calibrating, judging = (made_up_material(contract, s, CLIPS) for s in (1000, 2000))
        self.judge = Judge(bundle, judging, threads, "cpu", races=False)
        self.maker = Maker(
            bundle,
            target("cpu"),
            Calibration(clips=CLIPS),
            lambda step: self.judge.feeds(step, calibrating),
            folder,
            threads,
        )

    def candidates(self, step: StepSpec, say: Say) -> dict[str, Candidate]:
        """Every precision of one encoder, the reference first."""
        path = self.maker.path(step.name, REFERENCE)
        found = {REFERENCE: Candidate(REFERENCE, file_bytes(path))}
        exact = self._features(step, REFERENCE)
        for precision in candidates(self.maker.target, step):
            say(f"{step.name}: {precision.name}")
            try:
                made = self._candidate(step, precision.name, exact)
            except MerkitError as error:
                made = Candidate(precision.name, refused=error.found)
            except Exception as error:
                if not type(error).__module__.startswith("onnxruntime"):
                    raise
                told = str(error).partition("\n")[0][:200]
                made = Candidate(precision.name, refused=f"ONNX Runtime cannot run it ({told})")
            found[precision.name] = made
        self.maker.forget(step)
        return found

    def path(self, step: StepSpec, precision: str) -> Path:
        """Where it lies."""
        return self.maker.path(step.name, precision)

    def facts(self, step: StepSpec) -> dict[str, Any]:
        """What decides a candidate's file."""
        digest = self.judge.bundle.manifest["step_digests"][step.name]
        names = [p.name for p in candidates(self.maker.target, step)]
        how = {"calibration": asdict(self.maker.calibration), "clips": self.clips}
        return {"graph": digest, "tried": names, **how}

    def close(self) -> None:
        """Frees the sessions."""
        self.judge.close()

    def _candidate(self, step: StepSpec, name: str, exact: Any) -> Candidate:
        path = self.maker.make(step, PRECISIONS[name])
        session = self.judge.session(step, path)
        admission = admit.probe(session, step, path, *self.judge.corners(step))
        if admission.problem:
            return Candidate(name, file_bytes(path), refused=admission.problem)
        rows = self._features(step, name)
        cosine = self.judge.cosine(step, rows, exact)
        return Candidate(name, file_bytes(path), cosine, admission.neighbour)

    def _features(self, step: StepSpec, name: str) -> Any:
        path = self.path(step, name)
        mark = self.judge.bundle.manifest["step_digests"][step.name][:8]
        kept = self.maker.folder / "features" / f"{step.name}-{mark}-{name}.npy"
        session = None if kept.exists() else self.judge.session(step, path)
        return np.array(self.judge.encode(step, session, kept))


def best(
    bundle: Bundle, files: Mapping[str, Path], precisions: Mapping[str, str], out: Path
) -> Bundle:
    """The bundle with every file that was chosen; what stays as it was is a link."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(bundle.root, out, copy_function=os.link)
    digests = dict(bundle.manifest["step_digests"])
    take_files(Bundle(out, bundle.contract, bundle.manifest), files, digests)
    table = {
        **bundle.manifest.get("precision", {}),
        **{s: {"precision": p, "why": PRECISIONS[p].why} for s, p in precisions.items()},
    }
    details = {**bundle.manifest, "precision": table}
    for key in ("schema", "contract_id", "bundle_id", "step_digests", "content", "contract"):
        del details[key]
    return write_manifest(out, bundle.contract, digests, details)


def kept(path: Path, facts: Mapping[str, Any], measure: Callable[[], Any], say: Say) -> Any:
    """What `measure` finds, as plain values: read from `path` if it was found on the same facts."""
    before = held(path, facts)
    if before is not None:
        say(f"{path.stem}: as measured before ({path})")
        return before
    found = json.loads(json.dumps(measure()))
    write_json(path, {"mark": _mark(facts), "facts": dict(facts), "found": found})
    return found


def held(path: Path, facts: Mapping[str, Any]) -> Any | None:
    """What was found on the same facts before; None if nothing was."""
    before = read_json(path) if path.exists() else {}
    return before["found"] if before.get("mark") == _mark(facts) else None


def _mark(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(dict(facts))).hexdigest()
