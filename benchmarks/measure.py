"""Measure one configuration of the loader in this process, and print one line of JSON.

    python benchmarks/measure.py DATA/h5ad/*.h5ad --case sparse --batch 64 --seconds 5

`open_s` is the time from the call that opens the files to a loader ready to iterate, `first_s` the time from the same
start to the first batch. Cells per second are counted after the first batch. Memory is the peak of this process's
anonymous pages.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LABEL = "cell_type_ontology_term_id"
CASES = (
    "sparse",
    "dense",
    "selected",
    "most",
    "shuffle",
    "blocks",
    "scgpt",
    "geneformer",
    "geneformer masked",
    "mapped",
)


class PeakMemory(threading.Thread):
    """The peak of the process's anonymous memory, sampled every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mib = 0.0
        self.start()

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.mib = max(self.mib, int(status.split("RssAnon:")[1].split()[0]) / 1024)
            time.sleep(0.02)


def geneformer(paths: list[str], *, masked: bool) -> Any:
    """Geneformer's sequences of up to 2,048 of all genes, with medians that are all different."""
    import scdataloader as scd

    ids = scd.Collection.open(paths).vocabulary.ids
    special = ["<pad>", "<mask>", "<cls>", "<eos>"]
    medians = {gene: 0.5 + (place * 7919 % 30_011) / 10_000 for place, gene in enumerate(ids)}
    masking = scd.tokens.MaskedTokens() if masked else None
    return scd.tokens.Geneformer(tokens=[*special, *ids], medians=medians, max_len=2048, masking=masking)


def ours(paths: list[str], case: str, batch: int, threads: int) -> Iterator[Any]:
    """Row numbers of the batches of a `DataModule`, after None when it is ready: class-uniform draws with labels."""
    import scdataloader as scd

    collates = {
        "dense": scd.Dense,
        "selected": lambda: scd.SelectedGenes(how="random expressed", n_genes=2048),
        "most": lambda: scd.SelectedGenes(how="most expressed", n_genes=2048),
        "scgpt": lambda: scd.tokens.ScGPT(_tokens(paths), max_len=2048, masking=scd.tokens.MaskedValues()),
        "geneformer": lambda: geneformer(paths, masked=False),
        "geneformer masked": lambda: geneformer(paths, masked=True),
    }
    dm = scd.DataModule(
        paths,
        labels=[LABEL],
        sampling={
            "shuffle": scd.Sampling(num_samples=10**8),
            "blocks": scd.Sampling(num_samples=10**8, block_size=16),
        }.get(case, scd.Sampling(by=[LABEL], scheme="uniform", num_samples=10**8)),
        collate=collates.get(case, scd.Sparse)(),
        batch_size=batch,
        num_threads=threads,
    )
    dm.setup("fit")
    loader = dm.train_dataloader()
    yield None
    for made in loader:
        yield made["row"]


def _tokens(paths: list[str]) -> dict[str, int]:
    """A model's vocabulary that has six of seven genes."""
    import scdataloader as scd

    genes = scd.Collection.open(paths).vocabulary.ids
    return {"<pad>": 0, "<cls>": 1, **{gene: 2 + number for number, gene in enumerate(genes) if number % 7}}


def mapped(paths: list[str], batch: int) -> Iterator[Any]:
    """Lamindb's MappedCollection with torch's weighted sampler, as in its guide; dense rows."""
    import torch
    from lamindb.core import MappedCollection
    from torch.utils.data import DataLoader, WeightedRandomSampler

    dataset = MappedCollection(paths, obs_keys=[LABEL], join="outer", parallel=False)
    sampler = WeightedRandomSampler(dataset.get_label_weights(LABEL), 10**6, generator=torch.Generator().manual_seed(0))
    yield None
    for made in DataLoader(dataset, batch_size=batch, sampler=sampler):
        yield made[LABEL]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--case", choices=CASES, default="sparse")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    if options.case == "mapped":
        import lamindb.core  # noqa: F401 (imports are not measured)
    else:
        import scdataloader.training.datamodule  # noqa: F401

    memory = PeakMemory()
    start = time.perf_counter()
    if options.case == "mapped":
        batches = mapped(options.paths, options.batch)
    else:
        batches = ours(options.paths, options.case, options.batch, options.threads)
    next(batches)
    opened = time.perf_counter()
    next(batches)
    first = time.perf_counter()
    cells, cpu = 0, time.process_time()
    while time.perf_counter() - first < options.seconds:
        cells += len(next(batches))
    spent = time.perf_counter() - first
    record = {
        "case": options.case,
        "batch": options.batch,
        "cells_per_s": round(cells / spent),
        "open_s": round(opened - start, 3),
        "first_s": round(first - start, 3),
        "cores": round((time.process_time() - cpu) / spent, 2),
        "cpu_us_per_cell": round((time.process_time() - cpu) / cells * 1e6, 2),
        "anon_mib": round(memory.mib),
    }
    print(json.dumps(record), flush=True)
    os._exit(0)  # without waiting for daemon threads and prefetched windows


if __name__ == "__main__":
    main()
