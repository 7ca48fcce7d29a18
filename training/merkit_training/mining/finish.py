"""The mined learners as a run of their own, which exports like any other.

Mining changes the fusion stage and nothing before it. So DIR/run shares every other file with the
run that it began from, and `merkit-export build` finds a finished run there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from merkit_training.fusion.model import Fusion
from merkit_training.fusion.sharing import share_files
from merkit_training.mining.learners import Learner
from merkit_training.mining.loop import VALIDATION, VOTE, Material
from merkit_training.runs import read_json, save_step, write_json

STEP = "fusion"
LEFT = {STEP, "logs", "corpus"}
"""Folders of a run that its mined sister does without."""


def write_run(
    run: Path,
    out: Path,
    material: Material,
    learners: Sequence[Learner],
    waf: Mapping[str, Mapping[str, float]],
    facts: Mapping[str, Any],
) -> Path:
    """Writes the run folder `out`.

    Voters are ranked by WAF on validation and keep the temperatures fitted there: out-of-fold
    predictions would have to mine once for each fold.

    Args:
        run: where mining began.
        out: the folder to write.
        material: what was mined with.
        learners: in the order of `material.voters`.
        waf: of each learner and of the vote, by split.
        facts: what the card says of the mining.
    """
    share_files(run, out, LEFT)
    order = sorted(range(len(learners)), key=lambda i: -waf[VALIDATION][learners[i].voter.name])
    ranked = [learners[i] for i in order]
    widths = material.labelled.widths()
    branch = material.fusion.branch
    model = Fusion([x.voter for x in ranked], widths, len(material.classes), branch)
    for i, learner in enumerate(ranked):
        model.branches[i].load_state_dict(learner.branch.state_dict())
        model.temperatures[i] = learner.temperature
    voters = [
        {
            "name": x.voter.name,
            "groups": list(x.voter.groups),
            "waf": waf[VALIDATION][x.voter.name],
            "temperature": float(model.temperatures[i]),
        }
        for i, x in enumerate(ranked)
    ]
    before = read_json(run / STEP / "config.json")
    config = {
        "voters": voters,
        "ranked_on": "weighted average F1 on the validation clips, after mining",
        "labels": list(material.classes),
        "widths": widths,
        "branch": asdict(branch),
        **({"data": before["data"]} if "data" in before else {}),
    }
    scores = {f"{split}_{VOTE}": values[VOTE] for split, values in waf.items()}
    save_step(out, STEP, config, model.state_dict(), {"scores": scores, "mining": dict(facts)})
    record = read_json(out / "run.json")
    stage = record["stages"].get(STEP, {})
    record["stages"][STEP] = {**stage, "scores": scores, "mining": dict(facts)}
    write_json(out / "run.json", record)
    return out
