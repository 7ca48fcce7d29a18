"""The command `merkit`: predict, serve, models, inspect, verify, calibrate, lint.

A shell should get the whole product: readable tables or JSON lines, one line for an error instead
of a traceback, an exit status that can be relied on. Exit status: 0 when all went well, 1 when
something failed (of several clips, at least one), 2 for a wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merkit import __version__
from merkit.cli import access, calibrate, lint, models, serve
from merkit.errors import BundleNotFoundError, MerkitError

if TYPE_CHECKING:
    from merkit.client import Client
    from merkit.entry import Clip
    from merkit.report import Report
    from merkit.results import Prediction

DEFAULT_BUNDLE = Path("triton_repo/models")
INTERRUPTED, BROKEN_PIPE = 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    # Closed by the caller they are None, and what is meant for one would go to the other.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  (open until the end)
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its log would stand between our lines
    parser = _parser()
    args = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status: int = args.run(args, parser)
        _say(end="", flush=True)
        return status
    except MerkitError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except _UnwritableError as unwritable:
        # Python flushes stdout once more at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(unwritable.cause, BrokenPipeError):
            return BROKEN_PIPE
        print(f"merkit: the output cannot be written ({unwritable})", file=sys.stderr)
        return 1
    except OSError as error:  # of the machine, such as a full disk under temporary files
        _tell(str(error), error)
        return 1


class _UnwritableError(Exception):
    """stdout took no more; an OSError of anything else must not be taken for that."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror)
        self.cause = cause


def _say(line: str = "", end: str = "\n", flush: bool = False) -> None:
    """Prints on stdout: whatever the command has to say goes through here."""
    try:
        print(line, end=end, flush=flush)
    except OSError as error:
        raise _UnwritableError(error) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merkit", description="Multimodal emotion recognition, embedded or served."
    )
    parser.add_argument("--version", action="version", version=f"merkit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_predict(commands)
    serve.add(commands, lambda line: _say(line, flush=True))
    models.add(commands, _say)
    inspect = commands.add_parser("inspect", help="show what a bundle holds")
    verify = commands.add_parser("verify", help="check a bundle and try every mix of modalities")
    for command, run in ((inspect, _inspect), (verify, _verify)):
        command.add_argument("bundle", type=Path, metavar="BUNDLE")
        command.set_defaults(run=run)
    inspect.add_argument("--json", action="store_true", help="as JSON")
    calibrate.add(commands, _say)
    lint.add(commands, _say)
    return parser


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser(
        "predict",
        help="predict the emotion of clips or words",
        description="Predicts the emotion of video, sound and image files, or of words alone.",
        epilog=f"The bundle is, in this order: --bundle, $MERKIT_BUNDLE, ./{DEFAULT_BUNDLE}.",
    )
    predict.add_argument("clips", nargs="*", metavar="CLIP", help="anything FFmpeg reads")
    where = predict.add_mutually_exclusive_group()
    where.add_argument("--bundle", type=Path, metavar="DIR", help="run this bundle here")
    where.add_argument("--url", metavar="URL", help="ask a server, as grpc://HOST:PORT")
    predict.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="T",
        help="what is said; of several clips, once for each in order",
    )
    predict.add_argument("--json", action="store_true", help="one line of JSON for each clip")
    predict.add_argument("--report", type=Path, metavar="FILE", help="also write an HTML report")
    predict.add_argument("--deadline", type=float, metavar="S", help="seconds for each answer")
    predict.add_argument(
        "--decode", choices=("server", "client"), help="where clips are decoded, with --url"
    )
    predict.add_argument(
        "--lazy", action="store_true", help="skip branches whose votes cannot change the label"
    )
    predict.add_argument(
        "--no-hear", action="store_true", help="recognise no words in clips without --text"
    )
    predict.add_argument("--yunet", type=Path, metavar="PATH", help="find faces with this model")
    access.add_options(predict)
    predict.set_defaults(run=_predict)


