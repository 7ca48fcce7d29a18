"""A backend with canned answers, for the tests of applications that use merkit.

An application's tests should need no bundle, no server and no codec. Hand a client this backend
and it answers what the test says:

    client = Client(CannedBackend({"happy": 0.7, "sad": 0.3}))
    assert client.predict(text="any words").label == "happy"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import Tensors, check_tensors, strings
from merkit.contract import MODALITIES, Contract, Hearing
from merkit.errors import InvalidInputError, MerkitError
from merkit.hearing import Heard, Origin
from merkit.pipeline import GROUP_MODALITIES, GROUPS, Chain, standard_contract

Answer = Mapping[str, float] | MerkitError


class CannedBackend:
    """A `Backend` that answers from a list, over and over.

    Args:
        answers: one answer, or several to be given in turn: scores by label (each branch votes
            so), or a `MerkitError` to raise. All with the same labels.
        modalities: what it claims to have found.
        hears: words that it claims to have recognised where no text is given; None: it is a
            pipeline that does not hear.

    Attributes:
        requests: the entry tensors of each call, for assertions.
    """

    def __init__(
        self,
        answers: Answer | Iterable[Answer],
        modalities: Iterable[str] = ("text",),
        hears: str | None = None,
    ) -> None:
        listed = [answers] if isinstance(answers, Mapping | MerkitError) else list(answers)
        labels = {tuple(a) for a in listed if not isinstance(a, MerkitError)}
        if len(labels) > 1 or not listed:
            raise InvalidInputError(
                f"answers with {len(labels)} sets of labels", "one or more answers, one set", ""
            )
        self.contract: Contract = standard_contract(
            labels.pop() if labels else ("calm", "tense"),
            dict.fromkeys(GROUPS, 1),
            chain=None if hears is None else Chain(Hearing(), tokens=1),
        )
        self._hears = hears
        self.identity: Mapping[str, str] = {
            "contract_id": self.contract.contract_id,
            "bundle_id": "",
            "backend": "canned",
        }
        self.requests: list[dict[str, NDArray[Any]]] = []
        self._next: Callable[[], Answer] = cycle(listed).__next__
        self._presence = np.array([[m in set(modalities) for m in MODALITIES]])
        self._lock = Lock()

    def infer(
        self, tensors: Tensors, timings: dict[str, float] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The next answer; the tensors are checked as a real backend checks them."""
        check_tensors(self.contract, tensors)
        with self._lock:
            self.requests.append(dict(tensors))
            answer = self._next()
        if isinstance(answer, MerkitError):
            raise answer
        if timings is not None:
            timings["canned"] = 0.0
        scores = np.array([[answer[label] for label in self.contract.labels]], np.float32)
        groups = [any(self._present(m) for m in GROUP_MODALITIES[g]) for g in GROUPS]
        votes = [[any(groups[list(GROUPS).index(g)] for g in v.groups) for v in self._voters]]
        branch_scores = scores[:, None, :] * np.array(votes, np.float32)[..., None]
        shares = np.array(groups, np.float32) / max(sum(groups), 1)
        identity = np.frombuffer(bytes.fromhex(self.contract.contract_id), np.uint8)
        return {
            "label": scores.argmax(axis=1) if any(groups) else np.array([-1]),
            "scores": scores,
            "contract_id": identity[None],
            "branch_scores": branch_scores,
            "branch_contributions": np.tile(shares, (1, len(self._voters), 1)),
            "presence": self._presence,
            **self._heard(tensors),
        }

    def _heard(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        if self._hears is None or "text" not in tensors:
            return {}
        given = str(tensors["text"][0, 0])
        words = given if given.strip() else self._hears
        origin: Origin = "caller" if given.strip() else "recognized" if words.strip() else "none"
        heard = Heard(origin, 1.0 if origin == "recognized" else None)
        return {"words": strings(words), "hearing": strings(heard.text())}

    def close(self) -> None:
        """Nothing to release."""

    @property
    def _voters(self) -> tuple[Any, ...]:
        return self.contract.voters

    def _present(self, modality: str) -> bool:
        return bool(self._presence[0, MODALITIES.index(modality)])
