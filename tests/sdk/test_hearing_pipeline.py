"""A bundle that hears: entry points, warm-up, clients, and what may be left out of it."""

from __future__ import annotations

import json
import tracemalloc
import wave
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from entries import decoded_entry
from google.protobuf import text_format
from numpy.typing import NDArray
from odd_media import movie, quadrants, sound_file
from toy import HEARS, write_toy_bundle
from tritonclient.grpc import model_config_pb2
from voices import RATE, SOUNDS, voice

from merkit.backends.base import strings
from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.entries import choose, wanted
from merkit.bundle import Bundle, open_bundle, write_manifest
from merkit.cli import main
from merkit.client import Client
from merkit.contract import Contract
from merkit.errors import ClipLimitError, InvalidInputError, NoEvidenceError
from merkit.lint import lint
from merkit.media.limits import Limits
from merkit.opening import load
from merkit.pipeline import HEARD, OUTCOME, Chain
from merkit.report import Report
from merkit.serving.config import versioned_names
from merkit.serving.render import Deployment, render
from merkit.serving.warmup import make_samples
from merkit.testing import CannedBackend

PLAIN = replace(HEARS, hearing=replace(HEARS.hearing, joint_hears="original"))
CHAINS = {
    "cleaned": HEARS,
    "original": PLAIN,
    "audio cleaned": replace(HEARS, hearing=replace(HEARS.hearing, audio_hears="cleaned")),
    "no separator": replace(PLAIN, separated=False),
    "no punctuator": replace(PLAIN, marks=0),
    "recogniser alone": replace(PLAIN, separated=False, marks=0),
}


@pytest.fixture(scope="module", params=CHAINS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("hears") / "bundle"
    return write_toy_bundle(folder, chain=CHAINS[request.param])


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("cleaned") / "bundle", chain=HEARS)


@pytest.fixture(scope="module")
def client(cleaned: Bundle) -> Iterator[Client]:
    with load(cleaned.root, threads=1) as opened:
        yield opened


def wav(sound: NDArray[np.float32]) -> bytes:
    return sound_file(sound[None], rate=RATE)


def entry_of(sound: NDArray[np.float32], text: str | None = "") -> dict[str, NDArray[Any]]:
    entry = decoded_entry((False, False, False))
    entry |= {"waveform": sound[None], "waveform_length": np.array([[len(sound)]])}
    entry["text"] = strings(text or "")
    return entry if text is not None else {n: v for n, v in entry.items() if n != "text"}


def test_each_kind_of_chain_hears(bundle: Bundle) -> None:
    contract = Contract.from_json(json.loads(json.dumps(bundle.contract.to_json())))
    assert contract == bundle.contract
    steps = {step.name for step in contract.steps}
    with load(bundle.root, threads=1) as opened:
        clip = wav(voice())
        found = opened.predict(clip)
        assert found.hearing is not None and found.hearing.origin == "recognized"
        assert found.transcript and found.modalities == ("audio", "text")
        assert (found.hearing.similarities is not None) == ("separate" in steps)
        assert found.transcript.endswith((".", "?", "。")) == ("punctuate" in steps)
        given = opened.predict(clip, found.transcript)
        assert (given.transcript, given.label) == (found.transcript, found.label)
        assert given.scores == pytest.approx(found.scores, abs=1e-6)
        assert given.hearing is not None and given.hearing.origin == "caller"


def test_ensembles_make_each_tensor_once_and_start_in_one_place(
    bundle: Bundle, tmp_path: Path
) -> None:
    """Triton deadlocks when the first of two fails before the second is scheduled."""
    render(bundle, tmp_path / "out", Deployment(views=True))
    configs = {p.parent.name: read_config(p) for p in tmp_path.glob("out/*/config.pbtxt")}
    inputs = {name: {t.name: t for t in config.input} for name, config in configs.items()}
    found = {name: c for name, c in configs.items() if c.platform == "ensemble"}
    assert {"merkit", "merkit_t", "merkit_at", "merkit_edge", "merkit_view_t"} <= set(found)
    for config in found.values():
        given = {tensor.name for tensor in config.input}
        steps, known = config.ensemble_scheduling.step, set(given)
        assert len([s for s in steps if set(s.input_map.values()) <= given]) == 1
        for step in steps:
            assert set(step.input_map.values()) <= known
            needed = {name for name, t in inputs[step.model_name].items() if not t.optional}
            assert needed <= set(step.input_map)
            assert not set(step.output_map.values()) & known
            known |= set(step.output_map.values())
        assert {tensor.name for tensor in config.output} <= known
    assert (tmp_path / "out" / "transcribe" / "1" / "tokens.json").exists()
    report = lint(tmp_path / "out")
    assert not [finding for finding in report.findings if finding.severity != "advice"]


