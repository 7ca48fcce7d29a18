"""`merkit-train features`: any encoder over any clips, into folders that MER's tools read."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError
from merkit_training.commands.common import check_counts

if TYPE_CHECKING:
    from merkit_training.commands import Commands
    from merkit_training.features.extract import Extraction
    from merkit_training.features.report import Report

EPILOG = (
    "Writes OUT/<name>-UTT/<clip>.npy, OUT/<name>.json (what became of each clip) and a cache. "
    "Interrupted, the same command continues."
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "features",
        help="extract features of clips with any encoder",
        description="Extract features of clips with a trained step or a published encoder.",
        epilog=EPILOG,
    )
    add_arguments(parser)
    parser.set_defaults(command=_features)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "encoder",
        metavar="ENCODER",
        help="RUN:step, such as runs/tiny:audio_encoder; or a checkpoint's folder or hub id",
    )
    clips = parser.add_argument_group("clips")
    clips.add_argument(
        "--clips", type=Path, required=True, help="a folder of media, a data set, or a manifest"
    )
    clips.add_argument("--texts", type=Path, help="CSV of transcripts: name and text")
    clips.add_argument("--faces", type=Path, help="folder of OpenFace's faces, NAME/NAME.npy")
    out = parser.add_argument_group("output")
    out.add_argument("--out", type=Path, required=True, help="folder for the feature folders")
    out.add_argument("--name", help="of the feature folders (default: the encoder's)")
    out.add_argument("--frames", action="store_true", help="features over time too (-FRA)")
    out.add_argument("--cache", type=Path, help="folder of the cache (default: OUT/cache)")
    out.add_argument(
        "--skip-absent", action="store_true", help="no file where MERTools would write zeros"
    )
    model = parser.add_argument_group("published encoders")
    model.add_argument(
        "--as", dest="kind", choices=("vision", "video", "audio", "text"), help="expected kind"
    )
    model.add_argument("--hub", action="store_true", help="fetch an id that is no folder")
    model.add_argument("--pictures", action="store_true", help="whole pictures, not faces")
    model.add_argument("--layers", choices=("mean", "sum"), default="mean", help="of the last four")
    how = parser.add_argument_group("computing")
    how.add_argument("--images", type=int, help="faces or pictures of a clip")
    how.add_argument("--batch", type=int, default=16, help="clips at most (default: 16)")
    how.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    how.add_argument("--device", default="cpu", help="cpu, or cuda for each process's own")
    how.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    spread = how.add_mutually_exclusive_group()
    spread.add_argument("--processes", type=int, default=1, help="of this machine, by Accelerate")
    spread.add_argument("--ray", type=int, default=0, metavar="N", help="actors, by Ray Data")


def _features(arguments: argparse.Namespace) -> None:
    check_counts(arguments, "images", "batch", "threads", "processes")
    if arguments.ray < 0:
        raise InvalidInputError(f"--ray is {arguments.ray}", "1 or more", "correct it")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (arguments.ray or arguments.processes > 1):
        raise InvalidInputError(
            "the work is to be spread twice",
            "one of accelerate launch, --processes and --ray",
            "leave out --processes and --ray under accelerate launch",
        )
    if not arguments.clips.exists():
        raise InvalidInputError(
            f"there is nothing at {arguments.clips}", "clips", "check the path of --clips"
        )
    from merkit_training.features import cluster, spread
    from merkit_training.features.clips import list_clips

    clips = list_clips(arguments.clips, arguments.texts, arguments.faces)
    asked = _asked(arguments)
    report: Report | None
    if arguments.ray:
        report = cluster.with_ray(clips, asked, arguments.ray)
    elif arguments.processes > 1:
        report = spread.with_processes(clips, asked, arguments.processes)
    else:
        report = spread.within_launch(clips, asked)
    if report is not None:  # in the first process only
        print("\n".join(report.lines()), flush=True)


def _asked(arguments: argparse.Namespace) -> Extraction:
    from merkit_training.features.extract import Extraction
    from merkit_training.features.extractor import EncoderSpec

    spec = EncoderSpec(
        arguments.encoder,
        arguments.kind,
        arguments.hub,
        arguments.pictures,
        arguments.images,
        arguments.layers,
        arguments.device,
        arguments.bf16,
        arguments.threads,
    )
    return Extraction(
        spec,
        arguments.out,
        arguments.name,
        arguments.frames,
        arguments.batch,
        arguments.cache,
        arguments.skip_absent,
    )
