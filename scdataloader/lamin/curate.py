"""Curate files into a lamindb collection."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from scdataloader.curation.curator import Curator
from scdataloader.curation.report import Outcome, summary
from scdataloader.lamin.genes import suggest_bionty_genes, with_bionty_genes
from scdataloader.lamin.register import check_registrable, register
from scdataloader.lamin.session import local_storage

_KEY = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*")

logger = logging.getLogger(__name__)


def curate_into(
    collection: str,
    curator: Curator,
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    storage: str | None = None,
) -> list[Outcome]:
    """Curate files and register those that are kept in a collection of the connected lamindb instance.

    The collection gets one new version at the end of the run, while the output folder is still locked.

    Args:
        collection: Key of the collection.
        curator: The options of curation. Its recipe may take genes from bionty.
        files: Paths of .h5ad files and .zarr folders, and globs.
        storage: Where in lamindb the files are stored; None for the instance's own storage.

    Returns:
        The outcome of each file, as `Curator.run`; a file that could not be registered has failed.

    Raises:
        ValueError: the key is not valid.
        Exception: anything that `Curator.run` and `register` raise.
    """
    _check_key(collection)
    check_registrable(storage)
    curator = replace(curator, recipe=with_bionty_genes(curator.recipe, curator.folder))

    def finish(outcomes: list[Outcome]) -> list[Outcome]:
        suggest_bionty_genes(outcomes, curator.recipe)
        logger.info("%s", summary(outcomes))
        done = register(outcomes, key=collection, recipe=curator.recipe, storage=storage)
        logger.info("%s", done)
        return [_refused(outcome, done.refused.get(outcome.source)) for outcome in outcomes]

    return curator.run(files, finish=finish)


def collection_folder(collection: str) -> Path:
    """Folder for the curated files of a collection: ``curated/<key>`` in the storage of the connected instance.

    Raises:
        RuntimeError: no instance is connected, or its storage is not a local folder.
        ValueError: the key is not valid.
    """
    _check_key(collection)
    return local_storage() / "curated" / collection


def _check_key(collection: str) -> None:
    if not _KEY.fullmatch(collection):
        raise ValueError(
            f"{collection!r} is not a valid collection key; expected letters, digits, '-', '_' and '.', in parts "
            "separated by '/', such as my/atlas"
        )


def _refused(outcome: Outcome, reason: str | None) -> Outcome:
    if reason is None or outcome.output is None:
        return outcome
    reason = f"curated, but not registered: {reason}"
    logger.warning("%s failed: %s", outcome.source, reason)
    return replace(outcome, status="failed", reason=reason, output=None, n_cells_out=0, n_genes_out=0)
