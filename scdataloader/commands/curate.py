"""The command ``scdataloader curate``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from scdataloader.curation.curator import Curator
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import REPORT, show_report

FAILED = 1
"""Exit code where a file failed; 2 is for bad options."""


def main(args: Sequence[str]) -> None:
    """Curate what ``args`` name, and show what has become of it.

    Raises:
        SystemExit: a file failed, or an option is wrong.
        KeyboardInterrupt: the run was interrupted; its notes say what to do.
        Anything that `Curator.run` raises.
    """
    parser = _parser()
    options = vars(parser.instantiate(parser.parse_args(_config_first(args))))
    recipe = Recipe(**{name: options[name] for name in Recipe.__dataclass_fields__})
    own = {name: options[name] for name in Curator.__dataclass_fields__ if name in options}
    curator = Curator(recipe=recipe, **own)
    try:
        outcomes = curator.run(options["files"])
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("files that are done are kept: give the same command again to go on")
        raise
    show_report(outcomes, curator.folder / REPORT)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise SystemExit(FAILED)


def _config_first(args: Sequence[str]) -> list[str]:
    """The same with its files of options first: what is said on the command line itself goes before them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    known, others = parser.parse_known_args(args)
    return [*(f"--config={path}" for path in known.config), *others]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="scdataloader curate",
        description="Turn files as they were downloaded into validated ones, and perhaps into a lamindb collection. "
        "What is done already is not done again; after an interruption, the same command goes on.",
    )
    parser.add_argument("files", nargs="+", type=str, help=".h5ad files, .zarr folders, globs")
    parser.add_argument(
        "--config",
        action="config",
        help="a YAML file with any of the options below; those of the command line go before it",
    )
    parser.add_class_arguments(Curator, skip={"recipe"})
    parser.add_class_arguments(Recipe)
    return parser
