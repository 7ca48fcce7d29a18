"""The loop of 2.5: train on labels, vote on the pool, adopt, share out, train again.

    round 0   four learners on the labelled clips D_l
    round r   vote on what remains of the pool; adopt where enough learners agree; split what is
              new evenly among the learners; train each from scratch on D_l and its share so far

A round is resumed where it stopped, at the learner, and what it finds depends on the seed alone.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from sklearn.model_selection import train_test_split

from merkit.contract import Voter
from merkit.errors import InvalidInputError
from merkit.voting import NOBODY, ranked_mode
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.dataset import FeatureSet
from merkit_training.fusion.train import majority
from merkit_training.metrics import waf
from merkit_training.mining.config import MiningConfig
from merkit_training.mining.exclude import exclusions, tally
from merkit_training.mining.learners import (
    Learner,
    fit_learner,
    load_learner,
    training_set,
    vote_on,
)
from merkit_training.mining.ledger import DECISIONS, Decisions, Ledger, State
from merkit_training.mining.pool import Pool, Rows
from merkit_training.mining.votes import Labels, adopt, contradicted, share_out
from merkit_training.runs import write_bytes

VOTE = "vote"
CONTROL = "control"
PREDICTIONS = "predictions.safetensors"
VALIDATION = "val"


@dataclass(frozen=True)
class Material:
    """What the loop works on."""

    labelled: FeatureSet  # D_l
    validation: FeatureSet  # chooses epochs, temperatures and ranks
    tests: Mapping[str, FeatureSet]  # by split; they choose nothing
    pool: Pool  # D_u
    classes: tuple[str, ...]
    voters: tuple[Voter, ...]  # the learners
    fusion: FusionConfig

    def with_labels(self, count: int, seed: int) -> Material:
        """The same with `count` labelled clips, drawn by class; 0: all.

        Raises:
            InvalidInputError: fewer than the classes, or not fewer than there are.
        """
        if not count:
            return self
        labels = self.labelled.labels.numpy()
        if not len(set(labels.tolist())) <= count < len(labels) - len(self.classes):
            raise InvalidInputError(
                f"{count} labels of {len(labels)} labelled clips",
                "at least one of each class, and fewer than there are",
                "correct --labels",
            )
        rows, _ = train_test_split(
            np.arange(len(labels)), train_size=count, stratify=labels, random_state=seed
        )
        return replace(self, labelled=self.labelled.select(torch.from_numpy(np.sort(rows))))


class Loop:
    """The rounds of one seed.

    Args:
        material: what it works on.
        config: how.
        seed: of every draw; the same seed gives the same bits.
        folder: where its rounds are kept, and found again.
    """

    def __init__(self, material: Material, config: MiningConfig, seed: int, folder: Path) -> None:
        self.material = material.with_labels(config.labels, seed)
        self.config, self.seed = config, seed
        self.ledger = Ledger(folder)
        codes = self.ledger.excluded()
        if codes is None:
            known, tests = [self.material.labelled, material.validation], material.tests.values()
            codes = exclusions(material.pool, known, list(tests), config.transductive)
            self.ledger.exclude(codes)
        self.codes = codes

    def run(self) -> list[dict[str, Any]]:
        """Goes on until N rounds are done or the loop has to stop; returns what each one found."""
        rounds = self.ledger.finished()[: self.config.rounds + 1]
        while (reason := self.stopped(rounds)) is None:
            facts = self._timed(len(rounds))
            self.ledger.finish(len(rounds), facts)
            rounds.append(facts)
            print(told(self.seed, facts), flush=True)
        print(f"seed {self.seed}: {reason}", flush=True)
        return rounds

    def stopped(self, rounds: Sequence[Mapping[str, Any]]) -> str | None:
        """Why no further round follows; None if one does."""
        if rounds and "stopped" in rounds[-1]:
            return str(rounds[-1]["stopped"])
        if len(rounds) > self.config.rounds:
            return f"{self.config.rounds} rounds are done"
        patience = self.config.patience
        if patience and len(rounds) - 1 - best_round(rounds) >= patience:
            return f"no gain on validation for {patience} rounds"
        return None

    def kept(self, rounds: Sequence[Mapping[str, Any]]) -> int:
        """The round whose learners are the result: the best if the loop waits for gains, else the
        last that trained any."""
        trained = [r for r in rounds if "waf" in r]
        return best_round(trained) if self.config.patience else len(trained) - 1

    def learners(self, number: int) -> list[Learner]:
        """The learners of a finished round."""
        m = self.material
        widths, classes = m.labelled.widths(), len(m.classes)
        return [
            load_learner(self._file(number, i), voter, widths, classes, m.fusion.branch)
            for i, voter in enumerate(m.voters)
        ]

    def control(self, rounds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """WAF of learners on labels alone that took as many steps as those of the kept round.

        More clips are more steps an epoch, and steps alone can raise a score; whether the
        pseudo-labels taught anything shows against these.
        """
        m, folder = self.material, self.ledger.folder / CONTROL
        nothing = np.zeros(0, np.int64)
        learners = []
        for i, count in enumerate(rounds[self.kept(rounds)]["trained_on"]):
            steps = self.config.steps or m.fusion.epochs * _steps(count, m.fusion)
            seed = zlib.crc32(f"{self.seed}/{CONTROL}/{m.voters[i].name}".encode())
            path, none = folder / f"learner-{i}.safetensors", nothing.astype(np.int8)
            learners.append(self._fitted(path, m.voters[i], nothing, none, seed, steps))
        return self._judge(folder, learners)

    def state(self, number: int) -> State:
        """What the pool's clips are called after a round."""
        return self.ledger.state(number, self.codes != 0)

    def _timed(self, number: int) -> dict[str, Any]:
        started, worked = time.monotonic(), time.process_time()
        facts = self._round(number)
        facts["seconds"] = round(time.monotonic() - started, 2)
        facts["cpu_seconds"] = round(time.process_time() - worked, 2)
        return facts

    def _round(self, number: int) -> dict[str, Any]:
        facts: dict[str, Any] = {"round": number, "pool": tally(self.codes)["asked"]}
        state = self.state(number - 1)
        if number:
            worked = time.process_time()
            decisions = self.ledger.decisions(number) or self._decide(number, state)
            new = decisions.adopted[decisions.adopted != NOBODY]
            facts |= {
                "asked": len(decisions.votes.rows),
                "adopted": len(new),
                "dropped": int(decisions.dropped.sum()),
                "classes": np.bincount(new, minlength=len(self.material.classes)).tolist(),
            }
            facts["cpu_seconds_voting"] = round(time.process_time() - worked, 2)
            if not len(new) and not decisions.dropped.any():
                return facts | {"stopped": self._why(decisions)}
            state.apply(decisions)
        facts["total"] = len(state.adopted())
        learners = [self._train(number, i, state) for i in range(len(self.material.voters))]
        facts["trained_on"] = [
            len(self.material.labelled) + len(state.adopted(i)) for i in range(len(learners))
        ]
        facts["waf"] = self._judge(self.ledger.of(number), learners)
        return facts

    def _why(self, decisions: Decisions) -> str:
        if not len(decisions.votes.rows):
            return "no clip of the pool remains"
        return (
            f"the round adopts nothing: on none of {len(decisions.votes.rows)} clips do "
            f"{self.config.agree} learners agree as the options ask"
        )

    def _decide(self, number: int, state: State) -> Decisions:
        m, config = self.material, self.config
        rows = state.remaining()
        if config.drop:
            rows = np.sort(np.concatenate([rows, state.adopted()]))
        votes = vote_on(m.pool, rows, self.learners(number - 1))
        earlier = state.label[rows]
        adopted = adopt(votes, earlier, len(m.classes), config)
        dropped = contradicted(votes, earlier, len(m.classes), config.agree)
        share = np.full(len(rows), NOBODY, np.int8)
        new = np.flatnonzero(adopted != NOBODY)
        rng = np.random.default_rng([self.seed, number])
        share[new] = share_out(adopted[new], len(m.voters), config.stratified, rng)
        decisions = Decisions(votes, adopted, share, dropped)
        decisions.save(self.ledger.of(number) / DECISIONS)
        return decisions

    def _train(self, number: int, i: int, state: State) -> Learner:
        voter, rows, steps = self.material.voters[i], state.adopted(i), self.config.steps
        seed = zlib.crc32(f"{self.seed}/{number}/{voter.name}".encode())
        path = self._file(number, i)
        return self._fitted(path, voter, rows, state.label[rows], seed, steps)

    def _fitted(
        self,
        path: Path,
        voter: Voter,
        rows: Rows,
        labels: Labels,
        seed: int,
        steps: int,
    ) -> Learner:
        """The learner at `path`, trained on D_l and the pool's `rows` if it is not there yet.

        `steps` are rounded to whole epochs; 0: the recipe's epochs.
        """
        m, fusion = self.material, self.material.fusion
        if steps:
            an_epoch = _steps(len(m.labelled) + len(rows), fusion)
            fusion = replace(fusion, epochs=max(1, round(steps / an_epoch)))
        if path.exists():
            widths = m.labelled.widths()
            return load_learner(path, voter, widths, len(m.classes), fusion.branch)
        data = training_set(m.labelled, m.pool, rows, labels, voter.groups)
        learner = fit_learner(voter, data, m.validation, fusion, seed, len(m.classes))
        learner.save(path)
        return learner

    def _judge(self, folder: Path, learners: Sequence[Learner]) -> dict[str, dict[str, float]]:
        """WAF of each learner and of the vote, ranked on validation, by split; labels are kept."""
        m, fallback = self.material, majority(self.material.labelled)
        scores, labels = {}, {}
        order: list[int] = []
        for split, data in {VALIDATION: m.validation, **m.tests}.items():
            said = torch.stack([x.probabilities(data) for x in learners], dim=1).numpy()
            single = np.where((said != 0).any(axis=2), said.argmax(axis=2), fallback)
            truth, classes = data.labels.numpy(), len(m.classes)
            each = [waf(truth, single[:, i], classes) for i in range(len(learners))]
            order = order or sorted(range(len(each)), key=lambda i, e=each: -e[i])  # type: ignore[misc]
            vote, _ = ranked_mode(said[:, order])
            vote = np.where(vote == NOBODY, fallback, vote)
            names = [voter.name for voter in m.voters]
            scores[split] = {
                **dict(zip(names, each, strict=True)),
                VOTE: waf(truth, vote, classes),
            }
            labels[split] = np.column_stack([single, vote]).astype(np.int8)
        write_bytes(folder / PREDICTIONS, save(labels))
        return scores

    def _file(self, number: int, i: int) -> Path:
        return self.ledger.of(number) / f"learner-{i}.safetensors"


def _steps(count: int, fusion: FusionConfig) -> int:
    """Steps of an epoch over `count` clips, as `fit_branch` takes them."""
    size = min(count, fusion.batch_size)
    return count // size if fusion.drop_last else -(-count // size)


def best_round(rounds: Sequence[Mapping[str, Any]]) -> int:
    """The first round whose vote is best on validation; 0 where none has been judged."""
    scores = [r["waf"][VALIDATION][VOTE] if "waf" in r else -1.0 for r in rounds]
    return int(np.argmax(scores)) if scores else 0


def told(seed: int, facts: Mapping[str, Any]) -> str:
    """A finished round as a line."""
    parts = []
    if facts["round"]:
        parts.append(f"{facts['adopted']} of {facts['asked']} clips adopted")
    if facts.get("dropped"):
        parts.append(f"{facts['dropped']} dropped")
    if "waf" in facts:
        scores = [f"{split} {own[VOTE]:.3f}" for split, own in facts["waf"].items()]
        parts.append("WAF of the vote " + ", ".join(scores))
    return f"seed {seed}, round {facts['round']}: " + "; ".join(parts)