def _predict(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    _check_usage(args, parser)
    report = _report(args.report)
    failed = False
    with _client(args) as client:
        clips = list(_clips(args))
        answers = client.predict_many(clips, keep_frames=report is not None, hear=not args.no_hear)
        with closing(answers):
            for clip, answer in zip(clips, answers, strict=True):
                failed |= isinstance(answer, MerkitError)
                _show(clip, answer, args.json, first=clip is clips[0])
                if report is not None:
                    report.add(clip.name, answer)
    if report is not None:
        report.write(args.report)
        print(f"report: {args.report}", file=sys.stderr)
    return int(failed)


def _check_usage(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not args.clips and not args.text:
        parser.error("give a clip, or words with --text")
    if args.clips and len(args.text) not in (0, len(args.clips)):
        parser.error(f"{len(args.text)} texts for {len(args.clips)} clips: give one for each")
    if args.url is None and (args.deadline is not None or args.decode is not None):
        parser.error("--deadline and --decode go with --url")
    if args.url is not None and args.lazy:
        parser.error("--lazy goes with a bundle run here, not with --url")
    if args.url is None and access.given(args):
        parser.error("--ca, --cert, --key and --token-file go with --url")
    if args.deadline is not None and not args.deadline > 0:
        parser.error("--deadline must be more than 0 seconds")
    if args.url is not None and args.yunet is not None and args.decode != "client":
        parser.error("--yunet with --url needs --decode client")


def _clips(args: argparse.Namespace) -> Iterator[Clip]:
    from merkit.entry import Clip

    for media, text in zip_longest(args.clips, args.text):
        yield Clip(media, text)


def _client(args: argparse.Namespace) -> Client:
    from merkit.opening import connect, load

    detector = None
    if args.yunet is not None:
        from merkit.faces import YuNetDetector

        detector = YuNetDetector(args.yunet)
    if args.url is None:
        return load(_bundle(args.bundle), lazy=args.lazy, detector=detector)
    options = {"deadline": args.deadline, "decode": args.decode, "detector": detector}
    options["security"] = access.security(args)
    return connect(args.url, **{k: v for k, v in options.items() if v is not None})


def _bundle(given: Path | None) -> Path:
    if given is not None:
        return given
    if stated := os.environ.get("MERKIT_BUNDLE"):
        return Path(stated)
    if DEFAULT_BUNDLE.is_dir():
        return DEFAULT_BUNDLE
    raise BundleNotFoundError(
        f"no bundle was given, and there is no ./{DEFAULT_BUNDLE}",
        "a bundle folder or a server",
        "use --bundle DIR or --url URL, or set MERKIT_BUNDLE",
    )


def _report(path: Path | None) -> Report | None:
    if path is None:
        return None
    from merkit.report import Report, check_target

    check_target(path)
    return Report()


def _show(clip: Clip, answer: Prediction | MerkitError, as_json: bool, first: bool) -> None:
    from merkit.cli.table import table

    if isinstance(answer, MerkitError):
        if as_json:
            _say(_json({"source": clip.name, "error": error_json(answer)}), flush=True)
        else:
            _complain(answer, clip.name)
    elif as_json:
        _say(_json(answer.to_json()), flush=True)
    else:
        _say(("" if first else "\n") + table(answer, unicode=_unicode()), flush=True)


def error_json(error: MerkitError) -> dict[str, str]:
    """An error as plain values."""
    fields = {"kind": type(error).__name__, "message": str(error), "found": error.found}
    return fields | {"expected": error.expected, "action": error.action}


def _inspect(args: argparse.Namespace, _parser: argparse.ArgumentParser) -> int:
    from merkit.bundle import open_bundle
    from merkit.cli.inspection import describe, summary

    bundle = open_bundle(args.bundle)
    if args.json:
        _say(_json(summary(bundle), indent=1))
    else:
        _print_all(describe(bundle))
    return 0


def _verify(args: argparse.Namespace, _parser: argparse.ArgumentParser) -> int:
    from merkit.cli.inspection import verify

    failures = 0
    for check in verify(args.bundle):
        failures += not check.passed
        _say(f"{'PASS' if check.passed else 'FAIL'}  {check.name}: {check.detail}", flush=True)
    _say("all checks passed" if not failures else f"{failures} checks failed")
    return int(failures > 0)


def _print_all(lines: Iterable[str]) -> None:
    for line in lines:
        _say(line)


def _json(value: object, indent: int | None = None) -> str:
    """JSON in what stdout can encode: its own error handler's escapes would not be JSON's."""
    return json.dumps(value, ensure_ascii=not _unicode(), indent=indent)


def _unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


def _complain(error: MerkitError, source: str = "") -> None:
    """One line on stderr, after what stdout was given before."""
    _say(end="", flush=True)
    _tell((f"{source}: " if source and source not in str(error) else "") + str(error), error)


def _tell(text: str, error: Exception) -> None:
    """Messages quote file names and servers, so they are made printable."""
    from merkit.cli.table import printable

    text = "\n".join(map(printable, text.split("\n")))
    print(f"merkit: {text} [{type(error).__name__}]", file=sys.stderr, flush=True)
