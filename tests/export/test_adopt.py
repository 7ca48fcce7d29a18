"""Adopting: a foreign encoder computes in a bundle what its own file computes, or is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import WIDTH, write_hearing, write_reading, write_seeing
from onnx import TensorProto
from random_run import SMALLEST

import merkit
from merkit.bundle import Bundle, onnx_steps
from merkit.contract import Preprocessing
from merkit.errors import BundleCorruptError, InvalidInputError, MerkitError
from merkit_export import build as building
from merkit_export import shards
from merkit_export.adopt.check import check
from merkit_export.adopt.place import adopt, measured
from merkit_export.adopt.read import Adoptable, read_folder
from merkit_export.cli import main
from merkit_export.origin import Origin
from merkit_training.encoders.adopted import AdoptedEncoder
from merkit_training.fusion.features import Decoded, Encoder
from merkit_training.steps import load_step

P = Preprocessing()


def found(folder: Path, step: str, pool: str = "mean") -> Adoptable:
    return measured(read_folder(folder, step, P, pool), P)  # type: ignore[arg-type]


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_sound_words_and_pictures_come_out_as_the_file_has_them(tmp_path: Path, pool: str) -> None:
    made = {
        "audio_encoder": write_hearing(tmp_path / "a"),
        "text_encoder": write_reading(tmp_path / "t"),
        "face_encoder": write_seeing(tmp_path / "v", image_mean=[0.4, 0.5, 0.6]),
        "face_encoder_large": write_seeing(tmp_path / "w", side=64),
    }
    for step, folder in made.items():
        encoder = found(folder, step, pool)
        report = check(encoder, P)
        assert encoder.config.hidden == WIDTH
        assert report.passed
        assert report.cases > 1


def test_a_clip_does_not_feel_its_neighbours(tmp_path: Path) -> None:
    encoder = found(write_hearing(tmp_path), "audio_encoder")
    module = AdoptedEncoder(encoder.config, encoder.graph)
    sound = torch.randn(2, 4000)
    together = module(sound, torch.tensor([[1000], [4000]]))
    alone = module(sound[:1, :1000], torch.tensor([[1000]]))
    assert torch.equal(together[:1], alone)
    assert not module(sound, torch.tensor([[0], [4000]]))[0].any()


def test_a_graph_that_differs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = found(write_hearing(tmp_path), "audio_encoder")
    was = AdoptedEncoder.forward
    monkeypatch.setattr(AdoptedEncoder, "forward", lambda *a: was(*a) + 1e-3)
    with pytest.raises(MerkitError, match="computes something else"):
        check(encoder, P)


def test_the_last_four_layers_are_averaged_where_the_graph_gives_them(tmp_path: Path) -> None:
    encoder = found(write_hearing(tmp_path, layers=7), "audio_encoder")
    expected = ("hidden_states.3", "hidden_states.4", "hidden_states.5", "last_hidden_state")
    assert encoder.config.states == expected
    assert check(encoder, P).passed
    one = replace(encoder.config, states=("last_hidden_state",))
    sound, length = torch.randn(1, 2000), torch.tensor([[2000]])
    four = AdoptedEncoder(encoder.config, encoder.graph)(sound, length)
    last = AdoptedEncoder(one, encoder.graph)(sound, length)
    torch.testing.assert_close(four, last * np.float32((4 + 5 + 6 + 1) / 4))


def test_pictures_are_normalised_and_resized_as_they_want(tmp_path: Path) -> None:
    wants = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.4, 0.8]}
    encoder = found(write_seeing(tmp_path, **wants), "face_encoder")
    plain = found(write_seeing(tmp_path / "plain"), "face_encoder")
    pixels = torch.rand(1, 3, 128, 128)
    ours = (pixels - 0.5) / 0.5
    mean, std = (torch.tensor(wants[k])[:, None, None] for k in ("image_mean", "image_std"))
    got = AdoptedEncoder(encoder.config, encoder.graph)(ours)
    want = AdoptedEncoder(plain.config, plain.graph)((pixels - mean) / std)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert any("deviation" in note for note in encoder.notes)
    small = found(write_seeing(tmp_path / "small", side=64), "face_encoder")
    assert small.config.side == 64
    assert check(small, P).passed


def test_special_ids_and_other_integers_are_taken(tmp_path: Path) -> None:
    encoder = found(write_reading(tmp_path, TensorProto.INT32), "text_encoder")
    assert (encoder.config.before, encoder.config.after) == ((0,), (1,))
    assert encoder.config.beside == ("attention_mask", "token_type_ids", "position_ids")
    assert check(encoder, P).passed


@pytest.mark.parametrize(
    ("break_it", "step", "word"),
    [
        (lambda f: shutil.rmtree(f), "audio_encoder", "config.json"),
        (lambda f: (f / "model.onnx").unlink(), "audio_encoder", "no ONNX file"),
        (lambda f: (f / "model.onnx").rename(f / "decoder.onnx"), "audio_encoder", "decoder.onnx"),
        (lambda f: (f / "model.onnx").write_bytes(b"rubbish!"), "audio_encoder", "no ONNX model"),
        (lambda f: (f / "config.json").write_text("{"), "audio_encoder", "no JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "audio_encoder", "list"),
        (lambda f: f, "text_encoder", "takes input_values"),
        (lambda f: f, "joint_encoder", "cannot be adopted"),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"sampling_rate": 8000}'),
            "audio_encoder",
            "8000 Hz",
        ),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"do_normalize": false}'),
            "audio_encoder",
            "as it is",
        ),
    ],
)
def test_what_cannot_be_that_step_is_refused(
    tmp_path: Path, break_it: object, step: str, word: str
) -> None:
    folder = write_hearing(tmp_path / "f")
    break_it(folder)  # type: ignore[operator]
    with pytest.raises(InvalidInputError, match=word):
        read_folder(folder, step, P)


@pytest.mark.parametrize("wants", [{"do_rescale": False}, {"rescale_factor": 1.0}])
def test_pictures_of_another_range_are_refused(tmp_path: Path, wants: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="0 to 255"):
        read_folder(write_seeing(tmp_path, **wants), "face_encoder", P)


def test_words_beyond_what_it_knows_are_refused(tmp_path: Path) -> None:
    for facts, word in (({"max_position_embeddings": 65}, "65 pos"), ({"vocab_size": 9}, "ids")):
        with pytest.raises(InvalidInputError, match=word):
            read_folder(write_reading(tmp_path, **facts), "text_encoder", P)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="no tokeniser"):
        read_folder(tmp_path, "text_encoder", P)


def test_a_graph_that_cannot_run_is_told_so(tmp_path: Path) -> None:
    folder = write_seeing(tmp_path, side=64)
    (folder / "config.json").write_text('{"model_type": "vit"}')  # its size is not stated
    with pytest.raises(BundleCorruptError, match="fails on"):
        found(folder, "face_encoder")


def test_the_new_run_holds_the_encoder_and_neither_features_nor_fusion(
    random_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.relative_to(random_run) for path in random_run.rglob("*"))
    folder, out = write_reading(tmp_path / "bert"), tmp_path / "new"
    command = ["adopt", str(folder), "--as", "text_encoder", "--run", str(random_run)]
    assert main([*command, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "special ids" in told
    assert "merkit-train run" in told
    assert not (out / "fusion").exists()
    assert isinstance(load_step(out, "text_encoder"), AdoptedEncoder)
    # the joint model keeps the tokeniser that it was trained with
    joint = (out / "tokenizer" / "joint.json").read_bytes()
    assert joint == (random_run / "tokenizer" / "tokenizer.json").read_bytes()
    record = json.loads((out / "run.json").read_text())
    assert "fusion" not in record["stages"]
    assert sorted(path.relative_to(random_run) for path in random_run.rglob("*")) == before
    assert main([*command, "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


def test_searches_on_the_former_features_stay_where_they_are(
    random_run: Path, tmp_path: Path
) -> None:
    """A database that both runs could write to would mix two runs' trials."""
    run, folder = shutil.copytree(random_run, tmp_path / "run"), write_seeing(tmp_path / "vit")
    (run / "tuning").mkdir()
    (run / "tuning" / "optuna.db").write_bytes(b"trials")
    adopt(folder, "face_encoder", run, tmp_path / "new", say=lambda _: None)
    assert not (tmp_path / "new" / "tuning").exists()
    assert (run / "tuning" / "optuna.db").read_bytes() == b"trials"


