"""From answers to the report's plain values: every number of the page is one of these.

The page is for people and the JSON for machines; were each computed by itself, they would come to
differ. What could not be measured is left out here with its reason, never filled in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit import __version__
from merkit_training.evaluation import scores as s
from merkit_training.evaluation.answers import Answer, Answers
from merkit_training.evaluation.conditions import (
    BABBLES,
    BLURRED,
    NOISES,
    RATES,
    Condition,
    effective,
    missing,
    patterns,
)
from merkit_training.evaluation.labelled import COLUMNS, SUBSET, Item, LabelledSet
from merkit_training.evaluation.subject import Subject
from merkit_training.metrics import Labels, confusion, paired_bootstrap

SCHEMA = 1
DRAWS = 1000  # of patterns of missing modalities, for each rate
ROUNDED = 5
RATED = 6
"""Modalities at most of which every pattern is asked, as random loss needs."""
LISTED = 4
"""Modalities at most of which every pattern has a row; of more, all, all but one, and one."""
LEAST = 10
"""Clips of a group below which a score says nothing; the JSON has it all the same."""
SUBSETS = ("aligned", "mixed", "conflicting")


@dataclass(frozen=True)
class Settings:
    """How a report is made."""

    seed: int = 0  # of resamples, noise, samples of clips
    resamples: int = 2000  # of the bootstrap
    worst: int = 12  # clips with pages of their own
    by: tuple[str, ...] = ()  # columns to group by besides the usual ones


@dataclass(frozen=True)
class Table:
    """Answers on clips as arrays, for the clips that were answered."""

    items: tuple[Item, ...]
    truth: Labels  # [n]
    label: Labels  # [n]
    scores: NDArray[np.float64]  # [n, classes]
    branches: NDArray[np.float64]  # [n, voters, classes]

    def __len__(self) -> int:
        return len(self.items)

    def where(self, chosen: Sequence[bool] | NDArray[np.bool_]) -> Table:
        """The chosen clips."""
        rows = np.flatnonzero(np.asarray(chosen))
        items = tuple(self.items[i] for i in rows.tolist())
        return Table(
            items, self.truth[rows], self.label[rows], self.scores[rows], self.branches[rows]
        )


def table_of(pairs: Sequence[tuple[Item, Answer | None]]) -> Table:
    """The clips among `pairs` that got a label."""
    answered = [(item, a) for item, a in pairs if a is not None and a.label >= 0]
    return Table(
        tuple(item for item, _ in answered),
        np.array([item.label for item, _ in answered], np.int64),
        np.array([a.label for _, a in answered], np.int64),
        np.array([a.scores for _, a in answered]),
        np.array([a.branches for _, a in answered]),
    )


def measure(
    subject: Subject,
    data: LabelledSet,
    items: Sequence[Item],
    hard: Sequence[Item],
    found: Mapping[str, Answers],
    settings: Settings,
) -> dict[str, Any]:
    """The report as plain values; nothing in it depends on when or how fast it was made."""
    table = table_of([(item, found[item.record.name].clean) for item in items])
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "merkit": __version__,
        "subject": dict(subject.facts),
        "notice": subject.notice,
        "labels": list(subject.labels),
        "settings": asdict(settings) | {"by": list(settings.by)},
        "data": _data(data, items, found, table),
        "problems": _problems(data, items, found, subject.nothing),
    }
    if not len(table):
        return report
    classes = len(subject.labels)
    report |= {
        "overall": _overall(table, settings),
        "confusion": confusion(table.truth, table.label, classes).tolist(),
        "reliability": s.reliability(table.truth, table.scores),
        "branches": _branches(subject, table, settings),
        "groups": _groups(table, settings),
        "robustness": _robustness(hard, found, subject.modalities, settings),
        "worst": _worst(table, subject.labels, settings.worst),
        "clips": _clips(table, subject.labels),
    }
    return report


def _data(
    data: LabelledSet, items: Sequence[Item], found: Mapping[str, Answers], table: Table
) -> dict[str, Any]:
    tally = Counter(table.truth.tolist())
    failed = sum(found[item.record.name].error is not None for item in items)
    return {
        "source": str(data.source),
        "split": data.split,
        "labelled": len(data.items),
        "unlabelled": data.unlabelled,
        "asked": len(items),
        "answered": len(table),
        "unreadable": failed,
        "without evidence": len(items) - failed - len(table),
        "left out before": sum(problem.lost for problem in data.problems),
        "of each class": [tally[label] for label in range(table.scores.shape[-1])]
        if len(table)
        else [],
    }


def _problems(
    data: LabelledSet, items: Sequence[Item], found: Mapping[str, Answers], nothing: str
) -> list[dict[str, Any]]:
    """Every clip that is not in the figures (`lost`), then what was remarked on the others."""
    told = [_problem(p.name, p.kind, p.detail, p.lost) for p in data.problems]
    for item in items:
        answers, name = found[item.record.name], item.record.name
        if answers.error is not None:
            told.append(_problem(name, type(answers.error).__name__, answers.error.found))
        elif answers.clean is not None and answers.clean.label < 0:
            told.append(_problem(name, "no evidence", nothing))
    return sorted(told, key=lambda problem: not problem["lost"])


def _problem(clip: str, kind: str, detail: str, lost: bool = True) -> dict[str, Any]:
    return {"clip": clip, "kind": kind, "detail": detail, "lost": lost}


def _overall(table: Table, settings: Settings) -> dict[str, Any]:
    found, f1 = s.estimates(
        table.truth, table.label, table.scores, settings.resamples, settings.seed
    )
    most = Counter(table.truth.tolist()).most_common(1)[0]
    constant = np.full_like(table.truth, most[0])
    sure = np.eye(table.scores.shape[1])[constant]
    bare, _ = s.estimates(table.truth, constant, sure, 1, settings.seed)
    return {
        **{name: estimate.to_json() for name, estimate in found.items()},
        "class_f1": [estimate and estimate.to_json() for estimate in f1],
        "majority": {"label": most[0], "waf": round(bare["waf"].value, ROUNDED)},
    }


def _score(table: Table, settings: Settings) -> dict[str, Any]:
    """Clips, WAF and accuracy of a part; the interval of the accuracy is Wilson's, which has a
    width even where a few clips came out all alike."""
    if not len(table):
        return {"clips": 0}
    found, _ = s.estimates(
        table.truth, table.label, table.scores, settings.resamples, settings.seed
    )
    right = found["accuracy"].value
    accuracy = s.Estimate(right, *s.wilson(right, len(table)))
    return {"clips": len(table), "waf": found["waf"].to_json(), "accuracy": accuracy.to_json()}


def _against(truth: Labels, ours: Labels, theirs: Labels, settings: Settings) -> dict[str, float]:
    """WAF of ours minus WAF of theirs on the same clips."""
    classes = int(max(truth.max(), ours.max(), theirs.max())) + 1
    gap = paired_bootstrap(truth, ours, theirs, classes, settings.resamples, settings.seed)
    return s.Estimate(gap.difference, gap.low, gap.high).to_json()


def _branches(subject: Subject, table: Table, settings: Settings) -> list[dict[str, Any]]:
    """Each branch, the mean of their probabilities, and the vote less each of them."""
    stated = {str(voter["name"]): voter for voter in subject.voters}
    voted = (table.branches != 0).any(axis=2)  # [n, voters]
    mean = table.branches.sum(axis=1) / np.maximum(voted.sum(axis=1), 1)[:, None]
    systems = [
        (voter.name, table.branches[:, place], voted[:, place])
        for place, voter in enumerate(subject.contract.voters)
    ]
    rows = []
    for name, scores, cast in [*systems, ("mean probability", mean, voted.any(axis=1))]:
        part = table.where(cast)
        row: dict[str, Any] = {"name": name, "clips": len(part)}
        if len(part):
            own = scores[cast]
            label = own.argmax(axis=1)
            one = Table(part.items, part.truth, label, own, part.branches)
            row |= _score(one, settings)
            row["vote less it"] = _against(part.truth, part.label, label, settings)
        if "waf" in stated.get(name, {}):
            row["out of fold"] = round(float(stated[name]["waf"]), ROUNDED)
        rows.append(row)
    return rows


def _groups(table: Table, settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Scores by column and value, the largest group first; subsets in their own order."""
    found = {}
    for column in dict.fromkeys((SUBSET, *COLUMNS, *settings.by)):
        values = [item.facts.get(column, "") for item in table.items]
        tally = Counter(value for value in values if value)
        order = {name: place for place, name in enumerate(SUBSETS)}
        names = sorted(tally, key=lambda v: (order.get(v, len(order)), -tally[v], v))
        if not names:
            continue
        rows = []
        for name in names:
            part = table.where([value == name for value in values])
            rows.append({"value": name, **_score(part, settings)})
        if len(names) > 1 or column in settings.by:
            found[column] = rows
    return found


