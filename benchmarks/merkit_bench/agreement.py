"""`python -m merkit_bench.agreement`: served against embedded, on every clip of whole splits.

The suite compares the two on a few clips; a rare clip on which decoding or batching differs would
pass it. This drives a real Triton and the embedded backend over whole test splits.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

import merkit
from merkit.errors import ClipNotFoundError, MerkitError
from merkit.serving import Server

TOLERANCE = 1e-5
WORKERS = 2
HEAD = """# Served against embedded

Written by `make agreement`; do not edit. Every clip of each split, from its file, through
`merkit.load(bundle)` and through a real Triton with decoding on the server: the largest
difference of any score of the outcome or of any branch's vote.

| split | clips | same label | largest difference |
| --- | ---: | ---: | ---: |
"""


def read_clips(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each clip of a split in MER's layout, with its transcript."""
    table = folder / "transcripts.csv"
    if not table.is_file():
        raise ClipNotFoundError(
            f"there is no {table}",
            "a split of the corpus",
            "run merkit-train synth, or give --clips",
        )
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield folder / "video" / f"{row['name']}.mp4", row["chinese"] or row["english"]


def compare(bundle: Path, folders: list[Path]) -> list[str]:
    """Markdown rows: split, clips, equal labels, largest difference of any score or vote."""
    rows = []
    with Server(bundle) as server, merkit.load(bundle) as near, merkit.connect(server.grpc) as far:

        def gap(clip: tuple[Path, str]) -> tuple[bool, float]:
            path, text = clip
            here, there = near.predict(path, text), far.predict(path, text)
            gaps = [abs(here.scores[name] - there.scores[name]) for name in here.scores]
            for name, vote in here.votes.items():
                other = there.votes[name]
                if vote is None or other is None:
                    gaps.append(0.0 if vote is other else 1.0)
                else:
                    gaps += [abs(vote.scores[k] - other.scores[k]) for k in vote.scores]
            return here.label == there.label, max(gaps)

        with ThreadPoolExecutor(WORKERS) as pool:
            for folder in folders:
                found = list(read_clips(folder))
                results = list(tqdm(pool.map(gap, found), total=len(found), desc=folder.name))
                same, worst = sum(r[0] for r in results), max(r[1] for r in results)
                rows.append(f"| {folder.name} | {len(found)} | {same} | {worst:.1e} |")
                if same < len(found) or worst > TOLERANCE:
                    rows.append(f"\n`{folder.name}` exceeds {TOLERANCE:g}.")
    return rows


def main() -> int:
    """Prints a Markdown page; exit status 1 when anything exceeds the tolerance."""
    parser = argparse.ArgumentParser(prog="merkit_bench.agreement", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("triton_repo/models"))
    parser.add_argument("--clips", type=Path, nargs="+", required=True, help="folders of splits")
    args = parser.parse_args()
    try:
        rows = compare(args.bundle, args.clips)
    except MerkitError as error:
        print(f"merkit_bench.agreement: {error}", file=sys.stderr)
        return 2
    print(HEAD + "\n".join(rows))
    return int(any("exceeds" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
