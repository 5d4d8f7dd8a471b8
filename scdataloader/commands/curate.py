"""The command ``scdataloader curate``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from jsonargparse import Namespace

from scdataloader.commands.cluster import DASK, dask_executor
from scdataloader.commands.usage import ConfigParser, gathered
from scdataloader.curation.curator import Curator
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import REPORT, Outcome, show_report
from scdataloader.lamin.curate import collection_folder, curate_into
from scdataloader.lamin.genes import with_bionty_genes
from scdataloader.runtime.buckets import RemotePath, is_remote

FAILED = 1
"""Exit code where a file failed; 2 is for wrong options."""


def main(args: Sequence[str]) -> None:
    """Curate files and show a report.

    Raises:
        SystemExit: a file failed, or an option is wrong.
        KeyboardInterrupt: the run was interrupted; its notes say what to do.
        Exception: anything that `Curator.run` and `curate_into` raise.
    """
    parser = _parser()
    options = parser.instantiate(parser.parse_args(gathered(_config_first(args), parser)))
    if options.out is None and options.collection is None:
        raise ValueError("no output: give --out, a folder, or --collection, or both")
    if options.storage is not None and options.collection is None:
        raise ValueError(f"--storage {options.storage} is only used for a collection: give --collection, too")
    curator = Curator(
        out=options.out if options.out is not None else collection_folder(options.collection),
        recipe=Recipe(**{name: options[name] for name in Recipe.__dataclass_fields__}),
        processes=options.processes,
        progress=options.progress,
    )
    try:
        with dask_executor(options.dask) as executor:
            outcomes = _run(replace(curator, executor=executor), options)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("finished files are kept: run the same command again to continue")
        raise
    show_report(outcomes, RemotePath(curator.out) / REPORT if is_remote(curator.out) else curator.folder / REPORT)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise SystemExit(FAILED)


def _run(curator: Curator, options: Namespace) -> list[Outcome]:
    if options.collection is not None:
        return curate_into(options.collection, curator, options.files, storage=options.storage)
    if is_remote(curator.out):
        return curator.run(options.files)
    return replace(curator, recipe=with_bionty_genes(curator.recipe, curator.folder)).run(options.files)


def _config_first(args: Sequence[str]) -> list[str]:
    """Move files of options to the front, so that the command line takes precedence over them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    known, others = parser.parse_known_args(args)
    return [*(f"--config={path}" for path in known.config), *others]


def _parser() -> ConfigParser:
    parser = ConfigParser(
        prog="scdataloader curate",
        description="Standardise downloaded files, and optionally register them in a lamindb collection. Finished "
        "files are skipped; after an interruption, the same command continues.",
        epilog="Example: scdataloader curate raw/*.h5ad --out curated --config curate.yaml",
    )
    add = parser.add_argument
    add("files", nargs="+", type=str, help=".h5ad files, .zarr folders, globs")
    add("--config", action="config", help="YAML file with any of the options below; the command line takes precedence")
    add("--out", type=str | None, help="output folder; default: curated/<collection> in the storage of the instance")
    add("--collection", type=str | None, help="key of a lamindb collection to register the files in")
    add("--storage", type=str | None, help="where in lamindb to store the files; default: the storage of the instance")
    add("--dask", type=str | None, **DASK)
    parser.add_class_arguments(Curator, skip={"out", "recipe", "executor"})
    parser.add_class_arguments(Recipe)
    return parser
