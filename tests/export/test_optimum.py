"""Encoders that Optimum itself exported, in an environment of its own (`make optimum`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY

from merkit.contract import Preprocessing
from merkit_export.adopt.check import check
from merkit_export.adopt.place import measured
from merkit_export.adopt.read import read_folder

BIN = REPOSITORY / ".venv-optimum" / "bin"
P = Preprocessing()
WRITE = """
import sys, torch
from pathlib import Path
from transformers import (
    BertConfig, BertModel, BertTokenizerFast, HubertConfig, HubertModel, LlamaConfig, LlamaModel,
    ViTConfig, ViTImageProcessor, ViTModel, Wav2Vec2FeatureExtractor,
)

root = Path(sys.argv[1])
torch.manual_seed(0)
small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
hop = dict(conv_dim=(16,) * 3, conv_kernel=(10, 3, 2), conv_stride=(5, 8, 8),
           num_feat_extract_layers=3, num_conv_pos_embeddings=16,
           num_conv_pos_embedding_groups=4)
for norm, stable in (("layer", True), ("group", False)):
    config = HubertConfig(**small, **hop, feat_extract_norm=norm, do_stable_layer_norm=stable)
    HubertModel(config).eval().save_pretrained(root / f"hubert-{norm}")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / f"hubert-{norm}")
ViTModel(ViTConfig(**small, image_size=128)).eval().save_pretrained(root / "vit")
means = dict(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
ViTImageProcessor(size={"height": 128, "width": 128}, **means).save_pretrained(root / "vit")
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
(root / "vocab.txt").write_text("\\n".join(words))
tokenizer = BertTokenizerFast(str(root / "vocab.txt"))
for name, model in (
    ("bert", BertModel(BertConfig(**small, vocab_size=120))),
    ("llama", LlamaModel(LlamaConfig(**small, vocab_size=120))),
):
    model.eval().save_pretrained(root / name)
    tokenizer.save_pretrained(root / name)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (BIN / "optimum-cli").exists():
        if os.environ.get("MERKIT_TESTS_NEED_OPTIMUM") == "1":
            pytest.fail("there is no .venv-optimum: run make optimum")
        pytest.skip("no .venv-optimum here: make optimum makes it")
    root = tmp_path_factory.mktemp("optimum")
    run(root, str(BIN / "python"), "-c", WRITE, str(root))
    return root


def run(folder: Path, *command: str) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("hubert-layer", "audio_encoder"),
        ("hubert-group", "audio_encoder"),
        ("vit", "face_encoder"),
        ("bert", "text_encoder"),
        ("llama", "text_encoder"),
    ],
)
def test_what_optimum_exports_is_adopted(folders: Path, name: str, step: str) -> None:
    out = folders / f"{name}-onnx"
    task = ("--task", "feature-extraction", "--model", str(folders / name))
    run(folders, str(BIN / "optimum-cli"), "export", "onnx", *task, str(out))
    found = measured(read_folder(out, step, P), P)
    report = check(found, P)
    assert found.config.hidden == 32
    assert report.passed
    assert report.max_abs <= 1e-5
