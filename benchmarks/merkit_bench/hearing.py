"""`python -m merkit_bench.hearing`: real-time factors of the chain that hears through noise.

Whether a chain that separates, recognises three times and punctuates keeps up with speech is a
question of each step, of its length of sound and of its precision. Every step runs as ONNX on ONNX
Runtime with the same threads, in fp32 and in dynamic int8, and Paraformer's own file also in
sherpa-onnx, which computes features in C++. Contenders take turns, so that a busy minute of the
machine meets all of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from merkit.contract import Hearing
from merkit.errors import InvalidInputError
from merkit.pipeline import Chain
from merkit.speech.vocabulary import END, SPECIAL, Vocabulary
from merkit_bench.summary import machine
from merkit_export.speech.chain import step_graph
from merkit_export.speech.paraformer import TOKENS_TXT, write_model_folder
from merkit_export.storage import save
from merkit_training.runs import write_bytes, write_json
from merkit_training.speech.hearing.modules import Punctuate, Recognize, Separate
from merkit_training.speech.noise.folders import decode
from merkit_training.speech.noise.levels import Wave
from merkit_training.speech.punctuation import train as punctuation
from merkit_training.speech.punctuation.config import COMMON, PunctuatorConfig
from merkit_training.speech.punctuation.model import CtTransformer
from merkit_training.speech.recognition import train as recognition
from merkit_training.speech.recognition.config import LARGE, RecognizerConfig
from merkit_training.speech.recognition.model import Recognizer
from merkit_training.speech.separation import model as separation
from merkit_training.speech.separation.config import SeparatorConfig

RATE = 16_000
SECONDS = (3.0, 10.0, 30.0)
SAMPLE = Path("docs/media/sample.mp4")
TOKENS_A_SECOND = 4  # words that a second of speech gives the punctuator
PAPER_TOKENS, PAPER_WORDS, PAPER_MARKS = 8404, 272_727, 6
PAPER_SEPARATOR = SeparatorConfig(
    channels=512, kernel=16, layers=24, group=256, query_key=128, memory=256, order=20
)
Run = Callable[[], object]


def main() -> int:
    """Writes OUT/hearing.json and OUT/hearing.md."""
    parser = argparse.ArgumentParser(prog="merkit_bench.hearing", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="with the stages recognizer, separator, punctuator")
    what.add_argument("--paper", action="store_true", help="published shapes, random weights")
    parser.add_argument("--sound", type=Path, default=SAMPLE, help="repeated to each length")
    parser.add_argument("--seconds", type=float, nargs="+", default=SECONDS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    args = parser.parse_args()
    if min(args.seconds) < 1 or min(args.rounds, args.threads) < 1:
        raise InvalidInputError("seconds, rounds or threads below 1", "1 or more of each")
    sound = decode(args.sound)
    with tempfile.TemporaryDirectory() as scratch:
        contest = Contest(Path(scratch), args.run, args.threads)
        rows = [
            row for s in args.seconds for row in contest.timed(lengthened(sound, s), args.rounds)
        ]
    about = {
        **machine(),
        "threads": args.threads,
        "weights": str(args.run or "random, as published"),
    }
    write_json(args.out / "hearing.json", {"about": about, "rows": rows})
    write_bytes(args.out / "hearing.md", markdown(rows, about).encode())
    print(markdown(rows, about))
    return 0


class Contest:
    """The steps as ONNX sessions in every precision, and sherpa-onnx on Paraformer's file.

    Args:
        folder: where graphs are written.
        run: trained stages; None: the published shapes with random weights.
        threads: of each contender.
    """

    def __init__(self, folder: Path, run: Path | None, threads: int) -> None:
        self.threads = threads
        recognizer, config, vocabulary = _recognizer(run)
        self.sessions: dict[str, Any] = {}
        # one step in memory at a time: the published ones have gigabytes; of one sound, as
        # sherpa-onnx hears it, though the pipeline recognises three where it separates
        alone = Chain(Hearing(), len(vocabulary))
        self._add(folder, "recognize", step_graph("recognize", Recognize(recognizer), alone))
        self.sherpa = self._sherpa(
            write_model_folder(folder / "sherpa", recognizer, config, vocabulary)
        )
        del recognizer
        whole = Chain(Hearing(), len(vocabulary), separated=True)
        self._add(folder, "separate", step_graph("separate", Separate(_separator(run)), whole))
        model, marks = _punctuator(run)
        whole = Chain(Hearing(), len(vocabulary), marks=marks)
        self._add(folder, "punctuate", step_graph("punctuate", Punctuate(model), whole))

    def timed(self, wave: Wave, rounds: int) -> list[dict[str, Any]]:
        """Median seconds and real-time factor of every contender on a sound."""
        seconds = len(wave) / RATE
        runs = {name: self._run(name, session, wave) for name, session in self.sessions.items()}
        if self.sherpa is not None:
            runs["recognize sherpa-onnx fp32"] = lambda: self._heard(wave)
        for run in runs.values():  # the first run of a length plans memory
            run()
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                taken[name].append(time.perf_counter() - start)
        medians = {name: float(np.median(each)) for name, each in taken.items()}
        return [
            {"step": name, "seconds": seconds, "took": median, "rtf": median / seconds}
            for name, median in medians.items()
        ]

    def _add(self, folder: Path, step: str, model: onnx.ModelProto) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        plain, small = folder / f"{step}.onnx", folder / f"{step}-int8.onnx"
        save(model, plain)
        quantize_dynamic(
            plain, small, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
        )
        self.sessions[f"{step} fp32"] = self._session(plain)
        self.sessions[f"{step} int8"] = self._session(small)

    def _session(self, path: Path) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def _run(self, name: str, session: Any, wave: Wave) -> Run:
        feed: dict[str, NDArray[Any]]
        if name.startswith("punctuate"):
            feed = {**_words(max(2, round(TOKENS_A_SECOND * len(wave) / RATE)))}
        else:
            length = "mixture_length" if name.startswith("separate") else "speech_length"
            feed = {"speech": wave[None], length: np.array([[len(wave)]], np.int64)}
        return lambda: session.run(None, feed)

    def _sherpa(self, model: Path) -> Any:
        """sherpa-onnx's recogniser on the file; None where the package is not installed."""
        try:
            import sherpa_onnx
        except ImportError:
            return None
        return sherpa_onnx.OfflineRecognizer.from_paraformer(
            paraformer=str(model),
            tokens=str(model.with_name(TOKENS_TXT)),
            num_threads=self.threads,
        )

    def _heard(self, wave: Wave) -> str:
        stream = self.sherpa.create_stream()
        stream.accept_waveform(RATE, wave)
        self.sherpa.decode_stream(stream)
        return str(stream.result.text)


