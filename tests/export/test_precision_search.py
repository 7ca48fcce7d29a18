"""The fastest precision within the budget: tried, refused, taken, and taken up again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import merkit
from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import Bundle, open_bundle
from merkit.errors import InvalidInputError, MerkitError
from merkit.pipeline import GROUPS, standard_contract
from merkit.serving.batching import permitted
from merkit.serving.deployment import Deployment
from merkit_export import build as building
from merkit_export.cli import main
from merkit_export.graphs import step_digest
from merkit_export.precision import admit, material, table
from merkit_export.precision.choose import Plan, _hold, choose, entries
from merkit_export.precision.judge import Judge, Verdict
from merkit_export.precision.kinds import PRECISIONS, TARGETS, candidates, searched_steps, target
from merkit_export.precision.material import corpus_material, made_up_material, same_corpus
from merkit_export.precision.search import Budget, Journal, Outcome, Search, Trial
from merkit_export.precision.variants import Calibration, Maker, variant
from merkit_training.corpus import Clip
from merkit_training.labels import MER6

ENCODERS = (
    "face_encoder",
    "face_encoder_large",
    "audio_encoder",
    "text_encoder",
    "joint_encoder",
)


def silent(_: str) -> None:
    """Takes progress and says nothing."""


def plan(**changes: Any) -> Plan:
    given = {"target": "cpu", "allowed": ("int8-qdq",), "threads": 1}
    return Plan(**{**given, **changes})


@pytest.fixture(scope="module")
def searched(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """One search, and what it keeps."""
    work = tmp_path_factory.mktemp("search") / "work"
    return choose(exported, plan(budget=Budget(cosine=0.9)), work, silent), work


def test_every_encoder_is_tried_and_nothing_else(searched: tuple[Any, Path]) -> None:
    found = searched[0].outcome
    assert [trial.step for trial in found.trials] == list(ENCODERS)
    assert found.trials[3].refused == "nothing in 'text_encoder' can be made int8-qdq"  # too small
    tried = [trial for trial in found.trials if not trial.refused]
    assert {trial.step for trial in tried} >= set(ENCODERS[:3])
    for trial in tried:
        assert trial.bytes and trial.ms and trial.reference_ms
        assert trial.cosine > 0.9
        assert trial.neighbour <= admit.TOLERANCE
    assert not found.trained


def test_what_is_chosen_answers_like_the_reference(
    exported: Bundle, searched: tuple[Any, Path]
) -> None:
    files = {t.step: next(searched[1].glob(f"{t.step}/int8-qdq-*/model.onnx"))
             for t in searched[0].outcome.trials if not t.refused}  # fmt: skip
    backends = [EmbeddedBackend(variant(exported, f), ["cpu"], 1) for f in ({}, files)]
    clip = made_up_material(exported.contract, 5).read(0)
    before, after = (backend.infer(clip)["scores"] for backend in backends)
    for backend in backends:
        backend.close()
    assert 0 < np.abs(before - after).max() < 0.05
    for path in files.values():
        model = onnx.load(path)
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert facts["contract_id"] == exported.contract.contract_id
        assert not model.graph.value_info


def test_a_search_that_was_stopped_goes_on(
    exported: Bundle, searched: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, work = searched
    journal = work / "journal.jsonl"
    whole = journal.read_text("utf-8")
    journal.write_text(whole + '{"key": "half a li', "utf-8")
    monkeypatch.setattr(Maker, "make", lambda *_: pytest.fail("it was made before"))
    again = choose(exported, plan(budget=Budget(cosine=0.9)), work, silent)
    journal.write_text(whole, "utf-8")
    assert again.outcome.trials == first.outcome.trials
    assert again.files == first.files


def test_a_budget_that_admits_nothing_changes_nothing(
    exported: Bundle, searched: tuple[Any, Path]
) -> None:
    found = choose(exported, plan(budget=Budget(cosine=1.0)), searched[1], silent)
    assert not found.files
    assert all(entry["precision"] == "fp32" for entry in found.precision.values())
    told = " ".join(found.outcome.refusals.values())
    assert "cosine" in told or "no faster" in told


def test_the_manifest_says_which_and_why(exported: Bundle, searched: tuple[Any, Path]) -> None:
    found = searched[0]
    assert set(found.precision) == {s.name for s in exported.contract.steps if s.kind == "onnx"}
    assert found.precision["fusion"]["precision"] == "fp32"
    assert all(entry["why"] for entry in found.precision.values())
    plain = json.loads(json.dumps(found.outcome.to_json()))
    assert plain["budget"]["cosine"] == 0.9
    page = "\n".join(table.lines(found.outcome))
    assert page.count("| int8-qdq |") == len(ENCODERS)
    assert "refused: nothing in 'text_encoder'" in page
    assert "labels mean nothing" in page


def test_dynamic_scales_are_refused_where_clips_share_a_batch(
    exported: Bundle, tmp_path: Path
) -> None:
    material = made_up_material(exported.contract, 1)
    judge = Judge(exported, material, 1, "cpu")
    step = exported.contract.step("face_encoder")
    maker = Maker(exported, target("edge"), Calibration(), lambda _: [], tmp_path, 1)
    path = maker.make(step, PRECISIONS["int8-dynamic"])
    session = judge.session(step, path)
    admission = admit.probe(session, step, path, *judge.corners(step))
    search = Search(judge, maker, Budget(), single=False, say=silent)
    trial = search._measure(
        Trial(step.name, "int8-dynamic"), step, PRECISIONS["int8-dynamic"], session, session
    )
    judge.close()
    assert admission.finite
    assert not admission.batches
    assert "DynamicQuantizeMatMul" in trial.refused


def test_a_step_that_must_not_batch_is_served_one_by_one(exported: Bundle) -> None:
    chosen = {name: "fp32" for name in ENCODERS} | {"text_encoder": "int8-dynamic"}
    outcome = Outcome(chosen, (), Verdict(None, 1, 0), Verdict(None, 1, 0), 1, False, Budget(), {})
    manifest = {"precision": entries(exported.contract, outcome)}
    choice = Deployment().of("text_encoder")
    assert choice.max_batch_size
    for name, most in (("text_encoder", 0), ("audio_encoder", choice.max_batch_size)):
        step = exported.contract.step(name)
        assert permitted(manifest, step, choice).max_batch_size == most
    assert permitted({}, exported.contract.step("text_encoder"), choice) == choice


class Greedy(Search):
    """A search whose verdicts are made up: each lossy step costs WAF."""

    def __init__(self, costs: Mapping[str, float], budget: Budget, trained: bool = True) -> None:
        self.costs, self.budget = costs, budget
        truth = np.zeros(1, np.int64) if trained else None
        material = SimpleNamespace(truth=truth, names=("clip",) * 600)
        self.judge = SimpleNamespace(material=material)  # type: ignore[assignment]
        self.maker = SimpleNamespace(target=TARGETS["cuda"])  # type: ignore[assignment]

    rise = 0.0  # of the calibration error, for each lossy step
    agreement = 1.0

    def _verdict(self, choice: Mapping[str, str]) -> Verdict:
        lossy = [step for step, p in choice.items() if p != "fp32"]
        lost = sum(self.costs[step] for step in lossy)
        return Verdict(0.8 - lost / 100, self.agreement, 0.0, 0.1 + self.rise * len(lossy))


def trial(step: str, precision: str = "int8-qdq", ms: float | None = 1.0, **more: Any) -> Trial:
    more = {"cosine": 1.0, **more}
    return Trial(step, precision, 1, ms, None if ms is None else 10.0, 0.8, 1.0, **more)


def test_losses_that_are_harmless_alone_add_up() -> None:
    search = Greedy({"a": 0.3, "b": 0.3, "c": 0.1}, Budget(waf=0.5))
    base = dict.fromkeys("abc", "fp32")
    trials = [trial("a", ms=4.0), trial("b", ms=2.0), trial("c", ms=6.0)]
    chosen, refusals = search._choose(base, trials)
    assert chosen == {"a": "fp32", "b": "int8-qdq", "c": "int8-qdq"}  # b saves most, then a, c
    assert refusals == {"a int8-qdq": "0.60 points of WAF lost with those chosen before it"}


def test_labels_must_agree_by_more_than_these_clips_could_flatter() -> None:
    search = Greedy({"a": 0.0}, Budget(agreement=0.99))
    for agreement, clips, taken in ((0.993, 600, False), (0.995, 600, True), (0.993, 6000, True)):
        search.agreement = agreement
        search.judge.material.names = ("clip",) * clips
        chosen, refusals = search._choose({"a": "fp32"}, [trial("a")])
        assert (chosen["a"] == "int8-qdq") == taken
        assert taken or "99.30% (- 0.34%)" in refusals["a int8-qdq"]


def test_what_is_slower_or_refused_is_not_taken() -> None:
    search = Greedy({"a": 0, "b": 0}, Budget())
    trials = [trial("a", ms=11.0), trial("b", ms=1.0, refused="makes NaN or infinity")]
    chosen, refusals = search._choose({"a": "fp32", "b": "fp32"}, trials)
    assert set(chosen.values()) == {"fp32"}
    assert refusals == {"a int8-qdq": "no faster than the reference"}


def test_nothing_is_taken_that_the_gate_would_refuse() -> None:
    search = Greedy({"a": 0, "b": 0, "c": 0}, Budget(ece=0.015))
    search.rise = 0.01
    trials = [trial("a", cosine=0.94), trial("b", ms=2.0, cosine=0.96), trial("c", ms=3.0)]
    trials.append(trial("a", "int4-weight", ms=4.0, cosine=float("nan")))
    chosen, refusals = search._choose(dict.fromkeys("abc", "fp32"), trials)
    assert chosen == {"a": "fp32", "b": "int8-qdq", "c": "fp32"}
    assert "below 0.95" in refusals["a int8-qdq"]
    assert "below 0.9" in refusals["a int4-weight"]
    assert "calibration error rises by 0.0200" in refusals["c int8-qdq"]


def test_the_whole_is_held_to_the_gates_calibration() -> None:
    good, bad = Verdict(0.8, 1.0, 0.0, 0.1), Verdict(0.8, 1.0, 0.0, 0.13)
    outcome = Outcome({}, (), good, good, 1, True, Budget(), {})
    _hold(outcome)
    with pytest.raises(MerkitError, match=r"calibration error rises by 0\.0300"):
        _hold(replace(outcome, final=bad))


def test_what_onnxruntime_cannot_run_is_refused_and_tried_again_later(tmp_path: Path) -> None:
    class FailError(Exception):
        """As onnxruntime's: of Python's Exception alone."""

    FailError.__module__ = "onnxruntime.capi.onnxruntime_pybind11_state"
    search = Greedy({}, Budget())
    search._journal = Journal(tmp_path / "journal.jsonl")
    search._key = lambda *_: "key"  # type: ignore[method-assign,assignment]
    search.judge.timed = True
    for error in (FailError("no kernel\nmore"), KeyError("a fault of ours")):
        search.maker = SimpleNamespace(  # type: ignore[assignment]
            path=lambda *_: tmp_path / "model.onnx",
            make=lambda *_, error=error: (_ for _ in ()).throw(error),
        )
        step = SimpleNamespace(name="face_encoder")
        if isinstance(error, KeyError):
            with pytest.raises(KeyError):
                search._try(step, PRECISIONS["fp16"], None)  # type: ignore[arg-type]
        else:
            found = search._try(step, PRECISIONS["fp16"], None)  # type: ignore[arg-type]
            assert found.refused == "ONNX Runtime cannot run it (no kernel)"
            assert search._journal.find("key") is None


def test_untimed_precisions_follow_the_targets_order() -> None:
    search = Greedy({"a": 0.0}, Budget())
    trials = [trial("a", "int4-weight", ms=None), trial("a", "fp16", ms=None)]
    assert search._choose({"a": "fp32"}, trials)[0] == {"a": "fp16"}


def test_each_target_has_its_own_candidates(exported: Bundle) -> None:
    steps = {step.name: step for step in searched_steps(exported.contract)}
    assert list(steps) == list(ENCODERS)
    text = {p.name for p in candidates(target("cpu"), steps["text_encoder"])}
    face = {p.name for p in candidates(target("cpu"), steps["face_encoder"])}
    assert text - face == {"int4-weight"}
    for name in ("cpu", "cuda", "tensorrt"):
        assert all(p.batches for p in candidates(target(name), steps["text_encoder"]))
    assert "bf16" not in TARGETS["cpu"].precisions


def test_a_journal_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    Journal(path).add("k", trial("a", neighbour=0.1))
    with path.open("a") as file:
        file.write("{")
    assert Journal(path).find("k") == trial("a", neighbour=0.1)
    assert Journal(path).find("other") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"allowed": ("int8-dynamic",)}, "no precision of the target 'cpu'"),
        ({"target": "toaster"}, "target 'toaster' is unknown"),
    ],
)
def test_impossible_plans_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        plan(**changes)


def test_a_trained_run_needs_its_own_corpus(exported: Bundle, tmp_path: Path) -> None:
    facts = {**exported.manifest["provenance"], "data": {"card_sha256": "0" * 64}}
    trained = replace(exported, manifest={**exported.manifest, "provenance": facts})
    with pytest.raises(InvalidInputError, match="no corpus is given"):
        choose(trained, plan(), tmp_path / "work", silent)
    with pytest.raises(InvalidInputError, match=r"holds no card\.json"):
        choose(trained, plan(corpus=tmp_path), tmp_path / "work", silent)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="was not trained on"):
        same_corpus(tmp_path, "0" * 64)
    with pytest.raises(InvalidInputError, match="no clips of the split 'val'"):
        corpus_material(tmp_path, "val", 0, exported.contract, tmp_path / "cache")


def test_a_wrong_corpus_is_refused_before_the_export(
    random_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "export_steps", lambda *_: pytest.fail("it was exported"))
    with pytest.raises(InvalidInputError, match=r"holds no card\.json"):
        building.build(random_run, tmp_path / "models", plan=plan(corpus=tmp_path), say=silent)
    run = shutil.copytree(random_run, tmp_path / "trained")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "data": "0" * 64}))
    with pytest.raises(InvalidInputError, match="no corpus is given"):
        building.build(run, tmp_path / "models", plan=plan(), say=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


def test_fewer_clips_of_a_stopped_search_are_not_taken_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = standard_contract(MER6, dict.fromkeys(GROUPS, 1))
    corpus = tmp_path / "corpus"
    known = [Clip(f"c{i}", None, i % 2, f"word {i}", "en", {}) for i in range(5)]
    monkeypatch.setattr(material, "clip_splits", lambda _: ("train", "val"))
    monkeypatch.setattr(material, "classes_of", lambda _: contract.labels)
    monkeypatch.setattr(material, "read_clips", lambda *_: known)
    made = made_up_material(contract, 3).read(0)
    monkeypatch.setattr(material, "look", lambda *_: SimpleNamespace(tensors=made))
    corpus.mkdir()
    for card in ("{}", '{"seed": 1}'):  # another corpus decodes its own
        (corpus / "card.json").write_text(card)
        before = len(list(tmp_path.rglob("*.npz")))
        for limit in (2, 3, 0):
            found = corpus_material(corpus, "val", limit, contract, tmp_path / "cache")
            words = [str(clip["text"][0, 0]) for clip in found]
            assert words == [f"word {name[1:]}" for name in found.names]
            assert found.truth is not None
            assert found.truth.tolist() == [int(name[1:]) % 2 for name in found.names]
        assert len(list(tmp_path.rglob("*.npz"))) == before + len(known)


def test_the_reference_is_never_a_candidate_file(exported: Bundle, tmp_path: Path) -> None:
    maker = Maker(exported, target("cpu"), Calibration(), lambda _: [], tmp_path, 1)
    assert maker.path("fusion", "fp32") == exported.model_path("fusion")
    other = replace(maker, calibration=Calibration("minmax"))
    assert maker.path("fusion", "int8-qdq") != other.path("fusion", "int8-qdq")


def test_a_build_for_a_target_takes_and_proves_them(
    exported: Bundle, random_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(_: Any, folder: Path, __: Any) -> dict[str, str]:
        for name in exported.manifest["content"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(exported.root / name, folder / name)
        return dict(exported.manifest["step_digests"])

    monkeypatch.setattr(building, "export_steps", copy)
    monkeypatch.setattr(Judge, "race", lambda *_: (2.0, 1.0))  # a busy machine decides nothing
    chosen = plan(budget=Budget(cosine=0.9), table=tmp_path / "pages" / "trade.md")
    said: list[str] = []
    made = building.build(
        random_run, tmp_path / "models", name="small", plan=chosen, say=said.append
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models", "pages"]
    found = open_bundle(made.root)
    assert found.manifest["target"] == "cpu"
    assert found.manifest["precision"]["face_encoder"]["precision"] == "int8-qdq"
    assert found.manifest["precision"]["text_encoder"]["precision"] == "fp32"
    assert found.manifest["validation"]["precision"]["chosen"]["face_encoder"] == "int8-qdq"
    digests = found.manifest["step_digests"]
    assert digests["face_encoder"] != exported.manifest["step_digests"]["face_encoder"]
    assert digests["text_encoder"] == exported.manifest["step_digests"]["text_encoder"]
    model = onnx.load(found.model_path("face_encoder"))
    assert step_digest(model) == digests["face_encoder"]
    assert "**taken**" in (tmp_path / "pages" / "trade.md").read_text()
    assert any("face_encoder" in line and "taken" in line for line in said)
    with merkit.load(made.root, threads=1) as client:
        assert client.predict(text="Well!").label in exported.contract.labels


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "neither RUN nor --untrained"),
        (["run", "--untrained", "r.toml"], "both RUN and --untrained"),
        (["run", "--target", "cpu", "--budget-agreement", "2"], "--budget-agreement is 2"),
        (["run", "--target", "cpu", "--calibration-clips", "0"], "--calibration-clips is 0"),
        (["run", "--target", "cpu", "--precisions", "fp16"], "'fp16' is no precision"),
    ],
)
def test_wrong_command_lines_are_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", *options, "--out", "models"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
