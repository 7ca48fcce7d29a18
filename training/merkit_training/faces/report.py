"""What a gathering kept and dropped, for each source: as JSON for tools, as Markdown for eyes.

A filter that removes a ninth of the faces decides what an encoder will know. So the report shows
each measure's distribution beside its threshold, and names every file that gave nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from merkit_training.corpus import SET_SPLITS
from merkit_training.faces.filters import AT_MOST, EDGES, MEASURES, REASONS
from merkit_training.faces.index import ROWS_AT_ONCE, GatherIndex
from merkit_training.faces.look import GatherSettings
from merkit_training.runs import read_json, write_json

NAMED = 1_000  # files that report.json names of a kind; the index names all
SHOWN = 20  # of them in report.md
BAR = 30  # characters of the longest bar


def write_reports(index: GatherIndex, out: Path, settings: GatherSettings) -> dict[str, Any]:
    """Writes `report.json` and `report.md` below `out`; returns the former's content."""
    report = {
        "kept": index.rows(),
        "settings": asdict(settings),
        "turned_is": settings.finder().turned_is,
        "sources": _sources(index, settings),
        "unreadable": _named(index, "unreadable"),
        "duplicates": _named(index, "duplicate"),
        "damaged": _named(index, "done", "AND detail != ''"),
        "without_face": _named(
            index, "done", "AND NOT EXISTS (SELECT 1 FROM faces WHERE faces.file = files.id)"
        ),
        "problems": _problems(index),
    }
    write_json(out / "report.json", report)
    temporary = out / "report.md.tmp"
    temporary.write_text("\n".join(_page(report)) + "\n", "utf-8")
    temporary.replace(out / "report.md")
    return read_json(out / "report.json")


