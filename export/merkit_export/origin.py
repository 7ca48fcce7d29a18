"""What a bundle inherits from its training run: modules, contract, voters, provenance.

A bundle must state where it comes from, but not on whose machine: recipe, seeds, data, versions
and hashes of the checkpoints enter, paths and hosts do not. Reads run folders as
`merkit_training.runs` and the fusion stage write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from merkit.bundle import sha256_file
from merkit.contract import Contract, Preprocessing, Voter
from merkit.errors import BundleCorruptError
from merkit.pipeline import standard_contract
from merkit.steps import Step
from merkit_training.fusion.groups import refuse_foreign
from merkit_training.runs import read_json
from merkit_training.settings import from_table
from merkit_training.speech.hearing.parts import chain_of, python_steps
from merkit_training.steps import load_step, weight_files
from merkit_training.voting import Voting

TOKENIZER = Path("tokenizer") / "tokenizer.json"
PACKAGES = ("merkit", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers")
KEPT_BYTES = 4_000_000_000
"""Of modules in float32, or of a bundle's content, that is held at the same time."""
FLOAT_GROWTH = 2
"""Weights are saved in half precision and loaded as float32."""
CARD_FACTS = ("scores", "parameters", "seed", "feature", "adopted")
"""What of a stage's card the manifest repeats."""


@dataclass(frozen=True)
class Origin:
    """A finished training run, ready to export.

    Attributes:
        run: its folder.
        contract: what its bundle implements.
        modules: the torch module of every ONNX step, loaded when asked for.
        voters: in rank order, as the manifest states them: name, groups, waf, temperature.
    """

    run: Path
    contract: Contract
    modules: Mapping[str, nn.Module]
    voters: list[dict[str, Any]]

    def python_steps(self) -> dict[str, Step]:
        """The steps between decoding and the graphs, over the run's own files."""
        return python_steps(self.run, self.contract)


def read_origin(run: Path) -> Origin:
    """Opens a run.

    Raises:
        BundleNotFoundError: a stage has not been run.
        BundleCorruptError: a file of it is damaged.
        InvalidInputError: it was fused from features that no encoder of the pipeline makes.
    """
    table = read_json(run / "recipe.json").get("preprocessing", {})
    preprocessing = from_table(Preprocessing, table, "recipe.json [preprocessing]")
    path = run / "fusion" / "config.json"
    facts = read_json(path)
    try:
        refuse_foreign(facts["widths"], str(run))
        voters = [Voter(v["name"], tuple(v["groups"])) for v in facts["voters"]]
        contract = standard_contract(
            facts["labels"], facts["widths"], preprocessing, voters, chain_of(run)
        )
    except (KeyError, TypeError) as error:
        raise BundleCorruptError(
            f"{path} is malformed ({type(error).__name__}: {error})",
            "labels, widths and voters",
            "run the fusion stage again",
        ) from None
    read_json(run / TOKENIZER)
    modules = Modules(run, contract)
    if modules.fit:
        for name in modules:  # a damaged stage shows now, and not after minutes
            modules[name]
    return Origin(run, contract, modules, list(facts["voters"]))


class Modules(Mapping[str, nn.Module]):
    """A run's modules by step, each loaded when asked for.

    The paper's encoders take 120 GB together in float32. So all are kept only where they fit in
    `KEPT_BYTES`; else none: who asks holds the one, and lets it go before asking for the next.

    Attributes:
        fit: whether all are kept.
    """

    def __init__(self, run: Path, contract: Contract) -> None:
        self._run, self._voting = run, Voting(bytes.fromhex(contract.contract_id)).eval()
        self._names = tuple(step.name for step in contract.steps if step.kind == "onnx")
        stored = sum(path.stat().st_size for path in weight_files(run))
        self.fit = stored * FLOAT_GROWTH <= KEPT_BYTES
        self._kept: dict[str, nn.Module] = {}

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._names:
            raise KeyError(name)
        if name == "voting":
            return self._voting
        if not self.fit:
            return load_step(self._run, name)
        if name not in self._kept:
            self._kept[name] = load_step(self._run, name)
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def provenance(origin: Origin) -> dict[str, Any]:
    """Recipe, seeds, data, versions, checkpoint hashes and the stages' own scores."""
    run = origin.run
    record = read_json(run / "run.json")
    paths = sorted(path for path in run.glob("*/card.json") if path.parent.name != "corpus")
    cards = {path.parent.name: read_json(path) for path in paths}
    kind = read_json(run / "fusion" / "config.json").get("data", "")
    return {
        "recipe": read_json(run / "recipe.json"),
        "seed": record.get("seed"),
        "data": {"card_sha256": record.get("data"), **({"kind": kind} if kind else {})},
        "training": {"python": record.get("python"), "packages": record.get("packages")},
        "export": {"packages": {name: _version(name) for name in PACKAGES}},
        "checkpoints": checkpoint_hashes(run),
        "stages": {
            name: {key: card[key] for key in CARD_FACTS if key in card}
            for name, card in cards.items()
        },
    }


def checkpoint_hashes(run: Path) -> dict[str, str]:
    """sha256 of each stage's weights, see `weight_files`."""
    return {path.parent.name: sha256_file(path) for path in weight_files(run)}


def _version(package: str) -> str | None:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None
