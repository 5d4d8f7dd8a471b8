"""Genes of a lamindb instance: bionty's gene registry, filled from gene tables and used as one in curation."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdataloader.curation.recipe import BIONTY, Recipe
from scdataloader.genes.organisms import ENSEMBL_ID, infer_organism, normalise_organism
from scdataloader.genes.tables import gene_rows
from scdataloader.lamin.session import MAIN, TRASH, check_bionty, session
from scdataloader.lamin.terms import save_terms
from scdataloader.runtime.files import write_atomically, writing
from scdataloader.runtime.progress import spinner

if TYPE_CHECKING:
    import pandas as pd

    from scdataloader.curation.report import Outcome

FOLDER = "genes"
"""Folder of the gene tables, in the folder of the curated files."""

Names = Mapping[str, tuple[str, str]]
"""{id: (symbol, synonyms separated by ``|``)}; either may be empty."""

logger = logging.getLogger(__name__)


def import_genes(organism: str, path: str | Path) -> str:
    """Add the genes of a table to the registry of the connected instance, in one transaction.

    Genes of the registry are left unchanged. Genes in lamindb's trash are restored, with the names of the table.

    Args:
        organism: The organism of the genes, by any usual name.
        path: A gene table; see `gene_rows`.

    Returns:
        One line with the number of genes in the registry.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the organism is unknown, or the file is not a gene table, or is one of another organism.
        LookupError: the organism has no name, only an id, and is not in the instance.
        RuntimeError: no instance is connected, it has no bionty, or its database is locked.
    """
    taxon, path = normalise_organism(organism), Path(path).expanduser()
    names = _names(gene_rows(path))
    of_ids = infer_organism(names)
    if of_ids not in {taxon, None}:
        raise ValueError(f"{path} has genes of {of_ids}, not of {organism} ({taxon}); name the organism of the table")
    with session():
        check_bionty()
        import bionty
        from django.db import transaction

        start = time.perf_counter()
        with transaction.atomic(), spinner(f"importing genes of {organism}"):
            save_terms(bionty.Organism, [taxon])
            record = bionty.Organism.filter(ontology_id=taxon).order_by("id").first()
            n_new, n_other = _save_missing(names, record, path)
        n_now, seconds = bionty.Gene.filter(organism=record).count(), time.perf_counter() - start
    new = f"{n_new:,} new in {seconds:.1f} s" if n_new else "none new"
    other = f"; {n_other:,} have other names in the table and are unchanged" if n_other else ""
    return f"Gene: {n_now:,} genes of {organism}, {new}{other}"


def registered_genes(organism: str) -> pd.DataFrame:
    """The genes of an organism in the connected instance, as a table for `gene_rows`, sorted by id.

    Args:
        organism: By any usual name.

    Returns:
        Columns ``ensembl_gene_id`` (the other stable id of genes without one), ``symbol`` and ``synonyms``, separated
        by ``|``; text, perhaps empty.

    Raises:
        LookupError: there are none.
        RuntimeError: no instance is connected, it has no bionty, or its database does not answer.
    """
    import pandas as pd

    taxon = normalise_organism(organism)
    with session():
        check_bionty()
        import bionty

        fields = ("ensembl_gene_id", "stable_id", "symbol", "synonyms")
        found = list(bionty.Gene.filter(organism__ontology_id=taxon).values_list(*fields))
    rows = [(ensembl or stable, symbol or "", synonyms or "") for ensembl, stable, symbol, synonyms in found]
    rows = sorted(row for row in rows if row[0])
    if not rows:
        raise LookupError(
            f"the connected lamindb instance has no genes of {organism}; import them with `scdataloader instance "
            f"import-genes {organism} genes.csv`, or over the network with "
            f"bionty.Gene.import_source(organism={organism!r})"
        )
    return pd.DataFrame(rows, columns=["ensembl_gene_id", "symbol", "synonyms"], dtype=object)


def n_imported_genes(organism: str) -> int:
    """Number of genes of an organism that the connected instance has from imported tables.

    Genes that were saved one by one do not count.

    Args:
        organism: By any usual name.

    Raises:
        RuntimeError: as in `registered_genes`.
    """
    taxon = normalise_organism(organism)
    with session():
        check_bionty()
        import bionty

        return int(bionty.Gene.filter(organism__ontology_id=taxon, source__in_db=True).count())


def with_bionty_genes(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with a file in place of each ``bionty``: the genes that the connected instance has now.

    The database is not read again while files are curated, so that later changes of the registry have no effect, and
    parallel processes do not compete for it.

    Args:
        recipe: As given by the user.
        folder: Folder of the curated files. The tables are written to ``genes`` in it, under names with a digest of
            their content; existing ones are not overwritten.

    Raises:
        LookupError: the instance has no genes of an organism.
        RuntimeError: no instance is connected, it has no bionty, or its database does not answer.
        WriteError: a table cannot be written.
    """
    tables = {name: _write_table(name, folder) if table == BIONTY else table for name, table in recipe.genes.items()}
    return replace(recipe, genes=tables)


