"""Compare reading of other tools' data in place with their own loaders: in one process, in turns, by CPU time.

    python benchmarks/peers.py scdl ARCHIVE --genes 'h5ad/*.h5ad'       # with bionemo-scdl installed
    python benchmarks/peers.py annbatch COLLECTION                      # with annbatch and zarrs installed
    python benchmarks/peers.py soma EXPERIMENT                          # with tiledbsoma and tiledbsoma-ml installed

Both sides return sparse batches of 64 cells. SCDL: cells drawn one by one, by its dataset and collate function under a
DataLoader of torch. annbatch: its Loader at the given sizes of blocks, shuffled, and with class weights; ours draws the
same number of cells in blocks of the same size. TileDB-SOMA: ExperimentDataset as by default, shuffled in chunks of 64
cells, 65,536 of which are read at once; ours draws blocks of 64 of all cells: a first pass, with nothing in memory, and
later ones, with what the source keeps. Prints cells per CPU second of each side, and the median ratio.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

import scdataloader as scd

BATCH = 64
N_ROUNDS = 5
N_CELLS = 1 << 15


def peer(module: str) -> Any:
    """A module of a tool that this package does not require."""
    return import_module(module)


def rate(batches: Callable[[], Iterator[Any]], seconds: float) -> float:
    """Cells per second of CPU time, of all threads, in whole passes of at least ``seconds`` of it."""
    start, n = time.process_time(), 0
    while time.process_time() - start < seconds:
        n += sum(BATCH for _ in batches())
    return n / (time.process_time() - start)


def in_turns(name: str, ours: Callable[[], Iterator[Any]], theirs: Callable[[], Iterator[Any]], seconds: float) -> None:
    rate(ours, 1), rate(theirs, 0.5)  # compiled, memory mapped, caches filled
    pairs = [(rate(ours, seconds), rate(theirs, seconds)) for _ in range(N_ROUNDS)]
    mine, other = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{name}: {mine:,.0f} cells/CPU s, its own loader {other:,.0f}, ratio {ratio:.1f}", flush=True)


def our_batches(data: str, block: int, classes: str | None = None) -> Callable[[], Iterator[Any]]:
    sampling = scd.Sampling(by=classes, num_samples=N_CELLS, block_size=block)
    module = scd.DataModule(data, sampling=sampling, batch_size=BATCH, labels=[classes] if classes else [])
    module.setup("fit")
    return lambda: iter(module.train_dataloader())


def scdl(options: argparse.Namespace) -> None:
    from torch.utils.data import DataLoader, RandomSampler

    dataset = peer("bionemo.scdl.io.single_cell_memmap_dataset").SingleCellMemMapDataset(options.data)
    collate = peer("bionemo.scdl.util.torch_dataloader_utils").collate_sparse_matrix_batch
    sampler = RandomSampler(dataset, replacement=True, num_samples=4096)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=collate)
    address = f"scdl:{options.data}?genes={options.genes}" if options.genes else options.data
    in_turns("cells one by one", our_batches(address, 1), lambda: iter(loader), options.seconds)


def annbatch(options: argparse.Namespace) -> None:
    import anndata
    import pandas as pd
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})  # as its documentation recommends
    package, samplers = peer("annbatch"), peer("annbatch.samplers")

    def load(group: Any) -> Any:
        tables = {key: anndata.io.read_elem(group[key]) for key in ("obs", "var")}
        return anndata.AnnData(X=anndata.io.sparse_dataset(group["X"]), obs=tables["obs"][[options.column]])

    def theirs(block: int, classes: Any = None) -> Iterator[Any]:
        size = {"chunk_size": block, "preload_nchunks": 8192 // block, "batch_size": BATCH}
        if classes is None:
            how = size | {"shuffle": True}
        else:
            weights = np.ones(len(classes.categories))
            sampler = samplers.WeightedClassSampler(
                **size, classes=classes, num_samples=N_CELLS, class_weights=weights, rng=np.random.default_rng(0)
            )
            how = {"batch_sampler": sampler}
        loader = package.Loader(**how, to=None)
        loader.use_collection(package.DatasetCollection(options.data), load_adata=load)
        return iter(loader)

    labels = package.DatasetCollection(options.data).obs(columns=[options.column])[options.column]
    for block in options.blocks:
        name = f"blocks of {block}"
        in_turns(name, our_batches(options.data, block), lambda block=block: theirs(block), options.seconds)
    in_turns(
        "cells one by one, by class",
        our_batches(options.data, 1, options.column),
        lambda: theirs(1, pd.Categorical(labels)),
        options.seconds,
    )


def soma(options: argparse.Namespace) -> None:
    package, ml = peer("tiledbsoma"), peer("tiledbsoma_ml")
    with package.Experiment.open(options.data) as experiment, experiment.axis_query("RNA") as query:
        n_cells = query.n_obs
        dataset = ml.ExperimentDataset(query, layer_name="data", batch_size=BATCH, seed=0, return_sparse_X=True)

    def ours(*, first: bool) -> Callable[[], Iterator[Any]]:
        sampling = scd.Sampling(num_samples=n_cells, block_size=BATCH)
        module = scd.DataModule(f"soma:{options.data}?layer=data", sampling=sampling, batch_size=BATCH, labels=[])
        module.setup("fit")

        def batches() -> Iterator[Any]:
            if first:
                module.collection.close()
            return iter(module.train_dataloader())

        return batches

    for name, first in (("first pass", True), ("later passes", False)):
        in_turns(
            f"blocks of 64, {name}", ours(first=first), lambda: iter(ml.experiment_dataloader(dataset)), options.seconds
        )
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"peak memory of both: {memory:,} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["scdl", "annbatch", "soma"])
    parser.add_argument("data")
    parser.add_argument("--genes", help="files with the gene ids of an SCDL archive")
    parser.add_argument("--column", default="cell_type_ontology_term_id", help="column of the classes")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 32, 512], help="sizes for annbatch")
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time of each measurement")
    options = parser.parse_args()
    {"scdl": scdl, "annbatch": annbatch, "soma": soma}[options.peer](options)


if __name__ == "__main__":
    main()
