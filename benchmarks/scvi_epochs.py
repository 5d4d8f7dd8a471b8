"""Measure SCVI of scvi-tools on our data module against its own loaders: CPU time of an epoch, and what is learned.

    make test-scvi && .venvs/scvi/bin/python benchmarks/scvi_epochs.py [--turns 3] [--seeds 3]

The cells are synthetic, in one .h5ad file. An epoch is the second of a run, from the end of the first to its own, on
one thread of torch and one that reads. Its CPU time, of all threads, is the smallest of the turns in one process: other
work on the machine only adds to it. AnnData is scvi-tools' loader of AnnData in memory, mapped its
MappedCollectionDataModule on lamindb's MappedCollection as by default, with worker processes, whose time counts, and
mapped in process the same without.
"""

import argparse
import logging
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback
from scipy.sparse import csr_matrix

sys.path.pop(0)  # this folder, in which scvi.py is not the library
import scvi
from scvi.dataloaders import MappedCollectionDataModule
from scvi.model import SCVI

from scdataloader.integrations.scvi import ScviDataModule

BATCH = 128
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def cells(n_cells: int, n_genes: int, depth: float, seed: int) -> ad.AnnData:
    """Cells of eight types in three batches, with negative-binomial counts."""
    rng = np.random.default_rng(seed)
    batch, kind = rng.integers(3, size=n_cells), rng.integers(8, size=n_cells)
    profiles = rng.gamma(0.5, size=(8, n_genes)) * rng.gamma(4, 0.25, size=(3, 1, n_genes))
    mean = profiles[batch, kind]
    mean *= depth * rng.lognormal(0, 0.3, (n_cells, 1)) / mean.sum(axis=1, keepdims=True)
    counts = rng.poisson(rng.gamma(2.0, mean / 2.0)).astype(np.float32)
    obs = pd.DataFrame({"batch": pd.Categorical.from_codes(batch, ["b1", "b2", "b3"])}, index=map(str, range(n_cells)))
    return ad.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(n_genes)]))


class Collection:
    """What MappedCollectionDataModule uses of a collection of lamindb."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mapped(self, **options: Any) -> Any:
        from lamindb.core import MappedCollection

        return MappedCollection([self.path], encode_labels=True, **options)


def cpu_seconds() -> float:
    """CPU time of this process and of its children, ended or not."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class EpochEnds(Callback):
    """CPU seconds at the end of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        self.seconds.append(cpu_seconds())


def model_and_data(kind: str, path: Path, **options: Any) -> tuple[SCVI, dict[str, Any]]:
    """SCVI, and what its ``train`` needs for the data."""
    if kind == "AnnData":
        adata = ad.read_h5ad(path)
        SCVI.setup_anndata(adata, batch_key="batch")
        return SCVI(adata), {"batch_size": BATCH, "train_size": options.get("train_size", 1.0)}
    if kind.startswith("mapped"):
        parallel = kind == "mapped"
        dm = MappedCollectionDataModule(Collection(path), batch_key="batch", batch_size=BATCH, parallel=parallel)
    else:
        dm = ScviDataModule(str(path), batch_key="batch", batch_size=BATCH, num_threads=1, drop_last=False, **options)
    return SCVI(adata=None, registry=dm.registry), {"datamodule": dm}


def epoch(kind: str, path: Path) -> float:
    """CPU seconds of the second epoch."""
    model, data = model_and_data(kind, path)
    ends = EpochEnds()
    model.train(max_epochs=2, **data, callbacks=[ends], **QUIET)
    return ends.seconds[1] - ends.seconds[0]


def elbo(kind: str, path: Path, seed: int) -> float:
    """Evidence lower bound of all cells after 15 epochs."""
    scvi.settings.seed = seed
    options = {} if kind == "AnnData" else {"seed": seed}
    model, data = model_and_data(kind, path, train_size=0.9, **options)
    model.train(max_epochs=15, **data, **QUIET)
    given = {"dataloader": data["datamodule"].inference_dataloader()} if "datamodule" in data else {}
    return float(model.get_elbo(**given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large.h5ad", Path(folder) / "small.h5ad"
        cells(8192, 2000, 1000.0, 0).write_h5ad(large)
        cells(3000, 200, 300.0, 1).write_h5ad(small)
        kinds = ("AnnData", "ScviDataModule", "mapped", "mapped in process")
        epoch("ScviDataModule", small)  # compiles kernels
        turns = [{kind: epoch(kind, large) for kind in kinds} for _ in range(options.turns)]
        best = {kind: min(turn[kind] for turn in turns) for kind in kinds}
        print("| loader | CPU s of an epoch | median | × AnnData |\n|---|---|---|---|")
        for kind in kinds:
            median = statistics.median(turn[kind] for turn in turns)
            print(f"| {kind} | {best[kind]:.2f} | {median:.2f} | {best[kind] / best['AnnData']:.2f} |")
        print("\n| seed | ELBO: AnnData | ScviDataModule |\n|---|---|---|")
        for seed in range(options.seeds):
            found = [elbo(kind, small, seed) for kind in kinds[:2]]
            print(f"| {seed} | {found[0]:.2f} | {found[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
