"""What mining did, worded by its own figures: a loop that does not help is said not to.

The seed shows one curve (Fig. 5). Here each point is a mean over seeds with its spread, the gain
carries a paired bootstrap interval over the test clips, and where the truth of the pool is known,
the pseudo-labels are held against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from merkit.voting import NOBODY
from merkit_training.metrics import paired_bootstrap
from merkit_training.mining.curve import curve_svg
from merkit_training.mining.exclude import tally
from merkit_training.mining.loop import CONTROL, PREDICTIONS, VALIDATION, VOTE, Loop
from merkit_training.mining.truth import quality
from merkit_training.runs import write_bytes, write_json

RESAMPLES = 2000
TRANSDUCTIVE = (
    "**Transductive: test clips were left in the pool (`--transductive`), so the test scores below "
    "are not those of unseen clips.**"
)
BEFORE = "round 0"
ALONE = "labels alone, trained for as many steps"
Rounds = Sequence[Mapping[str, Any]]


def write_report(
    out: Path, loops: Sequence[Loop], found: Sequence[Rounds], truth: NDArray[np.int8]
) -> dict[str, Any]:
    """Writes report.json, report.md and report.svg (Fig. 5) into `out`.

    Args:
        out: the folder of the mining.
        loops: one for each seed.
        found: their rounds.
        truth: int8 [n] the true classes of the pool's clips, NOBODY where unknown.
    """
    config, material = loops[0].config, loops[0].material
    report: dict[str, Any] = {
        "transductive": config.transductive,
        "seeds": [loop.seed for loop in loops],
        "classes": list(material.classes),
        "learners": [voter.name for voter in material.voters],
        "labelled": len(material.labelled),
        "clips": {split: len(data) for split, data in material.tests.items()},
        "pool": [tally(loop.codes) for loop in loops],
        "rounds": [list(rounds) for rounds in found],
        "stopped": [loop.stopped(rounds) for loop, rounds in zip(loops, found, strict=True)],
        "kept": [loop.kept(rounds) for loop, rounds in zip(loops, found, strict=True)],
        "curve": curve(found),
        "gain": {BEFORE: gains(loops, found, [r[0]["waf"] for r in found], "round-00")},
    }
    if config.control:
        rivals = [loop.control(rounds) for loop, rounds in zip(loops, found, strict=True)]
        report["control"] = rivals
        report["gain"][ALONE] = gains(loops, found, rivals, CONTROL)
    if (truth != NOBODY).any():
        report["quality"] = [
            _quality(loop, rounds, truth) for loop, rounds in zip(loops, found, strict=True)
        ]
    write_json(out / "report.json", report)
    write_bytes(out / "report.svg", curve_svg(report).encode())
    write_bytes(out / "report.md", page(report).encode())
    return report


def curve(found: Sequence[Rounds]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Mean and standard deviation over seeds of WAF, by split, system and round.

    A seed that stopped early keeps the scores of its last round.
    """
    judged = [[r["waf"] for r in rounds if "waf" in r] for rounds in found]
    length = max(map(len, judged))
    filled = [rounds + rounds[-1:] * (length - len(rounds)) for rounds in judged]
    return {
        split: {
            system: [_mean([own[i][split][system] for own in filled]) for i in range(length)]
            for system in filled[0][0][split]
        }
        for split in filled[0][0]
    }


def gains(
    loops: Sequence[Loop],
    found: Sequence[Rounds],
    rivals: Sequence[Mapping[str, Mapping[str, float]]],
    folder: str,
) -> dict[str, dict[str, Any]]:
    """WAF of the vote of the kept round minus that of a rival, on each test split.

    Args:
        loops, found: as in `write_report`.
        rivals: WAF by split and system, of each seed.
        folder: of each seed's, with the rival's labels.
    """
    material, result = loops[0].material, {}
    for split, data in material.tests.items():
        pairs = [
            (
                _votes(loop.ledger.of(loop.kept(rounds)), split),
                _votes(loop.ledger.folder / folder, split),
            )
            for loop, rounds in zip(loops, found, strict=True)
        ]
        ours, theirs = (np.stack([pair[i] for pair in pairs]) for i in (0, 1))
        truth = data.labels.numpy()
        interval = paired_bootstrap(truth, ours, theirs, len(material.classes), RESAMPLES)
        each = [
            rounds[loop.kept(rounds)]["waf"][split][VOTE] - rival[split][VOTE]
            for loop, rounds, rival in zip(loops, found, rivals, strict=True)
        ]
        result[split] = {
            "difference": interval.difference,
            "low": interval.low,
            "high": interval.high,
            "each": each,
        }
    return result


def verdict(gain: Mapping[str, Any]) -> str:
    """Whether mining helped on a split, by the interval and by every seed's sign."""
    if gain["low"] > 0 and min(gain["each"]) > 0:
        return "helps"
    if gain["high"] < 0 and max(gain["each"]) < 0:
        return "harms"
    return "no difference that the data decide"


