"""Signatures: what is not exactly what a trusted key signed is refused, by name of the fault."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

import merkit
from merkit.admission import TRUSTED_KEYS, admit, configured_keys
from merkit.bundle import MANIFEST, SIGNATURES, Bundle, open_bundle
from merkit.cli.inspection import signers, verify
from merkit.errors import (
    InvalidInputError,
    MerkitError,
    SignatureAlteredError,
    SignatureMalformedError,
    SignerUnknownError,
    UnreleasableBundleError,
    UnsignedBundleError,
)
from merkit.serving.render import render
from merkit.signing import generate_keys, read_signatures, sign

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "second", "strange"):
        generate_keys(folder / name)
    return folder


@pytest.fixture
def bundle(toy_bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(toy_bundle.root, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


def edit(bundle: Bundle, **values: object) -> None:
    path = bundle.root / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_signed_bundle_loads_with_the_signers_key(bundle: Bundle, keys: Path) -> None:
    sign(bundle, keys / "ours")
    with merkit.load(bundle.root, trusted_keys=keys / "ours.pub") as client:
        assert client.predict(text="so it is").label in bundle.contract.labels


@pytest.mark.parametrize(
    "trusted", [["ours.pub", "strange.pub"], ["."], ["second.pub"]], ids=["list", "folder", "other"]
)
def test_one_of_several_keys_and_signatures_is_enough(
    bundle: Bundle, keys: Path, trusted: list[str]
) -> None:
    sign(bundle, keys / "ours")
    sign(bundle, keys / "second")
    sign(bundle, keys / "ours")  # again: no second entry
    assert len(read_signatures(bundle)) == 2
    assert admit(bundle, [keys / name for name in trusted]) is bundle


def test_reformatting_the_manifest_changes_nothing(bundle: Bundle, keys: Path) -> None:
    sign(bundle, keys / "ours")
    edit(bundle)
    admit(open_bundle(bundle.root), keys / "ours.pub")


def test_each_fault_has_its_error(bundle: Bundle, keys: Path) -> None:
    ours = keys / "ours.pub"
    with pytest.raises(UnsignedBundleError, match="carries no signature"):
        merkit.load(bundle.root, trusted_keys=ours)
    sign(bundle, keys / "strange")
    with pytest.raises(SignerUnknownError, match="holds signatures by"):
        admit(bundle, ours)
    sign(bundle, keys / "ours")
    edit(bundle, name="another")
    with pytest.raises(SignatureAlteredError, match="is not the one"):
        admit(open_bundle(bundle.root), ours)


def test_a_changed_weight_is_found_though_its_hash_was_written_anew(
    bundle: Bundle, keys: Path
) -> None:
    from merkit.bundle import write_manifest

    sign(bundle, keys / "ours")
    tokenizer = bundle.resources("tokenize") / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    details = {k: bundle.manifest[k] for k in ("name", "voters")}
    changed = write_manifest(bundle.root, bundle.contract, bundle.manifest["step_digests"], details)
    with pytest.raises(SignatureAlteredError):
        admit(changed, keys / "ours.pub")


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        "{}",
        '{"schema": 2, "signatures": []}',
        '{"schema": 1, "signatures": [1]}',
        '{"schema": 1, "signatures": [{"algorithm": "none", "key_id": "a", "manifest": "b", '
        '"signature": "AA=="}]}',
        '{"schema": 1, "signatures": [{"algorithm": "ed25519", "key_id": "a", "manifest": "b", '
        '"signature": "?"}]}',
        '{"schema": 1, "signatures": [{"algorithm": "ed25519", "key_id": 1, "manifest": "b", '
        '"signature": "AA=="}]}',
        "\udcff",
        "[" * 100_000,
    ],
)
def test_rubbish_for_signatures_is_told_so(bundle: Bundle, keys: Path, content: str) -> None:
    (bundle.root / SIGNATURES).write_text(content, "utf-8", "surrogateescape")
    for attempt in (lambda: admit(bundle, keys / "ours.pub"), lambda: sign(bundle, keys / "ours")):
        with pytest.raises(SignatureMalformedError, match="cannot be read"):
            attempt()


def test_a_signature_of_other_length_is_no_signature(bundle: Bundle, keys: Path) -> None:
    made = sign(bundle, keys / "ours")
    entry = made.to_json() | {"signature": "AAAA"}
    table = {"schema": 1, "signatures": [entry]}
    (bundle.root / SIGNATURES).write_text(json.dumps(table))
    with pytest.raises(SignatureAlteredError):
        admit(bundle, keys / "ours.pub")


def test_the_environment_configures_every_way_of_running(
    bundle: Bundle, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merkit.serving import Server

    monkeypatch.setenv(TRUSTED_KEYS, str(keys / "ours.pub"))
    with pytest.raises(UnsignedBundleError):
        merkit.load(bundle.root)
    with pytest.raises(UnsignedBundleError):
        Server(bundle.root)
    admission = next(check for check in verify(bundle.root) if check.name == "admission")
    assert not admission.passed
    sign(bundle, keys / "ours")
    merkit.load(bundle.root).close()
    assert "is trusted" in signers(bundle)


@pytest.mark.parametrize("stated", ["", ":", " ", " : \t:"])
def test_keys_that_were_meant_and_not_named_admit_nobody(
    bundle: Bundle, stated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merkit.serving import Server

    monkeypatch.setenv(TRUSTED_KEYS, stated)
    for run in (merkit.load, Server, lambda root: signers(open_bundle(root))):
        with pytest.raises(InvalidInputError, match=f"{TRUSTED_KEYS} is set to .* names no key"):
            run(bundle.root)
    admission = next(check for check in verify(bundle.root) if check.name == "admission")
    assert not admission.passed


def test_empty_places_among_named_keys_are_passed_over(keys: Path) -> None:
    named = f":{keys / 'ours.pub'}: :"
    assert configured_keys({TRUSTED_KEYS: named}) == [str(keys / "ours.pub")]
    assert configured_keys({}) is None


def test_inspect_names_signers_without_keys(
    bundle: Bundle, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUSTED_KEYS, raising=False)
    assert signers(bundle).startswith("nobody (not checked")
    made = sign(bundle, keys / "ours")
    assert made.key_id in signers(bundle)


def test_a_repository_of_links_carries_the_signature(
    bundle: Bundle, keys: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient")
    sign(bundle, keys / "ours")
    render(bundle, tmp_path / "repository")
    admit(open_bundle(tmp_path / "repository"), keys / "ours.pub")


def test_private_keys_are_private_and_may_be_locked(bundle: Bundle, tmp_path: Path) -> None:
    key = tmp_path / "deep" / "key"
    public, _ = generate_keys(key, b"secret")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in public.read_bytes()
    with pytest.raises(InvalidInputError, match="exists"):
        generate_keys(key)
    sign(bundle, key, b"secret")
    for password, word in ((None, "is encrypted"), (b"wrong", "cannot be opened")):
        with pytest.raises(InvalidInputError, match=word):
            sign(bundle, key, password)


def test_what_is_no_key_is_refused(bundle: Bundle, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_bytes(b"\xff" * 40)
    for path in (tmp_path / "rubbish", tmp_path / "nowhere", keys / "ours"):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            admit(bundle, path)
    for path in (tmp_path / "rubbish", tmp_path / "nowhere", keys / "ours.pub"):
        with pytest.raises(InvalidInputError):
            sign(bundle, path)
    with pytest.raises(InvalidInputError, match="no trusted key"):
        admit(bundle, [])
    with pytest.raises(InvalidInputError, match="not encrypted"):
        sign(bundle, keys / "ours", b"password")


def test_a_bundle_that_failed_its_gate_runs_only_on_request(bundle: Bundle) -> None:
    edit(bundle, validation={"releasable": False, "unreleasable_because": ["labels flip"]})
    with pytest.raises(UnreleasableBundleError, match="labels flip"):
        merkit.load(bundle.root)
    merkit.load(bundle.root, allow_unreleasable=True).close()


def test_every_signature_fault_is_a_bundle_fault() -> None:
    kinds = (SignatureAlteredError, SignatureMalformedError, SignerUnknownError)
    assert all(issubclass(kind, merkit.errors.BundleError) for kind in kinds)
    assert issubclass(UnreleasableBundleError, MerkitError)