def _robustness(
    hard: Sequence[Item],
    found: Mapping[str, Answers],
    modalities: Sequence[str],
    settings: Settings,
) -> dict[str, Any]:
    items = [item for item in hard if (a := found[item.record.name].clean) and a.label >= 0]
    if not items:
        return {}
    clean = table_of([(item, found[item.record.name].clean) for item in items])
    curves = {}
    for name, conditions in (("noise", NOISES), ("babble", BABBLES), ("blur", BLURRED)):
        points = [_point(c, items, found, settings) for c in conditions]
        if any(point["changed"] for point in points):
            curves[name] = points
    return {
        "clips": len(items),
        "clean": _score(clean, settings),
        "curves": curves,
        "patterns": [_point(c, items, found, settings) for c in _shown(modalities)],
        "rates": _rates(items, found, modalities, settings) if len(modalities) <= RATED else [],
    }


def patterns_asked(modalities: Sequence[str]) -> list[Condition]:
    """The patterns that a report needs answers under: all; of many modalities all of them, all but
    one, and one alone."""
    if len(modalities) <= RATED:
        return [*patterns(modalities)]
    less = [tuple(m for m in modalities if m != one) for one in reversed(modalities)]
    kept = [tuple(modalities), *less, *((one,) for one in modalities)]
    return [Condition("only", keep=keep) for keep in kept]


