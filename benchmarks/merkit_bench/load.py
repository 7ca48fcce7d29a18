"""`python -m merkit_bench.load`: how a served bundle bears many clients, in numbers.

Latency of one client says nothing about sixteen: requests queue, share batches, fail. This starts
a real Triton and loads it with clips of mixed lengths and modalities, and reads batch sizes from
the server's own statistics. What belongs together is measured on one server in one run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.lazy import step_costs
from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle, open_bundle
from merkit.client import Client
from merkit.contract import MODALITIES
from merkit.errors import MerkitError
from merkit.opening import connect
from merkit.serving import ServeOptions, Server
from merkit.serving.deployment import DEFAULT, read_deployment
from merkit.voting import NOBODY
from merkit_bench.agreement import read_clips
from merkit_bench.endurance import FLAT, kill_under_load, soak
from merkit_bench.lazy import Ledger
from merkit_bench.traffic import Ask, Request, Tally, closed_loop, mixed_requests, open_loop

SAMPLE = Path("docs/media/sample.mp4")
SHARES = (0.3, 0.6, 0.9)
"""Of the best closed-loop throughput, at which requests come at random times."""
FIRST = 1.5
"""Of the steady p95: what a warmed-up server's first request may take."""
SETTLE = 0.5  # seconds until the server has counted its last step
DEADLINE = 60.0  # of calls, but for those under a kill
KILL_DEADLINE = 5.0
HEAD = """# Load

Written by `python -m merkit_bench.load`; do not edit. A real Triton on this machine ({cores} cores,
clients beside it), the {flavour} flavour of `{bundle}`; {count} clips of mixed lengths, each mix of
modalities in turn. Times are in milliseconds; the bundle's models are synthetic.
"""


@dataclass(frozen=True)
class Bench:
    """One server, and what to ask of it."""

    bundle: Bundle
    server: Server
    requests: Sequence[Request]
    calls: int
    errors: Counter[str] = field(default_factory=Counter)
    """Of all loads so far, by type; there should be none."""

    def kept(self, tally: Tally) -> Tally:
        """The tally, its errors noted."""
        self.errors.update(tally.errors)
        return tally

    def tensors(self, backend: TritonBackend | EmbeddedBackend) -> Ask:
        """Sends clips that were decoded before."""
        return lambda number: backend.infer(self.requests[number % len(self.requests)].tensors)

    def whole(self, client: Client) -> Ask:
        """Sends, or decodes and sends, whole clips."""

        def ask(number: int) -> object:
            request = self.requests[number % len(self.requests)]
            return client.predict(request.clip, request.text)

        return ask

    def counted(
        self, backend: TritonBackend, load: Callable[[], Tally]
    ) -> tuple[Tally, dict[str, np.ndarray]]:
        """What came of a load, and clips and runs by step, as the server counts them."""
        before = backend.batch_statistics()
        tally = self.kept(load())
        time.sleep(SETTLE)
        after = backend.batch_statistics()
        return tally, {name: np.subtract(after[name], before[name]) for name in after}


def closed(bench: Bench, backend: TritonBackend, levels: Sequence[int]) -> tuple[list[str], float]:
    """Rows of a table, and the best throughput."""
    encoders = [step.name for step in bench.bundle.contract.steps if step.needs]
    names = " | ".join(name.removesuffix("_encoder").replace("_encoder", "") for name in encoders)
    lines = [
        "\n## Closed loop: each client asks again when it has its answer\n",
        f"Mean batch sizes by encoder, as the server counts them.\n\n"
        f"| clients | answers/s | p50 | p95 | p99 | {names} | errors |",
        "| ---: " * (5 + len(encoders)) + "| --- |",
    ]
    best = 0.0
    for clients in levels:
        progress(f"closed loop, {clients} clients, {bench.calls} calls")
        load = partial(closed_loop, bench.tensors(backend), clients, bench.calls)
        tally, counts = bench.counted(backend, load)
        best = max(best, tally.rate)
        sizes = " | ".join(_mean(counts[name]) for name in encoders)
        lines.append(
            f"| {clients} | {tally.rate:.1f} | {tally.quantiles()} | {sizes} | {tally.failed()} |"
        )
    return lines, best


def _mean(count: np.ndarray) -> str:
    clips, runs = count
    return f"{clips / runs:.1f}" if runs else "–"


