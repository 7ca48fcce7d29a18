"""`merkit-train evaluate`: one report on a bundle, a served bundle or a run, on a labelled set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit_training.commands import Commands

EPILOG = (
    "Writes OUT/report.html, OUT/report.json and a page for each of the worst clips. Interrupted, "
    "the same command continues; OUT/cache keeps the answers (numbers alone) for the next time."
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "evaluate",
        help="report on a bundle or a run on labelled clips",
        description="Measure a bundle, a served bundle or a training run on labelled clips.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "model", type=Path, nargs="?", metavar="BUNDLE_OR_RUN", help="its folder (or give --url)"
    )
    parser.add_argument("--url", default="", help="of a server, such as grpc://localhost:8001")
    data = parser.add_argument_group("clips")
    data.add_argument(
        "--data",
        type=Path,
        help="a table of clips, MER's folder, a corpus, or a split's folder in a corpus; a label "
        "file with --features",
    )
    data.add_argument(
        "--features", type=Path, metavar="DIR", help="of the clips of --data, for a run of `fuse`"
    )
    data.add_argument(
        "--split", default="", help="of a corpus, of the column `split`, or of a run of `fuse`"
    )
    data.add_argument(
        "--clips", type=int, default=0, metavar="N", help="N at random (default: all)"
    )
    data.add_argument(
        "--robustness",
        type=int,
        default=200,
        metavar="N",
        help="clips made harder, some twenty times each (default: 200; 0: none)",
    )
    told = parser.add_argument_group("report")
    told.add_argument("--out", type=Path, required=True, help="folder of the report")
    told.add_argument(
        "--by", action="append", default=[], metavar="COLUMN", help="group by it too; repeatable"
    )
    told.add_argument("--worst", type=int, default=12, metavar="N", help="clips with a page each")
    told.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    told.add_argument("--seed", type=int, default=0, help="of samples, noise and resamples")
    how = parser.add_argument_group("computing")
    how.add_argument("--workers", type=int, default=2, help="clips at a time (default: 2)")
    how.add_argument("--threads", type=int, help="of the mathematics (default: all cores)")
    parser.set_defaults(command=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from merkit_training.evaluation.labelled import read_labelled
    from merkit_training.evaluation.measure import Settings
    from merkit_training.evaluation.report import evaluate
    from merkit_training.evaluation.stored import (
        StoredExaminer,
        labelled_features,
        stored_backend,
    )
    from merkit_training.evaluation.subject import open_subject

    a = arguments
    settings = Settings(a.seed, a.resamples, a.worst, tuple(dict.fromkeys(a.by)))
    subject = open_subject(a.model, a.url, a.threads)
    with subject.client:
        examiner = None
        if backend := stored_backend(subject):
            data, features = labelled_features(backend, a.split, settings.by, a.data, a.features)
            examiner = StoredExaminer(backend, features)
        elif a.data is None or a.features is not None:
            raise InvalidInputError(
                "--features was given" if a.features else "--data is missing",
                "clips, for a model that has its own encoders",
                "give --data alone",
            )
        else:
            data = read_labelled(a.data, subject.labels, a.split, settings.by)
        report = evaluate(
            subject,
            data,
            a.out,
            settings,
            clips=a.clips,
            hard=a.robustness,
            workers=a.workers,
            examiner=examiner,
        )
    print("\n".join(_told(report)), flush=True)
    print(f"the report is {a.out / 'report.html'}")


def _told(report: dict[str, Any]) -> list[str]:
    data = report["data"]
    lines = [f"{data['answered']} of {data['labelled']} labelled clips"]
    if "overall" in report:
        for name in ("waf", "accuracy", "uar", "ece", "brier"):
            e = report["overall"][name]
            lines.append(f"{name:9} {e['value']:.3f} ({e['low']:.3f} to {e['high']:.3f})")
    lost = [problem for problem in report["problems"] if problem["lost"]]
    lines += [f"{p['clip']}: not in the figures: {p['kind']} ({p['detail']})" for p in lost]
    if remarks := len(report["problems"]) - len(lost):
        lines.append(f"{remarks} remarks on other clips are in the report")
    if report["notice"]:
        lines.append(report["notice"])
    return lines
