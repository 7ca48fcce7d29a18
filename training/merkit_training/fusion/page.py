"""The modality table as a page, worded by its own figures: a claim that fails says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merkit.pipeline import GROUPS

SYSTEM_NAMES = {
    "a": "sound (a, HuBERT)",
    "t": "words (t, LLM)",
    "v": "face (v, ViT)",
    "j": "sound and words (j, joint)",
    "V": "face (V, InternViT)",
}
EVIDENCE = {"a": "sound", "t": "words", "v": "video", "j": "sound", "V": "video", "vote": "all"}
"""The ceiling in the data card that bounds each system."""
ON_TEST = "vote ranked on the test split"


def page(tables: Mapping[str, Any], tests: Sequence[str]) -> str:
    """Markdown of what `tables.write_tables` measured."""
    if not tests:
        return "# Modality table\n\nThe data has no test split, so nothing was measured.\n"
    clips = ", ".join(f"{count} in `{name}`" for name, count in tables["clips"].items())
    parts = [
        "# Modality table",
        f"{_whose(tables)} Clips: {clips}. Every row is a head on the same features, trained on "
        f"`train`, selected on `val`; mean ± standard deviation over {tables['seeds']} seeds of "
        "the heads and of the folds, with the encoders fixed. The score is the weighted average F1 "
        "(WAF). "
        "`merkit-train run` measures it in its last stage, `merkit-train fuse` on features of any "
        "encoders, and `python -m merkit_training.fusion.tables RUN` prints this page.",
        _systems(tables, tests),
        *_remarks(tables),
        "## Does the vote beat the best single feature group?",
        "\n".join(_verdict(name, tables["gain"][name]) for name in tests),
        "## And the simpler rivals?",
        "Difference of the vote in WAF; one beyond the spread is larger than both standard "
        "deviations together.",
        "\n".join(_rival(tables, tests, rival) for rival in _rivals(tables)),
        *(_against_ceilings(tables, tests) if tables["ceilings"] else ()),
        "## When modalities are missing",
        "WAF of the deployed vote given only some modalities; encoders of the others never run.",
        _plain(tables["subsets"], tests, "given"),
        *(_by_evidence(tables, tests) if tables["evidence"] else ()),
        "## Calibration",
        "Expected calibration error (15 bins) and Brier score of the deployed scores. "
        "Temperatures are fitted on out-of-fold predictions. The vote's scores average only the "
        "branches that agree with it.",
        _plain(tables["calibration"], list(tables["calibration"]["vote"]), "scores"),
        *_valence(tables),
    ]
    return "\n\n".join(parts) + "\n"


def _valence(tables: Mapping[str, Any]) -> list[str]:
    if not tables.get("valence"):
        return []
    told = ", ".join(f"{error:.3f} on `{name}`" for name, error in tables["valence"].items())
    return ["## Valence", f"Mean squared error, mean over the branches that won: {told}."]


def _whose(tables: Mapping[str, Any]) -> str:
    if tables.get("own_data"):
        return "Figures from the data that the run was given."
    return (
        "Figures from the synthetic corpus: they prove the machinery and say nothing about people."
    )


def _against_ceilings(tables: Mapping[str, Any], tests: Sequence[str]) -> tuple[str, ...]:
    return (
        "## Against the ceiling",
        "Accuracy beside the best that any classifier could reach from the generator's true "
        "parameters ([how](synthetic-corpus.md)). That of `test_noise` is of the clean parameters: "
        "the noise is not in it.",
        _ceilings(tables, tests),
    )


def _by_evidence(tables: Mapping[str, Any], tests: Sequence[str]) -> tuple[str, ...]:
    return (
        "## Where the evidence agrees, and where it conflicts",
        "Accuracy of the vote by how the modalities of a clip relate.",
        _plain(tables["evidence"], tests, "evidence"),
    )


def _systems(tables: Mapping[str, Any], tests: Sequence[str]) -> str:
    systems = dict(tables["systems"])
    groups = tables.get("groups", GROUPS)
    order = dict.fromkeys(["majority class", *groups, "logistic regression", *tables["voters"]])
    rows = [_header("system", tests)]
    votes = ["mean probability", "weighted vote", ON_TEST, "vote"]
    for key in (key for key in [*order, *votes] if key in systems):
        cells = [f"{systems[key][t]['waf']:.3f} ± {systems[key][t]['sd']:.3f}" for t in tests]
        rows.append(_row(_title(key, tables["voters"]), cells))
    return "\n".join(rows)


def _remarks(tables: Mapping[str, Any]) -> list[str]:
    """What a reader must know of rows that saw the test clips."""
    remarks = []
    if ON_TEST in tables["systems"]:
        remarks.append(
            "The weighted vote counts each branch's ballot by its WAF on `val`. The vote ranked on "
            "the test split is the seed's own procedure: it has seen the test labels, and no "
            "deployed system can do so."
        )
    if tables.get("rank_on") == "test":
        remarks.append(
            "**The recipe ranks the voters on the test clips (`rank_on`): every figure of the "
            "vote here is too high.**"
        )
    return remarks


def _title(key: str, voters: Sequence[str]) -> str:
    if key in voters:
        return f"branch {key} (rank {voters.index(key) + 1})"
    return f"**{key}**" if key == "vote" else SYSTEM_NAMES.get(key, key)


def _verdict(test: str, gain: Mapping[str, Any]) -> str:
    best = SYSTEM_NAMES.get(gain["best_group"], gain["best_group"])
    interval = f"{gain['difference']:+.3f} (95 % interval {gain['low']:+.3f} to {gain['high']:+.3f}"
    measured = f"{interval}, paired bootstrap over clips)"
    if gain["beyond_spread"] and gain["beyond_chance"]:
        verdict = "Yes: the gain is beyond chance and beyond the spread of the seeds."
    elif gain["beyond_spread"] or gain["beyond_chance"]:
        what = "the spread of the seeds" if gain["beyond_spread"] else "chance"
        verdict = f"**Not shown**: the gain is beyond {what} only."
    else:
        verdict = "**No.**"
    return f"- `{test}`: {measured} over {best}. {verdict}"


def _rivals(tables: Mapping[str, Any]) -> list[str]:
    """What a user could run instead of the vote: the best branch alone, or one plain model."""
    rivals = [tables["voters"][0], "mean probability", "weighted vote", "logistic regression"]
    return [rival for rival in rivals if rival in tables["systems"]]


def _rival(tables: Mapping[str, Any], tests: Sequence[str], rival: str) -> str:
    found = []
    for test in tests:
        vote, other = (tables["systems"][key][test] for key in ("vote", rival))
        difference = vote["waf"] - other["waf"]
        level = abs(difference) <= vote["sd"] + other["sd"]
        found.append(
            f"{difference:+.3f} on `{test}` ({'within' if level else 'beyond'} the spread)"
        )
    return f"- over {_title(rival, tables['voters'])}: {', '.join(found)}"


def _ceilings(tables: Mapping[str, Any], tests: Sequence[str]) -> str:
    rows = [_header("system", tests)]
    for key, evidence in EVIDENCE.items():
        cells = []
        for test in tests:
            bound = tables["ceilings"].get(test, {}).get(evidence)
            reached = f"{tables['systems'][key][test]['accuracy']:.3f}"
            cells.append(reached if bound is None else f"{reached} of {bound:.3f}")
        rows.append(_row(_title(key, tables["voters"]), cells))
    return "\n".join(rows)


def _plain(table: Mapping[str, Mapping[str, float]], columns: Sequence[str], corner: str) -> str:
    rows = [_header(corner, columns)]
    for name, values in table.items():
        rows.append(_row(name, [f"{values[c]:.3f}" if c in values else "–" for c in columns]))
    return "\n".join(rows)


def _header(corner: str, columns: Sequence[str]) -> str:
    return _row(corner, columns) + "\n" + _row("---", ["---:"] * len(columns))


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {first} | " + " | ".join(cells) + " |"