def lengthened(sound: Wave, seconds: float) -> Wave:
    """The sound, repeated or cut to a length."""
    return np.resize(sound, round(seconds * RATE))


def markdown(rows: list[dict[str, Any]], about: Mapping[str, Any]) -> str:
    """A table of real-time factors: a row a contender, a column a length of sound."""
    lengths = sorted({row["seconds"] for row in rows})
    found = {(row["step"], row["seconds"]): row["rtf"] for row in rows}
    header = " | ".join(f"{s:g} s" for s in lengths)
    lines = [f"| real-time factor | {header} |", "|---" * (len(lengths) + 1) + "|"]
    for step in dict.fromkeys(row["step"] for row in rows):
        cells = " | ".join(f"{found[step, s]:.4f}" for s in lengths)
        lines.append(f"| {step} | {cells} |")
    return "\n".join([*lines, "", f"{json.dumps(about)}", ""])


def _recognizer(run: Path | None) -> tuple[Recognizer, RecognizerConfig, Vocabulary]:
    if run is not None:
        return recognition.load(run)
    config = RecognizerConfig(**LARGE)
    marks = ("<blank>", "<s>", END)
    words = tuple(chr(0x4E00 + i) for i in range(PAPER_TOKENS - len(marks)))
    assert not SPECIAL & set(words)
    return Recognizer(config, PAPER_TOKENS).eval(), config, Vocabulary((*marks, *words))


def _separator(run: Path | None) -> separation.Separator:
    return separation.load(run) if run else separation.Separator(PAPER_SEPARATOR).eval()


def _punctuator(run: Path | None) -> tuple[CtTransformer, int]:
    if run is not None:
        known = punctuation.load(run)
        return known.model, len(known.marks)
    config = PunctuatorConfig(**COMMON)  # type: ignore[arg-type]
    return CtTransformer(config, PAPER_WORDS, PAPER_MARKS).eval(), PAPER_MARKS


def _words(count: int) -> dict[str, NDArray[np.int64]]:
    return {"word_ids": np.ones((1, count), np.int64), "word_count": np.array([[count]])}


if __name__ == "__main__":
    raise SystemExit(main())
