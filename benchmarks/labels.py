"""Measure label encoders on a large categorical column: seconds without reading it, medians of several runs.

    python benchmarks/labels.py [--cells 100000000] [--classes 700] [--repeats 3]

The column holds terms of the Cell Ontology, classes of very different sizes, in random order. Fitting with a hierarchy
loads the ontology, counts the cells of every label and sorts leaves from inner terms.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from scdataloader.labels.encoder import LabelEncoder
from scdataloader.labels.hierarchy import Hierarchy
from scdataloader.labels.roll_up import RollUp
from scdataloader.ontology.ontology import Ontology
from scdataloader.sampling.weights import Tree


def seconds(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def made(n_cells: int, n_classes: int) -> pd.Series:
    rng = np.random.default_rng(0)
    terms = rng.choice(Ontology.from_guide("CL").terms, n_classes, replace=False)
    ranks = np.minimum((n_classes ** rng.random(n_cells, dtype=np.float32)).astype(np.int16), n_classes) - 1
    ranks[:n_classes] = np.arange(n_classes)
    return pd.Series(pd.Categorical.from_codes(ranks, categories=terms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000_000)
    parser.add_argument("--classes", type=int, default=700)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    column = [made(options.cells, options.classes)]
    flat = LabelEncoder.fit("x", column)
    hierarchy = Hierarchy.fit("x", column)
    encoder = hierarchy.encoder
    tree = Tree.of(hierarchy.ontology, encoder.labels)
    counts = np.ones(len(encoder.labels), np.int64)
    n_leaf, n_inner = encoder.n_classes, len(encoder.inner)
    print(f"{options.cells:,} cells of {len(encoder.labels)} terms: {n_leaf} leaves, {n_inner} inner terms")
    few = RollUp(min_cells=options.cells // 1000)
    tasks = {
        "fit, flat": lambda: LabelEncoder.fit("x", column),
        "encode, flat": lambda: flat.encode(column[0]),
        "fit, hierarchy": lambda: Hierarchy.fit("x", column),
        "fit, hierarchy, rolled up": lambda: Hierarchy.fit("x", column, roll_up=few),
        "encode, hierarchy": lambda: encoder.encode(column[0]),
        "unseen labels": lambda: encoder.unseen(column[0]),
        "weights of a tree": lambda: tree.weights(counts),
    }
    for name, task in tasks.items():
        print(f"{name:28}{seconds(task, options.repeats):8.3f} s")


if __name__ == "__main__":
    main()
