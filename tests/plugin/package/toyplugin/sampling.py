"""Whole sets: cells of one donor follow each other."""

import hashlib

import numpy as np


class DonorSets:
    """A sampling plan: each set has `size` cells of one donor, and every donor is as frequent as any other.

    Args:
        size: Cells in a set.
        n_sets: Sets in an epoch.
    """

    def __init__(self, size: int = 4, n_sets: int = 40):
        self.size, self.n_sets = size, n_sets

    def sampler(self, cells, *, seed, global_batch_size):
        if global_batch_size % self.size:
            raise ValueError(f"batches of {global_batch_size} cells do not hold whole sets of {self.size}")
        return SetSampler(self._groups(cells), self.size, self.n_sets, seed)

    def _groups(self, cells):
        codes, _ = cells.classes(["donor"])
        return [cells.rows[codes == code] for code in range(codes.max() + 1)]


class DescribedSets(DonorSets):
    """The same, with its classes."""

    def describe(self, cells):
        return Donors(cells)


class Donors:
    def __init__(self, cells):
        self.codes, labels = cells.classes(["donor"])
        self.names = [name for (name,) in labels]
        self.sizes = np.append(np.bincount(self.codes, minlength=len(self.names)), 0)

    def target_shares(self, epoch):
        return np.append(np.full(len(self.names), 1 / len(self.names)), 0.0)

    def summary(self):
        return f"sets of {len(self.names)} donors"


class SetSampler:
    """Set number position // size: its donor, and its cells, are functions of (seed, epoch, number)."""

    def __init__(self, groups, size, n_sets, seed):
        self.groups, self.size, self.seed = groups, size, seed
        self.num_samples = n_sets * size
        digest = hashlib.sha256(repr((size, n_sets, seed)).encode())
        for group in groups:
            digest.update(group.tobytes())
        self.fingerprint = digest.hexdigest()

    def draw(self, epoch, start, stop):
        first = start // self.size
        sets = [self._set(epoch, number) for number in range(first, -(-stop // self.size))]
        drawn = np.concatenate([np.empty(0, np.int64), *sets]).astype(np.int64)
        return drawn[start - first * self.size : stop - first * self.size]

    def _set(self, epoch, number):
        rng = np.random.default_rng([self.seed, epoch, number])
        group = self.groups[rng.integers(len(self.groups))]
        return rng.choice(group, self.size, replace=len(group) < self.size)


def donor_sets():
    """What stands behind "donor-sets"."""
    return DescribedSets()