def _shown(modalities: Sequence[str]) -> list[Condition]:
    """The patterns that have a row of their own."""
    number = len(modalities)
    sizes = {1, number - 1, number} if number > LISTED else range(number + 1)
    return [c for c in patterns_asked(modalities) if len(c.keep) in sizes]


def _under(condition: Condition, answers: Answers) -> Answer | None:
    """The answer under a condition; the clean one where it changes nothing."""
    assert answers.clean is not None
    meant = effective(condition, answers.clean.present)
    if meant is None:
        return None
    return answers.under.get(meant.key, answers.clean)


def _point(
    condition: Condition, items: Sequence[Item], found: Mapping[str, Answers], settings: Settings
) -> dict[str, Any]:
    """Scores of all clips that can be judged under a condition, and the change from clean."""
    pairs = [(item, _under(condition, found[item.record.name])) for item in items]
    answered = [a is not None and a.label >= 0 for _, a in pairs]
    clean = table_of([(item, found[item.record.name].clean) for item in items]).where(answered)
    table = table_of(pairs)
    changed = sum(a is not found[item.record.name].clean for item, a in pairs)
    point: dict[str, Any] = {"condition": condition.key, "changed": changed}
    point |= _score(table, settings)
    if condition.kind != "only":
        point["level"] = condition.level
    if condition.kind == "blur":
        faces = sum(a is not None and "video" in a.present for _, a in pairs)
        point["with a face"] = round(faces / len(items), ROUNDED)
    if len(table):
        point["less clean"] = _against(table.truth, table.label, clean.label, settings)
    return point


def _rates(
    items: Sequence[Item],
    found: Mapping[str, Answers],
    modalities: Sequence[str],
    settings: Settings,
) -> list[dict[str, Any]]:
    """WAF if each modality of each clip goes missing at random; asks nothing anew."""
    cleans = [a for item in items if (a := found[item.record.name].clean) is not None]
    present = np.array([[m in clean.present for m in modalities] for clean in cleans])
    bits = 1 << np.arange(len(modalities))
    labels = np.full((len(items), 1 << len(modalities)), -1, np.int64)
    for pattern in patterns(modalities):
        column = int(sum(bits[modalities.index(m)] for m in pattern.keep))
        for row, item in enumerate(items):
            if (answer := _under(pattern, found[item.record.name])) is not None:
                labels[row, column] = answer.label
    truth = np.array([item.label for item in items], np.int64)
    rows = []
    for rate in RATES:
        rng = np.random.default_rng([settings.seed, round(1000 * rate)])
        kept = np.stack([missing(present, rate, rng) @ bits for _ in range(DRAWS)])
        estimate = s.waf_under_missing(truth, labels, kept, settings.seed)
        rows.append({"rate": rate, "clips": len(items), "waf": estimate.to_json()})
    return rows


def _worst(table: Table, labels: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The clips whose true class got the least probability."""
    given = table.scores[np.arange(len(table)), table.truth]
    order = np.lexsort((np.arange(len(table)), given))[:count]
    return [
        {
            "name": table.items[i].record.name,
            "truth": labels[table.truth[i]],
            "label": labels[table.label[i]],
            "score": round(float(table.scores[i].max()), ROUNDED),
            "of truth": round(float(given[i]), ROUNDED),
            "facts": dict(table.items[i].facts),
        }
        for i in order.tolist()
        if table.label[i] != table.truth[i]
    ]


def _clips(table: Table, labels: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": item.record.name,
            "truth": labels[item.label],
            "label": labels[table.label[i]],
            "scores": [round(float(value), ROUNDED) for value in table.scores[i]],
            "facts": dict(item.facts),
        }
        for i, item in enumerate(table.items)
    ]
