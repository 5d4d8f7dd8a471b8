"""Commands on a store: ``scdataloader verify`` and ``scdataloader export``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from rich.filesize import decimal

from scdataloader.commands.usage import Parser
from scdataloader.store.export import export
from scdataloader.store.verify import verify


def verify_store(args: Sequence[str]) -> None:
    """Verify a store and report its size; raises all that `verify` raises."""
    parser = Parser(
        prog="scdataloader verify",
        description="Read a whole store and check every checksum and every rule.",
        epilog="Example: scdataloader verify atlas.cells",
    )
    _add_store(parser)
    parser.add_argument(
        "--sources", nargs="+", metavar="SOURCE", help="what it was converted from: each is compared with the store"
    )
    parser.add_argument("--counts", default="auto", help="matrix of the sources that was converted; default: auto")
    options = parser.parse_args(args)
    start = time.perf_counter()
    found = verify(options.store, sources=options.sources, counts=options.counts, progress=options.progress)
    seconds = time.perf_counter() - start
    sys.stdout.write(
        f"{options.store} is undamaged: {found.n_cells:,} cells, {found.n_values:,} values, {found.n_files:,} files, "
        f"{decimal(found.n_bytes)} in {seconds:.1f} s ({found.n_bytes / 1e9 / seconds:.2f} GB/s)\n"
    )
    sys.stdout.write("".join(f"not part of the store: {name}\n" for name in found.unnamed))


def export_store(args: Sequence[str]) -> None:
    """Export a store and list the files; raises all that `export` raises."""
    parser = Parser(
        prog="scdataloader export",
        description="Write the sources of a store back to AnnData files.",
        epilog="Example: scdataloader export atlas.cells --out files",
    )
    _add_store(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="PATH", help="a folder; or, for one source, a file ending in .h5ad or .zarr")
    add("--source", metavar="NAME", help="one source, by name or by number from 0; default: all")
    add("--format", choices=("h5ad", "zarr"), help="default: the suffix of PATH, else h5ad")
    options = parser.parse_args(args)
    source = int(options.source) if (options.source or "").isdecimal() else options.source
    paths = export(options.store, options.out, source=source, form=options.format, progress=options.progress)
    sys.stdout.write("".join(f"{path}\n" for path in paths))


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="a folder made by `scdataloader convert`")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help="default: on a terminal")
