"""`merkit-export render`: files for one host, from the command line or its host.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from merkit.bundle import Bundle
from merkit_export.cli import main


def render(*arguments: object) -> int:
    return main(["render", *map(str, arguments)])


def test_a_host_toml_and_what_wins_over_it(toy_bundle: Bundle, tmp_path: Path) -> None:
    host = tmp_path / "host.toml"
    host.write_text("flavour = 'python'\nthreads = 3\nmax_batch_size = 5\n")
    assert render(toy_bundle.root, "--deploy", host, "--out", tmp_path / "one") == 0
    text = (tmp_path / "one" / "fusion" / "config.pbtxt").read_text()
    assert 'backend: "python"' in text
    assert "max_batch_size: 5" in text
    assert (
        render(
            toy_bundle.root, "--deploy", host, "--flavour", "onnxruntime", "--out", tmp_path / "two"
        )
        == 0
    )
    text = (tmp_path / "two" / "fusion" / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in text
    assert 'string_value: "3"' in text


def test_several_bundles_share_a_repository(
    toy_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert render(toy_bundle.root, "--versioned", "--copy", "--out", out) == 0
    assert render(toy_bundle.root, "--versioned", "--copy", "--out", out) == 0, "again is no harm"
    assert toy_bundle.bundle_id[:8] in capsys.readouterr().out
    assert not any(path.is_symlink() for path in out.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{b}", "{b}", "--out", "{o}"], "add --versioned"),
        (["{b}", "--versioned"], "add --out DIR"),
        (["{b}", "--copy"], "add --out DIR"),
        (["{b}", "--out", "{o}", "--deploy", "{o}/none.toml"], "cannot be read"),
        (["{b}", "--out", "{o}", "--threads", "-1"], "threads is -1"),
        (["{b}", "--out", "{o}", "--flavour", "tensorrt"], "has no TensorRT plan"),
    ],
)
def test_what_cannot_be_rendered_is_told(
    toy_bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    given = [a.format(b=toy_bundle.root, o=tmp_path / "out") for a in arguments]
    assert render(*given) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
