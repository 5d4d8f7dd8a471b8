"""Measure sets and mixtures against plain weighted draws: draws per second, and cells per second through the loader.

    python benchmarks/plans.py ATLAS.cells --by cell_type_ontology_term_id [--turns 5] [--seconds 1]

All plans are measured in turns in one process, so that a slow minute of the machine affects all of them. Figures are
medians over the turns, per second of CPU time of all threads, and ratios to plain draws of the same turn. Draws are in
calls of 8,192 positions. Mixtures have two corpora: the first half of the sources, and the others.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import scdataloader as scd
from scdataloader.sampling.training_cells import CollectionCells

BATCH, CALL, EPOCH = 64, 8192, 10**8


def plans(by: str, control: str) -> dict[str, Any]:
    """Sampling plans by name, plain draws first."""
    plain: Any = scd.Sampling(by=[by], scheme="uniform", num_samples=EPOCH)
    sets: dict[str, Any] = {"by": [by], "scheme": "uniform", "size": 16}
    return {
        "weighted": plain,
        "sets of 16": scd.GroupedSampling(**sets, num_sets=EPOCH // 16),
        "sets of 16, no replacement": scd.GroupedSampling(**sets, num_sets=EPOCH // 16, replacement=False),
        "sets of 16 and 16 controls": scd.GroupedSampling(
            **sets, num_sets=EPOCH // 32, controls={by: control}, match=[], controls_as_targets=True
        ),
        "mixture": scd.Mixture(shares={"first": 0.7, "rest": 0.3}, sampling=plain, num_samples=EPOCH),
        "mixture of sets": scd.Mixture(
            shares={"first": 0.7, "rest": 0.3}, sampling=scd.GroupedSampling(**sets), num_samples=EPOCH
        ),
    }


def draws(sampler: Any) -> Callable[[], int]:
    """A function that draws in one call, and returns the number of draws."""
    starts = iter(range(0, sampler.num_samples - CALL, CALL))
    return lambda: len(sampler.draw(0, at := next(starts), at + CALL))


def rate(take: Callable[[], int], seconds: float) -> float:
    """Draws or cells per second of the process, over all threads, after one call."""
    take()
    start, n = time.process_time(), 0
    while time.process_time() - start < seconds:
        n += take()
    return n / (time.process_time() - start)


def cells(collection: Any, sampler: Any, seconds: float) -> float:
    """Cells per second of a new loader."""
    loader = scd.Loader(collection, sampler, scd.Sparse(), batch_size=BATCH)
    batches = iter(loader)
    found = rate(lambda: len(next(batches)["row"]), seconds)
    loader.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--by", required=True, help="column of the classes and groups")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1)
    options = parser.parse_args()
    sources = [part.source for part in scd.Collection.open(options.data).parts]
    half = max(1, len(sources) // 2)
    collection = scd.Collection.open({"first": sources[:half], "rest": sources[half:]})
    training = CollectionCells(collection, np.arange(len(collection)))
    control = training.classes([options.by])[1][0][0]
    samplers = {
        name: plan.sampler(training, seed=0, global_batch_size=BATCH)
        for name, plan in plans(options.by, control).items()
    }
    for what, measure in (
        ("draws", lambda sampler: rate(draws(sampler), options.seconds)),
        ("cells", lambda sampler: cells(collection, sampler, options.seconds)),
    ):
        rates: dict[str, list[float]] = {name: [] for name in samplers}
        for _ in range(options.turns):
            for name, sampler in samplers.items():
                rates[name].append(measure(sampler))
        print(f"\n| plan | million {what} per CPU second | relative |\n|---|---|---|")
        for name, found in rates.items():
            relative = statistics.median(a / b for a, b in zip(found, rates["weighted"], strict=True))
            print(f"| {name} | {statistics.median(found) / 1e6:.2f} | {relative:.2f} |", flush=True)


if __name__ == "__main__":
    main()
