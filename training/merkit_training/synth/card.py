"""The data card: what the corpus holds, how it was drawn and how good a system can get on it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from merkit.bundle import sha256_file
from merkit_training.corpus import CLIP_SPLITS, SET_SPLITS, open_set, read_sentences
from merkit_training.labels import FACE8, MER6
from merkit_training.synth.ceilings import VIEWS, ceilings, posterior
from merkit_training.synth.clips import clip_prior, read_draw
from merkit_training.synth.config import SynthConfig
from merkit_training.synth.model import (
    CLIP_STRENGTHS,
    COMPOSITES,
    FACE_SIGMA,
    FACES,
    PAIRS,
    PROSODY,
    SET_STRENGTHS,
    STRENGTHS,
    TONE_SIGMA,
    TONES,
    UNITS,
    WEAK,
)
from merkit_training.synth.sets import set_prior

NOTICE = (
    "Everything here is synthetic: drawn faces, espeak-ng voices, sentences from a grammar. "
    "Figures on it prove that the machinery works and say nothing about people."
)


def write_card(out: Path, config: SynthConfig) -> dict[str, Any]:
    """Writes `card.json` and `card.md` for a complete corpus and returns the former."""
    card = {
        "notice": NOTICE,
        "identity": config.identity,
        "config": asdict(config),
        "model": _model(),
        "counts": _counts(out),
        "ceilings": _ceilings(config),
        "realised": {split: _realised(out, config, split) for split in CLIP_SPLITS},
        "sha256": _hashes(out),
    }
    for name, text in (
        ("card.md", _markdown(card)),
        ("card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n"),
    ):
        temporary = out / f".{name}.tmp"
        temporary.write_text(text, "utf-8")
        temporary.replace(out / name)
    return card


def _model() -> dict[str, Any]:
    return {
        "strengths": {
            "clips": dict(zip(STRENGTHS, CLIP_STRENGTHS, strict=True)),
            "sets": dict(zip(STRENGTHS, SET_STRENGTHS, strict=True)),
        },
        "weak_gain": WEAK,
        "face": {"units": UNITS, "sigma": FACE_SIGMA, "prototypes": FACES},
        "prosody": {"parameters": PROSODY, "sigma": TONE_SIGMA, "prototypes": TONES},
        "word_pairs": PAIRS,
        "composites": {k: {"tone": t, "words": w} for k, (t, w) in COMPOSITES.items()},
        "clip_priors": {s: dict(zip(MER6, clip_prior(s), strict=True)) for s in CLIP_SPLITS},
    }


def _ceilings(config: SynthConfig) -> dict[str, dict[str, float]]:
    """Ceilings of the six-class sets and of each split; equal priors share a simulation."""
    draws, share, seed = config.ceiling_draws, config.composite_share, config.seed
    sets = {"utterances": share, "sequences": 0.0, "sentences": 0.0}
    found = {
        kind: ceilings(draws, set_prior(), SET_STRENGTHS, composite, seed)
        for kind, composite in sets.items()
    }
    simulated: dict[bytes, dict[str, float]] = {}
    for split in CLIP_SPLITS:
        chances = clip_prior(split)
        if chances.tobytes() not in simulated:
            found[split] = ceilings(draws, chances, CLIP_STRENGTHS, share, seed)
            simulated[chances.tobytes()] = found[split]
        found[split] = simulated[chances.tobytes()]
    return found


def truths(out: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a split's truth.jsonl."""
    lines = (out / "clips" / split / "truth.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _realised(out: Path, config: SynthConfig, split: str) -> dict[str, float]:
    """Accuracy that the exact posterior reaches on the very clips of a split."""
    draws = [read_draw(truth) for truth in truths(out, split)]
    if not draws:
        return {}
    labels = np.array([d.label for d in draws])
    found = {}
    for name, view in VIEWS.items():
        beliefs = posterior(draws, clip_prior(split), view, CLIP_STRENGTHS, config.composite_share)
        found[name] = float((beliefs.argmax(1) == labels).mean())
    return found


def _counts(out: Path) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for kind, names in (("faces", FACE8), ("sequences", MER6), ("utterances", MER6)):
        data = open_set(out, kind)
        for split in SET_SPLITS:
            tally = np.bincount(data["labels"][data.indices(split)], minlength=len(names))
            counts[f"{kind}/{split}"] = dict(zip(names, tally.tolist(), strict=True))
    for split in SET_SPLITS:
        labels = [row["discrete"] for row in read_sentences(out, split)]
        counts[f"sentences/{split}"] = {name: labels.count(name) for name in MER6}
    for split in CLIP_SPLITS:
        rows = truths(out, split)
        found = {name: sum(r["discrete"] == name for r in rows) for name in MER6}
        subsets = ("aligned", "mixed", "conflicting")
        found |= {name: sum(r["subset"] == name for r in rows) for name in subsets}
        found["composite"] = sum(r["composite"] for r in rows)
        counts[f"clips/{split}"] = found
    return counts


def _hashes(out: Path) -> dict[str, str]:
    """sha256 of each array and table, and one over the videos of each split."""
    files = [p for p in out.rglob("*") if p.suffix in (".npy", ".csv", ".npz", ".jsonl")]
    found = {p.relative_to(out).as_posix(): sha256_file(p) for p in sorted(files)}
    for split in CLIP_SPLITS:
        total = hashlib.sha256()
        for path in sorted((out / "clips" / split / "video").glob("*.mp4")):
            total.update(bytes.fromhex(sha256_file(path)))
        found[f"clips/{split}/video"] = total.hexdigest()
    return found


def _markdown(card: dict[str, Any]) -> str:
    views = ("prior", *VIEWS)
    lines = [
        "# Data card of the synthetic corpus",
        "",
        card["notice"],
        "",
        f"Identity `{card['identity']}`, seed {card['config']['seed']}.",
        "",
        "## Samples by class",
        "",
        "| set | samples | by class |",
        "|---|---|---|",
    ]
    for name, found in card["counts"].items():
        classes = {k: v for k, v in found.items() if k in FACE8}
        shares = ", ".join(f"{k} {v}" for k, v in classes.items())
        lines.append(f"| {name} | {sum(classes.values())} | {shares} |")
    lines += ["", "## Clips by agreement of their evidence", ""]
    lines += [
        "| split | aligned | mixed | conflicting | of these composite |",
        "|---|---|---|---|---|",
    ]
    for split in CLIP_SPLITS:
        c = card["counts"][f"clips/{split}"]
        row = (c["aligned"], c["mixed"], c["conflicting"], c["composite"])
        lines.append(f"| {split} | " + " | ".join(map(str, row)) + " |")
    for key, title, note in (
        ("ceilings", "Ceilings", "Accuracy of the exact posterior given the true parameters."),
        ("realised", "Ceilings on these very clips", "The same, counted on the clips drawn."),
    ):
        lines += ["", f"## {title}", "", note, "", "| split | " + " | ".join(views) + " |"]
        lines.append("|---" * (len(views) + 1) + "|")
        for split, found in card[key].items():
            cells = (f"{found[v]:.3f}" if v in found else "" for v in views)
            lines.append(f"| {split} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
