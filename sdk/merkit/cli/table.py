"""A prediction as lines of text for a terminal.

JSON is for programs; a person wants to see at a glance what won, by how much, who disagreed and
what it rests on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap

from merkit.contract import MODALITIES
from merkit.hearing import Heard
from merkit.results import Prediction, no_vote

BAR = 28
BLOCKS = " ▏▎▍▌▋▊▉█"
SLOWEST = 6  # steps named on the timings line


def table(prediction: Prediction, *, unicode: bool = True) -> str:
    """The prediction in some twenty lines of at most 80 columns, warnings included."""
    return "\n".join(line.rstrip() for line in _lines(prediction, unicode))


def printable(text: str) -> str:
    """`text` without what could move a terminal's cursor; file names may hold anything."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def bar(share: float, width: int = BAR, *, unicode: bool = True) -> str:
    """A bar of `width` columns of which `share` (0 to 1) is filled."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    if not unicode:
        return ("#" * round(eighths / 8)).ljust(width)
    full, part = divmod(eighths, 8)
    return (BLOCKS[8] * full + (BLOCKS[part] if part else "")).ljust(width)


def _lines(p: Prediction, unicode: bool) -> Iterator[str]:
    yield printable(p.source)
    yield f"  {p.label}  {p.scores[p.label]:.1%}"
    yield ""
    width = max(map(len, p.scores))
    for label, score in sorted(p.scores.items(), key=lambda item: -item[1]):
        yield f"  {label:<{width}}  {bar(score, unicode=unicode)} {score:6.1%}"
    yield ""
    yield f"  votes      {_votes(p)[0]}"
    for vote in _votes(p)[1:]:
        yield f"             {vote}"
    yield f"  used       {_used(p)}"
    if p.faces:
        first, last = p.faces[0].time, p.faces[-1].time
        span = f", from {first:.1f} to {last:.1f} s" if last else ""
        yield f"  faces      {len(p.faces)}{span}"
    if p.transcript is not None:
        yield f"  words      {shortened(printable(p.transcript))}"
    if p.hearing is not None:
        yield f"  heard      {_heard(p.hearing)}"
    yield f"  timings    {timings(p.timings_ms)}"
    identity = ", ".join(p.bundle[k] for k in ("name", "backend") if k in p.bundle)
    yield f"  bundle     {p.bundle.get('bundle_id', '')[:8]} ({identity})"
    if p.confident is False:
        least = float(p.bundle["confident_from"])
        yield f"  note       not confident: below the bundle's {least:.1%}"
    if notice := p.bundle.get("notice"):
        yield from wrap(f"  note       {notice}", width=80, subsequent_indent=" " * 13)
    for warning in p.warnings:
        yield f"  note       {printable(warning)}"


def _votes(p: Prediction) -> list[str]:
    width = max(map(len, p.votes))
    labels = max(map(len, p.scores))
    return [
        f"{name:<{width}}  {vote.label:<{labels}} {vote.scores[vote.label]:6.1%}"
        if vote
        else f"{name:<{width}}  {no_vote(name, p)}"
        for name, vote in p.votes.items()
    ]


def _used(p: Prediction) -> str:
    used = [f"{m} {p.contributions[m]:.0%}" for m in p.modalities]
    unused = [m for m in MODALITIES if m not in p.modalities]
    return ", ".join(used) + (f"  (without {' and '.join(unused)})" if unused else "")


def _heard(hearing: Heard) -> str:
    """Where the words come from, how sure they are, and for how long somebody speaks."""
    said = {
        "caller": "words were given",
        "recognized": f"words recognised in {hearing.source}, {hearing.confidence or 0:.0%} sure",
        "none": "no words",
    }[hearing.origin]
    spoken = sum(end - begin for begin, end in hearing.speech)
    return f"{said}; somebody speaks for {spoken:.1f} s"


def timings(milliseconds: Mapping[str, float]) -> str:
    """The total and the slowest steps on one line."""
    steps = sorted(((ms, name) for name, ms in milliseconds.items() if name != "total"))[::-1]
    named = ", ".join(f"{name} {ms:.1f}" for ms, name in steps[:SLOWEST])
    return f"{milliseconds.get('total', 0.0):.1f} ms in all" + (f" ({named})" if named else "")


def shortened(text: str, most: int = 60) -> str:
    """`text` cut to `most` characters, with an ellipsis where it was cut."""
    return text if len(text) <= most else text[: most - 1] + "…"
