"""Measure the cost of drawing in blocks: the variety of batches, compared with independent draws of the same weights.

    python benchmarks/blocks.py [--data 'DATA/h5ad/*.h5ad'] [--tau 0] [--groups 400]

Draws are class-uniform, or by another power of the class sizes, from cells in the order of an atlas (by donor, types in
random order within a donor) and from the same cells sorted by type. Groups of 16 consecutive batches are
evaluated, each in its own window, so that groups are independent. The tables have means, with standard errors in
brackets, for single batches and for the 16 batches of a group together:

classes    distinct classes
entropy    of the labels, in bits
variance   of the draws per class, summed over classes, relative to independent draws: at 3, three draws contain as much
           information on the classes as one independent draw
repeated   draws of a cell that was drawn before in the group, in per cent
"""

import argparse
import glob
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.sampling.samplers import WeightedSampler

TOGETHER = 16  # batches in a group
BATCHES = (64, 1024)
BLOCKS = (8, 32, 128)
WINDOWS = (1024, 8192, 65536)
COLUMNS = ("classes", "entropy", "variance", "classes of 16", "entropy of 16", "variance of 16", "repeated in 16, %")


def atlas(n: int = 400_000, n_donors: int = 60, n_types: int = 100) -> NDArray[np.int64]:
    """The type of each cell: Zipf shares, varied at random in each donor; donors in order, their cells shuffled."""
    rng = np.random.default_rng(0)
    codes = []
    for size in np.diff(np.linspace(0, n, n_donors + 1).astype(int)):
        shares = rng.gamma(0.5, size=n_types) / np.arange(1, n_types + 1)
        codes.append(rng.choice(n_types, size, p=shares / shares.sum()))
    return np.unique(np.concatenate(codes), return_inverse=True)[1]


def read(pattern: str, column: str) -> NDArray[np.int64]:
    """The labels of consecutive files, as codes."""
    import anndata

    labels = [anndata.read_h5ad(path, backed="r").obs[column].astype(str) for path in sorted(glob.glob(pattern))]
    return np.unique(np.concatenate(labels), return_inverse=True)[1]


def counts(labels: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """``(n, n_classes)`` counts of ``(n, draws)`` labels."""
    n = len(labels)
    flat = labels + np.arange(n)[:, None] * n_classes
    return np.bincount(flat.ravel(), minlength=n * n_classes).reshape(n, n_classes)


def variety(count: NDArray[np.int64], shares: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """``(n,)`` distinct classes, entropy and variance of ``(n, n_classes)`` counts; ``shares`` is expected."""
    n_draws = count[0].sum()
    share = count / n_draws
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    variance = ((count - n_draws * shares) ** 2).sum(axis=1) / (n_draws * (1 - (shares**2).sum()))
    return [(count > 0).sum(axis=1), entropy, variance]


def measure(codes: NDArray[np.int64], tau: float, batch: int, n_groups: int, **blocks: Any) -> NDArray[np.float64]:
    """``(n_groups, columns)`` statistics; each group is at a random place in its own stretch of one or more windows."""
    size = TOGETHER * batch
    stretch = max(size, blocks["window"] or 0)
    shares = np.bincount(codes) ** tau
    shares /= shares.sum()
    sampler = WeightedSampler(classes=codes, class_weights=shares, num_samples=n_groups * stretch, seed=1, **blocks)
    at = np.random.default_rng(2).integers(stretch // size, size=n_groups) * size + np.arange(n_groups) * stretch
    found = []
    for start in at.tolist():
        rows = sampler.draw(0, start, start + size)
        count = counts(codes[rows].reshape(TOGETHER, batch), len(shares))
        single = [values.mean() for values in variety(count, shares)]
        together = [values[0] for values in variety(count.sum(axis=0, keepdims=True), shares)]
        found.append([*single, *together, 100 * (1 - len(np.unique(rows)) / size)])
    return np.array(found)


def table(name: str, codes: NDArray[np.int64], tau: float, batch: int, n_groups: int) -> None:
    print(f"\n{name}, batches of {batch:,}; {n_groups} groups of {TOGETHER} batches\n")
    print(f"| block | window | window / block | {' | '.join(COLUMNS)} |\n|{'---|' * (3 + len(COLUMNS))}")
    for block, window in [(1, None), *((block, window) for block in BLOCKS for window in WINDOWS)]:
        found = measure(codes, tau, batch, n_groups, block_size=block, window=window)
        errors = found.std(axis=0, ddof=1) / n_groups**0.5
        entries = [f"{mean:.2f} ({error:.2f})" for mean, error in zip(found.mean(axis=0), errors, strict=True)]
        layout = [f"{block}", f"{window:,}", f"{window // block:,}"] if window else ["1", "–", "–"]
        print("|", " | ".join([*layout, *entries]), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="glob of .h5ad files, for their order of cells; default: a synthetic atlas")
    parser.add_argument("--label", default="cell_type_ontology_term_id")
    parser.add_argument("--tau", type=float, default=0.0, help="a class of c cells has the weight c^tau; 0: uniform")
    parser.add_argument("--groups", type=int, default=400)
    options = parser.parse_args()
    codes = read(options.data, options.label) if options.data else atlas()
    sizes = np.bincount(codes)
    print(f"{len(codes):,} cells of {len(sizes)} classes of {sizes.min():,} to {sizes.max():,} cells")
    for name, ordered in (("in the order of donors", codes), ("sorted by type", np.sort(codes))):
        for batch in BATCHES:
            table(name, ordered, options.tau, batch, options.groups)


if __name__ == "__main__":
    main()
