"""The genes of a lamindb instance: bionty's registry of them, filled from a table without a network, and read."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdataloader.genes.names import gene_rows
from scdataloader.genes.organisms import ENSEMBL_ID, infer_organism, normalise_organism
from scdataloader.lamin.session import MAIN, TRASH, check_bionty, session
from scdataloader.lamin.terms import save_terms

if TYPE_CHECKING:
    import pandas as pd

Names = Mapping[str, tuple[str, str]]
"""{id: (symbol, synonyms separated by ``|``)}; either may be empty."""


def import_genes(organism: str, path: str | Path) -> str:
    """Fill the registry of genes of the connected instance, in one transaction; what is there is left as it is.

    Genes that were deleted, and lie in lamindb's trash, come back with the names of the table.

    Args:
        organism: Whose genes, by any usual name.
        path: A table of genes: see `gene_rows`.

    Returns:
        A line that says what the registry holds now.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the organism is unknown, or the file is no table of genes, or of another organism's.
        LookupError: an organism that is only known by its id is not in the instance.
        RuntimeError: no instance is connected, it has no bionty, or its database is locked.
    """
    taxon, path = normalise_organism(organism), Path(path).expanduser()
    names = _names(gene_rows(path))
    theirs = infer_organism(names)
    if theirs not in {taxon, None}:
        raise ValueError(
            f"{path} has genes of {theirs}, not of {organism} ({taxon}); give the organism that they are of"
        )
    with session():
        check_bionty()
        import bionty
        from django.db import transaction
        from rich.console import Console

        start = time.perf_counter()
        with transaction.atomic(), Console(stderr=True).status(f"importing genes of {organism}"):
            save_terms(bionty.Organism, [taxon])
            record = bionty.Organism.filter(ontology_id=taxon).order_by("id").first()
            n_new, n_other = _filled(names, record, path)
        n_now, seconds = bionty.Gene.filter(organism=record).count(), time.perf_counter() - start
    news = f"{n_new:,} new in {seconds:.1f} s" if n_new else "none new"
    others = f"; {n_other:,} that were there have other names in the table, and stay as they were" if n_other else ""
    return f"Gene: {n_now:,} genes of {organism}, {news}{others}"


def registered_genes(organism: str) -> pd.DataFrame:
    """What the connected instance has of an organism's genes: a table for `gene_rows`, sorted by id.

    Args:
        organism: By any usual name.

    Returns:
        columns ``ensembl_gene_id`` (of genes that have none, their other stable id), ``symbol`` and ``synonyms``,
        separated by ``|``; all text, perhaps empty.

    Raises:
        LookupError: it has none; says how to fill the registry.
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
            f"the connected lamindb instance has no genes of {organism}: fill its registry with `scdataloader instance "
            f"import-genes {organism} genes.csv`, or over the network with "
            f"bionty.Gene.import_source(organism={organism!r})"
        )
    return pd.DataFrame(rows, columns=["ensembl_gene_id", "symbol", "synonyms"], dtype=object)


def n_imported_genes(organism: str) -> int:
    """How many genes of an organism the connected instance has of tables that were imported as a whole.

    The others were saved one by one, as somebody needed them.

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


def _names(rows: pd.DataFrame) -> Names:
    """Of several rows with one id, the first has the symbol, and the others more synonyms."""
    symbols: dict[str, str] = {}
    synonyms: dict[str, dict[str, None]] = {}
    for gene, symbol, others in zip(rows["id"], rows["symbol"], rows["synonyms"], strict=True):
        first = symbols.setdefault(gene, symbol)
        own = (name.strip() for name in (symbol, *others.split("|")))
        synonyms.setdefault(gene, {}).update(dict.fromkeys(name for name in own if name not in {"", first}))
    return {gene: (symbol, "|".join(synonyms[gene])) for gene, symbol in symbols.items()}


def _filled(names: Names, organism: Any, path: Path) -> tuple[int, int]:
    """Save what the registry lacks; how many these are, and of how many others it lacks a name."""
    import bionty

    registry: Any = bionty.Gene
    fields = ("ensembl_gene_id", "stable_id", "branch_id", "symbol", "synonyms")
    known = {row[0] or row[1]: row[2:] for row in registry.objects.values_list(*fields)}
    new = {gene: own for gene, own in names.items() if gene not in known}
    trashed = {gene for gene in names if gene in known and known[gene][0] == TRASH}
    n_other = sum(
        not _all(*names[gene]) <= _all(*known[gene][1:]) for gene in names.keys() & known.keys() if gene not in trashed
    )
    if new or trashed:
        source = _source(organism, path)
        registry.objects.bulk_create(_records(new, organism, source), batch_size=1000)
        back = [gene for gene in registry.objects.filter(branch_id=TRASH) if _id(gene) in trashed]
        for gene in back:
            gene.symbol, gene.synonyms = (name or None for name in names[_id(gene)])
            gene.branch_id, gene.source = MAIN, source
        registry.objects.bulk_update(back, ["symbol", "synonyms", "branch", "source"], batch_size=200)
    return len(new) + len(trashed), n_other


def _all(symbol: str | None, synonyms: str | None) -> set[str]:
    return {symbol or "", *(synonyms or "").split("|")} - {""}


def _id(gene: Any) -> str:
    return str(gene.ensembl_gene_id or gene.stable_id)


def _records(names: Names, organism: Any, source: Any) -> Iterable[Any]:
    import bionty

    # lamindb's usual constructor looks for the current branch in several files: over 1 ms for each of 80,000 genes
    first: Any = bionty.Gene(uid="", organism=organism, source=source, _skip_validation=True)  # type: ignore[call-overload]
    common = {field.attname: getattr(first, field.attname) for field in first._meta.concrete_fields}  # noqa: SLF001
    for gene, (symbol, synonyms) in names.items():
        field = "ensembl_gene_id" if ENSEMBL_ID.fullmatch(gene) else "stable_id"
        own = {"uid": bionty.uids.ontology(gene), field: gene, "symbol": symbol or None, "synonyms": synonyms or None}
        yield bionty.Gene(*(common | own).values())


def _source(organism: Any, path: Path) -> Any:
    """The table, as what genes come from: by its name and a digest of its content."""
    import bionty

    record: Any = bionty.Source
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    named = {"entity": "bionty.Gene", "name": path.name, "version": digest, "organism": organism.name}
    return record.filter(**named).one_or_none() or record(**named, in_db=True).save()