def read_config(path: Path) -> Any:
    return text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())


def test_warm_up_lets_every_step_work(bundle: Bundle, tmp_path: Path) -> None:
    contract, samples = bundle.contract, make_samples(bundle)
    for sample in samples.values():
        assert sample["speech_length"] == sample["waveform_length"] > 0
        assert sample["presence"].all()
        assert not sample["text"][0, 0], "else nothing would be listened to"
        for step in contract.steps:
            for name in step.inputs:
                spec = contract.tensors[name]
                sizes = zip(sample[name].shape, spec.shape, strict=True)
                assert all(have == want or isinstance(want, str) for have, want in sizes), name
    with closing(EmbeddedBackend(bundle, threads=1)) as backend:
        for step in contract.steps:
            backend.run_step(step, {n: samples["longest"][n] for n in step.inputs})
    render(bundle, tmp_path / "out", Deployment(warm_up=True))
    assert (tmp_path / "out" / "recognize" / "warmup").is_dir()


def test_verify_and_inspect_know_it(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle.root)]) == 0
    assert main(["inspect", str(bundle.root)]) == 0
    shown = capsys.readouterr().out
    assert "FAIL" not in shown
    assert "PASS  hearing: of noise it made" in shown
    assert "transcribe" in shown and "threshold" in shown


