"""Vocabularies as users have them: lists of genes, the numbering of a model's tokens, and files of either."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd

from scdataloader.genes.names import ID_COLUMNS, SYMBOL_COLUMNS, are_ids
from scdataloader.runtime.messages import shown
from scdataloader.runtime.pickles import read_plain_pickle

HEADERS = (
    *ID_COLUMNS,
    *SYMBOL_COLUMNS,
    "gene",
    "genes",
    "gene_names",
    "gene_symbols",
    "symbols",
    "var_names",
    "ensembl",
)
"""Names of a column of genes, in the order in which they are chosen; compared in lower case."""

_OTHER_HEADERS = {"", "0", "id", "ids", "index", "name", "names", "feature", "features", "token", "tokens"}
"""Further words of a first line that is not a gene."""
_SPECIAL = re.compile(r"<.*>|\[[A-Z]+\]")

logger = logging.getLogger(__name__)


def gene_lists(given: Any) -> list[str] | dict[str, list[str]]:
    """A vocabulary as a list of genes, or as {organism: list of genes}, in order.

    Special tokens of a model (``<pad>``) are not genes and are left out. Genes with numbers are in the order of these.

    Args:
        given: Names of genes; {gene: number}, as in scGPT's ``vocab.json``; {organism: any of these}; or the path of a
            file: json or pickle of any of these; csv, tsv, text or parquet with one gene per row, perhaps with a header
            and further columns, perhaps compressed.

    Raises:
        FileNotFoundError: a file does not exist.
        TypeError: this is none of these.
        ValueError: a number is given to two genes, or no column of a file is one of genes.
    """
    if isinstance(given, str | Path):
        return gene_lists(read_genes(given))
    if isinstance(given, Mapping):
        numbered = [isinstance(number, Integral) and not isinstance(number, bool) for number in given.values()]
        if not any(numbered):
            return {str(organism): _genes_of(genes, str(organism)) for organism, genes in given.items()}
        if all(numbered):
            return _in_order(given)
    elif isinstance(given, Iterable):
        return _without_special([str(gene) for gene in given])
    raise TypeError(
        "a vocabulary must be a list of genes, {gene: number}, {organism: list of genes} or a file of these; got "
        f"{type(given).__name__} {given!r:.100}"
    )


def _genes_of(given: Any, organism: str) -> list[str]:
    genes = gene_lists(given)
    if isinstance(genes, dict):
        raise TypeError(f"the vocabulary of {organism} must be a list of genes, {{gene: number}} or a file of either")
    return genes


def _in_order(number_of: Mapping[str, int]) -> list[str]:
    """Genes by their numbers."""
    gene_of = {number: str(gene) for gene, number in number_of.items()}
    if len(gene_of) < len(number_of):
        twice = sorted(str(gene) for gene, number in number_of.items() if gene_of[number] != gene)
        raise ValueError(f"the vocabulary gives the numbers of {len(twice):,} genes twice ({shown(twice)})")
    genes = _without_special([gene_of[number] for number in sorted(gene_of)])
    moved = [(gene, number_of[gene], place) for place, gene in enumerate(genes) if number_of[gene] != place]
    if moved:
        gene, number, place = moved[0]
        logger.warning(
            "vocabulary: genes of batches are numbered from 0 without gaps, so %d genes have other numbers than in the "
            "vocabulary (%s: %d, not %d)",
            len(moved),
            gene,
            place,
            number,
        )
    return genes


def is_special(token: str) -> bool:
    """Whether a token of a model is not a gene, such as ``<pad>`` or ``[CLS]``."""
    return _SPECIAL.fullmatch(token) is not None


def _without_special(tokens: list[str]) -> list[str]:
    special = [token for token in tokens if is_special(token)]
    if not special:
        return tokens
    logger.info("vocabulary: %d special tokens are not genes and left out (%s)", len(special), shown(special))
    return [token for token in tokens if token not in set(special)]


def read_genes(file: str | Path) -> Any:
    """The content of a file of genes as written: that of json or a pickle, the list of the genes of a table or text.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not of its format, has no column of genes, or is a pickle of other things.
    """
    path = Path(file).expanduser()
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix not in {".gz", ".bz2", ".xz", ".zst"}), "")
    if kind == ".json":
        return _read_json(path)
    if kind in {".pkl", ".pickle"}:
        return read_plain_pickle(path)
    if kind == ".parquet":
        table = pd.read_parquet(path).reset_index().astype(object)
        return _column(table.where(table.notna(), "").astype(str), path)
    # keep_default_na: "NaN" and "NA" are symbols of genes
    separator = "\t" if kind in {".tsv", ".tab"} else "," if kind == ".csv" else None
    text: dict[str, Any] = {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    if separator is None:
        first = pd.read_csv(path, sep="\0", nrows=1, engine="python", **text).iloc[0, 0]
        separator = "\t" if "\t" in first else "," if "," in first else "\0"
    table = pd.read_csv(path, sep=separator, engine="python" if separator == "\0" else "c", **text)
    if _is_header(table):
        table = table.iloc[1:].set_axis([str(name) for name in table.iloc[0]], axis=1)
    return _column(table, path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _is_header(table: pd.DataFrame) -> bool:
    """Whether the first row names the columns."""
    first, rest = table.iloc[0], table.iloc[1:]
    if any(name.strip().lower() in HEADERS or name.strip().lower() in _OTHER_HEADERS for name in first):
        return True
    if len(table.columns) == 1:
        return False
    return any(are_ids(rest[column]) and not are_ids([first[column]]) for column in table.columns)


def _column(table: pd.DataFrame, path: Path) -> list[str]:
    """The genes of a table: its column of ids, else of symbols, else its index as pandas writes it."""
    by_name = {str(column).strip().lower(): column for column in reversed(table.columns)}
    named = [by_name[name] for name in ID_COLUMNS if name in by_name]
    named += [column for column in table.columns if are_ids(table[column])]
    named += [by_name[name] for name in HEADERS if name in by_name]
    if not named and len(table.columns) > 1 and not table.iloc[:, 0].str.fullmatch(r"[0-9.]*").all():
        named = [column for column in table.columns[:1] if str(column) in {"", "index"}]
    if not named and len(table.columns) == 1:
        named = list(table.columns)
    if not named:
        raise ValueError(
            f"{path} has no column of genes; its first row is {shown(table.iloc[0])}; name a column 'gene_id' or "
            "'gene_symbol' in a header, or write one gene per line"
        )
    genes = (gene.strip() for gene in table[named[0]])
    return [gene for gene in genes if gene]
