"""Two bundles on one real server: each is addressed for itself, and comes and goes alone."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from entries import decoded_entry
from versions import retrained

from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle
from merkit.canary import Shadow, Split
from merkit.cli import main
from merkit.errors import AccessDeniedError, InvalidInputError, ServerNotReadyError
from merkit.opening import connect
from merkit.serving import ServeOptions, Server
from merkit.serving.control import ModelControl, loading_order
from merkit.serving.guard import Protection
from merkit.serving.tritonserver import Installation

KEY = "an-admin-key-of-tests"


@pytest.fixture(scope="module")
def pair(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    return toy_bundle, retrained(toy_bundle, tmp_path_factory.mktemp("second") / "bundle")


@pytest.fixture(scope="module")
def both(
    pair: tuple[Bundle, Bundle], triton: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    key = tmp_path_factory.mktemp("key") / "admin.key"
    key.write_text(KEY)
    options = ServeOptions(explicit=True, protection=Protection(admin_key_file=key))
    with Server(pair, options, triton) as server:
        yield server


def loads(server: Server) -> list[str]:
    """The models that the server began to load, in order."""
    return re.findall(r'"loading: (\S+):1"', server.log.read_text())


def open_backend(server: Server, bundle: Bundle, **options: object) -> TritonBackend:
    return TritonBackend(server.grpc, deadline=60, bundle=bundle.bundle_id, **options)  # type: ignore[arg-type]


def test_each_answers_for_itself_from_encoders_in_common(
    both: Server, pair: tuple[Bundle, Bundle]
) -> None:
    scores = []
    for bundle in pair:
        served, embedded = open_backend(both, bundle), EmbeddedBackend(bundle)
        assert served.identity["bundle_id"] == bundle.bundle_id
        answer, expected = (backend.infer(decoded_entry()) for backend in (served, embedded))
        np.testing.assert_allclose(answer["scores"], expected["scores"], atol=1e-5)
        assert set(served.step_statistics()) == {step.name for step in bundle.contract.steps}
        scores.append(answer["branch_scores"])
        served.close()
        embedded.close()
    assert np.abs(scores[0] - scores[1]).max() > 1e-3, "the two bundles differ"
    started = loads(both)
    assert len([name for name in started if name.startswith("face_encoder-")]) == 1
    assert len([name for name in started if name.startswith("fusion-")]) == 2


def test_a_canary_splits_callers_between_two_bundles_of_one_server(
    both: Server, pair: tuple[Bundle, Bundle]
) -> None:
    old, new = (connect(both.grpc, deadline=60, bundle=bundle.bundle_id[:8]) for bundle in pair)
    with Split(old, new, share=0.5) as split:
        for key in map(str, range(8)):
            expected = pair[split.arm(key) == "candidate"].bundle_id
            assert split.predict(text="words", key=key).bundle["bundle_id"] == expected
        assert {count.failures for count in split.counts.values()} == {0}
    old, new = (connect(both.grpc, deadline=60, bundle=bundle.bundle_id[:8]) for bundle in pair)
    with Shadow(old, new) as shadow:
        for _ in range(4):
            assert shadow.predict(text="words").bundle["bundle_id"] == pair[0].bundle_id
        assert shadow.drain(60)
        found = shadow.comparison
    assert (found.compared, found.errors, found.dropped) == (4, {}, 0)
    assert found.score_difference > 1e-4, "the two bundles differ"


def test_who_names_no_bundle_learns_which_there_are(
    both: Server, pair: tuple[Bundle, Bundle]
) -> None:
    """Where the list of models is open to him: here it is shut."""
    for bundle in (None, "0" * 8):
        with pytest.raises(ServerNotReadyError, match="is not ready"):
            connect(both.grpc, deadline=60, bundle=bundle)
    with ModelControl(both.grpc, KEY) as control:
        found = {bundle.digits: bundle for bundle in control.bundles()}
        assert set(found) == {bundle.bundle_id[:8] for bundle in pair}
        assert all(bundle.ready == bundle.entries for bundle in found.values())
        with pytest.raises(ServerNotReadyError, match=pair[0].bundle_id[:8]):
            control.load("0" * 8)
        with pytest.raises(ServerNotReadyError, match="with plain names"):
            control.unload()
        with pytest.raises(InvalidInputError):
            control.load("short")
    for key in (None, "another-admin-key-of-tests"):
        with ModelControl(both.grpc, key) as stranger, pytest.raises(AccessDeniedError):
            stranger.bundles()


def test_one_goes_and_comes_back_while_the_other_answers(
    both: Server, pair: tuple[Bundle, Bundle]
) -> None:
    first, second = (open_backend(both, bundle) for bundle in pair)
    expected = first.infer(decoded_entry())["scores"]
    failures: list[BaseException] = []
    done = threading.Event()

    def keep_asking() -> None:
        try:
            while not done.is_set():
                np.testing.assert_array_equal(first.infer(decoded_entry())["scores"], expected)
        except BaseException as error:
            failures.append(error)

    user = threading.Thread(target=keep_asking)
    user.start()
    before = loads(both)
    with ModelControl(both.grpc, KEY) as control:
        assert control.unload(pair[1].bundle_id[:8]).ready == ()
        with pytest.raises(ServerNotReadyError):
            second.infer(decoded_entry())
        loaded = control.load(pair[1].bundle_id)
        assert loaded.ready == loaded.entries
    assert second.infer(decoded_entry())["label"].shape == (1,)
    done.set()
    user.join()
    assert not failures
    again = {name.partition("-")[0] for name in loads(both)[len(before) :]}
    assert "fusion" in again
    assert not [name for name in again if not name.startswith(("fusion", "merkit"))]
    first.close()
    second.close()


def test_the_command_line_lists_loads_and_unloads(
    both: Server,
    pair: tuple[Bundle, Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key, digits = tmp_path / "admin.key", pair[1].bundle_id[:8]
    key.write_text(KEY + "\n")

    def models(*arguments: str) -> tuple[int, str]:
        status = main(["models", *arguments, "--url", both.grpc, "--admin-key-file", str(key)])
        return status, capsys.readouterr().out

    assert models("unload", digits) == (0, f"{digits}  0 of 11 entry points ready\n")
    assert f"{digits}  0 of 11" in models("list")[1]
    assert models("load", digits) == (0, f"{digits}  11 of 11 entry points ready\n")
    assert models("load", "0" * 8)[0] == 1
    key.write_text("another-admin-key-of-tests")
    assert models("list") == (1, "")


def test_a_priority_is_a_level(both: Server, pair: tuple[Bundle, Bundle]) -> None:
    urgent = open_backend(both, pair[0], priority=1)
    assert urgent.infer(decoded_entry())["label"].shape == (1,)
    urgent.close()
    for wrong in (-1, 2**32, 1.5, "high"):
        with pytest.raises(InvalidInputError, match="a priority of"):
            open_backend(both, pair[0], priority=wrong)


def test_the_lazy_model_comes_after_those_that_bring_its_steps() -> None:
    names = ["merkit_t-0", "merkit_lazy-0", "merkit-0"]
    assert loading_order(names) == ["merkit-0", "merkit_t-0", "merkit_lazy-0"]
