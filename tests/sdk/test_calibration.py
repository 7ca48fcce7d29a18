"""`merkit calibrate`: right numbers, an honest report, a bundle that is new, whole and the same."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import merkit
from merkit.bundle import Bundle, open_bundle
from merkit.calibration import Calibration, calibrate
from merkit.calibration.fit import cross_fitted, fit, folds, measures
from merkit.calibration.graph import read_constant, replace_constant
from merkit.cli import main
from merkit.contract import canonical
from merkit.errors import BundleCorruptError, BundleError, InvalidInputError, MerkitError
from merkit.voting import ranked_mode

VOTERS, CLASSES = 3, 4
NEUTRAL = Calibration((1.0,) * VOTERS, (0.0,) * CLASSES)


def sample(
    n: int, temperatures: tuple[float, ...], bias: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, votes and labels where each branch is right once its own numbers are applied."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, CLASSES)) * 2
    chances = np.exp(truth + bias)
    chances /= chances.sum(axis=1, keepdims=True)
    labels = (chances.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    logits = truth[:, None] * np.array(temperatures)[:, None]
    return logits, np.ones((n, len(temperatures)), bool), labels


def test_the_numbers_that_made_the_labels_are_found() -> None:
    temperatures, bias = (0.5, 1.0, 3.0), np.array([1.0, 0.0, -0.5, -0.5])
    logits, voted, labels = sample(20_000, temperatures, bias)
    found = fit(logits, voted, labels, NEUTRAL)
    assert found.temperatures == pytest.approx(temperatures, rel=0.05)
    assert found.log_prior == pytest.approx(bias, abs=0.08)


def test_without_a_shift_only_temperatures_move_and_no_label_does() -> None:
    logits, voted, labels = sample(2_000, (0.5, 1.0, 3.0), np.array([2.0, 0, 0, 0]))
    start = Calibration((1.0,) * VOTERS, (0.3, 0.0, 0.0, -0.3))
    found = fit(logits, voted, labels, start, shift=False)
    assert found.log_prior == start.log_prior and found.temperatures != start.temperatures
    plain = Calibration(found.temperatures, NEUTRAL.log_prior)
    np.testing.assert_array_equal(
        plain.apply(logits, voted).argmax(axis=2), NEUTRAL.apply(logits, voted).argmax(axis=2)
    )


def test_at_the_optimum_the_mean_probability_is_the_prior_asked_for() -> None:
    """Counted as often as the prior says, clips and predictions agree in every class."""
    logits, voted, labels = sample(5_000, (1.0,) * VOTERS, np.zeros(CLASSES))
    prior = np.array([0.7, 0.1, 0.1, 0.1])
    weights = (prior / np.bincount(labels))[labels]
    found = fit(logits, voted, labels, NEUTRAL, weights)
    mean = (found.apply(logits, voted) * weights[:, None, None]).sum(axis=(0, 1)) / VOTERS
    np.testing.assert_allclose(mean, prior, atol=2e-3)
    assert np.argmax(found.log_prior) == 0


def test_undoing_a_calibration_gives_the_scores_back() -> None:
    logits, voted, _ = sample(50, (1.0,) * VOTERS, np.zeros(CLASSES))
    given = Calibration((0.5, 1.0, 2.0), (0.3, 0.1, 0.0, -0.4))
    scores = given.apply(logits, voted)
    np.testing.assert_allclose(given.apply(given.undo(scores), voted), scores, atol=1e-12)


def test_perfect_useless_and_silent_branches_stay_finite() -> None:
    labels = np.arange(40) % CLASSES
    logits = np.stack([50 * np.eye(CLASSES)[labels], np.zeros((40, CLASSES))], axis=1)
    logits = np.concatenate([logits, 1000 * logits[:, :1]], axis=1)
    voted = np.array([[True, True, False]] * 40)
    found = fit(logits, voted, labels, NEUTRAL)
    assert np.isfinite([*found.temperatures, *found.log_prior]).all()
    assert found.temperatures[2] == pytest.approx(1.0), "nothing is known of a silent branch"


def test_cross_fitting_lets_no_clip_judge_itself() -> None:
    """With labels of pure noise a fit on the same clips looks better than it is."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, VOTERS, CLASSES)) * 3, rng.integers(0, CLASSES, 40)
    voted = np.ones((40, VOTERS), bool)
    fitted = fit(logits, voted, labels, NEUTRAL).apply(logits, voted)
    honest = cross_fitted(logits, voted, labels, NEUTRAL)
    assert measures(honest, labels)["brier"] > measures(fitted, labels)["brier"]


def test_folds_spread_each_class() -> None:
    labels = np.array([0] * 17 + [1] * 8 + [2] * 5)
    fold = folds(labels, 5, seed=0)
    for own in range(3):
        counts = np.bincount(fold[labels == own], minlength=5)
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(fold, folds(labels, 5, seed=0))


