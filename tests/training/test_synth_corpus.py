"""The corpus on disk: readable, in MER's formats, deterministic, resumable, safely read."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from conftest import REPOSITORY
from tqdm import tqdm

from merkit.errors import InvalidInputError
from merkit_training.corpus import (
    CLIP_SPLITS,
    open_set,
    read_clips,
    read_labels,
    read_mer_npz,
    read_sentences,
    read_table,
)
from merkit_training.labels import MER6
from merkit_training.synth import generate as generator
from merkit_training.synth.config import SynthConfig
from merkit_training.synth.generate import generate
from merkit_training.synth.sample import sample_clip

SMALL = SynthConfig(
    seed=5,
    workers=2,
    faces_train=12,
    faces_val=4,
    sequences_train=6,
    sequences_val=2,
    utterances_train=6,
    utterances_val=2,
    sentences_train=60,
    sentences_val=20,
    clips_train=3,
    clips_val=1,
    clips_test_multi=1,
    clips_test_semi=1,
    clips_test_noise=2,
    clips_unlabelled=1,
    ceiling_draws=500,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("synth") / "corpus"
    generate(out, SMALL)
    yield out


def test_sets_have_the_stated_arrays(corpus: Path) -> None:
    faces, sequences = open_set(corpus, "faces"), open_set(corpus, "sequences")
    assert faces["images"].shape == (16, 64, 64, 3) and faces["images"].dtype == np.uint8
    assert sequences["images"].shape == (8, 4, 64, 64, 3)
    assert faces.indices("train").tolist() == list(range(12))
    assert sequences.indices("val").tolist() == [6, 7]
    heard = open_set(corpus, "utterances")
    assert heard["waveforms"].dtype == np.int16
    assert heard["prosody"].shape == (8, 8) and heard["prosody"].dtype == np.float32
    np.testing.assert_allclose(heard["prosody"].mean(0), 0, atol=1e-5)
    for wave, length in zip(heard["waveforms"], heard["lengths"], strict=True):
        assert (
            32_000 <= length <= wave.size and not wave[length:].any() and wave[:length].std() > 50
        )
    rows = read_table(corpus / "utterances" / "table.csv")
    assert [MER6.index(r["discrete"]) for r in rows] == heard["labels"].tolist()
    assert len(read_sentences(corpus, "train")) == 60 and len(read_sentences(corpus, "val")) == 20


def test_clips_are_real_media_with_their_truth_in_mer_formats(corpus: Path) -> None:
    for split in CLIP_SPLITS:
        clips = read_clips(corpus, split)
        assert len(clips) == getattr(SMALL, f"clips_{split}")
        for clip in clips:
            with av.open(str(clip.path)) as container:
                video, audio = container.streams.video[0], container.streams.audio[0]
                assert (video.codec_context.name, video.width) == ("h264", SMALL.frame_size)
                assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 16_000, 1)
                frames = sum(1 for _ in container.decode(video))
            assert frames == int(np.ceil(clip.truth["seconds"] * SMALL.fps))
            assert clip.text and (clip.label is None) == (split == "unlabelled")
            assert clip.truth["subset"] in ("aligned", "mixed", "conflicting")
            assert bool(clip.truth["noise"]) == (split == "test_noise")
        if split != "unlabelled":
            folder = corpus / "clips" / split
            found = read_labels(folder / "labels.csv")
            assert found == read_labels(folder / "label-6way.npz")
            assert found == {c.name: c.truth["discrete"] for c in clips}
    entry = read_mer_npz(corpus / "clips/test_multi/label-6way.npz")["test1_corpus"]
    assert set(next(iter(entry.values()))) == {"emo", "val"}


def test_splits_share_no_identity_voice_or_sentence(corpus: Path) -> None:
    seen: dict[str, set[Any]] = {}
    for split in CLIP_SPLITS:
        for clip in read_clips(corpus, split):
            for key in ("identity", "voice", "text"):
                seen.setdefault(f"{split}/{key}", set()).add(clip.truth[key])
    for row in read_table(corpus / "utterances" / "table.csv"):
        seen.setdefault(f"utterances-{row['split']}/voice", set()).add(int(row["voice"]))
        seen.setdefault(f"utterances-{row['split']}/text", set()).add(row["text"])
    for key in ("identity", "voice", "text"):
        groups = [members for name, members in seen.items() if name.endswith("/" + key)]
        assert sum(map(len, groups)) == len(set().union(*groups)), key


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(
    corpus: Path, tmp_path: Path
) -> None:
    generate(tmp_path / "again", replace(SMALL, workers=1))
    first, second = (
        json.loads((p / "card.json").read_text()) for p in (corpus, tmp_path / "again")
    )
    assert first["sha256"] == second["sha256"] and len(first["sha256"]) > 20
    assert first["ceilings"] == second["ceilings"]


_FILM = """
import sys
from pathlib import Path
import numpy as np
from merkit_training.synth.clips import write_mp4
rng = np.random.default_rng(0)
frames = [rng.integers(3 * i, 3 * i + 9, (160, 160, 3), np.uint8) for i in range(20)]
write_mp4(Path(sys.argv[1]), frames, 12, rng.normal(0, 0.1, 26_000).astype(np.float32))
"""


def test_a_video_does_not_depend_on_what_memory_held_before(tmp_path: Path) -> None:
    films = []
    for junk in ("0", "1", "170"):
        film = tmp_path / f"{junk}.mp4"
        environment = os.environ | {"MALLOC_PERTURB_": junk}
        subprocess.run([sys.executable, "-c", _FILM, film], env=environment, check=True)
        films.append(film.read_bytes())
    assert films[0] == films[1] == films[2]


def test_the_card_counts_what_is_there_and_states_ceilings(corpus: Path) -> None:
    card = json.loads((corpus / "card.json").read_text("utf-8"))
    assert sum(card["counts"]["faces/train"].values()) == SMALL.faces_train
    for split in CLIP_SPLITS:
        assert card["ceilings"][split]["prior"] < card["ceilings"][split]["all"] < 1
    assert "synthetic" in (corpus / "card.md").read_text("utf-8")
    assert not list(corpus.rglob("*.tmp*")) and not (corpus / ".parts").exists()


class _Bar(tqdm):  # type: ignore[type-arg]
    """A progress bar that pulls the plug after the second part, and remembers where bars began."""

    began: ClassVar[list[int]] = []
    break_after = 2

    def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
        super().__init__(*args, initial=initial, **options)
        self.began.append(initial)
        self.parts = 0

    def update(self, n: float | None = 1) -> bool | None:
        self.parts += 1
        if self.parts == _Bar.break_after:
            raise OSError("the disk is gone")
        return super().update(n)


def test_a_broken_run_resumes_with_what_is_missing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generator.PART_SIZES, "faces", 4)
    monkeypatch.setattr(generator, "tqdm", _Bar)
    config = replace(SMALL, workers=1)
    with pytest.raises(OSError, match="disk"):
        generate(tmp_path, config, ["faces"])
    assert not (tmp_path / "faces" / "split.npy").exists()
    monkeypatch.setattr(_Bar, "break_after", 0)
    generate(tmp_path, config, ["faces"])
    assert _Bar.began[0] == 0
    assert _Bar.began[1] >= 8, "the second run starts from the two parts of four that were made"
    for name in ("images", "labels", "split"):
        whole = (corpus / "faces" / f"{name}.npy").read_bytes()
        assert (tmp_path / "faces" / f"{name}.npy").read_bytes() == whole


def test_a_folder_with_another_corpus_is_refused(corpus: Path) -> None:
    with pytest.raises(InvalidInputError, match="another configuration"):
        generate(corpus, replace(SMALL, seed=6))
    with pytest.raises(InvalidInputError, match="no set"):
        generate(corpus, SMALL, ["smells"])


def test_readers_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="merkit-train synth"):
        open_set(tmp_path, "faces")
    with pytest.raises(InvalidInputError, match=r"transcripts\.csv"):
        read_clips(tmp_path, "train")
    with pytest.raises(InvalidInputError, match="'test9' is unknown"):
        read_clips(tmp_path, "test9")
    (tmp_path / "labels.csv").write_text("clip,emotion\na,angry\n")
    with pytest.raises(InvalidInputError, match="name,discrete"):
        read_labels(tmp_path / "labels.csv")


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_a_label_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    hit, path = tmp_path / "hit", tmp_path / "label-6way.npz"
    evil: dict[str, Any] = {"train_corpus": {"a": {"emo": _Evil(hit)}}}
    np.savez(path, **evil)
    with pytest.raises(InvalidInputError, match="asks for"):
        read_mer_npz(path)
    assert not hit.exists()


@pytest.mark.parametrize("content", [b"", b"PK nonsense", b"text"])
def test_a_label_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "label-6way.npz"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="cannot be read safely"):
        read_mer_npz(path)


def test_numpy_scalars_and_older_spellings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "label-6way.npz"
    table: dict[str, Any] = {
        "train_corpus": {"a": {"emo": "anger", "val": np.float64(-0.5)}},
        "test1_corpus": {"b": {"emo": np.str_("sadness"), "val": -10}},
    }
    np.savez(path, **table)
    assert read_labels(path) == {"a": "angry", "b": "sad"}
    assert read_mer_npz(path)["train_corpus"]["a"]["val"] == -0.5
    old = pickle.dumps(np.float64(1.5)).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert isinstance(old, bytes)


def test_the_clip_that_travels_with_the_project_can_be_made_again(tmp_path: Path) -> None:
    said = sample_clip(tmp_path / "sample.mp4")
    kept = REPOSITORY / "docs" / "media" / "sample.txt"
    assert said == kept.read_text("utf-8").strip() == (tmp_path / "sample.txt").read_text().strip()
    assert (tmp_path / "sample.mp4").stat().st_size > 10_000
