"""Official checkpoint formats, on tiny random weights; every way in which one may not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit_training.checkpoints import load_into, open_checkpoint

FORMATS = ("safetensors", "sharded safetensors", "bin", "legacy bin", "sharded bin")


def tensors() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = {"net.qkv.weight": (6, 4), "net.out.weight": (3, 2), "net.out.bias": (3,), "step": ()}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def write(folder: Path, form: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"hidden_size": 4}))
    content = tensors()
    if form == "safetensors":
        save_file(content, folder / "model.safetensors")
    elif form == "bin":
        torch.save(content, folder / "pytorch_model.bin")
    elif form == "legacy bin":
        path = folder / "pytorch_model.bin"
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        stem, end = ("model", "safetensors") if "safe" in form else ("pytorch_model", "bin")
        names = list(content)
        shards = {
            f"{stem}-00001-of-00002.{end}": names[:2],
            f"{stem}-00002-of-00002.{end}": names[2:],
        }
        for file, part in shards.items():
            values = {name: content[name] for name in part}
            (save_file if end == "safetensors" else torch.save)(values, folder / file)
        weight_map = {name: file for file, part in shards.items() for name in part}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 2, bias=False) for _ in range(3))
        self.out = nn.Linear(2, 3)
        self.head = nn.Linear(3, 2)


def split(name: str) -> str | list[tuple[str, slice]] | None:
    if name == "net.qkv.weight":
        return [(f"{part}.weight", slice(2 * i, 2 * i + 2)) for i, part in enumerate("qkv")]
    return None if name == "step" else name.removeprefix("net.")


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_gives_the_same_tensors(tmp_path: Path, form: str) -> None:
    checkpoint = open_checkpoint(str(write(tmp_path / "c", form)))
    assert checkpoint.config == {"hidden_size": 4}
    assert set(checkpoint.names()) == set(tensors())
    for name, expected in tensors().items():
        assert checkpoint.shape(name) == expected.shape
        assert torch.equal(checkpoint.tensor(name), expected)


def test_what_save_pretrained_writes_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path, max_shard_size="2KB")
    assert not (tmp_path / "model.safetensors").exists()  # the shards are what this is about
    checkpoint = open_checkpoint(str(tmp_path))
    torch.manual_seed(1)
    other = BertModel(BertConfig.from_dict(checkpoint.config))
    report = load_into(other, checkpoint, lambda name: name)
    assert set(report.loaded) == set(checkpoint.names())
    torch.manual_seed(0)
    for name, value in BertModel(config).state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_fused_projection_is_split_and_the_report_tells_all(tmp_path: Path) -> None:
    model, expected = Small(), tensors()
    checkpoint = open_checkpoint(str(write(tmp_path / "c", "safetensors")))
    report = load_into(model, checkpoint, split, optional={"head"})
    assert torch.equal(model.k.weight, expected["net.qkv.weight"][2:4])
    assert torch.equal(model.out.bias, expected["net.out.bias"])
    assert report.unused == ("step",)
    assert report.initial == ("head.weight", "head.bias")
    assert len(report.loaded) == 5


def test_a_function_changes_a_tensor_on_its_way(tmp_path: Path) -> None:
    model = nn.Module()
    model.out = nn.Linear(3, 2, bias=False)
    save_file({"w": torch.arange(6.0).view(2, 3).T.contiguous()}, tmp_path / "model.safetensors")
    load_into(
        model, open_checkpoint(str(tmp_path)), lambda _: [("out.weight", lambda tensor: tensor.T)]
    )
    assert model.out.weight.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_half_precision_becomes_the_modules_format(tmp_path: Path) -> None:
    weights = {"weight": torch.full((2, 2), 1.5, dtype=torch.bfloat16)}
    save_file(weights, tmp_path / "model.safetensors")
    model = nn.Linear(2, 2, bias=False)
    load_into(model, open_checkpoint(str(tmp_path)), str)
    assert model.weight.dtype == torch.float32
    assert model.weight.tolist() == [[1.5, 1.5], [1.5, 1.5]]


def test_tied_weights_need_one_source(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.lm_head = nn.Linear(3, 5, bias=False)
            self.lm_head.weight = self.embed.weight

    save_file({"embed.weight": torch.ones(5, 3)}, tmp_path / "model.safetensors")
    model = Tied()
    assert load_into(model, open_checkpoint(str(tmp_path)), str).initial == ()
    assert model.lm_head.weight.sum() == 15


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (split, ["nothing for 'head.weight'", "(2, 3)"]),
        (lambda n: None if "qkv" in n else split(n), ["nothing for 'q.weight'", "(2, 4)"]),
        (lambda n: "stray" if n == "step" else split(n), ["'step' of shape ()", "no 'stray'"]),
        (lambda n: "out.bias" if n == "step" else split(n), ["'out.bias' twice", "'step'"]),
        (
            lambda n: "head.weight" if "out.weight" in n else split(n),
            ["'net.out.weight'", "shape (3, 2)", "(2, 3) for 'head.weight'"],
        ),
        (
            lambda n: [("q.weight", slice(0, 3))] if "qkv" in n else split(n),
            ["nothing for 'k.weight'"],
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, rename: object, said: list[str]) -> None:
    model = Small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = open_checkpoint(str(write(tmp_path / "c", "safetensors")))
    with pytest.raises(InvalidInputError) as caught:
        load_into(model, checkpoint, rename)  # type: ignore[arg-type]
    for words in said:
        assert words in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_slice_of_another_shape_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write(tmp_path / "c", "safetensors")))

    def wrong(name: str) -> object:
        target = split(name)
        return [*target[:2], ("v.weight", slice(4, 5))] if isinstance(target, list) else target

    with pytest.raises(InvalidInputError, match=r"\(1, 4\).*\(2, 4\) for 'v.weight'"):
        load_into(Small(), checkpoint, wrong, optional=["head"])  # type: ignore[arg-type]


def test_no_such_folder_says_what_to_do() -> None:
    for source in ("nowhere/at-all", "", "no such thing"):
        with pytest.raises(BundleNotFoundError, match="hub = true"):
            open_checkpoint(source)


def test_a_folder_without_weights_or_with_a_shard_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"holds no weights.*model\.safetensors"):
        open_checkpoint(str(tmp_path))
    folder = write(tmp_path / "c", "sharded bin")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(BundleNotFoundError, match="00002-of-00002"):
        open_checkpoint(str(folder))


def test_an_index_cannot_point_outside_the_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", "safetensors")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"step": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BundleCorruptError, match=r"\.\./model"):
        open_checkpoint(str(folder))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("bomb-went-off"),)  # type: ignore[return-value]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write_bomb in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write_bomb({"w": Bomb()}, tmp_path / "pytorch_model.bin")
        with pytest.raises(BundleCorruptError, match=r"pytorch_model\.bin"):
            open_checkpoint(str(tmp_path))
    assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_are_named(tmp_path: Path, form: str) -> None:
    folder = write(tmp_path / "c", form)
    for path in folder.glob("*model*"):
        if path.suffix != ".json":
            path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BundleCorruptError, match="cannot be read"):
        checkpoint = open_checkpoint(str(folder))
        [checkpoint.tensor(name) for name in checkpoint.names()]


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_a_bad_index_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BundleCorruptError, match=r"index\.json"):
        open_checkpoint(str(tmp_path))


def test_a_missing_configuration_or_name_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write(tmp_path / "c", "safetensors")))
    with pytest.raises(InvalidInputError, match="'nope'"):
        checkpoint.tensor("nope")
    (tmp_path / "c" / "config.json").unlink()
    with pytest.raises(BundleNotFoundError, match=r"config\.json"):
        _ = checkpoint.config


def test_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": tensors()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BundleCorruptError, match="more than tensors"):
        open_checkpoint(str(tmp_path))


def test_a_hub_id_comes_from_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home = tmp_path / "models--someone--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("a" * 40)
    (home / "snapshots").mkdir()
    write(home / "snapshots" / ("a" * 40), "bin")
    checkpoint = open_checkpoint("someone/tiny", hub=True)
    assert torch.equal(checkpoint.tensor("step"), tensors()["step"])
    with pytest.raises(BundleNotFoundError, match="'someone/else' cannot be fetched"):
        open_checkpoint("someone/else", hub=True)
