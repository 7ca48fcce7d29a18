"""From a training run to a bundle: export, prove, then publish in one rename.

A half-written or unproven bundle is worse than none, since it would load. So everything happens
in a folder beside the target; parity is measured on those very files, through the SDK's own
backend; and only what passed takes the target's place, whose former content stays until then.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx

from merkit.bundle import MANIFEST, Bundle, onnx_steps, sha256_file, write_manifest
from merkit.errors import InvalidInputError, MerkitError
from merkit.serving.render import render
from merkit_export import graphs, samples, shards
from merkit_export.costs import operations
from merkit_export.origin import Origin, provenance, read_origin
from merkit_export.parity import OutcomeParity, StepParity, compare_steps
from merkit_export.precision import table
from merkit_export.precision.choose import Plan, check_corpus, choose, entries
from merkit_export.publish import beside, publish, recover
from merkit_export.tolerance import tolerance_of
from merkit_export.turns import in_turn
from merkit_export.walk import torch_steps, walk
from merkit_training.runs import read_json
from merkit_training.speech.hearing.parts import copy_resources

GIT_LIMIT = 15_000_000
"""Compressed bytes that a checked-in bundle may add to git; a larger one is built with a note."""
WITH_FILES = ("tokenize", "transcribe")
"""The python steps that have content files."""
SYNTHETIC_NOTICE = (
    "Trained on synthetic data only. It proves that the machinery works; its answers say nothing "
    "about people."
)
OWN_NOTICE = (
    "Trained on clips of the user's own. What its answers are worth, only other such clips can "
    "tell: see the scores of the test splits."
)
Report = Callable[[str], None]


def build(
    run: Path, out: Path, *, name: str | None = None, plan: Plan | None = None, say: Report = print
) -> Bundle:
    """Exports a run as the bundle `out`, replacing a bundle that stands there.

    Args:
        run: a finished run folder of `merkit-train run`.
        out: the bundle's folder.
        name: what the manifest calls the bundle; default: the recipe's name.
        plan: the target whose precisions are to be searched; None: float32 everywhere.
        say: receives progress, one line at a time.

    Raises:
        InvalidInputError: `out` holds something that is not a bundle, or the plan's corpus is not
            the run's.
        BundleError: the run is unfinished or damaged.
        MerkitError: a step cannot be exported, or torch and ONNX disagree; nothing is written.
    """
    recover(out)
    _refuse_foreign(out)
    origin = read_origin(run)
    details = manifest_details(origin, name)
    if plan is not None:
        check_corpus(plan, details["provenance"]["data"]["card_sha256"])
    with beside(out) as folder:
        digests = export_steps(origin, folder, say)
        bundle = write_manifest(folder, origin.contract, digests, details)
        steps, outcome = prove(bundle, origin)
        say(f"parity: {describe(steps, outcome)}")
        python = origin.python_steps()
        details["costs"] = operations(origin.contract, origin.modules, python)
        details["validation"] |= {"parity": parity_summary(steps, outcome), "releasable": True}
        if plan is not None:
            _take_precisions(bundle, origin, plan, _work(out), digests, details, say)
        bundle = write_manifest(folder, origin.contract, digests, details)
        render(bundle, folder)
        say(_size(folder, bundle))
        publish(folder, out)
    shutil.rmtree(_work(out), ignore_errors=True)  # decoded faces and voices, among others
    say(f"{out}: bundle {bundle.bundle_id}, contract {bundle.contract.contract_id}")
    return Bundle(out, bundle.contract, bundle.manifest)


def build_untrained(
    recipe: Path, out: Path, *, name: str | None = None, plan: Plan | None = None,
    say: Report = print,
) -> Bundle:  # fmt: skip
    """`build` of a recipe's shapes at random weights: speed and size are real, answers are not."""
    from merkit_training.recipe import load_recipe
    from merkit_training.untrained import write_untrained_run

    loaded = load_recipe(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        run = write_untrained_run(loaded, Path(scratch) / "run")
        return build(run, out, name=name, plan=plan, say=say)


def _take_precisions(
    bundle: Bundle,
    origin: Origin,
    plan: Plan,
    work: Path,
    digests: dict[str, str],
    details: dict[str, Any],
    say: Report,
) -> None:
    """Searches, puts what was chosen in the place of what was exported, and proves it again."""
    found = choose(bundle, plan, work, say)
    take_files(bundle, found.files, digests)
    details["target"], details["precision"] = plan.target, found.precision
    details["validation"]["precision"] = found.outcome.to_json()
    bundle = write_manifest(bundle.root, origin.contract, digests, details)
    steps, outcome = prove(bundle, origin, clips_follow=True)  # `choose` compared real clips
    details["validation"]["parity"] = parity_summary(steps, outcome)
    told = table.lines(found.outcome)
    for row in told:
        say(row)
    if plan.table is not None:
        table.write(found.outcome, plan.table)


def take_files(bundle: Bundle, files: Mapping[str, Path], digests: dict[str, str]) -> None:
    """Puts other models in the place of a bundle's own; `digests` then say so, the manifest does
    not yet."""
    for step, source in files.items():
        path = bundle.model_path(step)
        digests[step] = graphs.step_digest(onnx.load(source))
        for file in (source, source.with_name(source.name + ".data")):
            beside = path.with_name(file.name)
            beside.unlink(missing_ok=True)
            if file.exists():
                shutil.copyfile(file, beside)


def _work(out: Path) -> Path:
    """What a search keeps until it is done, so that it can be stopped."""
    return out.parent / f".{out.name}.precision"


def manifest_details(origin: Origin, name: str | None) -> dict[str, Any]:
    """What the manifest says beside contract and content."""
    facts = provenance(origin)
    notice = None
    if facts["data"]["card_sha256"] is not None:  # `merkit-train synth` or `prepare` wrote the data
        notice = OWN_NOTICE if "kind" in facts["data"] else SYNTHETIC_NOTICE
    return {
        "name": name or facts["recipe"].get("run", {}).get("name", "unnamed"),
        **({"notice": notice} if notice else {}),
        "voters": origin.voters,
        **_threshold(origin),
        "precision": entries(origin.contract),
        "provenance": facts,
        "validation": {"scores": facts["stages"].get("fusion", {}).get("scores", {})},
    }


def _threshold(origin: Origin) -> dict[str, Any]:
    """From which score on an answer is confident, if the run chose one."""
    facts = read_json(origin.run / "fusion" / "config.json")
    return {key: facts[key] for key in ("abstention", "ranked_on") if key in facts}


def _size(folder: Path, bundle: Bundle) -> str:
    content = bundle.manifest["content"]
    total = sum(entry["size"] for entry in content.values())
    if total > 20 * GIT_LIMIT:
        return f"{len(content)} files, {total / 1e6:.0f} MB"
    files = [(folder / name).read_bytes() for name in content]
    stored = sum(len(zlib.compress(content)) for content in files)
    note = "" if stored <= GIT_LIMIT else f", over the {GIT_LIMIT / 1e6:.0f} MB meant for git"
    plain = sum(map(len, files))
    return f"{len(files)} files, {plain / 1e6:.2f} MB; {stored / 1e6:.2f} MB as git stores it{note}"


def export_steps(
    origin: Origin,
    folder: Path,
    say: Report = print,
    kept: Mapping[str, str] | None = None,
    wrote: Callable[[dict[str, str]], None] | None = None,
) -> dict[str, str]:
    """Writes every content file below `folder`; the digest of each step that has any.

    Args:
        origin: the run.
        folder: where to.
        say: receives progress, one line at a time.
        kept: digests of graphs that lie in `folder` already, and are not written again.
        wrote: is told all digests after each graph.
    """
    contract = origin.contract
    digests = _resources(origin, folder)
    waiting = [spec for spec in onnx_steps(contract) if spec.name not in (kept or {})]
    example = _example(origin) if waiting else {}
    digests |= kept or {}
    for spec in waiting:
        started = time.monotonic()
        path = folder / spec.name / "1" / "model.onnx"
        made = shards.export(origin.modules[spec.name], spec, contract, example, path)
        digests[spec.name] = made.digest
        seconds = time.monotonic() - started
        say(f"{spec.name:20} {made.size / 1e6:6.2f} MB {made.nodes:5} nodes {seconds:6.1f} s")
        if wrote is not None:
            wrote(digests)
    return digests


def _resources(origin: Origin, folder: Path) -> dict[str, str]:
    """Writes the python steps' content files; the digest of each step that has any."""
    digests = {}
    for spec in origin.contract.steps:
        if spec.name in WITH_FILES:
            files = copy_resources(origin.run, spec.name, folder / spec.name / "1")
            each = [sha256_file(path) for path in files]
            whole = hashlib.sha256("".join(each).encode()).hexdigest()
            digests[spec.name] = each[0] if len(each) == 1 else whole
    return digests


def prove(
    bundle: Bundle, origin: Origin, clips_follow: bool = False
) -> tuple[list[StepParity], OutcomeParity]:
    """Measures parity of an opened bundle with its run; MerkitError where they disagree.

    Steps in few bits are held to what their precision may differ by (`tolerance`), and with
    `clips_follow` to their least cosine on real clips only.
    """
    tolerances = {
        s.name: tolerance_of(bundle.manifest, s.name) for s in onnx_steps(origin.contract)
    }
    with in_turn(bundle, origin.modules) as (backend, modules):
        steps, outcome = compare_steps(backend, modules, tolerances, clips_follow)
    failed = [*(p for step in steps for p in step.problems), *outcome.problems]
    if failed:
        names = ", ".join(step.step for step in steps if not step.passed) or "the whole pipeline"
        raise MerkitError(
            f"torch and ONNX disagree in {names}: {failed[0]}",
            f"differences of at most {outcome.tolerance:g}, and no NaN",
            "nothing was written; repair the module's export",
        )
    return steps, outcome


def parity_summary(steps: list[StepParity], outcome: OutcomeParity) -> dict[str, Any]:
    """The parity report in short, for the manifest."""
    keys = ("cases", "max_abs", "batch", "absent")
    return {
        "tolerance": outcome.tolerance,
        "steps": {s.step: {key: s.to_json()[key] for key in keys} for s in steps},
        "made_up_clips": {"clips": outcome.clips, "max_abs": outcome.max_abs},
    }


def describe(steps: list[StepParity], outcome: OutcomeParity) -> str:
    """One line on parity."""
    worst = max(steps, key=lambda step: step.max_abs)
    return (
        f"{len(steps)} steps agree on {worst.cases} inputs each, at most {worst.max_abs:.1e} apart "
        f"({worst.step}); {outcome.clips} made-up clips, same labels, "
        f"probabilities at most {outcome.max_abs:.1e} apart"
    )


def _example(origin: Origin) -> Mapping[str, Any]:
    """The inputs of every step at the sizes to trace at, as torch makes them on the way."""
    contract = origin.contract
    steps = torch_steps(contract, origin.modules)
    steps.update(origin.python_steps())
    walked = walk(contract, steps, samples.example(contract))
    return walked | samples.chain_example(contract)


def _refuse_foreign(out: Path) -> None:
    if out.exists() and (
        not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file())
    ):
        raise InvalidInputError(
            f"{out} exists and holds no {MANIFEST}",
            "a bundle to replace, an empty folder or a new name",
            "choose another folder",
        )
