"""Feature groups by name: the pipeline's five, and any that other encoders made.

The branches were written for five letters, whose modalities are known. Whoever brings features of
encoders that are no step of the pipeline has names of their own, and nobody knows what such an
encoder reads. So each of those groups is a modality of its own here: there or absent, hidden in
training, and missing in reports, by itself. Imports no torch, so that recipes read fast.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from merkit.contract import MODALITIES
from merkit.errors import InvalidInputError
from merkit.pipeline import GROUP_MODALITIES, GROUPS

NAME = re.compile(r"[A-Za-z0-9_.-]+")
RESERVED = ("vote", "presence")
"""Names that reports and executors use beside those of groups."""
STORED = {g: name if g != "j" else "joint_views" for g, name in GROUPS.items()}
"""The tensors of the pipeline's groups in `features.safetensors`."""
FOREIGN = "group/"
"""Before the name of any other group's tensor there."""


def stored_name(group: str) -> str:
    """The tensor of a group in `features.safetensors`."""
    return STORED.get(group, FOREIGN + group)


def foreign(groups: Iterable[str]) -> tuple[str, ...]:
    """The groups that no step of the pipeline makes, in order."""
    return tuple(group for group in groups if group not in GROUPS)


def in_order(groups: Collection[str]) -> tuple[str, ...]:
    """The pipeline's groups in its order, then the others as they come."""
    return (*(g for g in GROUPS if g in groups), *foreign(groups))


def modalities_of(groups: Collection[str]) -> tuple[str, ...]:
    """What a clip with such features may lack: the columns of its presence.

    The pipeline's three where any of its groups is there, then every other group.
    """
    others = foreign(groups)
    return (*MODALITIES, *others) if len(others) < len(groups) else others


def read_by(group: str) -> tuple[str, ...]:
    """The modalities of which any makes the group present."""
    return GROUP_MODALITIES.get(group, (group,))


def check_names(groups: Sequence[str]) -> None:
    """Refuses names of foreign groups that are unfit, taken or twice; ValueError says which."""
    taken = {*RESERVED, *GROUPS}
    for name in groups:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no group's name (letters, digits, '_', '.' and '-')")
        if name in taken:
            raise ValueError(f"{name!r} cannot be a group's name: it is twice, or has a meaning")
        taken.add(name)


def check_voter(name: str, groups: Collection[str]) -> None:
    """Refuses a branch that is not made of different groups among these; ValueError says so."""
    own = name.split("+")
    if set(own) - set(groups) or len(set(own)) < len(own):
        known = "; ".join(f"{g} is {GROUPS[g]}" if g in GROUPS else g for g in groups)
        raise ValueError(f"the voter {name!r} is not made of different groups ({known})")


def all_and_each_without_one(groups: Sequence[str]) -> tuple[str, ...]:
    """Branches for any groups: one of all, and one without each, as the seed's are of its four."""
    rest = [[g for g in groups if g != left] for left in reversed(groups)]
    return tuple(dict.fromkeys("+".join(own) for own in [list(groups), *rest] if own))


def refuse_foreign(widths: Mapping[str, int], what: str) -> None:
    """Refuses features that no bundle could compute.

    Raises:
        InvalidInputError: names the groups that have no encoder in the pipeline.
    """
    if others := foreign(widths):
        raise InvalidInputError(
            f"{what} reads {', '.join(others)}, which no encoder of the pipeline makes",
            f"feature groups among {', '.join(f'{g} ({name})' for g, name in GROUPS.items())}",
            "train a run with encoders of its own, or adopt one: merkit-export adopt",
        )
    if missing := [g for g in GROUPS if g not in widths]:
        raise InvalidInputError(
            f"{what} has no features of {', '.join(missing)}",
            f"all of {', '.join(GROUPS)}",
            "train the run again: merkit-train run",
        )
