"""``scdataloader bench``: how fast data are read on this machine, where the time goes, and what would be faster."""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
from anndata import AnnData
from jsonargparse import set_parsing_settings
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_matrix

from scdataloader import __version__
from scdataloader.collection.collection import Collection
from scdataloader.commands.data_options import NO_DATA, data_section
from scdataloader.commands.inspect import N_CHARACTERS_IN_A_FILE
from scdataloader.commands.usage import ConfigParser, Parser, gathered
from scdataloader.loading.loader import Loader
from scdataloader.loading.stages import STAGES, Rate, TimedPrefetcher
from scdataloader.protocols import HasMatrix
from scdataloader.runtime.messages import counted
from scdataloader.runtime.processes import n_cores
from scdataloader.runtime.progress import seconds_bar
from scdataloader.sampling.options import Sampling
from scdataloader.store.convert import convert
from scdataloader.store.source import StoreSource
from scdataloader.training.datamodule import DataModule

SECONDS = 10.0
"""Default of ``--seconds``."""
BLOCK = 16
"""Cells of a block that are tried."""
N_CONVERTED = 2048
"""Cells that are converted to see how fast they would be read from a store."""
_OF_TRIALS = 0.4
"""Share of the time for trials of other options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Another way to read the same cells."""

    change: str
    """What would be done."""
    cells_per_s: float
    ratio: float
    """How many times as fast as the options that were given."""
    how: str
    """Whether this is measured or estimated, and what else changes."""


def main(args: Sequence[str]) -> None:
    """Measure the training loader of a `DataModule` and show the result on standard output.

    Raises:
        ValueError: no data are named, or a number is out of range; and all that opening the data raises.
    """
    n_data = next((place for place, arg in enumerate(args) if arg.startswith("-")), len(args))
    given, rest = _parser().parse_known_args(args[n_data:])
    if not given.seconds > 0:
        raise ValueError(f"--seconds must be above 0, not {given.seconds:g}")
    dm = _data_module(given.config, list(args[:n_data]), rest)
    begun = perf_counter()
    dm.setup("fit")
    loader = dm.train_dataloader()
    opened = perf_counter() - begun
    own = (1 - _OF_TRIALS * given.trials) * given.seconds
    with seconds_bar("measuring", given.seconds) as advance:
        rate = TimedPrefetcher.of(loader).measure(own, advance)
        trials = _trials(dm, loader, rate, given.seconds - own, lambda now: advance(own + now)) if given.trials else []
    if given.json:
        print(json.dumps(_record(dm, opened, rate, trials), indent=2))  # noqa: T201 (what the command is for)
    else:
        _show(dm, opened, rate, trials)


class _BenchParser(Parser):
    """A parser whose help ends with the options of the data, as that of ``fit`` begins."""

    def format_help(self) -> str:
        """The help, then that of the options of the data."""
        _, _, of_data = _data_parser().format_help().split("\n\n", 2)
        return f"{super().format_help()}\n{of_data}"


