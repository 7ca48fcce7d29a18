"""`merkit-train mine` from its arguments to its folder: loops over seeds, a run, a report.

DIR/mining.json      options, inputs and their fingerprints; another mining is refused here
DIR/pool/            features of the pool, where it was given as a corpus
DIR/seed-S/          the rounds (`ledger`)
DIR/run/             the first seed's learners as a run (`finish`)
DIR/report.{md,json,svg}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from merkit.bundle import sha256_file
from merkit.contract import Voter
from merkit.errors import InvalidInputError
from merkit.pipeline import SEED_VOTERS
from merkit_training.data.records import UNLABELLED
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.dataset import read_features, test_splits
from merkit_training.fusion.fuse import stated_groups
from merkit_training.mining.config import MiningConfig
from merkit_training.mining.extract import extract_pool, read_pool
from merkit_training.mining.finish import write_run
from merkit_training.mining.ledger import Ledger
from merkit_training.mining.loop import Loop, Material
from merkit_training.mining.pool import Pool, feature_folders
from merkit_training.mining.report import write_report
from merkit_training.mining.truth import known_labels, read_truth
from merkit_training.recipe import recipe_from
from merkit_training.runs import read_json, write_json
from merkit_training.settings import from_table

MINING = "mining.json"
TRUTH = f"clips/{UNLABELLED}/truth.jsonl"
"""Where a drawn corpus keeps the truth of its unlabelled clips."""
GROWING = ("rounds", "patience", "control")
"""Options that may change when a mining goes on."""


def mine(
    run: Path,
    pools: Sequence[Path],
    out: Path,
    config: MiningConfig,
    seeds: Sequence[int],
    truth: Sequence[Path] = (),
    *,
    half: bool = False,
) -> dict[str, Any]:
    """Mines a pool with the learners of a run; returns the report.

    Args:
        run: a finished run.
        pools: folders of features, corpora with unlabelled clips, or folders in MERTools' layout
            where the run was fused from such; together the pool.
        out: where everything is written; a mining that was begun there goes on.
        config: how.
        seeds: one loop each; the first one's learners become DIR/run.
        truth: label files that only the report reads; those of drawn corpora are found.
        half: keep features extracted here in half precision.

    Raises:
        InvalidInputError: what is wrong with the pool or the options, or `out` holds a mining of
            other inputs or options.
        BundleNotFoundError: the run is not finished.
    """
    torch.set_num_threads(1)  # small matrices; and one thread adds in one order
    material = open_material(run, _folders(run, pools, out, half))
    if config.agree > len(material.voters):
        raise InvalidInputError(
            f"--agree asks for {config.agree} of {len(material.voters)} learners", "fewer"
        )
    truth = truth or [path for corpus in pools for path in corpus.glob(TRUTH)]
    known = known_labels(material.pool.names, read_truth(truth, material.classes))
    _begin(out, run, material, config)
    if config.transductive:
        print("transductive: test clips in the pool are learnt from", flush=True)
    loops = [Loop(material, config, seed, out / f"seed-{seed}") for seed in seeds]
    found = [loop.run() for loop in loops]
    kept = loops[0].kept(found[0])
    facts = {
        "transductive": config.transductive,
        "seed": seeds[0],
        "round": kept,
        "labelled": len(loops[0].material.labelled),
        "pseudo_labelled": found[0][kept]["total"],
    }
    waf = found[0][kept]["waf"]
    write_run(run, out / "run", loops[0].material, loops[0].learners(kept), waf, facts)
    return write_report(out, loops, found, known)


def open_material(run: Path, folders: Sequence[Path]) -> Material:
    """The features of a finished run and the pool; errors as `mine`."""
    facts = read_json(run / "fusion" / "config.json")
    recipe = recipe_from(read_json(run / "recipe.json"))
    labelled, validation = (read_features(run / "features" / s) for s in ("train", "val"))
    tests = {split: read_features(run / "features" / split) for split in test_splits(run)}
    voters = [Voter(v["name"], tuple(v["groups"])) for v in facts["voters"]]
    order = {voter.name: i for i, voter in enumerate(SEED_VOTERS)}
    voters.sort(key=lambda voter: (order.get(voter.name, len(order)), voter.name))
    pool = Pool(folders, labelled.widths())
    classes = tuple(facts["labels"])
    return Material(labelled, validation, tests, pool, classes, tuple(voters), recipe.fusion)


def trace(out: Path, clip: str) -> list[str]:
    """What became of a clip in each seed's rounds, as lines.

    Raises:
        InvalidInputError: `out` holds no mining, or its pool no such clip.
    """
    if not (out / MINING).exists():
        raise InvalidInputError(f"{out} holds no mining", MINING, "check --out")
    facts = read_json(out / MINING)
    names = json.loads((out / "pool-names.json").read_text("utf-8"))
    if clip not in names:
        raise InvalidInputError(f"the pool has no clip {clip!r}", "a clip's name", "check --trace")
    row, lines = names.index(clip), []
    for folder in sorted(out.glob("seed-*")):
        ledger = Ledger(folder)
        reason = ledger.reason(row)
        lines.append(f"{folder.name}: {clip}" + (f" takes no part ({reason})" if reason else ""))
        lines += ledger.trace(row, facts["voters"], facts["classes"])
    return lines


def _folders(run: Path, pools: Sequence[Path], out: Path, half: bool) -> list[Path]:
    folders = []
    for number, path in enumerate(pools):
        if not path.is_dir():
            raise InvalidInputError(f"there is no folder {path}", "a pool", "check --pool")
        if not (own := feature_folders(path)):
            extract = read_pool if stated_groups(run) else extract_pool
            own = extract(run, path, out / "pool" / str(number), half=half)
        folders += own
    return folders


def _begin(out: Path, run: Path, material: Material, config: MiningConfig) -> None:
    """Notes what is mined with what; InvalidInputError where it was something else before."""
    splits = {split: run / "features" / split for split in ("train", "val", *material.tests)}
    facts: dict[str, Any] = {
        "options": asdict(config),
        "classes": list(material.classes),
        "voters": [voter.name for voter in material.voters],
        "fusion": asdict(material.fusion),
        "pool": {"clips": len(material.pool), "fingerprint": material.pool.fingerprint()},
        "features": {s: sha256_file(f / "features.safetensors") for s, f in splits.items()},
    }
    facts = json.loads(json.dumps(facts))
    if (out / MINING).exists():
        before = read_json(out / MINING)
        told = {
            "options": asdict(from_table(MiningConfig, before["options"], MINING)),
            "fusion": asdict(from_table(FusionConfig, before["fusion"], MINING)),
        }  # keys added since have their defaults
        before |= json.loads(json.dumps(told))
        for part in facts:
            old, new = (
                {k: v for k, v in x[part].items() if k not in GROWING}
                if isinstance(x.get(part), dict)
                else x.get(part)
                for x in (before, facts)
            )
            if old != new:
                raise InvalidInputError(
                    f"{out} was begun with another {part}: {_differing(old, new)}",
                    f"what it was begun with ({', '.join(GROWING)} may change)",
                    "choose another --out, or give what it was begun with",
                )
    write_json(out / MINING, facts)
    write_names = json.dumps(list(material.pool.names), ensure_ascii=False)
    temporary = out / "pool-names.tmp"
    temporary.write_text(write_names, "utf-8")
    temporary.replace(out / "pool-names.json")


def _differing(old: Any, new: Any) -> str:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return f"{old}, now {new}"
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return ", ".join(f"{k} {old.get(k)!r}, now {new.get(k)!r}" for k in keys)