def test_measures_are_those_of_training() -> None:
    metrics = pytest.importorskip("merkit_training.metrics")
    logits, voted, labels = sample(300, (1.0,) * VOTERS, np.zeros(CLASSES))
    scores = NEUTRAL.apply(logits, voted)
    winner, means = ranked_mode(scores)
    found = measures(scores, labels)
    assert found["waf"] == pytest.approx(metrics.waf(labels, winner, CLASSES))
    assert found["ece"] == pytest.approx(metrics.ece(labels, means), abs=1e-6)
    assert found["brier"] == pytest.approx(metrics.brier(labels, means), abs=1e-6)
    assert found["accuracy"] == pytest.approx(metrics.accuracy(labels, winner))
    twice = measures(
        np.repeat(scores, 1 + (labels == 0), axis=0), np.repeat(labels, 1 + (labels == 0))
    )
    assert measures(scores, labels, 1.0 + (labels == 0)) == pytest.approx(twice)


@pytest.mark.parametrize("packed", [True, False], ids=["float_data", "raw_data"])
def test_a_constant_is_read_and_replaced_as_onnx_would(packed: bool) -> None:
    values = np.array([1.0, 2.0, 3.0], np.float32)
    tensor = (
        onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [3], values.tolist())
        if packed
        else numpy_helper.from_array(values, "t")
    )
    other = numpy_helper.from_array(np.zeros(3, np.float32), "other")
    graph = onnx.helper.make_graph([], "g", [], [], [other, tensor])
    content = onnx.helper.make_model(graph).SerializeToString()
    np.testing.assert_array_equal(read_constant(content, "t"), values)
    new = onnx.load_from_string(replace_constant(content, "t", values * 2))
    found = {t.name: numpy_helper.to_array(t).tolist() for t in new.graph.initializer}
    assert found == {"t": [2.0, 4.0, 6.0], "other": [0.0, 0.0, 0.0]}
    with pytest.raises(InvalidInputError, match="export the bundle again"):
        read_constant(content, "missing")
    with pytest.raises(InvalidInputError, match="2 values"):
        replace_constant(content, "t", values[:2])
    for length in range(0, len(content), 7):
        with pytest.raises((BundleCorruptError, InvalidInputError)):
            read_constant(content[:length], "t")


WORDS = [
    " ".join(p) for p in itertools.product(("well", "no", "oh"), ("yes", "I", "you"), "abcdef")
]


