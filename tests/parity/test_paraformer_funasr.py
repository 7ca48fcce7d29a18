"""Our Paraformer beside FunASR's own code, with the same weights: they must say the same.

FunASR brings 640 MB of packages that nothing here needs, so it is no dependency. Its three modules
of the model alone need only torch: `pip install --no-deps --target FOLDER funasr`, then run this
with MERKIT_FUNASR=FOLDER. Compared with 1.4.16: encoder equal, log-probabilities within 2e-5.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from merkit_training.speech.recognition.checkpoint import funasr_config
from merkit_training.speech.recognition.config import RecognizerConfig
from merkit_training.speech.recognition.model import Paraformer

FOLDER = os.environ.get("MERKIT_FUNASR", "")
pytestmark = pytest.mark.skipif(
    not (Path(FOLDER) / "funasr").is_dir() or not FOLDER,
    reason="needs MERKIT_FUNASR, a folder of pip install --no-deps --target FOLDER funasr",
)
ABSENT = ("torchaudio", "librosa", "kaldiio", "omegaconf", "hydra", "soundfile")
"""What funasr imports on the way and the model does not use."""
TOKENS = 40


class _Anything(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RecognizerConfig, nn.Module]]:
    """FunASR's encoder, predictor and decoder; its package's own start is left out."""
    before = set(sys.modules)
    package = ModuleType("funasr")
    package.__path__ = [str(Path(FOLDER) / "funasr")]
    monkeypatch.setitem(sys.modules, "funasr", package)
    for name in ABSENT:
        monkeypatch.setitem(sys.modules, name, _Anything(name))
    config = RecognizerConfig(
        hidden=32, layers=3, heads=4, intermediate=48, decoder_layers=3, decoder_attending=2,
        decoder_heads=2, decoder_intermediate=40, ctc=False, ctc_weight=0.0,
    )  # fmt: skip
    told = funasr_config(config)
    del told["encoder_conf"]["pos_enc_class"]  # which FunASR resolves when it builds from YAML
    models = "funasr.models"
    encoder = import_module(f"{models}.sanm.encoder").SANMEncoder
    predictor = import_module(f"{models}.paraformer.cif_predictor").CifPredictorV2
    decoder = import_module(f"{models}.paraformer.decoder").ParaformerSANMDecoder
    model = nn.Module()
    model.encoder = encoder(input_size=config.inputs, **told["encoder_conf"])
    model.predictor = predictor(**told["predictor_conf"])
    model.decoder = decoder(
        vocab_size=TOKENS, encoder_output_size=config.hidden, **told["decoder_conf"]
    )
    yield config, model.eval()
    for name in set(sys.modules) - before:
        if name.startswith("funasr"):
            del sys.modules[name]


def test_the_same_weights_say_the_same(theirs: tuple[RecognizerConfig, Any]) -> None:
    config, model = theirs
    torch.manual_seed(0)
    ours = Paraformer(config, TOKENS).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.load_state_dict(ours.state_dict(), strict=True)
        for time in (9, 31, 80):
            speech, lengths = torch.randn(1, time, config.inputs), torch.tensor([time])
            heard, _, _ = model.encoder(speech, lengths)
            mask = torch.ones(1, 1, time)
            embedded, counts, _, _ = model.predictor(heard, None, mask, ignore_id=-1)
            expected = model.decoder(heard, lengths, embedded, counts.long())[0].log_softmax(-1)
            logs, found = ours(speech, lengths)
            assert found.tolist() == counts.long().tolist()
            torch.testing.assert_close(ours.encode(speech, lengths)[0], heard)
            torch.testing.assert_close(logs, expected, atol=5e-5, rtol=0)
        targets, said = torch.zeros(1, 7, dtype=torch.long), torch.tensor([7])
        embedded, sums, _, _ = model.predictor(heard, targets, mask, ignore_id=-1)
        aligned, total = ours.predictor.aligned(heard, torch.ones(1, 80, 1), said)
        torch.testing.assert_close(total, sums)
        torch.testing.assert_close(aligned, embedded, atol=1e-5, rtol=1e-4)
