"""Contracts: models that answer together must agree on labels and preprocessing.

Were an encoder of one bundle copied into another's repository, every answer would still look like
one. Each config that merkit renders carries the contract's id, and each ONNX file does, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.graphs import graph_files, onnx_installed, read_graph
from merkit.lint.options import Options
from merkit.lint.repository import Repository

KEY = "contract_id"
SOURCE = "merkit: a client refuses an answer of another contract"

MIXED = rule(
    "contract-mixed",
    "warning",
    "an ensemble over models of another contract than its own: clients refuse its answers",
    SOURCE,
)
FOREIGN_GRAPH = rule(
    "contract-graph",
    "warning",
    "an ONNX file of another contract than the config beside it",
    SOURCE,
)


def check(repository: Repository, options: Options, _skip: Skip) -> Iterator[Finding]:
    """The contract ids inside each ensemble and each model."""
    for ensemble in repository.ensembles():
        agreed = ensemble.parameter(KEY)
        for step in ensemble.config.ensemble_scheduling.step if agreed else ():
            model = repository.models.get(step.model_name)
            found = model.parameter(KEY) if model is not None else ""
            if found and found != agreed:
                place = f"step {step.model_name}"
                text = f"contract {found}, and the ensemble's is {agreed}"
                yield MIXED.at(ensemble.name, place, text, "render one bundle's models together")
    for model in repository.runners() if options.graphs else ():
        agreed = model.parameter(KEY)
        if agreed and onnx_installed():
            for path in graph_files(model):
                graph = read_graph(path)
                found = graph.metadata.get(KEY, agreed) if graph is not None else agreed
                if found != agreed:
                    place = f"{path.parent.name}/{path.name}"
                    text = f"contract {found}, and the config's is {agreed}"
                    yield FOREIGN_GRAPH.at(model.name, place, text, "render the config again")