@pytest.fixture
def adopted_run(random_run: Path, tmp_path: Path) -> Path:
    """The run with a foreign audio encoder of the same width; its fusion is as random as before."""
    width = SMALLEST.audio_encoder.hidden
    folder, out = write_hearing(tmp_path / "hubert", width=width), tmp_path / "adopted"
    adopt(folder, "audio_encoder", random_run, out, say=lambda _: None)
    shutil.copytree(random_run / "fusion", out / "fusion")
    return out


def test_fusion_is_trained_on_the_adopted_features(adopted_run: Path) -> None:
    encode = Encoder(adopted_run, P, ("a",))
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    faces = np.zeros((0, 64, 64, 3), np.uint8)
    clips = [Decoded(faces, wave[:8000]), Decoded(faces, wave), Decoded(faces, wave[:0])]
    together = encode(clips, [""] * 3)["audio_features"]
    alone = encode(clips[:1], [""])["audio_features"]
    assert together.shape == (3, SMALLEST.audio_encoder.hidden)
    torch.testing.assert_close(together[:1], alone)
    assert not together[2].any()


def test_a_bundle_with_an_adopted_encoder_passes_the_gate(
    adopted_run: Path, exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(origin: Origin, folder: Path, _: object) -> dict[str, str]:
        shutil.copytree(exported.root / "tokenize", folder / "tokenize")
        for spec in onnx_steps(exported.contract):
            shutil.copytree(exported.root / spec.name, folder / spec.name)
        step = exported.contract.step("audio_encoder")
        path = folder / "audio_encoder" / "1" / "model.onnx"
        module = origin.modules["audio_encoder"]
        made = shards.export(module, step, exported.contract, {}, path)
        return {**exported.manifest["step_digests"], "audio_encoder": made.digest}

    monkeypatch.setattr(building, "export_steps", export)  # the other steps are exported already
    bundle = building.build(adopted_run, tmp_path / "bundle", say=lambda _: None)
    assert bundle.bundle_id != exported.bundle_id
    assert bundle.manifest["validation"]["releasable"] is True
    stages = bundle.manifest["provenance"]["stages"]  # the recipe beside speaks of the former one
    assert stages["audio_encoder"]["adopted"] == "hubert"
    batch = bundle.manifest["validation"]["parity"]["steps"]["audio_encoder"]["batch"]
    assert batch < 1e-6  # although its norm is over time
    with merkit.load(bundle.root) as client:
        assert client.predict(text="so it is").label in bundle.contract.labels


def test_a_failed_adoption_leaves_nothing(random_run: Path, tmp_path: Path) -> None:
    folder = write_hearing(tmp_path / "hubert")
    (folder / "model.onnx").write_bytes(b"rubbish!")
    with pytest.raises(InvalidInputError):
        adopt(folder, "audio_encoder", random_run, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["hubert"]
