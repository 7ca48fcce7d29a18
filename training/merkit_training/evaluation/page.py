"""The report as one HTML file: what was measured, how surely, and on which clips it fails.

A table of scores is believed more than it deserves. So each figure stands with its interval and
its number of clips, what was not measured is said, and the worst answers can be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from merkit.report import USE_STATEMENT
from merkit_training.evaluation import charts
from merkit_training.evaluation.measure import LEAST
from merkit_training.evaluation.tables import Row, cell, details, estimate, head, number, table

SHOWN = 30  # groups of a column; the JSON has all
LISTED = 200  # problems; the JSON has all
MEASURES = {
    "waf": ("Weighted F1 (WAF)", "the challenge's measure"),
    "accuracy": ("Accuracy", "share of right answers"),
    "uar": ("UAR", "mean recall of the classes"),
    "ece": ("ECE", "calibration error; less is better"),
    "brier": ("Brier", "0 to 2; less is better"),
}


def html(report: Row, pages: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        report: what `measure` made.
        pages: for clips that have a page of their own, its address beside this one.
    """
    style = "".join(
        files(package).joinpath(name).read_text("utf-8")
        for package, name in (
            ("merkit", "report.css"),
            ("merkit_training.evaluation", "page.css"),
        )
    )
    subject, data = report["subject"], report["data"]
    title = f"Evaluation of {subject['name'] or subject['kind']} on {_set_name(data)}"
    notice = f'<p class="notice">{escape(report["notice"])}</p>' if report["notice"] else ""
    sections = list(_sections(report, pages))
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name, _ in sections)
    body = "".join(
        f'<article id="{key}"><h2>{escape(name)}</h2>{content}</article>\n'
        for key, name, content in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="quiet">merkit {escape(report["merkit"])}; '
        f"{_counted(data)}</p>{notice}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>{_tiles(report)}{body}</main>\n<footer>{_footer(report)}</footer>\n"
        "</body>\n</html>\n"
    )


