"""Clients that send features, or votes, straight to single models: whatever they send is answered
with a typed refusal or an honest result, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from merkit.backends.grpc_errors import translate
from merkit.bundle import Bundle, open_bundle
from merkit.errors import InvalidInputError, MerkitError
from merkit.pipeline import GROUPS
from merkit.serving import Server
from merkit.serving.tritonserver import Installation
from merkit.voting import NOBODY, ranked_mode

Arrays = dict[str, NDArray[Any]]
VOTERS, CLASSES = 4, 6


@dataclass
class Raw:
    """A client in another language, as it were: no check stands before the server's own."""

    client: InferenceServerClient
    bundle: Bundle

    def __call__(self, model: str, tensors: Arrays, raw: bytes | None = None) -> Arrays:
        """Raises what merkit's client would make of a refusal; `raw` are the last one's bytes."""
        inputs = [InferInput(n, list(v.shape), np_to_triton_dtype(v.dtype)) for n, v in
                  tensors.items()]  # fmt: skip
        for made, value in zip(inputs, tensors.values(), strict=True):
            made.set_data_from_numpy(value)
        if raw is not None:
            inputs[-1]._raw_content = raw
        try:
            answer = self.client.infer(model, inputs, client_timeout=60)
        except InferenceServerException as error:
            raise translate(error, "it", 60) from None
        return {
            tensor.name: answer.as_numpy(tensor.name) for tensor in answer.get_response().outputs
        }

    def features(self, batch: int = 1, seed: int = 0, **others: NDArray[Any]) -> Arrays:
        """Sound ones of `batch` clips, but for the `others`."""
        rng = np.random.default_rng(seed)
        specs = self.bundle.contract.tensors
        made = {n: rng.normal(size=(batch, specs[n].shape[1])) for n in GROUPS.values()}  # type: ignore[arg-type]
        found = {name: value.astype(np.float32) for name, value in made.items()}
        return found | {"presence": np.ones((batch, 3), bool)} | others


@pytest.fixture(scope="module")
def ask(triton: Installation) -> Iterator[Raw]:
    bundle = open_bundle(REPOSITORY / "triton_repo" / "models")
    with (
        Server(bundle, installation=triton) as server,
        InferenceServerClient(server.grpc.removeprefix("grpc://")) as client,
    ):
        yield Raw(client, bundle)
        assert server.running()


def floats(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


RUBBISH = {
    "too narrow": {"audio_features": floats(1, 127)},
    "without a batch": {"audio_features": floats(128)},
    "an axis too many": {"audio_features": floats(1, 1, 128)},
    "another batch": {"audio_features": floats(2, 128)},
    "doubles": {"audio_features": np.zeros((1, 128))},
    "a mask of four": {"presence": np.ones((1, 4), bool)},
    "a mask of two": {"presence": np.ones((1, 2), bool)},
    "a mask of bytes": {"presence": np.ones((1, 3), np.uint8)},
    "a mask of floats": {"presence": floats(1, 3)},
    "a mask of words": {"presence": np.array([["yes", "no", "no"]], object)},
    "a mask of another batch": {"presence": np.ones((2, 3), bool)},
    "a stranger": {"branch_scores": floats(1, VOTERS, CLASSES)},
}


@pytest.mark.parametrize("model", ["fusion", "merkit_features"])
def test_rubbish_in_place_of_features_is_refused(ask: Raw, model: str) -> None:
    before = ask(model, ask.features())
    refused = {name: ask.features(**others) for name, others in RUBBISH.items()}
    refused |= {f"{batch} clips": ask.features(batch) for batch in (0, 17, 5_000)}
    refused["nothing of the face"] = ask.features()
    del refused["nothing of the face"]["face_features"]
    for name, tensors in refused.items():
        with pytest.raises(MerkitError) as caught:
            ask(model, tensors)
        assert type(caught.value) is InvalidInputError, (name, caught.value)
    after = ask(model, ask.features())
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


@pytest.mark.parametrize("model", ["fusion", "merkit_features"])
@pytest.mark.parametrize("raw", [b"\xff\x00\x00", b"\x02\xff\x07", b"\x01", b""])
def test_a_mask_of_other_bytes_than_0_and_1_is_refused(ask: Raw, model: str, raw: bytes) -> None:
    with pytest.raises(InvalidInputError, match="presence"):
        ask(model, ask.features(), raw)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_silence_the_branches_that_read_them(
    ask: Raw, value: float
) -> None:
    sound = ask("merkit_features", ask.features())
    for group, name in GROUPS.items():
        tensors = ask.features()
        tensors[name][0, 3] = value
        found = ask("merkit_features", tensors)
        deaf = np.array([group in voter.groups for voter in ask.bundle.contract.voters])
        left = np.where(deaf[:, None], np.float32(0), sound["branch_scores"])
        label, scores = ranked_mode(left)
        assert found["label"].ravel().tolist() == label.tolist() != [NOBODY]
        np.testing.assert_allclose(found["scores"], scores, atol=1e-6)
        assert (~np.isfinite(found["branch_scores"][0]).all(axis=1)).tolist() == deaf.tolist()
    broken = {name: np.full_like(found, value) for name, found in ask.features().items()}
    nobody = ask("merkit_features", broken | {"presence": np.ones((1, 3), bool)})
    assert nobody["label"].ravel().tolist() == [NOBODY] and not nobody["scores"].any()


def test_neighbours_in_a_batch_do_not_notice(ask: Raw) -> None:
    asked = [ask.features(seed=i) for i in range(16)]
    expected = [ask("merkit_features", tensors) for tensors in asked]
    for tensors in asked[::2]:
        tensors["audio_features"][:] = np.nan
        tensors["joint_features"][:] = np.inf
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda tensors: ask("merkit_features", tensors), asked))
    for mine, want in list(zip(found, expected, strict=True))[1::2]:
        np.testing.assert_allclose(mine["branch_scores"], want["branch_scores"], atol=1e-5)
        assert mine["label"].tolist() == want["label"].tolist()
    assert all(one["label"].ravel().tolist() == [NOBODY] for one in found[::2])


def test_nothing_present_is_nobodys_label(ask: Raw) -> None:
    found = ask("merkit_features", ask.features(presence=np.zeros((1, 3), bool)))
    assert found["label"].ravel().tolist() == [NOBODY] and not found["scores"].any()


def test_votes_of_a_clients_own(ask: Raw) -> None:
    shapes = [(1, 3, 6), (1, 5, 6), (1, 4, 5), (4, 6), (0, 4, 6), (17, 4, 6)]
    wrong = [floats(*shape) for shape in shapes] + [np.zeros((1, 4, 6), np.int64)]
    for scores in wrong:
        with pytest.raises(InvalidInputError):
            ask("voting", {"branch_scores": scores})
    scores = np.random.default_rng(0).random((8, VOTERS, CLASSES), np.float32)
    scores[1, 0, 2], scores[2], scores[3, 1:], scores[4], scores[5] = np.nan, np.inf, -np.inf, 0, -1
    found = ask("voting", {"branch_scores": scores})
    label, mean = ranked_mode(scores)
    assert found["label"].ravel().tolist() == label.tolist()
    assert label[[2, 4]].tolist() == [NOBODY] * 2 and label[5] == 0
    np.testing.assert_allclose(found["scores"], mean, atol=1e-6)
