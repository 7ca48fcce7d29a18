"""A recipe as TOML in full, with the remarks that its file keeps beside the values.

A recipe names only what differs from the defaults, so a reader of the file alone cannot tell what
will run. And tomllib drops comments, which is where `paper.toml` says what the seed left open.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

NOT_STATED = "not stated"
"""In a remark: the seed gives no value for this key."""
READ_AS = "read as"
"""In a remark: the seed's word is open, and the remark says how it is read."""
DEFAULT = "default"

Remarks = dict[tuple[str, str], str]
"""(table, key) -> the comment on the key's line, empty where there is none."""


def remarks(text: str) -> Remarks:
    """The keys that a recipe's TOML sets, each on one line, and the comments behind them."""
    found: Remarks = {}
    table = ""
    for line in text.splitlines():
        content, note = _split(line)
        if content.startswith("["):
            table = content.strip("[] ")
        elif "=" in content:
            found[table, content.partition("=")[0].strip()] = note
    return found


def full_text(tables: Mapping[str, Any], notes: Remarks) -> str:
    """TOML of `Recipe.to_json()`; reading it back gives the same recipe.

    Args:
        tables: tables by name, perhaps with tables inside.
        notes: from `remarks`; a key that is not among them is marked as a default.
    """
    lines: list[str] = []
    for name, table in tables.items():
        _write(name, table, notes, lines)
    return "\n".join(lines).lstrip() + "\n"


def _write(name: str, table: Mapping[str, Any], notes: Remarks, lines: list[str]) -> None:
    lines += ["", f"[{name}]"]
    for key, value in table.items():
        if isinstance(value, Mapping):
            continue
        note = notes.get((name, key), DEFAULT)
        if value is None:  # which TOML cannot say
            lines.append(f"# {key} is none")
        else:
            lines.append(
                f"{key} = {json.dumps(value, ensure_ascii=False)}" + (f"  # {note}" if note else "")
            )
    for key, value in table.items():
        if isinstance(value, Mapping):
            _write(f"{name}.{key}", value, notes, lines)


def _split(line: str) -> tuple[str, str]:
    """A line's content and its comment; a # inside a string begins none."""
    at = line.find("#")
    while at >= 0:
        try:
            tomllib.loads(line[:at])
        except tomllib.TOMLDecodeError:
            at = line.find("#", at + 1)
        else:
            return line[:at].strip(), line[at + 1 :].strip()
    return line.strip(), ""
