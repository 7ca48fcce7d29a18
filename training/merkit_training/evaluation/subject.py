"""What is evaluated: a bundle, a served bundle or a training run, opened in one way.

The cache of answers must never mix two models, and a report must say which weights it is about;
so each kind states its identity here, down to the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import merkit
from merkit.bundle import MANIFEST, open_bundle, sha256_file
from merkit.client import Client
from merkit.contract import MODALITIES, Contract, canonical
from merkit.errors import BundleNotFoundError, InvalidInputError
from merkit_training.fusion.groups import modalities_of
from merkit_training.runs import read_json

SYNTHETIC = (
    "Trained on synthetic data only. It proves that the machinery works; its answers say nothing "
    "about people."
)
VALENCE = "valence"
"""float32 [batch] in the answers of a run that learnt it; no tensor of the contract."""


@dataclass(frozen=True)
class Subject:
    """An opened model.

    Attributes:
        client: executes the pipeline; to be closed.
        facts: identity for the report: kind, name, contract_id, bundle_id or weights.
        mark: 16 hexadecimal digits: contract and weights.
        notice: what must be said wherever its answers are shown; "" if nothing.
        voters: as the manifest states them: name, waf (out of fold), temperature; may be empty.
    """

    client: Client
    facts: Mapping[str, str]
    mark: str
    notice: str
    voters: Sequence[Mapping[str, Any]]

    @property
    def modalities(self) -> tuple[str, ...]:
        """What a clip may lack."""
        return modalities_of(self.contract.groups)

    @property
    def nothing(self) -> str:
        """Why a clip has no answer, in words."""
        if self.modalities == MODALITIES:
            return "no face, no audible sound and no words"
        return f"nothing of {', '.join(self.contract.groups)}"

    @property
    def contract(self) -> Contract:
        """What the model agrees on with its callers."""
        return self.client.backend.contract

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in order."""
        return self.contract.labels


def open_subject(
    path: Path | None, url: str = "", threads: int | None = None, deadline: float = 60.0
) -> Subject:
    """Opens a bundle's folder, a run's folder, or what a server serves.

    Raises:
        InvalidInputError: neither or both of path and url.
        BundleError: no model there, or a damaged one.
        BackendError: the server does not answer.
    """
    if (path is None) == (not url):
        raise InvalidInputError(
            "a model and a server" if url else "no model",
            "a bundle's or run's folder, or --url",
            "give one of them",
        )
    if path is None:
        client = merkit.connect(url, decode="client", deadline=deadline)
        return _subject(client, "server", client.backend.identity.get("bundle_id", ""))
    if (path / MANIFEST).is_file():
        bundle = open_bundle(path)
        client = merkit.load(path, threads=threads)
        voters = bundle.manifest.get("voters", [])
        return _subject(client, "bundle", bundle.bundle_id, voters=voters)
    if (path / "recipe.json").is_file():
        return _run(path, threads)
    raise BundleNotFoundError(
        f"{path} is neither a bundle nor a run" if path.is_dir() else f"there is no folder {path}",
        f"a folder with {MANIFEST}, or with recipe.json and finished stages",
        "give what merkit-export or merkit-train run wrote",
    )


def _run(run: Path, threads: int | None) -> Subject:
    import torch

    from merkit_training.evaluation.stored import StoredBackend
    from merkit_training.evaluation.trained import TrainedBackend
    from merkit_training.fusion.fuse import stated_groups
    from merkit_training.steps import weight_files

    if threads is not None:
        torch.set_num_threads(threads)
    fusion = read_json(run / "fusion" / "config.json")
    weights = {path.parent.name: sha256_file(path) for path in weight_files(run)}
    digest = hashlib.sha256(canonical(weights)).hexdigest()[:32]
    record = read_json(run / "run.json")
    own = bool(fusion.get("data"))
    notice = SYNTHETIC if record.get("data") is not None and not own else ""
    client = Client(StoredBackend(run) if stated_groups(run) else TrainedBackend(run))
    name = str(record.get("name", run.resolve().name))
    return _subject(client, "run", digest, notice, fusion.get("voters", []), name)


def _subject(
    client: Client,
    kind: str,
    weights: str,
    notice: str = "",
    voters: Sequence[Mapping[str, Any]] = (),
    name: str = "",
) -> Subject:
    identity = client.backend.identity
    facts = {
        "kind": kind,
        "name": name or identity.get("name", ""),
        "contract_id": identity["contract_id"],
        "run weights" if kind == "run" else "bundle_id": weights,
        "backend": identity.get("backend", ""),
    }
    mark = hashlib.sha256(canonical([identity["contract_id"], weights])).hexdigest()[:16]
    told = notice or identity.get("notice", "")
    return Subject(client, facts, mark, told, voters)