def suggest_bionty_genes(outcomes: Iterable[Outcome], recipe: Recipe) -> None:
    """Log for which organisms the connected instance has genes, while the recipe has no gene table.

    The registry is used on request only: otherwise the same recipe would give other files with another instance.
    """
    has_table = {normalise_organism(organism) for organism in recipe.genes}
    for organism in sorted({outcome.organism for outcome in outcomes if outcome.organism} - has_table):
        n_genes = n_imported_genes(organism)
        if n_genes:
            logger.info(
                "the recipe has no gene table of %s, but the lamindb instance has %s genes of it; to use these, set "
                "genes: {%s: %s}",
                *(organism, f"{n_genes:,}", organism, BIONTY),
            )


def _write_table(name: str, folder: Path) -> str:
    """Path of the table of an organism's registered genes; written unless it exists."""
    table = registered_genes(name)
    if not n_imported_genes(name):
        logger.warning(
            "the registry has only %s genes of %s, saved one by one, and all others count as unmatched; import a gene "
            "table with `scdataloader instance import-genes`",
            *(f"{len(table):,}", name),
        )
    content = table.to_csv(index=False).encode()
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    path = folder / FOLDER / f"{BIONTY}-{normalise_organism(name).replace(':', '_')}-{digest}.csv"
    if not path.exists():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
    logger.info("genes of %s: %s from bionty, written to %s", name, f"{len(table):,}", path)
    return str(path)


def _names(rows: pd.DataFrame) -> Names:
    """Names by id. The first of several rows with one id gives the symbol; the other names are synonyms."""
    symbols: dict[str, str] = {}
    synonyms: dict[str, dict[str, None]] = {}
    for gene, symbol, others in zip(rows["id"], rows["symbol"], rows["synonyms"], strict=True):
        first = symbols.setdefault(gene, symbol)
        own = (name.strip() for name in (symbol, *others.split("|")))
        synonyms.setdefault(gene, {}).update(dict.fromkeys(name for name in own if name not in {"", first}))
    return {gene: (symbol, "|".join(synonyms[gene])) for gene, symbol in symbols.items()}


def _save_missing(names: Names, organism: Any, path: Path) -> tuple[int, int]:
    """Save genes that the registry lacks; how many, and how many of the others lack a name of the table."""
    import bionty

    registry: Any = bionty.Gene
    fields = ("ensembl_gene_id", "stable_id", "branch_id", "symbol", "synonyms")
    known = {row[0] or row[1]: row[2:] for row in registry.objects.values_list(*fields)}
    new = {gene: own for gene, own in names.items() if gene not in known}
    trashed = {gene for gene in names if gene in known and known[gene][0] == TRASH}
    kept = [gene for gene in names if gene in known and gene not in trashed]
    n_other = sum(not _all_names(*names[gene]) <= _all_names(*known[gene][1:]) for gene in kept)
    if new or trashed:
        source = _source(organism, path)
        registry.objects.bulk_create(_records(new, organism, source), batch_size=1000)
        restored = [gene for gene in registry.objects.filter(branch_id=TRASH) if _id(gene) in trashed]
        for gene in restored:
            gene.symbol, gene.synonyms = (name or None for name in names[_id(gene)])
            gene.branch_id, gene.source = MAIN, source
        registry.objects.bulk_update(restored, ["symbol", "synonyms", "branch", "source"], batch_size=200)
    return len(new) + len(trashed), n_other


def _all_names(symbol: str | None, synonyms: str | None) -> set[str]:
    return {symbol or "", *(synonyms or "").split("|")} - {""}


def _id(gene: Any) -> str:
    return str(gene.ensembl_gene_id or gene.stable_id)


def _records(names: Names, organism: Any, source: Any) -> Iterable[Any]:
    import bionty

    # lamindb's constructor looks the current branch up in several files, over 1 ms for each of 80,000 genes: the fields
    # of one record are copied instead
    first: Any = bionty.Gene(uid="", organism=organism, source=source, _skip_validation=True)  # type: ignore[call-overload]
    common = {field.attname: getattr(first, field.attname) for field in first._meta.concrete_fields}  # noqa: SLF001
    for gene, (symbol, synonyms) in names.items():
        field = "ensembl_gene_id" if ENSEMBL_ID.fullmatch(gene) else "stable_id"
        own = {"uid": bionty.uids.ontology(gene), field: gene, "symbol": symbol or None, "synonyms": synonyms or None}
        yield bionty.Gene(*(common | own).values())


def _source(organism: Any, path: Path) -> Any:
    """The table as a source of genes, identified by its name and a digest of its content."""
    import bionty

    record: Any = bionty.Source
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    named = {"entity": "bionty.Gene", "name": path.name, "version": digest, "organism": organism.name}
    return record.filter(**named).one_or_none() or record(**named, in_db=True).save()
