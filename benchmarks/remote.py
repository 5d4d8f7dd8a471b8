"""Measure training from object storage: a server on loopback that delays every answer, beside the store on local disk.

    python benchmarks/remote.py ATLAS [--opening 100000000 --folder DIR]

Draws through the train loader of a DataModule, in blocks of 64 cells and single cells, each in a fresh process with an
empty cache: a first pass, then the same draws again (the fastest of three passes). CPU time is that of the client
alone; client and server share the cores. With --opening, a store of so many cells is simulated by links to one shard of
ATLAS, and opened remotely up to its first batch: time, traffic, memory, and the bytes of the mirror's index.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from opening import LABEL, memory, simulate
from range_server import RangeServer

DRAWS = {64: 262_144, 1: 16_384}


def data_module(data: str, block: int, draws: int) -> Any:
    """A DataModule that is ready to train."""
    import scdataloader as scd

    dm = scd.DataModule(
        data,
        labels=[LABEL],
        sampling=scd.Sampling(by=[LABEL], scheme="natural", num_samples=draws, block_size=block),
        collate=scd.Sparse(),
        batch_size=64,
    )
    dm.setup("fit")
    return dm


def measure(data: str, local: str, block: int, draws: int) -> None:
    """Print one line of JSON on the passes over the same draws, after short ones that load kernels."""
    for where, n in ((local, 2048), (data, 256)):
        for _ in data_module(where, block, n).train_dataloader():
            pass
    if data != local:
        with urllib.request.urlopen(f"{data.rpartition('/')[0]}/-/zero"):
            pass
    before, start = memory(), time.perf_counter()
    dm = data_module(data, block, draws)
    record: dict[str, Any] = {"open_s": time.perf_counter() - start, "passes": []}
    for _ in range(4):
        loader, n_cells = dm.train_dataloader(), 0
        start, cpu = time.perf_counter(), time.process_time()
        for batch in loader:
            n_cells += len(batch["row"])
        record["passes"].append([n_cells, time.perf_counter() - start, time.process_time() - cpu])
    record["anon_mib"] = memory()["RssAnon"] - before["RssAnon"]
    print(json.dumps(record), flush=True)
    os._exit(0)


def measure_opening(data: str) -> None:
    import scdataloader as scd
    import scdataloader.training.datamodule
    from scdataloader.store.reader import Store

    before, start = memory(), time.perf_counter()
    store = Store.open(data)
    record: dict[str, Any] = {"open_s": time.perf_counter() - start, "n_cells": store.n_obs}
    with urllib.request.urlopen(f"{data.rpartition('/')[0]}/-/counts") as answer:
        record["open_bytes"] = json.load(answer)["bytes"]
    start = time.perf_counter()
    dm = scd.DataModule(
        data, labels=[LABEL], sampling=scd.Sampling(by=[LABEL], scheme="uniform"), collate=scd.Sparse(), batch_size=64
    )
    dm.setup("fit")
    next(iter(dm.train_dataloader()))
    record["datamodule_s"] = time.perf_counter() - start
    record["anon_mib"] = memory()["RssAnon"] - before["RssAnon"]
    record["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(record), flush=True)
    os._exit(0)


def child(*args: object, cache: Path) -> Any:
    command = [sys.executable, "-W", "ignore", __file__, *map(str, args)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=os.environ | {"SCDATALOADER_CACHE": str(cache)}
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(store: Path, delay: float, cache: Path) -> None:
    print("| where | block | pass | cells/s | cells per CPU s | requests per cell | bytes per cell | opening, s |")
    print("|---|---|---|---|---|---|---|---|")
    with RangeServer(store.parent, delay) as server:
        for block, draws in DRAWS.items():
            for where, data in (("local", str(store)), ("remote", f"{server.url}/{store.name}")):
                shutil.rmtree(cache, ignore_errors=True)
                server.set(delay=delay)
                found = child(data, "--measure", store, "--block", block, "--draws", draws, cache=cache)
                counts, passes = server.counts(), found["passes"]
                again = min(passes[1:], key=lambda one: one[1])
                for name, (n_cells, wall, cpu) in (("first", passes[0]), ("second", again)):
                    is_first = name == "first" and where == "remote"
                    traffic = [counts["requests"] / n_cells, counts["bytes"] / n_cells] if is_first else [0, 0]
                    print(
                        f"| {where} | {block} | {name} | {n_cells / wall:,.0f} | {n_cells / cpu:,.0f} | "
                        f"{traffic[0]:.2f} | {traffic[1]:,.0f} | {found['open_s']:.2f} |",
                        flush=True,
                    )


def opening(store: Path, folder: Path, n_cells: int, delay: float, cache: Path) -> None:
    made = simulate(store, folder, n_cells)
    try:
        with RangeServer(made.parent, delay) as server:
            for attempt in ("first", "again"):
                server.set(delay=delay)
                found = child(f"{server.url}/{made.name}", "--measure-opening", cache=cache)
                counts = server.counts()
                index = sum(file.stat().st_size for file in cache.glob("*/state"))
                print(
                    f"opening {found['n_cells']:,} cells, {attempt}: store {found['open_s']:.2f} s and "
                    f"{found['open_bytes'] / 1e6:.1f} MB, DataModule and first batch "
                    f"{found['datamodule_s']:.2f} s, {counts['requests']:,} requests, "
                    f"{counts['bytes'] / 1e6:,.0f} MB, anonymous memory {found['anon_mib']} MiB, index of the mirror "
                    f"{index / found['n_cells']:.3f} bytes per cell",
                    flush=True,
                )
    finally:
        shutil.rmtree(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds before every answer")
    parser.add_argument("--opening", type=int, metavar="CELLS", help="also open a store of so many cells")
    parser.add_argument("--folder", type=Path, default=Path(), help="where it is simulated; of the disk of the store")
    parser.add_argument("--measure", metavar="LOCAL", help=argparse.SUPPRESS)
    parser.add_argument("--measure-opening", action="store_true", help=argparse.SUPPRESS)
    for name in ("--block", "--draws"):
        parser.add_argument(name, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.store, options.measure, options.block, options.draws)
    if options.measure_opening:
        measure_opening(options.store)
    with tempfile.TemporaryDirectory() as cache:
        compare(Path(options.store).resolve(), options.delay, Path(cache) / "first")
        if options.opening:
            opening(
                Path(options.store).resolve(), options.folder, options.opening, options.delay, Path(cache) / "second"
            )


if __name__ == "__main__":
    main()
