"""What a bundle inherits from its training run: modules, contract, voters, provenance.

A bundle must state where it comes from, but not on whose machine: recipe, seeds, data, versions
and hashes of the checkpoints enter, paths and hosts do not. Reads run folders as
`merkit_training.runs` and the fusion stage write them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from merkit.bundle import sha256_file
from merkit.contract import Contract, Preprocessing, Voter
from merkit.errors import BundleCorruptError
from merkit.pipeline import standard_contract
from merkit_training.encoders.adopted import GRAPH
from merkit_training.runs import read_json
from merkit_training.settings import from_table
from merkit_training.steps import load_step
from merkit_training.voting import Voting

TOKENIZER = Path("tokenizer") / "tokenizer.json"
PACKAGES = ("merkit", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers")
CARD_FACTS = ("scores", "parameters", "seed", "feature")
"""What of a stage's card the manifest repeats."""


@dataclass(frozen=True)
class Origin:
    """A finished training run, ready to export.

    Attributes:
        run: its folder.
        contract: what its bundle implements.
        modules: the torch module of every ONNX step.
        voters: in rank order, as the manifest states them: name, groups, waf, temperature.
    """

    run: Path
    contract: Contract
    modules: dict[str, nn.Module]
    voters: list[dict[str, Any]]

    @property
    def tokenizer(self) -> Path:
        """The tokeniser's file."""
        return self.run / TOKENIZER


def read_origin(run: Path) -> Origin:
    """Opens a run.

    Raises:
        BundleNotFoundError: a stage has not been run.
        BundleCorruptError: a file of it is damaged.
    """
    table = read_json(run / "recipe.json").get("preprocessing", {})
    preprocessing = from_table(Preprocessing, table, "recipe.json [preprocessing]")
    path = run / "fusion" / "config.json"
    facts = read_json(path)
    try:
        voters = [Voter(v["name"], tuple(v["groups"])) for v in facts["voters"]]
        contract = standard_contract(facts["labels"], facts["widths"], preprocessing, voters)
    except (KeyError, TypeError) as error:
        raise BundleCorruptError(
            f"{path} is malformed ({type(error).__name__}: {error})",
            "labels, widths and voters",
            "run the fusion stage again",
        ) from None
    names = [step.name for step in contract.steps if step.kind == "onnx"]
    modules = {name: load_step(run, name) for name in names if name != "voting"}
    modules["voting"] = Voting(bytes.fromhex(contract.contract_id)).eval()
    read_json(run / TOKENIZER)
    return Origin(run, contract, modules, list(facts["voters"]))


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
    """sha256 of each step's weights: trained ones, or the file that was adopted."""
    files = sorted((*run.glob("*/model.safetensors"), *run.glob(f"*/{GRAPH}")))
    return {path.parent.name: sha256_file(path) for path in files}


def _version(package: str) -> str | None:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None
