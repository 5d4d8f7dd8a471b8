"""Measure samplers: draws per second, time to build, memory; medians of several fresh processes.

    python benchmarks/samplers.py [--cells 1000000 100000000 1000000000] [--folder DIR] [--repeats 3] [--seconds 1]

One thread. Codes, weights and the class index of 10^9 cells are memory-mapped files in the folder, warm in the page
cache; those of fewer cells are arrays in memory. Times are from the inputs to a sampler, including the class index, and
to its first 64 draws; kernels are compiled before. Memory is anonymous pages (RssAnon) without the inputs: after the
first draw, and the peak until then. The last tables are of torch's sampler.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from measure import PeakMemory
from numpy.typing import NDArray

from scdataloader.sampling.class_index import ClassIndex
from scdataloader.sampling.samplers import ShuffleSampler, WeightedSampler

CALLS = (64, 1024, 10**6)
MAPPED, FILE_BYTES = 10**9, 14  # number of cells from which inputs are mapped files; maximum of bytes in files per cell
FEW = 4000  # number of cells to compile kernels with
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {  # inputs and options
    "shuffle": ((), {}),
    "shuffle, blocks of 16": ((), {"block_size": 16}),
    "1,000 classes": (("codes",), {}),
    "weights, float32": (("float32",), {}),
    "weights, float64": (("float64",), {}),
    "1,000 classes, weights, float32": (("codes", "float32"), {}),
    "1,000 classes, no replacement": (("codes",), {"replacement": False}),
    "weights, float32, no replacement": (("float32",), {"replacement": False}),
    "1,000 classes, blocks of 16": (("codes",), {"block_size": 16}),
}


def write(folder: str, n: int, names: tuple[str, ...]) -> None:
    """Zipf classes and random weights of ``n`` cells, in random order."""
    rng, step = np.random.default_rng(0), 1 << 24
    shares = np.cumsum(1 / np.arange(1, 1001))
    table = np.searchsorted(shares, np.linspace(0, shares[-1], 1 << 16, endpoint=False), "right").astype(np.int16)
    for name in names:
        dtype = np.dtype(np.int16 if name == "codes" else name)
        out = np.lib.format.open_memmap(Path(folder, f"{name}.npy"), "w+", dtype, (n,))
        for at in range(0, n, step):
            size, codes = min(step, n - at), name == "codes"
            out[at : at + size] = table[rng.integers(0, 1 << 16, size, np.uint16)] if codes else rng.random(size, dtype)
        out.flush()


def built(case: str, folder: str, n: int, inputs: dict[str, NDArray[Any]]) -> Any:
    """The sampler of a case. An epoch has a draw per cell; with weights without replacement, a quarter of that."""
    options = CASES[case][1]
    if not inputs:
        return ShuffleSampler(n, **options)
    classes: Any = inputs.get("codes")
    if isinstance(classes, np.memmap) and "block_size" not in options:
        classes = ClassIndex.of(classes, file=Path(folder, "index"))
    weights = inputs.get("float32", inputs.get("float64"))
    num_samples = n // 4 if classes is None and "replacement" in options else n
    return WeightedSampler(weights, classes=classes, num_samples=num_samples, **options)


def rate(sampler: Any, size: int, seconds: float) -> float:
    """Million draws per second in calls for ``size`` consecutive positions."""
    size, start, n_drawn = min(size, sampler.num_samples), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        epoch, at = divmod(n_drawn, sampler.num_samples - size + 1)
        sampler.draw(epoch, at, at + size)
        n_drawn += size
    return n_drawn / (time.perf_counter() - start) / 1e6


def anonymous_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def measure(case: str, folder: str, seconds: float, n: int) -> dict[str, float]:
    inputs = {name: np.load(Path(folder, f"{name}.npy"), "r" if n >= MAPPED else None) for name in CASES[case][0]}
    built(case, folder, FEW, {name: array[:FEW] for name, array in inputs.items()}).draw(0, 0, FEW // 4)
    before, memory, start = anonymous_mib(), PeakMemory(), time.perf_counter()
    sampler = built(case, folder, n, inputs)
    ready = time.perf_counter()
    sampler.draw(0, 0, 64)
    first, kept = time.perf_counter(), anonymous_mib() - before
    rest = {"build, s": ready - start, "first draw, s": first - start}
    rest |= {"memory, MiB": kept, "peak, MiB": max(kept, memory.mib - before)}
    return {f"M draws/s by {size:,}": rate(sampler, size, seconds) for size in CALLS} | rest


def measure_torch(folder: str, n: int) -> dict[str, float]:
    """Torch's sampler, which makes a list of the whole epoch at the first draw; its rate is over the whole epoch."""
    from torch.utils.data import WeightedRandomSampler

    weights = np.load(Path(folder, "float32.npy"))
    before, memory, start = anonymous_mib(), PeakMemory(), time.perf_counter()
    draws = iter(WeightedRandomSampler(weights, n))
    next(draws)
    first = time.perf_counter()
    rate = (1 + sum(1 for _ in draws)) / (time.perf_counter() - start) / 1e6
    return {"M draws/s, whole epoch": rate, "first draw, s": first - start, "peak, MiB": memory.mib - before}


def table(n: int, jobs: dict[str, tuple[Any, ...]], repeats: int) -> None:
    """Print the medians of each job; jobs are interleaved, so that a slow minute of the machine affects all of them."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for name in list(jobs) * repeats:
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            try:
                runs[name].append(fresh.submit(*jobs[name]).result())
            except RuntimeError as error:
                print(f"\n{n:,} cells, {name}: RuntimeError: {str(error).splitlines()[0]}", flush=True)
                return
    columns = list(runs[name][0])
    print(f"\n{n:,} cells\n\n| case | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for name, records in runs.items():
        medians = (statistics.median(record[column] for record in records) for column in columns)
        forms = (",.0f" if "MiB" in column else ".2f" if "draws/s" in column else ".3f" for column in columns)
        print(f"| {name} |", *(f"{median:{form}} |" for median, form in zip(medians, forms, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[10**6, 10**8, 10**9])
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="folder for temporary files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1, help="time for calls of each length")
    options = parser.parse_args()
    if shutil.disk_usage(options.folder).free < FILE_BYTES * max(options.cells):
        parser.error(f"{options.folder} has not enough space for {FILE_BYTES} bytes per cell; give another --folder")
    for n in options.cells:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write(folder, n, names := ("codes", "float32", "float64")[: 2 if n >= MAPPED else 3])
            cases = [case for case, (inputs, _) in CASES.items() if {*inputs} <= {*names}]
            table(n, {case: (measure, case, folder, options.seconds, n) for case in cases}, options.repeats)
    for n in (n for n in (10**6, 2**24, 10**8) if n <= max(options.cells)):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write(folder, n, ("float32",))
            table(n, {"torch, WeightedRandomSampler": (measure_torch, folder, n)}, options.repeats)


if __name__ == "__main__":
    main()