@pytest.fixture(scope="module")
def labels_csv(tmp_path_factory: pytest.TempPathFactory, toy_bundle: Bundle) -> Path:
    """Words alone, labelled so that the toy is right on most and far too sure on none."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    names = toy_bundle.contract.labels
    with merkit.load(toy_bundle.root) as client, path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "text"])
        for i, text in enumerate(WORDS):
            said = client.predict(text=text).label
            rows.writerow(["", said if i % 4 else names[i // 4 % len(names)], text])
        rows.writerow(["gone.mp4", names[0], ""])
    return path


def test_a_bundle_is_calibrated(
    toy_bundle: Bundle, labels_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    command = ["calibrate", str(toy_bundle.root), str(labels_csv), "--out", str(out)]
    assert main([*command, "--prior", "counts", "--coverage", "0.8"]) == 0
    told = capsys.readouterr().out
    assert "gone.mp4" in told and "1 clips could not be judged" in told
    new = open_bundle(out)
    assert new.contract == toy_bundle.contract
    assert new.bundle_id != toy_bundle.bundle_id and new.bundle_id in told
    changed = {
        name
        for name, entry in new.manifest["content"].items()
        if entry != toy_bundle.manifest["content"][name]
    }
    assert changed == {"fusion/1/model.onnx"}
    note = new.manifest["calibration"]
    assert note["clips"] == len(WORDS) and note["from_bundle"] == toy_bundle.bundle_id
    assert note["after_cross_fitted"]["brier"] < note["before"]["brier"]
    assert [v["temperature"] for v in new.manifest["voters"]] == pytest.approx(
        note["temperatures"], abs=1e-6
    )
    assert new.manifest["abstention"]["coverage"] >= 0.8
    proof = new.manifest["validation"]["calibrated"]
    assert proof["clips_checked"] == 20 and proof["max_abs"] < 1e-4
    assert proof["of_clips"] == len(WORDS)
    with merkit.load(toy_bundle.root) as old, merkit.load(out) as client:
        both = [[c.predict(text=text).label for text in WORDS] for c in (old, client)]
        assert proof["labels_moved"] == sum(a != b for a, b in zip(*both, strict=True))
        for text in WORDS[:5]:
            before = np.array(
                [list(v.scores.values()) for v in old.predict(text=text).votes.values() if v]
            )
            after = np.array(
                [list(v.scores.values()) for v in client.predict(text=text).votes.values() if v]
            )
            voters = [i for i, v in enumerate(old.predict(text=text).votes.values()) if v]
            own = Calibration(
                tuple(note["temperatures"][i] for i in voters), tuple(note["log_prior"])
            )
            expected = own.apply(np.log(before)[None], np.ones((1, len(voters)), bool))[0]
            np.testing.assert_allclose(after, expected, atol=1e-4)


def test_calibrating_again_starts_from_the_first_graph(
    toy_bundle: Bundle, labels_csv: Path, tmp_path: Path
) -> None:
    """Twice the same labels: the same numbers, and the identity does not depend on the way."""
    once = calibrate(toy_bundle.root, labels_csv, tmp_path / "once", prior="counts")
    twice = calibrate(tmp_path / "once", labels_csv, tmp_path / "twice", prior="counts")
    assert twice.calibration.log_prior == pytest.approx(once.calibration.log_prior, abs=0.05)
    note = twice.bundle.manifest["calibration"]
    assert note["base_digest"] == toy_bundle.manifest["step_digests"]["fusion"]
    assert once.bundle.bundle_id == calibrate(
        toy_bundle.root, labels_csv, tmp_path / "again", prior="counts"
    ).bundle.bundle_id  # fmt: skip
    assert len(canonical(note)) < 3000


def test_what_a_gate_found_is_not_claimed_of_another_graph(
    toy_bundle: Bundle, labels_csv: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(toy_bundle.root, tmp_path / "source")
    stated = json.loads((source / "bundle.json").read_text())
    gated = {"scores": {"vote": 0.9}, "gate": {"passed": True}, "releasable": True}
    (source / "bundle.json").write_text(json.dumps({**stated, "validation": gated}))
    calibrate(source, labels_csv, tmp_path / "once")
    twice = calibrate(tmp_path / "once", labels_csv, tmp_path / "twice").bundle
    assert set(twice.manifest["validation"]) == {"before_calibration", "calibrated", "releasable"}
    del gated["releasable"]
    assert twice.manifest["validation"]["before_calibration"] == gated


def test_a_graph_that_says_something_else_than_the_fit_is_not_written(
    toy_bundle: Bundle, labels_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(model: bytes, name: str, values: np.ndarray) -> bytes:
        return replace_constant(model, name, values[::-1])

    monkeypatch.setattr("merkit.calibration.bundle.replace_constant", swapped)
    with pytest.raises(MerkitError, match=r"differs from what was fitted.*nothing was written"):
        calibrate(toy_bundle.root, labels_csv, tmp_path / "new", prior="counts")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n", "columns none"),
        ("label\nangry\n", "columns label"),
        ("text,label\n" + "a,angry\n" * 30, "classes: angry"),
        ("text,label\n" + "a,angry\nb,sad\n" * 5, "10 labelled clips"),
        ("text,label\n" + "a,furious\nb,sad\n" * 15, "'furious'"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(
    content: str, message: str, toy_bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        calibrate(toy_bundle.root, path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_other_bad_input_is_refused(
    toy_bundle: Bundle, labels_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    with pytest.raises(InvalidInputError, match="cannot be read"):
        calibrate(toy_bundle.root, tmp_path / "none.csv", new)
    with pytest.raises(BundleError):
        calibrate(tmp_path / "none", labels_csv, new)
    with pytest.raises(InvalidInputError, match="exists"):
        calibrate(toy_bundle.root, labels_csv, tmp_path)
    with pytest.raises(InvalidInputError, match="lies in the bundle"):  # which would break it
        calibrate(toy_bundle.root, labels_csv, toy_bundle.root / "new")
    with pytest.raises(InvalidInputError, match="coverage is 0"):
        calibrate(toy_bundle.root, labels_csv, new, coverage=0)
    with pytest.raises(InvalidInputError, match="a share"):
        calibrate(toy_bundle.root, labels_csv, new, prior={"angry": 1.0})
    (tmp_path / "prior.json").write_text(json.dumps([1, 2]))
    command = ["calibrate", str(toy_bundle.root), str(labels_csv), "--out", str(new)]
    for prior in ("even", str(tmp_path / "prior.json")):
        assert main([*command, "--prior", prior]) == 1
    assert "shares by class" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["prior.json"]


def test_answers_say_whether_they_reach_the_threshold(
    toy_bundle: Bundle, labels_csv: Path, tmp_path: Path
) -> None:
    render = pytest.importorskip("merkit.serving.render")
    pytest.importorskip("tritonclient.grpc")
    source = shutil.copytree(toy_bundle.root, tmp_path / "source")
    render.render(open_bundle(source), source)
    made = calibrate(source, labels_csv, tmp_path / "new", coverage=0.5)
    stated = made.bundle.manifest["abstention"]
    with merkit.load(tmp_path / "new") as client, merkit.load(source) as old:
        answers = [client.predict(text=text) for text in WORDS]
        assert old.predict(text=WORDS[0]).confident is None
    sure = [answer.confident for answer in answers]
    assert sure == [answer.scores[answer.label] >= stated["threshold"] for answer in answers]
    assert 0.3 < np.mean(sure) < 0.7
    assert answers[0].to_json()["confident"] is sure[0]
    again = calibrate(tmp_path / "new", labels_csv, tmp_path / "again", coverage=0.9)
    for bundle in (made.bundle, again.bundle):
        for config in sorted(bundle.root.glob("*/config.pbtxt")):
            shown = config.read_text("utf-8")
            render.render(bundle, bundle.root)
            expected = config.read_text("utf-8")
            assert "".join(sorted(shown)) == "".join(sorted(expected)), config.parent.name
    plain = calibrate(source, labels_csv, tmp_path / "plain")
    assert plain.bundle.confident_from == ""