def _sections(report: Row, pages: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    if "overall" in report:
        yield "classes", "Classes", _classes(report)
        yield "calibration", "Calibration", _calibration(report)
        yield "branches", "Each branch against the vote", _branches(report["branches"])
        groups = dict(report["groups"])
        if subset := groups.pop("subset", None):
            yield "subsets", "Where the modalities agree and where not", _subsets(subset)
        if report["robustness"]:
            yield "robustness", "Robustness", _robustness(report["robustness"])
        if groups:
            yield "groups", "Groups", _groups(groups)
        yield "worst", "Worst answers", _worst(report["worst"], pages)
    yield "data", "What was evaluated", _data(report)


def _tiles(report: Row) -> str:
    if "overall" not in report:
        return '<p class="notice">No clip could be evaluated; see below.</p>'
    tiles = []
    for key, (name, told) in MEASURES.items():
        e = report["overall"][key]
        tiles.append(
            f"<div><dt>{name}</dt><dd>{e['value']:.3f}<small>{e['low']:.3f} to {e['high']:.3f}"
            f"</small><small>{told}</small></dd></div>"
        )
    bare = report["overall"]["majority"]
    always = (
        f'<p class="quiet">Below each figure its 95 % interval (bootstrap over clips, '
        f"{report['settings']['resamples']} resamples). On a few dozen clips such intervals are "
        "too narrow, and one of no width only says that all these clips came out alike. Answering "
        f"“{escape(report['labels'][bare['label']])}” to every clip has a WAF of "
        f"{bare['waf']:.3f}.</p>"
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>{always}'


def _classes(report: Row) -> str:
    rows = [
        [
            head(name),
            number(str(count)),
            *(estimate(f1) if f1 else [cell("no clip")]),
        ]
        for name, count, f1 in zip(
            report["labels"],
            report["data"]["of each class"],
            report["overall"]["class_f1"],
            strict=True,
        )
    ]
    scored = table("F1 of each class", ("class", "#clips", "#F1", "#95 % interval", "0 to 1"), rows)
    return f"{scored}<h3>Confusion</h3>{charts.confusion(report['confusion'], report['labels'])}"


def _calibration(report: Row) -> str:
    bins = report["reliability"]
    rows = [
        [
            number(f"{b['confidence']:.3f}"),
            number(f"{b['right']:.3f}"),
            number(f"{b['low']:.3f} to {b['high']:.3f}"),
            number(str(b["clips"])),
        ]
        for b in bins
    ]
    numbers = table("Reliability", ("#mean confidence", "#right", "#95 % interval", "#clips"), rows)
    return (
        "<p>A calibrated model is right on 70 % of the clips that it gives 70 %. Points below the "
        "dashed line: too sure; above: not sure enough. Bars at the foot: number of clips.</p>"
        f"{charts.reliability(bins)}{details('Numbers', numbers)}"
    )


def _branches(branches: Sequence[Row]) -> str:
    gaps = [b["vote less it"] for b in branches if "vote less it" in b]
    reach = max([0.02, *(abs(g[side]) for g in gaps for side in ("low", "high"))])
    rows = []
    for b in branches:
        if "waf" not in b:
            rows.append([head(b["name"]), number("0"), cell("abstained on every clip")])
            continue
        gap = b["vote less it"]
        rows.append(
            [
                head(b["name"]),
                number(str(b["clips"])),
                number(f"{b['out of fold']:.3f}" if "out of fold" in b else ""),
                number(f"{b['waf']['value']:.3f}"),
                number(f"{b['waf']['low']:.3f} to {b['waf']['high']:.3f}"),
                number(f"{gap['value']:+.3f}"),
                number(f"{gap['low']:+.3f} to {gap['high']:+.3f}"),
                f'<td class="draw">{charts.interval(gap, -reach, reach, zero=True)}</td>',
            ]
        )
    heads = (
        "branch", "#clips", "#WAF out of fold", "#WAF here", "#95 % interval",
        "#vote less it", "#95 % interval", f"−{reach:.2f} to +{reach:.2f}",
    )  # fmt: skip
    return (
        "<p>In rank order. <em>Vote less it</em>: WAF of the vote minus that of the branch, on the "
        "clips on which the branch voted; the interval is of a paired bootstrap. Only an interval "
        "that does not contain 0 shows a difference. <em>Out of fold</em>: the score that ranked "
        "the branch when it was trained.</p>" + table("Branches", heads, rows)
    )


def _subsets(rows: Sequence[Row]) -> str:
    return (
        "<p>Aligned: all modalities show the labelled emotion. Conflicting: some show another. "
        "Mixed: between the two, as the set's own column says.</p>" + _group_table("subset", rows)
    )


def _groups(groups: Mapping[str, Sequence[Row]]) -> str:
    parts = []
    for column, rows in groups.items():
        enough = [row for row in rows if row["clips"] >= LEAST]
        few = len(rows) - len(enough)
        told = f"{len(rows)} values"
        if few:
            told += f"; {few} with fewer than {LEAST} clips are in the JSON alone"
        if len(enough) > 1:
            scores = [row["waf"]["value"] for row in enough]
            told += f"; WAF from {min(scores):.3f} to {max(scores):.3f}"
        parts.append(f"<h3>By {escape(column)}</h3><p class='quiet'>{told}.</p>")
        if enough:
            parts.append(_group_table(column, enough[:SHOWN]))
        if len(enough) > SHOWN:
            parts.append(f"<p class='quiet'>The {SHOWN} largest are shown; the JSON has all.</p>")
    return (
        "<p>Differences between groups of some dozen clips are mostly chance: look at the "
        "intervals (Wilson’s, of the accuracy).</p>" + "".join(parts)
    )


def _group_table(column: str, rows: Sequence[Row]) -> str:
    cells = [
        [
            head(row["value"]),
            number(str(row["clips"])),
            number(f"{row['waf']['value']:.3f}"),
            *estimate(row["accuracy"]),
        ]
        for row in rows
        if row["clips"]
    ]
    heads = (column, "#clips", "#WAF", "#accuracy", "#95 % interval", "0 to 1")
    return table(f"Scores by {column}", heads, cells)


def _robustness(found: Row) -> str:
    clean = found["clean"]["waf"]
    given = "The transcript is given and stays as it is under noise and blur. "
    parts = [
        f"<p>On {found['clips']} clips, WAF {clean['value']:.3f} ({clean['low']:.3f} to "
        f"{clean['high']:.3f}) as they are. {given if found['curves'] else ''}"
        "Clips on which nothing was left to judge are not in a point’s WAF; its number "
        "of clips tells. <em>Change</em>: from the same clips as they are.</p>"
    ]
    sound = {n: found["curves"][n] for n in ("noise", "babble") if n in found["curves"]}
    drawn = []
    if sound:
        levels = ["as it is", *(f"{p['level']:g}" for p in next(iter(sound.values())))]
        lines = {name: [clean, *(_waf(p) for p in points)] for name, points in sound.items()}
        drawn.append(_chart("Sound", levels, lines, "signal to noise, dB"))
    if blur := found["curves"].get("blur"):
        levels = ["as it is", *(f"{p['level']:g}×" for p in blur)]
        drawn.append(
            _chart("Blur", levels, {"blur": [clean, *map(_waf, blur)]}, "halved and doubled")
        )
    if rates := found["rates"]:
        levels = ["0", *(f"{p['rate']:.0%}" for p in rates)]
        lines = {"missing": [clean, *(p["waf"] for p in rates)]}
        drawn.append(
            _chart("Missing at random", levels, lines, "chance of each modality to be missing")
        )
    parts.append(f'<div class="pair">{"".join(drawn)}</div>')
    names = {"noise": "steady noise (pink)", "babble": "babble: sound of other clips of the set"}
    rows = [
        _point_row(f"{names.get(name, name)}, {_level(p)}", p)
        for name, points in found["curves"].items()
        for p in points
    ]
    heads = (
        "condition",
        "#clips",
        "#WAF",
        "#95 % interval",
        "0 to 1",
        "#change",
        "#95 % interval",
    )
    if rows:
        parts.append(details("Numbers of noise and blur", table("Noise and blur", heads, rows)))
    patterns = [_point_row(p["condition"].partition(":")[2], p) for p in found["patterns"]]
    parts.append(
        "<h3>With these modalities alone</h3>" + table("Missing modalities", heads, patterns)
    )
    return "".join(parts)


def _level(point: Row) -> str:
    if "with a face" in point:
        return f"{point['level']:g}×, a face in {point['with a face']:.0%}"
    return f"{point['level']:g} dB"


def _waf(point: Row) -> Row:
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    return point.get("waf", nothing)  # type: ignore[no-any-return]


def _chart(name: str, levels: Sequence[str], lines: Mapping[str, Any], axis: str) -> str:
    chart = charts.curves(f"WAF: {name.lower()}", levels, lines, axis)
    return f"<section><h3>{escape(name)}: WAF</h3>{chart}</section>"


def _point_row(name: str, p: Row) -> list[str]:
    if "waf" not in p:
        return [head(name), number("0"), cell("nothing to judge")]
    gap = p["less clean"]
    return [
        head(name),
        number(str(p["clips"])),
        *estimate(p["waf"]),
        number(f"{gap['value']:+.3f}"),
        number(f"{gap['low']:+.3f} to {gap['high']:+.3f}"),
    ]


def _worst(worst: Sequence[Row], pages: Mapping[str, str]) -> str:
    if not worst:
        return "<p>No answer was wrong.</p>"
    rows = []
    for w in worst:
        name = escape(w["name"])
        if w["name"] in pages:
            name = f'<a href="{escape(quote(pages[w["name"]]))}">{name}</a>'
        facts = ", ".join(f"{key} {value}" for key, value in w["facts"].items())
        rows.append(
            [
                f'<td class="name">{name}</td>',
                cell(w["truth"]),
                cell(w["label"]),
                number(f"{w['score']:.1%}"),
                number(f"{w['of truth']:.1%}"),
                f'<td class="quiet">{escape(facts)}</td>',
            ]
        )
    heads = ("clip", "true", "answer", "#its score", "#score of the true class", "")
    return (
        "<p>The wrong answers that gave the true class least. A label may be wrong too: look at "
        "the clip before blaming the model.</p>" + table("Worst answers", heads, rows)
    )


def _data(report: Row) -> str:
    data, problems = report["data"], report["problems"]
    counts = {
        "set": data["source"] + (f", split {data['split']}" if data["split"] else ""),
        "labelled clips": str(data["labelled"]),
        "without a label": str(data["unlabelled"]),
        "asked about": str(data["asked"])
        + (", drawn at random" if data["asked"] < data["labelled"] else ""),
        "answered": str(data["answered"]),
        "could not be read": str(data["unreadable"]),
        "with nothing to judge": str(data["without evidence"]),
        "left out when the set was read": str(data["left out before"]),
    }
    pairs = "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in counts.items())
    rows = [
        [
            head(p["clip"]),
            cell("not in the figures" if p["lost"] else "used"),
            cell(p["kind"]),
            cell(p["detail"]),
        ]
        for p in problems[:LISTED]
    ]
    told = "<p>Every clip was read and answered.</p>"
    if rows:
        told = table(
            "Clips that are not in the figures, and remarks", ("clip", "", "what", ""), rows
        )
    if len(problems) > len(rows):
        told += f"<p class='quiet'>{len(problems) - len(rows)} more are in the JSON.</p>"
    return f"<dl>{pairs}</dl><h3>Clips not in the figures, and remarks</h3>{told}"


def _footer(report: Row) -> str:
    facts = {k: v for k, v in report["subject"].items() if v}
    facts |= {"seed": str(report["settings"]["seed"])}
    pairs = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f"<h3>Model</h3><dl>{pairs}</dl><h3>Use</h3><p>{USE_STATEMENT}</p>"


def _set_name(data: Row) -> str:
    source = str(data["source"]).rstrip("/")
    return data["split"] or source.rsplit("/", 1)[-1]


def _counted(data: Row) -> str:
    lost = data["asked"] - data["answered"] + data["left out before"]
    left = f", {lost} could not be evaluated (listed below)" if lost else ""
    drawn = ", drawn at random" if data["asked"] < data["labelled"] else ""
    return f"{data['answered']} of {data['labelled']} labelled clips{drawn}{left}"
