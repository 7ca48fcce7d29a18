"""`merkit-train submit`: the answers on a folder of clips as the challenge's CSV file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "submit",
        help="write the challenge's CSV file",
        description="Answer every clip of a folder and write the challenge's CSV: name,discrete.",
    )
    parser.add_argument(
        "model", type=Path, nargs="?", metavar="BUNDLE_OR_RUN", help="its folder (or give --url)"
    )
    parser.add_argument("--url", default="", help="of a server, such as grpc://localhost:8001")
    parser.add_argument("--data", type=Path, help="MER's folder, a folder of media, or a table")
    parser.add_argument(
        "--features", type=Path, metavar="DIR", help="instead of --data, for a run of `fuse`"
    )
    parser.add_argument("--out", type=Path, required=True, help="such as submission.csv")
    parser.add_argument("--names", type=Path, help="the official list of names, in its order")
    parser.add_argument("--texts", type=Path, help="CSV of transcripts: name and text")
    parser.add_argument(
        "--majority",
        default="",
        metavar="CLASS",
        help="for clips without an answer (default: the commonest answer)",
    )
    parser.add_argument("--fill-missing", action="store_true", help="also for names without a clip")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--workers", type=int, default=2, help="clips at a time (default: 2)")
    parser.add_argument("--threads", type=int, help="of the mathematics (default: all cores)")
    parser.set_defaults(command=_submit)


def _submit(arguments: argparse.Namespace) -> None:
    from merkit_training.evaluation.stored import stored_backend
    from merkit_training.evaluation.subject import open_subject
    from merkit_training.evaluation.submission import submit

    a = arguments
    subject = open_subject(a.model, a.url, a.threads)
    with subject.client:
        wanted = "features" if stored_backend(subject) else "data"
        other = "data" if wanted == "features" else "features"
        if getattr(a, wanted) is None or getattr(a, other) is not None:
            raise InvalidInputError(
                f"--{wanted} is missing, or --{other} was given",
                f"--{wanted} alone: the model "
                + ("has its own encoders" if wanted == "data" else "has no encoders"),
                "correct the command",
            )
        done = submit(
            subject,
            getattr(a, wanted),
            a.out,
            names=a.names,
            texts=a.texts,
            majority=a.majority,
            fill_missing=a.fill_missing,
            overwrite=a.overwrite,
            workers=a.workers,
        )
    for name, reason in done.filled.items():
        print(f"{name}: {done.majority} without an answer ({reason})", file=sys.stderr)
    for name in done.extra:
        print(f"{name}: not in the list of names; left out", file=sys.stderr)
    answered = len(done.labels) - len(done.filled)
    print(f"{a.out}: {len(done.labels)} names, {answered} of them answered by the model")
    if subject.notice:
        print(subject.notice)
