"""The command ``scdataloader instance``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scdataloader.commands.usage import Parser
from scdataloader.lamin.instance import connect, init


def main(args: Sequence[str]) -> None:
    """Make, connect to or fill a lamindb instance.

    Raises:
        Exception: anything that `init`, `connect`, `import_ontologies` and `import_genes` raise.
    """
    options = _parser().parse_args(args)
    if options.action == "init":
        slug = init(options.storage, name=options.name, db=options.db)
        sys.stdout.write(
            f"{slug} is ready for programs that run in {Path.cwd()} and below; elsewhere: scdataloader instance "
            f"connect {slug.rpartition('/')[2]}\n"
        )
    elif options.action == "connect":
        sys.stdout.write(f"connected to {connect(options.name)} for programs that run in {Path.cwd()} and below\n")
    elif options.action == "import-genes":
        from scdataloader.lamin.genes import import_genes

        sys.stdout.write(f"{import_genes(options.organism, options.table)}\n")
    else:
        from scdataloader.lamin.terms import import_ontologies

        for line in import_ontologies(options.registries or None, online=options.online):
            sys.stdout.write(f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="scdataloader instance",
        description="Make a lamindb instance, connect to it, import ontologies and genes into it.",
        epilog="Example: scdataloader instance init --storage my-instance",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")
    add = actions.add_parser("init", help="make an instance; needs no network").add_argument
    add("--storage", required=True, metavar="FOLDER", help="local folder for artifacts (and for a SQLite database)")
    add("--name", help="name of the instance; default: the folder's name and a digest, which is unique")
    add("--db", metavar="URL", help="postgresql://user:password@host:port/database; default: SQLite in the storage")
    add = actions.add_parser("connect", help="use an instance in this directory and below").add_argument
    add("name", metavar="NAME", help="name of the instance, or owner/name")
    add = actions.add_parser("import-ontologies", help="import terms into the connected instance").add_argument
    add("registries", nargs="*", metavar="REGISTRY", help="such as CellType Tissue Disease; default: all")
    add("--online", action="store_true", help="take the terms from bionty's own sources, over the network")
    add = actions.add_parser("import-genes", help="import genes into the connected instance").add_argument
    add("organism", metavar="ORGANISM", help="organism of the genes, such as human")
    add("table", metavar="TABLE", help="csv, tsv or parquet file of ids, symbols and optionally synonyms")
    return parser
