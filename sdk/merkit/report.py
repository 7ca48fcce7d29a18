"""Predictions as one HTML file that needs no network.

A table in a terminal scrolls away and cannot show a face. This report can be kept, printed and
sent on: everything is inside the file, nothing in it is executed, and all text is escaped, since
file names, words and error messages come from outside.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from merkit import __version__
from merkit.errors import InvalidInputError, MerkitError
from merkit.hearing import Heard
from merkit.results import Face, Prediction, Vote, no_vote

THUMBNAIL = 320  # longer side of a frame in the report, in pixels
QUALITY = 85  # of its JPEG
USE_STATEMENT = (
    "Emotion inference is regulated. In the European Union, Article 5(1)(f) of the AI Act "
    "(Regulation 2024/1689) prohibits inferring the emotions of people from their face or voice "
    "at work and in education, except for medical or safety reasons. A label is a guess about an "
    "expression, not knowledge of what somebody feels."
)
DEMONSTRATION = (
    "The demonstration bundle that comes with merkit is trained on synthetic data only. It proves "
    "that the machinery works; its answers say nothing about people."
)


class Report:
    """Collects predictions and failures, then writes them as one page.

    Each is rendered when it is added, so that a report on many clips does not keep their frames.
    """

    def __init__(self) -> None:
        self._articles: list[str] = []
        self._rows: list[str] = []
        self._bundles: dict[tuple[tuple[str, str], ...], None] = {}
        self._notices: dict[str, None] = {}

    def add(self, source: str, answer: Prediction | MerkitError) -> None:
        """Adds one clip's prediction, or the error it met."""
        anchor = f"clip-{len(self._articles) + 1}"
        if isinstance(answer, MerkitError):
            label, share = "failed", ""
            self._articles.append(_failure(anchor, source, answer))
        else:
            label, share = answer.label, f"{answer.scores[answer.label]:.1%}"
            self._articles.append(_article(anchor, answer))
            self._bundles[tuple(sorted(answer.bundle.items()))] = None
            self._notices[answer.bundle.get("notice", DEMONSTRATION)] = None
        self._rows.append(
            f'<tr><th scope="row"><a href="#{anchor}">{escape(source)}</a></th>'
            f'<td>{escape(label)}</td><td class="number">{share}</td></tr>'
        )

    def html(self) -> str:
        """The whole page."""
        style = files("merkit").joinpath("report.css").read_text("utf-8")
        count = len(self._articles)
        title = f"Emotion report: {count} clip{'s' if count != 1 else ''}"
        notices = "".join(f'<p class="notice">{escape(n)}</p>' for n in self._notices)
        bundles = "".join(_definitions(dict(b)) for b in self._bundles)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
            f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f'<header><h1>{title}</h1><p class="quiet">merkit {__version__}</p>{notices}</header>\n'
            f"<main>\n{self._overview()}{''.join(self._articles)}</main>\n"
            f"<footer><h3>Bundle</h3>{bundles}<h3>Use</h3><p>{USE_STATEMENT}</p></footer>\n"
            "</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the page to `path`, whole or not at all.

        Raises:
            InvalidInputError: the file cannot be written.
        """
        target = Path(path).resolve()  # a link stays a link
        check_target(target)
        try:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", errors="replace", dir=target.parent, delete=False
            ) as file:
                temporary = Path(file.name)
                try:
                    file.write(self.html())
                    file.close()
                    temporary.chmod(0o644)
                    temporary.replace(target)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise InvalidInputError(
                f"the report cannot be written to {target} ({error.strerror})",
                "a file in a folder that can be written to",
                "choose another place",
            ) from None

    def _overview(self) -> str:
        if len(self._rows) < 2:
            return ""
        columns = "".join(f'<th scope="col">{name}</th>' for name in ("clip", "label", "score"))
        return (
            f"<article><table><caption>All clips</caption><thead><tr>{columns}</tr></thead>"
            f"<tbody>{''.join(self._rows)}</tbody></table></article>\n"
        )


def check_target(path: Path) -> None:
    """Refuses a path that no file could take: replacing a device or a pipe would destroy it."""
    try:
        good = path.parent.is_dir() and (path.is_file() or not path.exists())
    except (OSError, ValueError):  # a name too long, or with a zero byte
        good = False
    if not good:
        raise InvalidInputError(
            f"the report cannot be written to {path}",
            "a file, new or to be replaced, in an existing folder",
            "choose another place",
        )


def _failure(anchor: str, source: str, error: MerkitError) -> str:
    kind = escape(type(error).__name__)
    lines = {"found": error.found, "expected": error.expected, "what to do": error.action}
    body = _definitions({name: text for name, text in lines.items() if text})
    return (
        f'<article id="{anchor}" class="failed"><h2>{escape(source)}</h2>'
        f"<p><code>{kind}</code></p>{body}</article>\n"
    )


def _article(anchor: str, p: Prediction) -> str:
    notes = "".join(f'<p class="notice">{escape(warning)}</p>' for warning in p.warnings)
    sections = "".join(_sections(p))
    return (
        f'<article id="{anchor}"><h2>{escape(p.source)}</h2>'
        f'<p class="outcome">{escape(p.label)} <small>{p.scores[p.label]:.1%}</small></p>'
        f'{notes}<div class="columns">{sections}</div></article>\n'
    )


def _sections(p: Prediction) -> Iterator[str]:
    yield _section("Scores", _scores(p))
    yield _section("What it rests on", _shares(p))
    yield _section("Votes of the branches, best first", _votes(p), wide=True)
    if p.transcript is not None:
        yield _section("Words", f"<blockquote>{escape(p.transcript)}</blockquote>", wide=True)
    if p.hearing is not None:
        yield _section("What was heard", _heard(p.hearing), wide=True)
    if p.faces:
        yield _section(f"Faces ({len(p.faces)})", _faces(p), wide=True)
    yield _section("Time", _timings(p.timings_ms), wide=True)


def _section(title: str, body: str, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f"<section{kind}><h3>{escape(title)}</h3>{body}</section>\n"


def _scores(p: Prediction) -> str:
    rows = "".join(
        _bar_row(label, score, f"{score:.1%}", winner=label == p.label)
        for label, score in sorted(p.scores.items(), key=lambda item: -item[1])
    )
    return f"<table><caption>Score of each label</caption>{rows}</table>"


def _bar_row(name: str, share: float, text: str, winner: bool = False) -> str:
    kind = ' class="winner"' if winner else ""
    return (
        f'<tr{kind}><th scope="row">{escape(name)}</th><td>{_bar(share)}</td>'
        f'<td class="number">{text}</td></tr>'
    )


def _bar(share: float) -> str:
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/>'
        f'<rect class="fill" width="{width:.2f}" height="8"/></svg>'
    )


def _shares(p: Prediction) -> str:
    start, parts, legend = 0.0, [], []
    for modality in p.modalities:
        share = 100 * p.contributions[modality]
        parts.append(f'<rect class="{modality}" x="{start:.2f}" width="{share:.2f}" height="10"/>')
        legend.append(
            f'<li><svg viewBox="0 0 1 1" aria-hidden="true"><rect class="{modality}" width="1" '
            f'height="1"/></svg>{modality} {share:.0f} %</li>'
        )
        start += share
    unused = [m for m in ("video", "audio", "text") if m not in p.modalities]
    without = f'<p class="quiet">Without {" and ".join(unused)}.</p>' if unused else ""
    return (
        '<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'{"".join(parts)}</svg><ul class="legend">{"".join(legend)}</ul>{without}'
    )


def _votes(p: Prediction) -> str:
    rows = "".join(_vote_row(name, vote, p) for name, vote in p.votes.items())
    return f"<table><caption>Vote of each branch</caption>{rows}</table>"


def _vote_row(name: str, vote: Vote | None, p: Prediction) -> str:
    head = f'<th scope="row"><code>{escape(name)}</code></th>'
    if vote is None:
        return f'<tr>{head}<td class="quiet" colspan="3">{no_vote(name, p)}</td></tr>'
    score = vote.scores[vote.label]
    kind = ' class="winner"' if vote.label == p.label else ""
    return (
        f'<tr{kind}>{head}<td>{escape(vote.label)}</td><td style="width:60%">{_bar(score)}</td>'
        f'<td class="number">{score:.1%}</td></tr>'
    )


def _faces(p: Prediction) -> str:
    items = "".join(_face(face, p) for face in p.faces)
    return f'<ul class="faces">{items}</ul>'


def _face(face: Face, p: Prediction) -> str:
    caption = f"{face.time:.2f} s, confidence {face.confidence:.2f}"
    picture = ""
    if p.picture is not None:
        width, height = p.picture
        x, y, w, h = face.box
        frame = p.frames.get(face.time)
        image = "" if frame is None else _image(frame, width, height)
        picture = (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="face at {caption}">{image}'
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"/></svg>'
        )
    return f"<li><figure>{picture}<figcaption>{caption}</figcaption></figure></li>"


def _image(frame: NDArray[Any], width: int, height: int) -> str:
    """The frame as an SVG image with a data URI; empty without OpenCV."""
    try:
        import cv2
    except ImportError:
        return ""
    scale = min(1.0, THUMBNAIL / max(frame.shape[:2]))
    size = [max(1, round(side * scale)) for side in frame.shape[1::-1]]
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )[1]
    data = base64.b64encode(encoded.tobytes()).decode("ascii")
    return (
        f'<image width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="data:image/jpeg;base64,{data}"/>'
    )


def _heard(hearing: Heard) -> str:
    spans = ", ".join(f"{begin:.1f} to {end:.1f} s" for begin, end in hearing.speech)
    sure = "" if hearing.confidence is None else f"{hearing.confidence:.0%}"
    level = "" if hearing.level_dbfs is None else f"{hearing.level_dbfs:.0f} dBFS"
    facts = {"words by": hearing.origin, "confidence": sure, "heard in": hearing.source}
    facts |= {"because": hearing.reason, "speech": spans or "none", "level": level}
    return _definitions(facts | {"flags": ", ".join(hearing.flags)})


def _timings(milliseconds: Mapping[str, float]) -> str:
    total = milliseconds.get("total", 0.0)
    steps = {name: ms for name, ms in milliseconds.items() if name != "total"}
    most = max([*steps.values(), 1e-9])
    rows = "".join(
        _bar_row(name, ms / most, f"{ms:.1f} ms")
        for name, ms in sorted(steps.items(), key=lambda item: -item[1])
    )
    return (
        f"<details><summary>{total:.1f} ms in all; by step (some ran side by side)</summary>"
        f"<table><caption>Milliseconds of each step</caption>{rows}</table></details>"
    )


def _definitions(values: Mapping[str, str]) -> str:
    pairs = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in values.items()
        if value and name != "notice"
    )
    return f"<dl>{pairs}</dl>"
