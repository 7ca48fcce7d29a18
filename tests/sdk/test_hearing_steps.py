"""The steps that hear: what is worth recognising, which transcript is used, which marks it gets."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toy import HEARS, LABELS, MARKS, TOKENS, WORDS, write_toy_bundle
from voices import RATE, SOUNDS, voice

from merkit.backends.base import strings
from merkit.bundle import Bundle
from merkit.contract import Contract, Hearing
from merkit.errors import BundleCorruptError, BundleNotFoundError, InferenceError, MerkitError
from merkit.hearing import Heard
from merkit.pipeline import GROUPS, Chain, standard_contract
from merkit.speech.quality import assess
from merkit.steps import Listen, Tokenize, Transcribe

Tensors = dict[str, NDArray[Any]]
OH, NO, SO, ON = (TOKENS.index(token) for token in ("oh", "no", "so@@", "on"))


def contract_of(chain: Chain = HEARS, **hearing: Any) -> Contract:
    chain = replace(chain, hearing=replace(chain.hearing, **hearing))
    return standard_contract(LABELS, dict.fromkeys(GROUPS, 8), chain=chain)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("hears") / "bundle", chain=HEARS)


def sounds(*rows: NDArray[np.float32], text: str = "") -> Tensors:
    most = max(map(len, rows))
    return {
        "waveform": np.stack([np.pad(row, (0, most - len(row))) for row in rows]),
        "waveform_length": np.array([[len(row)] for row in rows]),
        "text": strings(*[text] * len(rows)),
    }


def shown(tensors: Tensors, contract: Contract, step: str) -> None:
    """Exactly the contract's tensors, as it describes them."""
    assert set(tensors) == set(contract.step(step).outputs)
    for name, array in tensors.items():
        spec = contract.tensors[name]
        assert str(array.dtype) == ("object" if spec.dtype == "string" else spec.dtype), name
        for have, want in zip(array.shape, spec.shape, strict=True):
            assert have == want or isinstance(want, str), name


def test_only_speech_goes_on_to_be_recognised() -> None:
    contract = contract_of(joint_hears="original")
    rows = [sound() for sound in SOUNDS.values()]
    made = Listen(contract)(sounds(*rows))
    shown(made, contract, "listen")
    kept = [length > 0 for length in made["speech_length"][:, 0]]
    assert kept == [not {"no_speech", "too_quiet"} & set(assess(row).flags) for row in rows]
    assert kept[list(SOUNDS).index("voice")] and not all(kept)
    assert made["speech"].shape[1] == made["speech_length"].max()
    assert made["mixture_length"].tolist() == made["speech_length"].tolist()
    stated = [tuple(json.loads(text)["flags"]) for text in made["quality"][:, 0]]
    assert stated == [assess(row).flags for row in rows]


def test_the_callers_words_are_not_sought_unless_encoders_hear_cleaned_sound() -> None:
    for joint, length in (("original", 0), ("cleaned", 32_000)):
        listen = Listen(contract_of(joint_hears=joint))
        assert listen(sounds(voice(), text="given"))["speech_length"].tolist() == [[length]]
        assert listen(sounds(voice(), text=" \n"))["speech_length"].tolist() == [[32_000]]


def test_clean_sound_is_not_taken_apart_where_the_recipe_says_so() -> None:
    tensors = sounds(voice())
    for db, length in ((None, 32_000), (-10.0, 0), (60.0, 32_000)):
        made = Listen(contract_of(clean_from_db=db))(tensors)
        assert (made["speech_length"], made["mixture_length"]) == (32_000, length)
    plain = Chain(Hearing(), len(TOKENS))
    made = Listen(contract_of(plain))(tensors)
    shown(made, contract_of(plain), "listen")


def test_samples_that_are_no_numbers_are_told_and_silenced() -> None:
    sound = voice()
    sound[100:200], sound[300] = np.nan, np.inf
    made = Listen(contract_of())(sounds(sound))
    assert np.isfinite(made["speech"]).all()
    assert json.loads(made["quality"][0, 0])["flags"] == ["not_finite"]