def _parser() -> argparse.ArgumentParser:
    parser = _BenchParser(
        prog="scdataloader bench",
        usage="scdataloader bench [DATA ...] [--config FILE] [--data.OPTION VALUE] [options]",
        description="Measure how many cells per second of DATA (files, folders, globs, stores, or any registered "
        "source) the training loader delivers on this machine, where the time goes, and what would be faster. No model "
        "runs.",
        epilog="Options of the data are those of `scdataloader fit`, and have the same names. Example: scdataloader "
        "bench atlas.cells --data.batch_size 128 --data.sampling.by cell_type --data.sampling.scheme uniform",
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML file of `scdataloader fit`; its data section is used")
    add("--seconds", type=float, default=SECONDS, help=f"seconds to measure for, without opening; default: {SECONDS:g}")
    add("--trials", action=argparse.BooleanOptionalAction, default=True, help="try what would be faster; default: yes")
    add("--json", action="store_true", help="print one JSON object, whose names have the units")
    return parser


def _data_module(config: Path | None, data: list[str], rest: Sequence[str]) -> DataModule:
    """The data with the options of the configuration, updated by those of the command line.

    Raises:
        ValueError: no data are named.
        UsageError: an option is wrong.
    """
    section = {} if config is None else data_section(config)
    if data:
        section["data"] = data[0] if len(data) == 1 else data
    if not section.get("data") and not any(arg.startswith("--data.data") for arg in rest):
        raise ValueError(NO_DATA)
    parser = _data_parser()
    words = [f"--data={json.dumps(section)}", *gathered(rest, parser)]
    dm: DataModule = parser.instantiate(parser.parse_args(words)).data
    return dm


def _data_parser() -> ConfigParser:
    set_parsing_settings(instantiate_subclass_spec_in_any=True)  # sources in data by class path, as for fit
    parser = ConfigParser(prog="scdataloader bench")
    parser.add_class_arguments(DataModule, "data", fail_untyped=False)
    return parser


# ------------------------------------------------------------------------------------------------ what would be faster


def _trials(
    dm: DataModule, loader: Loader, rate: Rate, seconds: float, advance: Callable[[float], None]
) -> list[Trial]:
    """Short trials of other options, in all about ``seconds``."""
    ways: list[tuple[str, dict[str, Any], str]] = []
    if dm.num_threads < n_cores():
        n = min(2 * dm.num_threads, n_cores())
        ways.append((f"num_threads={n}", {"num_threads": n}, "measured; the order stays"))
    plan = dm.plan
    if isinstance(plan, Sampling) and plan.block_size == 1 and plan.replacement:
        batch = dm.batch_size * loader.ranks[1]
        blocks = replace(plan, block_size=BLOCK).sampler(dm.training_cells, seed=0, global_batch_size=batch)
        ways.append((f"sampling.block_size={BLOCK}", {"sampler": blocks}, "measured; neighbours are drawn together"))
    is_store = all(isinstance(part.source, StoreSource) for part in dm.collection.parts)
    begun, each = perf_counter(), seconds / max(1, len(ways) + (not is_store))
    trials = []

    def on_progress(_: float) -> None:
        advance(perf_counter() - begun)

    for change, options, how in ways:
        found = TimedPrefetcher.of(loader, **options).measure(each, on_progress)
        trials.append(
            Trial(change=change, cells_per_s=found.cells_per_s, ratio=found.cells_per_s / rate.cells_per_s, how=how)
        )
    if not is_store:
        trials.append(_of_conversion(dm, rate, each))
    return trials


def _of_conversion(dm: DataModule, rate: Rate, seconds: float) -> Trial:
    """An estimate for a store of the data: what draws and tensors take here, and what a small store takes to read."""
    n = min(len(dm.collection), N_CONVERTED)
    cells = dm.collection.read(np.arange(n))
    adata = AnnData(csr_matrix((cells.data, cells.indices, cells.indptr), shape=(n, cells.n_genes)))
    adata.var_names = [f"gene{number:08}" for number in range(cells.n_genes)]
    drawn = np.random.default_rng(0).integers(n, size=(64, dm.batch_size))
    with _without_notes(), tempfile.TemporaryDirectory() as folder:
        convert([adata], f"{folder}/cells", values=dm.values, n_processes=1, progress=False)
        collection = Collection.open(f"{folder}/cells", values=dm.values)
        collection.read(drawn[0])
        n_cells, begun, cpu = 0, perf_counter(), thread_time()
        while perf_counter() - begun < seconds or not n_cells:
            collection.read(drawn[n_cells // dm.batch_size % len(drawn)])
            n_cells += dm.batch_size
        decode = 1e6 * (thread_time() - cpu) / n_cells
        collection.close()
    # of files that are not mapped, the rest of the CPU time is that of threads that decompress
    mapped = all(isinstance(part.source, HasMatrix) and part.source.matrix is not None for part in dm.collection.parts)
    kept = ("draw", "collate", "other") if mapped else ("draw", "collate")
    cores = rate.cores if mapped else min(dm.num_threads, n_cores())
    cells_per_s = 1e6 * cores / (decode + sum(rate.stages[name].cpu_us for name in kept))
    how = f"estimated from {n:,} converted cells; the order stays"
    return Trial(change="scdataloader convert", cells_per_s=cells_per_s, ratio=cells_per_s / rate.cells_per_s, how=how)


@contextmanager
def _without_notes() -> Iterator[None]:
    """Suppress notes on a source or a conversion that the user did not ask for."""
    package = logging.getLogger("scdataloader")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(level)


# ---------------------------------------------------------------------------------------------------------- the result


def _record(dm: DataModule, opened: float, rate: Rate, trials: Sequence[Trial]) -> dict[str, Any]:
    """The result for programs."""
    options = {"batch_size": dm.batch_size, "num_threads": dm.num_threads, "window": dm.window}
    return {
        "scdataloader": __version__,
        "machine": {"system": platform.platform(), "cores": n_cores()},
        "data": {"n_cells": len(dm.collection), "n_sources": len(dm.collection.parts), "n_genes": len(dm.genes)},
        "options": options,
        "open_s": opened,
        **asdict(rate),
        "trials": list(map(asdict, trials)),
    }


def _show(dm: DataModule, opened: float, rate: Rate, trials: Sequence[Trial]) -> None:
    """The result for people."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, N_CHARACTERS_IN_A_FILE)
    say = partial(console.print, markup=False, soft_wrap=True)
    n, n_sources = len(dm.collection), len(dm.collection.parts)
    say(f"{n:,} cells, {counted(n_sources, 'source')}, {len(dm.genes):,} genes; batches of {dm.batch_size:,} cells")
    say(f"{rate.cells_per_s:,.0f} cells/s with {dm.num_threads} threads on {n_cores()} cores, {rate.cores:.1f} in use")
    say(f"opened in {opened:.2f} s, first batch after {rate.first_batch_s:.2f} s more; {rate.n_cells:,} cells measured")
    table = Table("stage", title="where the time goes", title_justify="left")
    for column in ("CPU, µs per cell", "share of CPU", "not running, µs per cell"):
        table.add_column(column, justify="right")
    for name in STAGES:
        stage = rate.stages[name]
        table.add_row(name, f"{stage.cpu_us:.2f}", f"{stage.cpu_us / rate.cpu_us:.0%}", f"{stage.waited_us:.2f}")
    table.add_row("all", f"{rate.cpu_us:.2f}", "100%", "")
    console.print(table)
    if trials:
        table = Table("what was tried", "how this is known")
        for column in ("cells/s", "× as fast"):
            table.add_column(column, justify="right")
        for trial in sorted(trials, key=lambda trial: -trial.ratio):
            table.add_row(trial.change, trial.how, f"{trial.cells_per_s:,.0f}", f"{trial.ratio:.2f}")
        console.print(table)
