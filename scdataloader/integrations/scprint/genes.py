"""Genes by organism, and gene tables in the form that scPRINT-2 reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from scdataloader.curation.genes import MITOCHONDRIAL
from scdataloader.genes.organisms import infer_organism, normalise_organism
from scdataloader.genes.tables import SHIPPED, package_table


def split_by_organism(genes: Sequence[str], known: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Genes of a model, which are those of one organism after the other, by organism.

    Args:
        genes: Gene ids in the model's order.
        known: {organism: genes that it is known to have}, in the order of the organisms. Other ids are assigned by
            their prefix, and ids without one to the organism of the gene before.

    Raises:
        ValueError: genes of an organism are not together.
    """
    of_known = {organism: set(ids) for organism, ids in known.items()}
    split: dict[str, list[str]] = {}
    taken: set[str] = set()
    current = next(iter(known))
    for gene in genes:
        if gene not in of_known.get(current, ()) or gene in taken:
            owner = next((organism for organism, ids in of_known.items() if gene in ids and organism != current), None)
            following = owner or infer_organism([gene]) or current
            if following != current:
                current, taken = following, set()
        split.setdefault(current, []).append(gene)
        taken.add(gene)
    joined = [gene for ids in split.values() for gene in ids]
    if joined != list(genes):
        raise ValueError(
            f"the model's genes of {', '.join(split)} are mixed; expected those of one organism after the other"
        )
    return split


def load_genes(organisms: str | Sequence[str] = "NCBITaxon:9606") -> pd.DataFrame:
    """The genes of the package's tables, indexed by id, sorted within each organism.

    Columns are "symbol", "mt", "ribo" and "hb", which mark genes of mitochondria, ribosomes and haemoglobin by their
    symbol, and "organism". scDataLoader reads the genes of the lamindb instance that is connected instead.

    Args:
        organisms: One or several organisms, by any usual name.

    Raises:
        LookupError: the package has no table of an organism; names those that it has.
        ValueError: an organism is unknown.
    """
    named = [organisms] if isinstance(organisms, str) else organisms
    return pd.concat([_genes_of(normalise_organism(organism)) for organism in named])


def _genes_of(organism: str) -> pd.DataFrame:
    table = package_table(organism)
    if table is None:
        known = ", ".join(sorted(path.stem.replace("_", ":") for path in SHIPPED.glob("*.parquet")))
        raise LookupError(f"no gene table of {organism} comes with the package, which has those of {known}")
    symbols = pd.Series(table.symbols, name="symbol", dtype=object)
    lower = symbols.str.lower()
    return pd.DataFrame(
        {
            "symbol": symbols,
            "mt": lower.str.startswith(MITOCHONDRIAL),
            "ribo": lower.str.startswith(("rps", "rpl")),
            "hb": lower.str.contains("^hb[^p]"),
            "organism": organism,
        }
    ).rename_axis("ensembl_gene_id")