def test_verify_finds_tokens_of_another_recogniser(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", chain=PLAIN)
    (bundle.resources("transcribe") / "tokens.json").write_text('["</s>"]')
    digests = bundle.manifest["step_digests"]
    write_manifest(bundle.root, bundle.contract, digests, {"voters": bundle.manifest["voters"]})
    assert main(["verify", str(bundle.root)]) == 1
    assert "FAIL  hearing" in capsys.readouterr().out


def test_which_entry_point_listens(cleaned: Bundle) -> None:
    contract = cleaned.contract
    silence = SOUNDS["silence"]()
    for sound, text, name, heard in (
        (voice(), "", "merkit_at", True),
        (voice(), "words", "merkit_at", True),
        (voice(), None, "merkit_a", False),
        (silence, "words", "merkit_t", True),
        (silence, "", "merkit_atv", True),
        (silence, None, "merkit_av", False),
    ):
        entry = entry_of(sound, text)
        assert choose(contract, entry)[0] == name
        assert (set(HEARD) <= set(wanted(contract, entry))) == heard
    assert wanted(replace(contract, hearing=None), entry_of(voice())) == OUTCOME


def test_who_declines_is_not_listened_to(client: Client) -> None:
    clip = wav(voice())
    unheard = client.predict(clip, hear=False)
    assert (unheard.transcript, unheard.hearing, unheard.modalities) == (None, None, ("audio",))
    (many,) = client.predict_many([clip], hear=False)
    assert many.label == unheard.label  # type: ignore[union-attr]
    given = client.predict(clip, "my own words", hear=False)
    assert given.transcript == "my own words"
    with pytest.raises(NoEvidenceError):
        client.predict(wav(SOUNDS["silence"]()), hear=False)
    features = client.features(clip, hear=False)
    assert client.predict_features(features).label == unheard.label
    with pytest.raises(InvalidInputError, match="faces_only"):
        client.features(clip, hear=False, faces_only=True)


def test_without_cleaning_who_declines_costs_no_recognition(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "bundle", chain=PLAIN)
    with load(bundle.root, threads=1) as client:
        clip = wav(voice())
        assert "recognize" in client.predict(clip).timings_ms
        assert not {"listen", "recognize"} & set(client.predict(clip, hear=False).timings_ms)


def test_lazy_voting_hears_the_same(cleaned: Bundle, client: Client) -> None:
    clip = movie([quadrants()] * 10, sound=voice()[None])
    with load(cleaned.root, threads=1, lazy=True) as lazy:
        for options in ({}, {"text": "given"}, {"hear": False}):
            one, two = (c.predict(clip, **options) for c in (client, lazy))
            assert (one.label, one.transcript, one.hearing) == (
                two.label,
                two.transcript,
                two.hearing,
            )


def test_bad_sound_is_told_of(client: Client) -> None:
    def notes(sound: NDArray[np.float32], text: str = "") -> str:
        clip = movie([quadrants()] * 10, sound=sound[None])
        return "; ".join(client.predict(clip, text or "words of the caller").warnings)

    assert "nobody speaks in the sound" in notes(SOUNDS["music"]())
    assert "clipped" in notes(SOUNDS["clipped"]())
    assert "DC offset" in notes(SOUNDS["offset"]())
    found = client.predict(wav(SOUNDS["hiss"]()))
    assert "nobody speaks in the sound, so no words were recognised" in found.warnings
    assert (found.transcript, found.modalities) == (None, ("audio",))


def test_a_table_and_a_report_show_what_was_heard(
    cleaned: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(wav(voice()))
    command = ["predict", str(clip), "--bundle", str(cleaned.root)]
    assert main([*command, "--report", str(tmp_path / "report.html")]) == 0
    shown = capsys.readouterr().out
    assert "words recognised in" in shown and "somebody speaks for" in shown
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "What was heard" in page and "recognized" in page
    assert main([*command, "--json", "--no-hear"]) == 0
    assert json.loads(capsys.readouterr().out)["hearing"] is None


def test_a_canned_backend_hears_what_it_is_told() -> None:
    client = Client(CannedBackend({"happy": 0.7, "sad": 0.3}, ("audio", "text"), hears="Oh no."))
    clip = wav(voice())
    found = client.predict(clip)
    assert (found.transcript, found.hearing.origin) == ("Oh no.", "recognized")  # type: ignore[union-attr]
    assert client.predict(clip, "given").transcript == "given"
    assert client.predict(clip, hear=False).hearing is None
    silent = Client(CannedBackend({"happy": 0.7, "sad": 0.3}, ("audio",), hears=""))
    assert silent.predict(clip).hearing.origin == "none"  # type: ignore[union-attr]
    server = Client(CannedBackend({"happy": 1.0}, hears="Oh no."), decode="server")
    with pytest.raises(InvalidInputError, match="hear=False"):
        server.predict(clip, hear=False)
    Report().add("clip", found)


def test_another_threshold_is_another_step(tmp_path: Path) -> None:
    """Bundles in one server share what is alike, and how a source is chosen is not."""
    hearing = replace(HEARS.hearing, threshold=0.3)
    names = [
        versioned_names(write_toy_bundle(tmp_path / str(i), chain=chain)).models
        for i, chain in enumerate((HEARS, replace(HEARS, hearing=hearing)))
    ]
    assert names[0]["transcribe"] != names[1]["transcribe"]


def test_resources_are_content(cleaned: Bundle) -> None:
    assert open_bundle(cleaned.root).bundle_id == cleaned.bundle_id
    listed = set(cleaned.manifest["content"])
    assert {"transcribe/1/tokens.json", "tokenize/1/words.json"} <= listed


def test_a_chain_without_a_separator_cannot_clean() -> None:
    with pytest.raises(ValueError, match="no separator"):
        write_toy_bundle(Path(), chain=Chain(HEARS.hearing, HEARS.tokens))


def hour(path: Path, seconds: int) -> Path:
    """The voice over and over, as 8-bit sound at 8 kHz: 8 kB a second."""
    said = ((np.clip(voice()[::2], -1, 1) + 1) * 127.5).astype(np.uint8)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(RATE // 2)
        file.writeframes(np.resize(said, seconds * RATE // 2).tobytes())
    return path


def test_an_hour_is_heard_in_the_memory_of_its_middle(
    client: Client, cleaned: Bundle, tmp_path: Path
) -> None:
    """And one second more is refused, unless who asks has raised the limit."""
    client.predict(wav(voice()))  # whatever is loaded but once
    tracemalloc.start()
    try:
        found = client.predict(hour(tmp_path / "hour.wav", 3600))
        assert tracemalloc.get_traced_memory()[1] < 60e6  # the whole would take 230 MB
    finally:
        tracemalloc.stop()
    assert found.warnings == ("the sound lasts 3600.0 s; the middle 20 s are used",)
    assert found.transcript and found.hearing is not None and found.hearing.speech
    longer = hour(tmp_path / "longer.wav", 3601)
    with pytest.raises(ClipLimitError, match=r"3601.0 s; expected at most 3600 s"):
        client.predict(longer)
    with load(cleaned.root, threads=1, limits=Limits(max_seconds=7200)) as patient:
        assert patient.predict(longer).transcript
