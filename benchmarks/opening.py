"""Measure time and memory to open a store of many cells or sources, which is simulated by links to one shard.

    python benchmarks/opening.py ATLAS --cells 100000000 --folder DIR
    python benchmarks/opening.py ATLAS --sources 1000 [--different] --folder DIR

The store is created in DIR from hard links to the first shard of ATLAS, and removed at the end: with a cell table of
its own for one source of many cells, or with that of ATLAS for many sources; with --different, each of these has a gene
table of its own, which lacks 500 of the genes.
Each measurement runs in a fresh process: time to open the store, to locate 64 random cells, and to create a DataModule
with class-uniform draws and take a batch, without the import of Lightning; the first one writes label codes and class
index to files, which the others map. Memory is that of anonymous pages and of file pages.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LABEL = "cell_type_ontology_term_id"


def simulate(store: Path, folder: Path, n_cells: int) -> Path:
    import pandas as pd

    from scdataloader.store.manifest import Manifest, file_record
    from scdataloader.store.tables import write_table

    manifest, made = Manifest.load(store), folder / "simulated.cells"
    shard = manifest.shards[0]
    n = -(-n_cells // shard.n_cells)
    shutil.rmtree(made, ignore_errors=True)
    for name in ("shards", "obs", "var", "genes"):
        (made / name).mkdir(parents=True)
    shards = []
    for number in range(n):
        path = f"shards/{number:05}.cells"
        os.link(store / shard.file.path, made / path)
        shards.append(dataclasses.replace(shard, file=dataclasses.replace(shard.file, path=path), source=0))
    source = manifest.sources[shard.source or 0]
    for file in (manifest.genes[source.genes], manifest.spaces[source.space].file):
        os.link(store / file.path, made / file.path)
    codes = np.random.default_rng(0).integers(0, 700, n * shard.n_cells).astype(np.int16)
    labels = pd.Categorical.from_codes(codes, [f"CL:{i:07}" for i in range(700)])
    write_table(made, "obs/00000.parquet", pd.DataFrame({LABEL: labels}), "simulated")
    obs = file_record(made, "obs/00000.parquet")
    source = dataclasses.replace(source, n_cells=n * shard.n_cells, obs=obs, space=0)
    dataclasses.replace(
        manifest,
        sources=(source,),
        genes={source.genes: manifest.genes[source.genes]},
        spaces=(manifest.spaces[source.space],),
        shards=tuple(shards),
    ).save(made)
    return made


def many_sources(store: Path, folder: Path, n_sources: int, *, different: bool) -> Path:
    from scdataloader.store.manifest import Manifest
    from scdataloader.store.tables import labels_of_columns

    manifest, made = Manifest.load(store), folder / "simulated.cells"
    shard = manifest.shards[0]
    source = manifest.sources[shard.source or 0]
    if source.n_cells != shard.n_cells:
        raise SystemExit(f"{store}: --sources links the first source many times, which must have one shard")
    shutil.rmtree(made, ignore_errors=True)
    for name in ("shards", "obs", "var", "genes"):
        (made / name).mkdir(parents=True)
    sources, shards, columns = [], [], labels_of_columns(store / source.obs.path)
    for number in range(n_sources):
        obs, path = f"obs/{number:05}.parquet", f"shards/{number:05}.cells"
        os.link(store / source.obs.path, made / obs)
        os.link(store / shard.file.path, made / path)
        shards.append(dataclasses.replace(shard, file=dataclasses.replace(shard.file, path=path), source=number))
        own = {"name": f"s{number}", "fingerprint": f"{number:018x}", "n_cells": shard.n_cells, "space": 0}
        own["columns"] = columns  # which an earlier release did not state
        sources.append(dataclasses.replace(source, obs=dataclasses.replace(source.obs, path=obs), **own))
    genes, space = manifest.genes[source.genes], manifest.spaces[source.space]
    for file in (genes, space.file, *manifest.gene_index):
        os.link(store / file.path, made / file.path)
    tables, index = {source.genes: genes}, manifest.gene_index
    if different:
        names = [f"{number:032x}" for number in range(n_sources)]
        tables, index = different_genes(made, genes.path, space, names)
        sources = [dataclasses.replace(one, genes=name) for one, name in zip(sources, names, strict=True)]
    dataclasses.replace(
        manifest, sources=tuple(sources), genes=tables, spaces=(space,), gene_index=index, shards=tuple(shards)
    ).save(made)
    return made


def different_genes(made: Path, path: str, space: Any, names: list[str]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Gene tables of these names, each without 500 of the genes, and their index."""
    import pandas as pd

    from scdataloader.store.gene_spaces import IndexedGenes, write_index
    from scdataloader.store.manifest import file_record
    from scdataloader.store.tables import POSITION, write_table
    from scdataloader.types import GenePlaces

    whole, rng = pd.read_parquet(made / path), np.random.default_rng(0)
    ids = pd.Index(pd.read_parquet(made / space.file.path)["gene"])
    tables, indexed = {}, {}
    for name in names:
        frame = whole.iloc[np.sort(rng.choice(len(whole), len(whole) - 500, replace=False))]
        write_table(made, f"var/{name}.parquet", frame.assign(**{POSITION: np.arange(len(frame))}), name)
        tables[name] = file_record(made, f"var/{name}.parquet")
        places = GenePlaces.of(ids.get_indexer(frame.index), len(ids))
        indexed[name, 0] = IndexedGenes(places=places, are_names=True)
    return tables, (write_index(made, indexed),)


