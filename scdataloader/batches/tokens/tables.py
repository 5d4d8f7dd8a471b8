"""Tables that models ship, {gene: token} or {gene: number}, and their values for the genes of a vocabulary."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scdataloader.genes.gene_lists import is_special, read_genes
from scdataloader.genes.matching import names_in_vocabulary
from scdataloader.genes.names import without_version
from scdataloader.protocols import BatchContext
from scdataloader.runtime.messages import shown, suggestion

Tokens: TypeAlias = dict[str, int] | list[str] | str
"""A dictionary of tokens as users give it: {gene: token}, a list whose order numbers the genes, or the path of a file
of either: ``vocab.json``, Geneformer's ``token_dictionary.pkl``, a text file with one gene per line."""
Numbers: TypeAlias = dict[str, float] | str
"""A number per gene as users give it: {gene: number}, or the path of a json file or pickle of it."""

_N_EXAMPLES = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTable:
    """A table of a model: a token, a median, a mean … for each of its genes. Made by `read_tokens`, `read_numbers`."""

    name: str
    """What it holds and where from, in messages: "tokens of vocab.json"."""
    values: Mapping[str, float]
    """{gene or special token: value}, as written."""
    dtype: type[np.int64 | np.float64]
    """int64 for tokens."""

    def special(self, *tokens: str) -> list[int]:
        """The numbers of special tokens.

        Raises:
            KeyError: some are missing; names them and the table.
        """
        missing = [token for token in tokens if token not in self.values]
        if missing:
            near = suggestion(missing[0], [token for token in self.values if is_special(token)])
            raise KeyError(f"the {self.name} lack the special tokens {shown(missing)}; of special tokens, {near}")
        return [int(self.values[token]) for token in tokens]


class PerGene(NamedTuple):
    """Values of a model's table for the genes of a vocabulary."""

    values: NDArray[Any]
    """``(G,)`` of the table's dtype; 0 for genes without a value."""
    known: NDArray[np.bool_]
    """``(G,)`` True for the genes that have a value."""


def read_tokens(given: Any, what: str = "tokens") -> ModelTable:
    """A dictionary of tokens.

    Genes are ids or symbols. In a list, and in a text file with one gene per line, they are numbered from 0.

    Args:
        given: See `Tokens`. A pickle is read without running code, see `read_plain_pickle`.
        what: What the values are, in messages.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: this is not such a dictionary.
        ValueError: the file cannot be read, a gene occurs twice in a list, or a token is not 0, 1, 2 …
    """
    name, table = _named(given, what)
    if isinstance(table, Sequence) and not isinstance(table, str):
        twice = [gene for gene, n in Counter(table).items() if n > 1]
        if twice:
            raise ValueError(f"{name}: {len(twice):,} genes occur twice ({shown(twice)}), and their order numbers them")
        table = {gene: place for place, gene in enumerate(table)}
    values = _numbers(name, table)
    wrong = [f"{gene}: {value}" for gene, value in values.items() if value < 0 or value != int(value)]
    if wrong:
        raise ValueError(f"{name}: a token must be a whole number from 0, not {shown(wrong)}")
    return ModelTable(name=name, values={gene: int(value) for gene, value in values.items()}, dtype=np.int64)


def new_tokens(special: Sequence[str], genes: Sequence[str]) -> ModelTable:
    """A dictionary for a new model: special tokens from 0, then the genes in order."""
    return read_tokens(list(dict.fromkeys([*special, *genes])))


def read_numbers(given: Any, what: str) -> ModelTable:
    """A table of one number per gene, such as its median. A missing value (None, NaN) does not count.

    Args:
        given: See `Numbers`.
        what: What the values are, in messages.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: this is not such a table.
        ValueError: the file cannot be read.
    """
    name, table = _named(given, what)
    return ModelTable(name=name, values=_numbers(name, table), dtype=np.float64)


def _named(given: Any, what: str) -> tuple[str, Any]:
    """What a table is called in messages, and its content as written."""
    if isinstance(given, str | Path):
        return f"{what} of {given}", read_genes(given)
    return f"given {what}", given


def _numbers(name: str, table: Any) -> dict[str, float]:
    if not isinstance(table, Mapping):
        raise TypeError(f"{name}: expected a number for each gene, as in {{'TP53': 1}}, got {type(table).__name__}")
    wrong = [f"{gene}: {value!r:.40}" for gene, value in table.items() if not isinstance(value, Real | None)]
    if wrong:
        raise TypeError(f"{name}: expected a number for each gene, got {shown(wrong)}")
    return {str(gene): value for gene, value in table.items() if value is not None and not np.isnan(value)}


def per_gene(table: ModelTable, context: BatchContext) -> PerGene:
    """The values of a table for the genes of a vocabulary.

    Genes are matched as those of sources are: by Ensembl id, version ignored, or by symbol through the gene table of
    the organism. Of several entries that are one gene, the one that is named as in the vocabulary counts, else the
    first. One line of the log has the number of genes without a value.

    Args:
        table: The table; its special tokens are ignored.
        context: The vocabulary and the user's gene tables.

    Raises:
        ValueError: no gene has a value; shows examples of either side.
    """
    entries = {name: value for name, value in table.values.items() if not is_special(name)}
    ids = without_version(context.vocabulary.ids)
    values, known = np.zeros(len(ids), table.dtype), np.zeros(len(ids), np.bool_)
    start = 0
    for organism, part in context.vocabulary.genes_dict.items():
        own = ids[start : start + len(part)]
        called = names_in_vocabulary(list(entries), own, organism, context.gene_tables)
        by_name = dict(zip(reversed(called), reversed(entries.values()), strict=True))
        by_name |= entries
        for number, gene in enumerate(own, start):
            if gene in by_name:
                values[number], known[number] = by_name[gene], True
        start += len(part)
    _report(table, ids, known, list(entries))
    return PerGene(values, known)


def _report(table: ModelTable, ids: Sequence[str], known: NDArray[np.bool_], entries: Sequence[str]) -> None:
    n_known = int(known.sum())
    if not n_known:
        ours, theirs = (", ".join(names[:_N_EXAMPLES]) for names in (ids, entries))
        raise ValueError(
            f"none of the {len(ids):,} genes of the vocabulary, such as {ours}, is among the {len(entries):,} genes of "
            f"the {table.name}, such as {theirs}; give the table of the same organism, or a gene table "
            "(alignment.tables) that has both"
        )
    left_out = [ids[number] for number in np.flatnonzero(~known).tolist()]
    if left_out:
        logger.log(
            logging.WARNING if 2 * n_known < min(len(ids), len(entries)) else logging.INFO,
            "%s: %s of the %s genes of the vocabulary have none and are left out (%s)",
            table.name,
            f"{len(left_out):,}",
            f"{len(ids):,}",
            shown(left_out),
        )
