"""Several bundles in one repository: what they have in common lies there once."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from versions import retrained

from merkit.backends.entries import suffix_of
from merkit.bundle import Bundle, open_bundle
from merkit.errors import InvalidInputError
from merkit.serving.config import CONSTANTS, versioned_names
from merkit.serving.deployment import Deployment
from merkit.serving.render import render


def configs(root: Path) -> dict[str, model_config_pb2.ModelConfig]:
    return {
        path.parent.name: text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        for path in root.glob("*/config.pbtxt")
    }


@pytest.fixture(scope="module")
def second(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return retrained(toy_bundle, tmp_path_factory.mktemp("second") / "bundle")


def test_names_say_what_a_model_holds(toy_bundle: Bundle) -> None:
    names = versioned_names(toy_bundle)
    digests = toy_bundle.manifest["step_digests"]
    assert names.models["face_encoder"] == f"face_encoder-{digests['face_encoder'][:8]}"
    assert names.entry("merkit") == f"merkit-{toy_bundle.bundle_id[:8]}"
    assert set(names.models) == {s.name for s in toy_bundle.contract.steps} | {CONSTANTS}


def test_what_two_bundles_share_lies_there_once(
    toy_bundle: Bundle, second: Bundle, tmp_path: Path
) -> None:
    for bundle in (toy_bundle, second):
        render(bundle, tmp_path / "both", versioned=True)
    found = configs(tmp_path / "both")
    assert all(name == config.name for name, config in found.items())
    kinds = Counter(name.partition("-")[0] for name in found)
    assert (kinds["decode"], kinds["face_encoder"], kinds["fusion"], kinds["merkit"]) == (
        1,
        1,
        2,
        2,
    )
    for bundle in (toy_bundle, second):
        names = versioned_names(bundle)
        used = {
            step.model_name for step in found[names.entry("merkit_atv")].ensemble_scheduling.step
        }
        assert used <= set(found)
        assert names.models["fusion"] in used
        stated = json.loads(found[names.entry("merkit")].parameters["models"].string_value)
        assert stated == dict(names.models)
        manifest = tmp_path / "both" / f"bundle-{bundle.bundle_id[:8]}.json"
        assert json.loads(manifest.read_text())["bundle_id"] == bundle.bundle_id
        for step in bundle.manifest["step_digests"]:
            for content in (bundle.root / step / "1").iterdir():
                placed = tmp_path / "both" / names.models[step] / "1" / content.name
                assert placed.read_bytes() == content.read_bytes()


def test_the_order_of_bundles_does_not_matter(
    toy_bundle: Bundle, second: Bundle, tmp_path: Path
) -> None:
    for name, bundles in (("one", (toy_bundle, second)), ("two", (second, toy_bundle))):
        for bundle in bundles:
            render(bundle, tmp_path / name, versioned=True)
    one, two = (
        {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_steps_in_python_differ_with_what_they_read_of_the_contract(
    toy_bundle: Bundle,
) -> None:
    contract = toy_bundle.contract
    shorter = replace(contract.preprocessing, max_audio_seconds=5.0)
    other = replace(toy_bundle, contract=replace(contract, preprocessing=shorter))
    one, two = versioned_names(toy_bundle), versioned_names(other)
    assert one.models["decode"] != two.models["decode"]
    assert one.models["face_encoder"] == two.models["face_encoder"]


def test_a_folder_with_something_else_in_it_is_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "plain")
    for folder in (tmp_path / "plain", toy_bundle.root):
        with pytest.raises(InvalidInputError, match="rendered with versions before"):
            render(toy_bundle, folder, versioned=True)
    with pytest.raises(InvalidInputError, match="not an empty folder"):
        render(toy_bundle, tmp_path / "plain")


def test_a_copy_outlives_its_bundle(toy_bundle: Bundle, tmp_path: Path) -> None:
    own = open_bundle(shutil.copytree(toy_bundle.root, tmp_path / "own"))
    render(own, tmp_path / "out", Deployment("python"), copy=True)
    shutil.rmtree(own.root)
    assert open_bundle(tmp_path / "out").bundle_id == own.bundle_id


@pytest.mark.parametrize("wrong", ["", "1234567", "g" * 8, "1" * 33, 12345678, "ABCDEF12"])
def test_a_bundle_is_addressed_by_the_first_digits_of_its_id(wrong: str) -> None:
    with pytest.raises(InvalidInputError, match="first 8 or more digits"):
        suffix_of(wrong)
    assert suffix_of("0123456789ab") == "-01234567"