def opened(bench: Bench, backend: TritonBackend, best: float) -> list[str]:
    """Rows of a table."""
    lines = [
        "\n## Open loop: requests come at random times\n",
        f"Rates are shares of {best:.1f} a second, the best above; waiting counts from when a "
        "request was due.\n\n| share | requests/s | p50 | p95 | p99 | errors |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for share in SHARES:
        progress(f"open loop, {share * best:.1f} requests a second, {bench.calls} calls")
        tally = bench.kept(open_loop(bench.tensors(backend), share * best, bench.calls))
        lines.append(
            f"| {share:.0%} | {share * best:.1f} | {tally.quantiles()} | {tally.failed()} |"
        )
    return lines


def forms(bench: Bench, backend: TritonBackend, near: EmbeddedBackend) -> list[str]:
    """Where a clip is decoded, and what a server costs beside the embedded pipeline."""
    lines = [
        "\n## One client: where clips are decoded, and what a server costs\n",
        "| pipeline | what is sent | p50 | p95 | p99 | errors |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    url = bench.server.grpc
    with (
        connect(url, deadline=DEADLINE) as bytes_,
        connect(url, deadline=DEADLINE, decode="client") as crops,
    ):
        kinds: Mapping[tuple[str, str], Ask] = {
            ("embedded", "tensors decoded before"): bench.tensors(near),
            ("served", "tensors decoded before"): bench.tensors(backend),
            ("served", "tensors, decoded by the client"): bench.whole(crops),
            ("served", "bytes, decoded by the server"): bench.whole(bytes_),
        }
        for (pipeline, sent), ask in kinds.items():
            progress(f"one client, {pipeline}, {sent}, {bench.calls} calls")
            tally = bench.kept(closed_loop(ask, 1, bench.calls))
            lines.append(f"| {pipeline} | {sent} | {tally.quantiles()} | {tally.failed()} |")
    return lines


def laziness(bench: Bench, near: EmbeddedBackend, clients: int) -> list[str]:
    """Eager against lazy on the same server, beside the most that the ranking allows."""
    ledger = Ledger(bench.bundle.contract, step_costs(bench.bundle))
    lines = [
        f"\n## Lazy voting, {clients} clients\n",
        "*Encoder runs* are clips that encoders computed, as the server counts them; *operations* "
        "are weighted by the manifest's costs.\n\n"
        "| voting | answers/s | p50 | p95 | p99 | encoder runs | operations | errors |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    whole = 0.0
    for lazy in (False, True):
        progress(f"{'lazy' if lazy else 'eager'}, {clients} clients, {bench.calls} calls")
        backend = TritonBackend(bench.server.grpc, DEADLINE, lazy=lazy)
        load = partial(closed_loop, bench.tensors(backend), clients, bench.calls)
        tally, counts = bench.counted(backend, load)
        backend.close()
        ran = {name: int(counts[name][0]) for name in ledger.encoders}
        spent = sum(ran[name] * ledger.costs[name] for name in ran)
        whole = whole or spent
        lines.append(
            f"| {'lazy' if lazy else 'eager'} | {tally.rate:.1f} | {tally.quantiles()} "
            f"| {sum(ran.values())} | {spent / whole:.1%} | {tally.failed()} |"
        )
    least = [_least(ledger, near.infer(request.tensors)) for request in bench.requests]
    possible = sum(least[number % len(least)] for number in range(bench.calls))
    lines.append(f"| the least possible | | | | | | {possible / whole:.1%} | |")
    return lines


def _least(ledger: Ledger, outcome: Mapping[str, np.ndarray]) -> float:
    """Operations of the cheapest voters that, with hindsight, settle the clip."""
    scores, there = outcome["branch_scores"][0], outcome["presence"][0]
    present = tuple(m for m, here in zip(MODALITIES, there, strict=True) if here)
    voted = (scores != 0).any(axis=1)
    ballots = tuple(np.where(voted, scores.argmax(axis=1), NOBODY).tolist())
    return ledger.least(ballots, present) if voted.any() else 0.0


def cold(
    bundle: Bundle, options: ServeOptions, requests: Sequence[Request], args: argparse.Namespace
) -> tuple[str, bool]:
    """The first request to a fresh server against those that follow, with warm-up and without;
    and whether with it the first was within FIRST of the others' p95, and none failed."""
    held = True
    lines = [
        "\n## Cold start\n",
        "| warm-up | ready after | first request | steady p50 | steady p95 | first / p95 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for warm_up in (False, True):
        progress(f"cold start, {'with' if warm_up else 'without'} warm-up")
        chosen = replace(options, deployment=replace(options.deployment, warm_up=warm_up))
        start = time.perf_counter()
        with Server(bundle, chosen) as server:
            ready = time.perf_counter() - start
            backend = TritonBackend(server.grpc, DEADLINE)
            ask = Bench(bundle, server, requests[:1], args.calls).tensors(backend)
            first, steady = closed_loop(ask, 1, 1), closed_loop(ask, 1, args.calls)
            backend.close()
        ratio = first.quantile(1) / steady.quantile(0.95)
        held = held and not first.errors and not steady.errors
        held = held and (not warm_up or ratio <= FIRST)
        lines.append(
            f"| {'yes' if warm_up else 'no'} | {ready:.1f} s | {first.quantile(1):.0f} "
            f"| {steady.quantile(0.5):.0f} | {steady.quantile(0.95):.0f} | {ratio:.2f} |"
        )
    return "\n".join(lines), held


def page(args: argparse.Namespace) -> tuple[str, bool]:
    """The page in Markdown, and whether all that must hold held."""
    bundle = open_bundle(args.bundle)
    deployment = read_deployment(args.deploy) if args.deploy else DEFAULT
    options = ServeOptions(deployment=deployment)
    clips = read_clips(args.split) if args.split else [(SAMPLE, _words())]
    progress(f"decoding clips for {args.count} requests")
    requests = mixed_requests(clips, args.count, bundle.contract.preprocessing)
    lines, held = [], True
    if not args.only or "load" in args.only:
        told, held = _loads(bundle, options, requests, args)
        lines += told
    start = not args.only or "cold" in args.only
    for wanted, measure in ((start, cold), (args.chaos, _chaos), (args.soak, _soak)):
        if wanted:
            text, good = measure(bundle, options, requests, args)
            lines.append(text)
            held = held and good
    head = HEAD.format(
        cores=os.cpu_count(), bundle=args.bundle, count=len(requests), flavour=_flavour(bundle)
    )
    return head + "\n".join(lines) + "\n", held


def _chaos(
    bundle: Bundle, options: ServeOptions, requests: Sequence[Request], args: argparse.Namespace
) -> tuple[str, bool]:
    clients = max(args.clients)
    progress(f"killed under load, {clients} clients")
    seen = kill_under_load(bundle, options, requests, clients, KILL_DEADLINE)
    text = (
        f"\n## Killed under load (kill -9): {clients} clients, deadline {seen.deadline:.0f} s\n\n"
        "| answers | errors | longest call | server away | all clients answered again after |\n"
        "| ---: | --- | ---: | ---: | ---: |\n"
        f"| {len(seen.tally.waits)} | {seen.tally.failed()} | {seen.tally.longest:.2f} s "
        f"| {seen.away:.1f} s | {seen.recovered:.2f} s |"
    )
    return text, seen.held


def _soak(
    bundle: Bundle, options: ServeOptions, requests: Sequence[Request], args: argparse.Namespace
) -> tuple[str, bool]:
    clients = min(8, max(args.clients))
    progress(f"steady load, {clients} clients, {args.soak:.0f} s")
    with Server(bundle, options) as server:
        steady = soak(server, requests, clients, args.soak)
    marks = np.linspace(0, len(steady.megabytes) - 1, 7).round().astype(int)
    text = (
        f"\n## Steady load: {clients} clients for {args.soak:.0f} s\n\n"
        f"{len(steady.tally.waits)} answers; errors: {steady.tally.failed()}. Memory of server and "
        "stubs (proportional set size) at even times: "
        f"{', '.join(f'{mb:.0f}' for mb in steady.megabytes[marks])} MB; the last fifth against "
        f"the second: {steady.growth:+.1%}."
    )
    return text, steady.growth <= FLAT and not steady.tally.errors


def _loads(
    bundle: Bundle, options: ServeOptions, requests: Sequence[Request], args: argparse.Namespace
) -> tuple[list[str], bool]:
    near = EmbeddedBackend(bundle, ["cpu"])
    progress(f"starting a server, and {len(requests)} calls before any counts")
    with Server(bundle, options) as server:
        bench = Bench(bundle, server, requests, args.calls)
        backend = TritonBackend(server.grpc, DEADLINE)
        closed_loop(bench.tensors(backend), 2, len(requests))  # whatever is slow at first
        lines, best = closed(bench, backend, args.clients)
        lines += opened(bench, backend, best)
        lines += forms(bench, backend, near)
        lines += laziness(bench, near, min(16, max(args.clients)))
        backend.close()
    near.close()
    return lines, not bench.errors


def _flavour(bundle: Bundle) -> str:
    from merkit.serving.tritonserver import find_installation

    return f"`{find_installation(bundle.root).flavour}`"


def progress(what: str) -> None:
    """Says on stderr what begins now, and when: the page is printed at the end, in one piece."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _words() -> str:
    return SAMPLE.with_suffix(".txt").read_text("utf-8").strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown page; exit status 1 when a call under load failed, the first to a warmed-up
    server was slow, one under a kill hung or failed untyped, a client did not recover, or memory
    grew."""
    parser = argparse.ArgumentParser(prog="merkit_bench.load", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("triton_repo/models"))
    parser.add_argument("--deploy", type=Path, help="a host.toml")
    parser.add_argument("--split", type=Path, help="a split of the corpus; default: the sample")
    parser.add_argument("--count", type=int, default=56, help="different requests")
    parser.add_argument("--calls", type=int, default=400, help="requests for each row")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--only", nargs="+", choices=["load", "cold", "none"], default=[])
    parser.add_argument("--chaos", action="store_true", help="kill the server under load, too")
    parser.add_argument("--soak", type=float, default=0, metavar="SECONDS")
    args = parser.parse_args(argv)
    try:
        text, held = page(args)
    except MerkitError as error:
        print(f"merkit_bench.load: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