def _sources(index: GatherIndex, settings: GatherSettings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for source, status, count in index.query(
        "SELECT source, status, count(*) FROM files GROUP BY source, status"
    ):
        found.setdefault(source, Counter())[status] = count
    joined = "FROM faces JOIN files ON files.id = faces.file"
    reasons = index.query(f"SELECT source, reason, count(*) {joined} GROUP BY source, reason")
    labels = index.query(
        f"SELECT source, faces.label, split, count(*) {joined} WHERE row IS NOT NULL "
        "GROUP BY source, faces.label, split"
    )
    histograms = _histograms(index)
    return {
        source: {
            "files": sum(states.values()),
            "unreadable": states["unreadable"],
            "duplicates": states["duplicate"],
            "faces": sum(n for s, _, n in reasons if s == source),
            "kept": sum(n for s, reason, n in reasons if s == source and reason is None),
            "dropped": {
                reason: sum(n for s, r, n in reasons if s == source and r == reason)
                for reason in REASONS.values()
            },
            "splits": _sums((SET_SPLITS[k], n) for s, _, k, n in labels if s == source),
            "labels": _sums(
                ("no label" if k < 0 else settings.classes[k], n)
                for s, k, _, n in labels
                if s == source
            ),
            "measures": {
                name: {
                    "filter": REASONS[name],
                    "threshold": getattr(settings.thresholds, name),
                    "kept_if": "at most" if name in AT_MOST else "at least",
                    "bins_from": list(EDGES[name]),
                    "counts": histograms[source][name][:-1] if source in histograms else [],
                    "not_measured": histograms[source][name][-1] if source in histograms else 0,
                }
                for name in MEASURES
            },
        }
        for source, states in found.items()
    }


def _histograms(index: GatherIndex) -> dict[str, dict[str, list[int]]]:
    """Counts by bin, and last of what was not measured: for each source and measure."""
    sums: dict[str, dict[str, Any]] = {}
    for source, table in _measures(index):
        own = sums.setdefault(
            source, {name: np.zeros(len(EDGES[name]) + 1, np.int64) for name in MEASURES}
        )
        for name, values in zip(MEASURES, table.T, strict=True):
            known = values[~np.isnan(values)]
            bins = np.searchsorted(EDGES[name], known, side="right") - 1
            own[name][:-1] += np.bincount(np.maximum(bins, 0), minlength=len(EDGES[name]))
            own[name][-1] += len(values) - len(known)
    return {s: {name: v.tolist() for name, v in own.items()} for s, own in sums.items()}


def _measures(index: GatherIndex) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Blocks of measures [n, measures] with their source."""
    for (source,) in index.query("SELECT DISTINCT source FROM files"):
        cursor = index.database.execute(
            f"SELECT {', '.join('faces.' + name for name in MEASURES)} FROM faces "
            "JOIN files ON files.id = faces.file WHERE source = ?",
            (source,),
        )
        while block := cursor.fetchmany(ROWS_AT_ONCE):
            yield source, np.array(block, np.float64)


def _named(index: GatherIndex, status: str, more: str = "") -> dict[str, Any]:
    """How many files have a status, and the first of them with what is said of them."""
    where = f"FROM files WHERE status = ? {more}"
    count = index.query(f"SELECT count(*) {where}", status)[0][0]
    rows = index.query(f"SELECT source, key, detail {where} ORDER BY id LIMIT ?", status, NAMED)
    return {"count": count, "first": [f"{source}/{key}: {d}" for source, key, d in rows]}


def _problems(index: GatherIndex) -> dict[str, Any]:
    kinds = index.query("SELECT what, count(*) FROM problems GROUP BY what ORDER BY what")
    query = "SELECT source, key FROM problems WHERE what = ? ORDER BY source, key LIMIT ?"
    return {
        what: {"count": n, "first": [f"{s}: {key}" for s, key in index.query(query, what, NAMED)]}
        for what, n in kinds
    }


def _sums(pairs: Iterator[tuple[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for name, count in pairs:
        total[name] += count
    return dict(sorted(total.items()))


def _page(report: dict[str, Any]) -> Iterator[str]:
    yield "# Gathered faces"
    yield ""
    yield f"{report['kept']} faces were kept. `index.sqlite` says where each came from."
    for source, facts in report["sources"].items():
        yield from ("", f"## {source}", "")
        yield (
            f"{facts['files']} files ({facts['unreadable']} unreadable, {facts['duplicates']} "
            f"duplicates), {facts['faces']} faces found, {facts['kept']} kept: "
            + ", ".join(f"{n} {name}" for name, n in (facts["splits"] | facts["labels"]).items())
            + "."
        )
        for name, measure in facts["measures"].items():
            yield from _chart(name, measure, facts["dropped"][measure["filter"]])
    yield from ("", f"`turned`: {report['turned_is']}.")
    titles = {
        "unreadable": "Unreadable files",
        "without_face": "Files without a face",
        "damaged": "Damaged files of which the rest was used",
        "duplicates": "Duplicates (left out; after the colon the file that counts)",
    }
    for key, title in titles.items():
        yield from _listing(title, report[key])
    for what, found in report["problems"].items():
        yield from _listing(f"Rows and files: {what}", found)


def _chart(name: str, measure: dict[str, Any], dropped: int) -> Iterator[str]:
    """One measure's distribution in bars."""
    limit = f"{measure['kept_if']} {measure['threshold']:g}"
    yield from ("", f"**{name}** (kept if {limit}): {dropped} dropped as {measure['filter']}", "")
    most = max(measure["counts"], default=0) or 1
    yield "```"
    for edge, count in zip(measure["bins_from"], measure["counts"], strict=False):
        yield f"from {edge:>7g}  {count:>9}  {'#' * math.ceil(BAR * count / most)}"
    if measure["not_measured"]:
        yield f"not measured  {measure['not_measured']:>8}"
    yield "```"


def _listing(title: str, found: dict[str, Any]) -> Iterator[str]:
    if found["count"]:
        yield from ("", f"## {title}: {found['count']}", "")
        yield from (f"- {line.replace(chr(10), ' ')}" for line in found["first"][:SHOWN])
        if found["count"] > SHOWN:
            yield f"- and {found['count'] - SHOWN} more (report.json, index.sqlite)"
