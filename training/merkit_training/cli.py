"""`merkit-train`: makes or prepares a corpus and trains a run, one stage after the other.

Heavy imports wait until a command needs them, so that `--help` and a mistyped path answer at
once. The commands themselves are in `merkit_training.commands`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from merkit.errors import InvalidInputError, MerkitError, MissingExtraError
from merkit_training.commands import add_all


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    0: done; 2: an error; 130: interrupted; 141: nobody read the output any more.
    """
    arguments = _parser().parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    command: Callable[[argparse.Namespace], None] = arguments.command
    try:
        command(arguments)
        sys.stdout.flush()
    except MerkitError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("merkit"):
            raise
        return _fail(MissingExtraError.of(package, "train"))
    except BrokenPipeError:  # whoever read the output has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed again at exit
        return 141
    except OSError as error:  # of the machine: a full disk, a folder without permission to write
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(InvalidInputError(what, "files to read and room to write", "correct the path"))
    except KeyboardInterrupt:
        print("\nmerkit-train: stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


def _fail(error: MerkitError) -> int:
    print(f"merkit-train: {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merkit-train",
        description="Train the emotion recognition system: first the corpus, then the run.",
        epilog="Interrupted commands continue where they stopped when given again.",
    )
    add_all(parser.add_subparsers(required=True, metavar="COMMAND"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