def logs_of(*rows: list[int], sure: float = 0.9) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Log-probabilities of the original's and its voices' tokens, [1, 3, said, vocabulary]."""
    said = max([1, *map(len, rows)])
    logs = np.full((1, 3, said, len(TOKENS)), np.log((1 - sure) / (len(TOKENS) - 1)), np.float32)
    for number, row in enumerate(rows):
        logs[0, number, range(len(row)), row] = np.log(sure)
    counts = [len(row) for row in rows] + [0] * (3 - len(rows))
    return logs, np.array([counts], np.int64)


def asked(
    *rows: list[int], text: str = "", sound: NDArray[np.float32] | None = None, **more: Any
) -> Tensors:
    sound = voice() if sound is None else sound
    logs, counts = logs_of(*rows)
    return {
        "text": strings(text),
        "token_logs": logs,
        "token_count": counts,
        "quality": strings(json.dumps(asdict(assess(sound)))),
        "waveform": sound[None],
        "sources": np.stack([sound * np.float32(0.75), sound * np.float32(0.25)])[None],
    } | more


def answer(bundle: Bundle, tensors: Tensors, **hearing: Any) -> tuple[str, Heard, Tensors]:
    contract = contract_of(**hearing)
    made = Transcribe(contract, bundle.resources("transcribe"))(tensors)
    shown(made, contract, "transcribe")
    return made["transcript"][0, 0], Heard.read(made["hearing"][0, 0]), made


def test_the_nearer_voice_is_taken(bundle: Bundle) -> None:
    tensors = asked([OH, NO, SO, ON], [OH, NO, SO, ON, OH], [NO])
    text, heard, made = answer(bundle, tensors)
    assert (text, heard.origin, heard.source) == ("oh no soon oh", "recognized", "source0")
    assert heard.confidence == pytest.approx(0.9)
    assert heard.similarities is not None and heard.similarities[0] > heard.similarities[1] + 0.1
    np.testing.assert_array_equal(made["cleaned"], tensors["sources"][:, 0])
    assert made["word_count"].tolist() == [[4]]
    assert [WORDS[i] for i in made["word_ids"][0]] == ["oh", "no", "soon", "oh"]


def test_alike_voices_leave_the_original(bundle: Bundle) -> None:
    tensors = asked([OH, NO], [OH, OH], [OH, OH])
    text, heard, made = answer(bundle, tensors)
    assert (text, heard.source) == ("oh no", "original")
    np.testing.assert_array_equal(made["cleaned"], tensors["waveform"])
    other, heard, _ = answer(bundle, asked([OH, NO], [OH, NO], [ON]), threshold=1.0)
    assert (other, heard.source) == ("oh no", "original"), "the threshold is the recipe's"


def test_the_callers_words_win(bundle: Bundle) -> None:
    text, heard, made = answer(bundle, asked([OH], [OH], [NO, NO], text="  My own, words "))
    assert text == "  My own, words ", "to the letter"
    assert (heard.origin, heard.confidence, heard.source) == ("caller", None, "source0")
    assert made["word_count"].tolist() == [[0]]
    assert made["word_ids"].shape == (1, 1)


@pytest.mark.parametrize("rows", [(), ([0, 0],), ([len(TOKENS) - 1, OH],)])
def test_no_words_are_no_words(bundle: Bundle, rows: tuple[list[int], ...]) -> None:
    text, heard, made = answer(bundle, asked(*rows))
    assert (text, heard.origin, heard.confidence) == ("", "none", None)
    assert made["word_count"].tolist() == [[0]]
    assert any("no words were recognised" in note for note in heard.notes())


def test_a_recogniser_that_fails_costs_words_and_a_warning(bundle: Bundle) -> None:
    for broken, text, source in ((0, "", "original"), (1, "oh", "original")):
        tensors = asked([OH], [OH], [NO, NO])
        tensors["token_logs"][0, broken] = np.nan
        found, heard, made = answer(bundle, tensors)
        assert (found, heard.source) == (text, source)
        assert any("recogniser failed" in note for note in heard.notes())
        np.testing.assert_array_equal(made["cleaned"], tensors["waveform"])


def test_a_voice_that_failed_is_not_heard(bundle: Bundle) -> None:
    tensors = asked([OH, NO], [OH, NO], [ON])
    tensors["sources"][0, 0, 5] = np.inf
    text, heard, made = answer(bundle, tensors)
    assert (text, heard.source) == ("oh no", "source0")
    np.testing.assert_array_equal(made["cleaned"], tensors["waveform"])
    assert "encoders hear the original" in heard.warnings[0]


@pytest.mark.parametrize("quality", ["", "{}", "no json", '{"flags": 3}'])
def test_any_quality_is_survived(bundle: Bundle, quality: str) -> None:
    text, heard, _ = answer(bundle, asked([OH], quality=strings(quality)))
    assert (text, heard.flags, len(heard.warnings)) == ("oh", (), int(quality != ""))


def test_language_chooses_among_what_was_heard(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("tokens.json", "words.json"):
        (tmp_path / name).write_bytes((bundle.resources("transcribe") / name).read_bytes())
    arpa = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 </s>\n-99 <s>\n-5 oh\n-0.1 no\n\n\\end\\\n"
    (tmp_path / "language.arpa").write_text(arpa)
    tensors = asked([OH])
    tensors["token_logs"][0, 0, 0, [OH, NO]] = np.log([0.5, 0.4])
    for weight, text in ((0.0, "oh"), (1.0, "no")):
        contract = contract_of(language_weight=weight)
        made = Transcribe(contract, tmp_path)(tensors)
        assert made["transcript"].tolist() == [[text]]
    assert Transcribe(contract_of(beam=1), tmp_path)(tensors)["transcript"].tolist() == [["oh"]]


def test_a_batch_is_its_rows(bundle: Bundle) -> None:
    rows = [asked([OH], [OH], [NO]), asked(text="given"), asked([SO, ON], [NO], [NO])]
    said = max(row["token_logs"].shape[2] for row in rows)
    for row in rows:
        missing = said - row["token_logs"].shape[2]
        row["token_logs"] = np.pad(row["token_logs"], ((0, 0), (0, 0), (0, missing), (0, 0)))
    step = Transcribe(contract_of(), bundle.resources("transcribe"))
    together = step({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    for i, row in enumerate(rows):
        for name, value in step(row).items():
            assert together[name][i].tolist() == value[0].tolist()


def test_resources_that_do_not_fit_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        Transcribe(contract_of(), tmp_path)
    (tmp_path / "tokens.json").write_text('["</s>"]')
    with pytest.raises(BundleCorruptError, match="1 tokens"):
        Transcribe(contract_of(), tmp_path)
    with pytest.raises(BundleCorruptError, match="measure"):
        Transcribe(contract_of(measure="none"), bundle.resources("transcribe"))
    (tmp_path / "tokens.json").write_text(json.dumps(TOKENS))
    for wrong in ("[]", '{"tokens": ["a"], "marks": []}', "{"):
        (tmp_path / "words.json").write_text(wrong)
        with pytest.raises(BundleCorruptError):
            Transcribe(contract_of(), tmp_path)


def scores_of(*marks: str) -> NDArray[np.float32]:
    return np.eye(len(MARKS), dtype=np.float32)[None, [MARKS.index(mark) for mark in marks]]


def test_recognised_words_get_their_marks(bundle: Bundle) -> None:
    contract = contract_of()
    tokenize = Tokenize(contract, bundle.resources("tokenize"))
    cases = {
        "oh no soon": (scores_of("，", "_", "？"), 3, "Oh, no soon?"),
        "我们": (scores_of("_", "_"), 2, "我们。"),
        "my own, WORDS": (scores_of("。"), 0, "my own, WORDS"),
        "": (scores_of("_")[:, :0], 0, ""),
    }
    for text, (scores, count, words) in cases.items():
        counted = np.array([[count]])
        made = tokenize({"transcript": strings(text), "mark_scores": scores, "word_count": counted})
        shown(made, contract, "tokenize")
        assert made["words"].tolist() == [[words]]
        ids = Tokenize(standard_contract(LABELS, dict.fromkeys(GROUPS, 8)), tokenize_folder(bundle))
        plain = ids({"text": strings(words)})
        for name in plain:
            assert made[name].tolist() == plain[name].tolist()
    broken = {"transcript": strings("oh"), "mark_scores": scores_of("？") * np.nan}
    made = tokenize(broken | {"word_count": np.array([[1]])})
    assert made["words"].tolist() == [["oh"]], "without marks, but not without words"


def tokenize_folder(bundle: Bundle) -> Path:
    return bundle.resources("tokenize")


def test_heard_survives_the_wire_and_nothing_else_passes() -> None:
    heard = Heard(
        "recognized",
        0.5,
        "source1",
        "nearer",
        (0.1, 0.9),
        ("clipped",),
        ((0.5, 1.0),),
        -20.0,
        ("a",),
    )
    assert Heard.read(heard.text()) == heard
    assert Heard.read(Heard("none").text()) == Heard("none")
    plain = heard.to_json()
    for wrong in (
        "", "[]", "{}", "null", '"a"',
        *(json.dumps(plain | change) for change in (
            {"origin": "god"}, {"source": "source9"}, {"confidence": 2}, {"confidence": "high"},
            {"flags": [3]}, {"speech": [[1]]}, {"similarities": ["a"]}, {"warnings": None},
            {"level_dbfs": float("nan")}, {"reason": None},
        )),
    ):  # fmt: skip
        with pytest.raises(InferenceError, match="hearing"):
            Heard.read(wrong)
    assert issubclass(InferenceError, MerkitError)


def test_flags_are_told_in_words() -> None:
    def notes(*flags: str, origin: Any = "none") -> str:
        return "; ".join(Heard(origin, flags=flags, level_dbfs=-60.0).notes())

    assert notes("no_speech") == "nobody speaks in the sound, so no words were recognised"
    assert notes("no_speech", origin="caller") == "nobody speaks in the sound"
    assert "very quiet (-60 dBFS), so no words" in notes("too_quiet")
    assert "clipped" in notes("clipped", origin="recognized")
    assert "DC offset" in notes("dc_offset", origin="recognized")
    assert notes(origin="recognized") == notes(origin="caller") == ""


def test_an_hour_costs_no_more_than_its_flags() -> None:
    """Decoding keeps the middle of long sound; who sends more is told, and nothing else breaks."""
    made = Listen(contract_of())(sounds(np.tile(voice(), 150)))
    assert made["speech_length"].tolist() == [[150 * 2 * RATE]]