def page(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    parts = [TRANSDUCTIVE] if report["transductive"] else []
    seeds = report["seeds"]
    parts += [
        "# Mining",
        f"{report['labelled']} labelled clips, {_pool_text(report)} "
        f"{len(seeds)} {'seeds' if len(seeds) > 1 else 'seed'} "
        f"({', '.join(map(str, seeds))}). Round 0 is trained on labels alone. "
        + " ".join(
            f"Seed {seed} ended because {reason}; round {kept} is kept."
            for seed, reason, kept in zip(seeds, report["stopped"], report["kept"], strict=True)
        ),
        "## Does it help?",
        "WAF of the vote of the kept round minus another's, mean over seeds, with its 95 % "
        "interval of a paired bootstrap over clips. *Helps*: the interval and every seed lie "
        "above zero.",
        *(_gain_lines(rival, splits) for rival, splits in report["gain"].items()),
        "## Rounds",
        _rounds_table(report),
        "## WAF by round",
        "![WAF over the rounds; dashed: labels alone for as many steps](report.svg)",
        *(_curve_table(split, systems) for split, systems in report["curve"].items()),
    ]
    if "quality" in report:
        parts += ["## Pseudo-labels against the truth", *_quality_tables(report)]
    return "\n\n".join(parts) + "\n"


def _quality(loop: Loop, rounds: Rounds, truth: NDArray[np.int8]) -> list[dict[str, Any]]:
    asked, classes = loop.codes == 0, len(loop.material.classes)
    found, before = [], loop.state(0).label
    for facts in rounds[1:]:
        label = loop.state(facts["round"]).label
        new = (label != NOBODY) & (label != before)
        found.append(quality(label, new, truth, asked, classes))
        before = label
    return found


def _gain_lines(rival: str, splits: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        f"- `{split}`: {g['difference']:+.3f} ({g['low']:+.3f} to {g['high']:+.3f}); seeds "
        f"{', '.join(f'{e:+.3f}' for e in g['each'])}: **{verdict(g)}**"
        for split, g in splits.items()
    ]
    return "\n".join([f"Over {rival}:", "", *lines] if lines else ["There is no test split."])


def _votes(folder: Path, split: str) -> NDArray[np.int64]:
    labels = load_file(folder / PREDICTIONS)[split]
    return np.asarray(labels[:, -1], np.int64)


def _mean(values: Sequence[float]) -> dict[str, float]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "sd": spread}


def _pool_text(report: Mapping[str, Any]) -> str:
    first = dict(report["pool"][0])
    asked = first.pop("asked")
    left = ", ".join(f"{count} {reason}" for reason, count in first.items())
    return f"{asked} clips in the pool" + (f" (left out: {left})," if left else ",")


def _rounds_table(report: Mapping[str, Any]) -> str:
    lines = [
        "| seed | round | asked | adopted | dropped | in all | "
        + " | ".join(report["classes"])
        + " |",
        "|" + " ---: |" * (6 + len(report["classes"])),
    ]
    for seed, rounds in zip(report["seeds"], report["rounds"], strict=True):
        for r in rounds[1:]:
            counts = " | ".join(map(str, r["classes"]))
            lines.append(
                f"| {seed} | {r['round']} | {r['asked']} | {r['adopted']} | {r['dropped']} "
                f"| {r.get('total', '')} | {counts} |"
            )
    return "\n".join(lines)


def _curve_table(split: str, systems: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    chosen = " (chooses epochs and ranks)" if split == VALIDATION else ""
    numbers = range(len(systems[VOTE]))
    lines = [
        f"| `{split}`{chosen} | " + " | ".join(f"round {i}" for i in numbers) + " |",
        "| --- |" + " ---: |" * len(numbers),
    ]
    for system, points in systems.items():
        cells = " | ".join(f"{p['mean']:.3f} ± {p['sd']:.3f}" for p in points)
        name = f"**{system}**" if system == VOTE else system
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def _quality_tables(report: Mapping[str, Any]) -> list[str]:
    length = max(map(len, report["quality"]))
    rows = [[seed[i] for seed in report["quality"] if i < len(seed)] for i in range(length)]
    parts = [
        "Means over seeds. *New*: of the clips adopted in the round; *all*: of all that have a "
        "pseudo-label then; *recall*: rightly labelled clips among all of the pool that take part.",
        "\n".join(
            [
                "| round | precision, new | precision, all | recall |",
                "| ---: | ---: | ---: | ---: |",
                *(
                    f"| {i + 1} | {_over(own, 'precision_new')} | {_over(own, 'precision')} "
                    f"| {_over(own, 'recall')} |"
                    for i, own in enumerate(rows)
                ),
            ]
        ),
    ]
    for what in ("precision", "recall"):
        head = f"| {what} of all, round | " + " | ".join(report["classes"]) + " |"
        lines = [head, "|" + " ---: |" * (1 + len(report["classes"]))]
        for i, own in enumerate(rows):
            cells = [
                _number([q[f"class_{what}"][c] for q in own]) for c in range(len(report["classes"]))
            ]
            lines.append(f"| {i + 1} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return parts


def _over(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    return _number([row[key] for row in rows])


def _number(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f}" if known else "–"
