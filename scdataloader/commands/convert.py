"""``scdataloader convert``: sources to a store."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from scdataloader.commands.cluster import DASK, dask_executor
from scdataloader.commands.usage import Parser
from scdataloader.lamin.stores import StoreArtifact
from scdataloader.runtime.files import local_path
from scdataloader.store.convert import convert
from scdataloader.store.writing.scan import CELLS_PER_SHARD, LAYOUTS

logger = logging.getLogger(__name__)


def main(args: Sequence[str]) -> None:
    """Run the command; raises what `convert` and `StoreArtifact` raise."""
    parser = _parser()
    options = parser.parse_args(args)
    if options.data_path is not None:
        options.sources.append(str(local_path(options.data_path) / "**" / "*.h5ad"))
    if not options.sources:
        parser.error("name at least one source")
    artifact = None
    if options.register:
        artifact = StoreArtifact.plan(options.sources, local_path(options.out).absolute(), append=options.append)
    with dask_executor(options.dask) as executor:
        convert(
            options.sources,
            options.out,
            layout=options.layout,
            append=options.append,
            executor=executor,
            n_processes=options.processes,
            cells_per_shard=options.cells_per_shard,
            counts=options.counts,
            values=options.values,
            layers=options.layers,
            obsm=options.obsm,
            obsp=options.obsp,
            compact=options.compact,
            seed=options.seed,
            progress=options.progress,
        )
    if artifact is not None:
        logger.info("registered as %s", artifact.save())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="scdataloader convert",
        description="Convert sources into a store. After an interruption, rerun the same command to continue.",
        epilog="Example: scdataloader convert data/*.h5ad --out atlas.cells",
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help=".h5ad files, .zarr folders, stores, globs, lamindb:<collection key>, or any registered source",
    )
    add(
        "--out",
        "--save-path",
        required=True,
        metavar="STORE",
        help="the folder to write, by convention *.cells, or to append to",
    )
    add("--register", action="store_true", help="also register it as an artifact of the lamindb collection it is from")
    add("--append", action="store_true", help="add the sources that an existing store does not have yet")
    add("--layout", help=f"order of the cells: {', '.join(LAYOUTS)}; default: that of the store, else source")
    add("--seed", type=int, help="seed of the shuffled order; default: that of the store, else 0")
    add("--counts", default="auto", help='matrix that holds the counts: "X", "layers/<key>", "raw" or "auto"')
    add("--values", choices=("counts", "any"), default="counts", help="only counts, or any float32; default: counts")
    add("--layers", nargs="+", metavar="NAME", help="layers that the store keeps too, such as spliced unspliced")
    add("--obsm", nargs="+", metavar="NAME", help="matrices of obsm that the store keeps too, such as X_pca")
    add("--obsp", nargs="+", metavar="NAME", help="matrices of obsp that the store keeps too, such as distances")
    add("--compact", action="store_true", help="about two fifths fewer bytes, and slower to read: for object storage")
    add("--processes", "--num-workers", type=int, metavar="N", help="default: one per core")
    add("--dask", **DASK)
    add("--cells_per_shard", type=int, metavar="N", help=f"default: that of the store, else {CELLS_PER_SHARD}")
    add("--progress", action=argparse.BooleanOptionalAction, help="default: on a terminal")
    _add_options_of_scdl(parser)
    return parser


def _add_options_of_scdl(parser: argparse.ArgumentParser) -> None:
    """The options of ``convert_h5ad_to_scdl`` that are not options here; those of its memory and dtypes do nothing."""
    add = parser.add_argument
    add("--data-path", metavar="DIR", help="all .h5ad files below a folder; as other options of convert_h5ad_to_scdl")
    add("--use-X-not-raw", dest="counts", action="store_const", const="X", help=argparse.SUPPRESS)
    add("--use-mp", action="store_true", help=argparse.SUPPRESS)
    for option in ("--data-dtype", "--paginated-load-cutoff", "--load-block-row-size"):
        add(option, help=argparse.SUPPRESS)
