"""Measure batches that carry further matrices or neighbours against plain ones: CPU time per cell of all threads.

    python benchmarks/contents.py ATLAS.cells --matrices layers/spliced layers/unspliced obsm/protein --neighbours 6

All are measured in turns in one process, in batches of 256 shuffled cells; figures are the least of the turns.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import scdataloader as scd
from scdataloader.loading.contents import Contents
from scdataloader.sampling.samplers import ShuffleSampler

BATCH, SKIPPED = 256, 8
COLLATES: dict[str, Callable[[], Any]] = {
    "sparse": scd.Sparse,
    "selected": lambda: scd.SelectedGenes(how="random expressed", n_genes=2048),
    "most": lambda: scd.SelectedGenes(how="most expressed", n_genes=2048),
}


def cpu_per_cell(collection: scd.Collection, collate: Any, contents: Contents, n_batches: int) -> float:
    """Microseconds of CPU per cell of a new loader, after its first batches."""
    sampler = ShuffleSampler(len(collection), seed=0)
    loader = scd.Loader(collection, sampler, collate, batch_size=BATCH, contents=contents)
    batches = iter(loader)
    for _ in range(SKIPPED):
        next(batches)
    begun = time.process_time()
    for _ in range(n_batches):
        next(batches)
    spent = time.process_time() - begun
    loader.close()
    return spent / n_batches / BATCH * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--case", choices=COLLATES, default="sparse")
    parser.add_argument("--matrices", nargs="*", default=[])
    parser.add_argument("--neighbours", type=int)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--batches", type=int, default=60)
    options = parser.parse_args()
    collection = scd.Collection.open(options.data)
    cases = {"plain": Contents()}
    if options.matrices:
        cases["matrices"] = Contents(matrices=options.matrices)
    if options.neighbours:
        cases["neighbours"] = Contents(neighbours=options.neighbours)
    least = dict.fromkeys(cases, float("inf"))
    for _ in range(options.turns):
        for name, contents in cases.items():
            found = cpu_per_cell(collection, COLLATES[options.case](), contents, options.batches)
            least[name] = min(least[name], found)
    for name, spent in least.items():
        print(f"{name}: {spent:.2f} µs per cell, {least['plain'] / spent:.2f} of the rate of plain cells", flush=True)


if __name__ == "__main__":
    main()