def measure_sources(store: str) -> None:
    from scdataloader.collection.collection import Collection

    before, start, cpu = memory(), time.perf_counter(), time.process_time()
    collection = Collection.open(store)
    times = {"open_s": time.perf_counter() - start, "open_cpu_s": time.process_time() - cpu}
    start = time.perf_counter()
    grown_by_opening = memory()["RssAnon"] - before["RssAnon"]
    collection.read(np.random.default_rng(0).integers(0, len(collection), 64))
    times["first_cells_s"] = time.perf_counter() - start
    grown = {key: value - before[key] for key, value in memory().items()}
    rounded = {key: round(value, 2) for key, value in times.items()}
    print(json.dumps(rounded | {"opening_mib": grown_by_opening, "mib": grown}))


def memory() -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(status[key].split()[0]) // 1024 for key in ("RssAnon", "RssFile")}


def measure(store: str) -> None:
    import scdataloader as scd
    from scdataloader.store.reader import Store

    before, start = memory(), time.perf_counter()
    opened = Store.open(store)
    times = {"open_s": time.perf_counter() - start}
    rows = np.random.default_rng(0).integers(0, opened.n_obs, 64)
    start = time.perf_counter()
    opened.locate(rows)
    times["first_cells_s"] = time.perf_counter() - start
    opening = {key: value - before[key] for key, value in memory().items()}
    opened.close()  # a map has a descriptor
    import scdataloader.training.datamodule  # not part of the time

    start, cpu = time.perf_counter(), time.process_time()
    dm = scd.DataModule(
        store, labels=[LABEL], sampling=scd.Sampling(by=[LABEL], scheme="uniform"), collate=scd.Sparse(), batch_size=64
    )
    dm.setup("fit")
    next(iter(dm.train_dataloader()))
    times["datamodule_s"] = time.perf_counter() - start
    times["datamodule_cpu_s"] = time.process_time() - cpu
    print(
        json.dumps(
            {key: round(value, 2) for key, value in times.items()} | {"opening_mib": opening, "all_mib": memory()}
        )
    )
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--cells", type=int, default=10**8)
    parser.add_argument("--sources", type=int, help="number of sources, in place of --cells")
    parser.add_argument("--different", action="store_true", help="give each source a gene table of its own")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        (measure_sources if options.sources else measure)(options.store)
        return
    store, how = Path(options.store), [] if options.sources is None else ["--sources", str(options.sources)]
    if options.sources is None:
        made = simulate(store, options.folder, options.cells)
    else:
        made = many_sources(store, options.folder, options.sources, different=options.different)
    try:
        for _ in range(options.repeats):
            subprocess.run([sys.executable, "-W", "ignore", __file__, str(made), "--measure", *how], check=True)
    finally:
        shutil.rmtree(made)
        shutil.rmtree(made.with_name(f".{made.name}.cache"), ignore_errors=True)


if __name__ == "__main__":
    main()
