"""Everything that decides what becomes of a file."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from scdataloader.curation.hooks import hook_files
from scdataloader.genes.organisms import normalise_organism
from scdataloader.labels.encoder import label_text
from scdataloader.ontology.readers import guide_name
from scdataloader.schema import LABEL_COLUMNS

STEPS = 2
"""Counts up whenever the same recipe begins to give something else."""

BIONTY = "bionty"
"""In place of a gene table: the genes that the connected lamindb instance has."""

_NUMBERS = (
    *("min_genes_per_cell", "min_counts_per_cell", "min_cells_per_gene"),
    *("min_cells_per_file", "min_genes_per_file"),
)


def _standard_labels() -> dict[str, list[str]]:
    return {column: list(known.ontologies) for column, known in LABEL_COLUMNS.items()}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What only some of the files need to be told.

    Args:
        organism: Their organism, by any usual name; None where obs, uns or the gene ids say it.
        counts: Which matrix holds the counts; None as in the recipe.
        genes: The column of var that holds gene ids or symbols; None finds it.
        columns: {column of the file: standard column to make of it}, such as
            {"Celltype": "cell_type_ontology_term_id"}; the column itself stays.
        values: {obs column: {value: what stands in its place}}, of columns of the file or those made by ``columns``,
            such as {"cell_type_ontology_term_id": {"Naive CD4 T": "CL:0000895", "debris": "unknown"}}. Values are
            compared as text; other values stay, as text.
        constants: {obs column: the one value for all cells}.
    """

    organism: str | None = None
    counts: str | None = None
    genes: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str | int, str]] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        targets = [*self.columns.values(), *self.constants]
        twice = sorted({target for target in targets if targets.count(target) > 1})
        if twice:
            raise ValueError(f"a rule gives {', '.join(twice)} more than once, by its columns or constants; leave one")
        # YAML reads the name of a cluster as a number
        texts = {column: {label_text(value): to for value, to in put.items()} for column, put in self.values.items()}
        for column, put in self.values.items():
            if column in self.constants:
                raise ValueError(f"a rule replaces values of {column}, and gives it one value for all cells; leave one")
            if len(texts[column]) < len(put):
                raise ValueError(f"a rule replaces a value of {column} twice, as a number and as text; leave one")
        object.__setattr__(self, "values", texts)
        if self.organism is not None:
            normalise_organism(self.organism)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what becomes of a file, besides its content.

    Args:
        genes: {organism: a gene table}, a csv, tsv or parquet file of ids, symbols and perhaps synonyms, or "bionty"
            for the genes that the connected lamindb instance has. Genes of an organism without table are kept by their
            Ensembl-style ids.
        unmatched_genes: Whether genes that the table lacks are dropped, or kept under their own names.
        min_gene_overlap: Least share of genes that a file has in common with its table, relative to the smaller of the
            two.
        counts: Which matrix holds the counts: "X", "layers/<key>", "raw", or "auto" for the first that does.
        mixed_organisms: What to do with a file whose obs names several organisms: "refuse" it, or "split" it into one
            output for each.
        labels: {obs column: ontologies}, the columns whose labels are standardised where a file has them. An ontology
            is one of the CELLxGENE schema, such as "CL", or an OBO or OWL file.
        required: Columns without which a file fails.
        n_mads: How many median absolute deviations from the median make a cell an outlier.
        drop_outliers: Whether outliers are dropped; they are flagged in any case.
        min_genes_per_cell: Cells with fewer genes are dropped.
        min_counts_per_cell: Cells with a smaller total count are dropped.
        max_pct_mt: Cells with a larger share of mitochondrial counts, in percent, are dropped; None keeps all.
        min_cells_per_gene: Genes that fewer of the remaining cells express are dropped.
        assays: Only cells of these assays, or of kinds of them, are kept: ids or names of EFO; empty keeps all.
        primary_only: Whether cells whose ``is_primary_data`` is false are dropped; files without that column keep all.
        min_cells_per_file: Files with fewer cells in the end are dropped.
        min_genes_per_file: Files with fewer genes in the end are dropped.
        before: Hooks ``module:function`` that blocks of a file's cells go through first, in its own genes.
        after: Hooks that blocks go through last, in the genes and with the labels of the output.
        compression: Of the output. Uncompressed files are read fastest.
        rules: {pattern of file names, such as "placenta*": what these files need}; the first that matches counts.
    """

    genes: dict[str, str] = field(default_factory=dict)
    unmatched_genes: Literal["drop", "keep"] = "drop"
    min_gene_overlap: float = 0.1
    counts: str = "auto"
    mixed_organisms: Literal["refuse", "split"] = "refuse"
    labels: dict[str, list[str]] = field(default_factory=_standard_labels)
    required: list[str] = field(default_factory=list)
    n_mads: float = 5.0
    drop_outliers: bool = False
    min_genes_per_cell: int = 0
    min_counts_per_cell: int = 0
    max_pct_mt: float | None = None
    min_cells_per_gene: int = 0
    assays: list[str] = field(default_factory=list)
    primary_only: bool = False
    min_cells_per_file: int = 1
    min_genes_per_file: int = 1
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    compression: Literal["none", "lzf", "gzip"] = "none"
    rules: dict[str, Rule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.min_gene_overlap <= 1:
            raise ValueError(f"min_gene_overlap is a share from 0 to 1, not {self.min_gene_overlap}")
        if not self.n_mads > 0:
            raise ValueError(f"n_mads must be positive, not {self.n_mads}")
        if self.max_pct_mt is not None and not 0 <= self.max_pct_mt <= 100:  # noqa: PLR2004 (percent)
            raise ValueError(f"max_pct_mt is in percent, from 0 to 100, not {self.max_pct_mt}")
        for name in _NUMBERS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        organisms = [normalise_organism(organism) for organism in self.genes]
        if len(set(organisms)) < len(organisms):
            raise ValueError(f"genes names an organism twice: {', '.join(self.genes)}; leave one table for each")

    def for_file(self, path: str | PathLike[str]) -> Recipe:
        """The recipe as far as it concerns one file: without the rules for others.

        Its hash is what a file's `Outcome` has, so that a rule for one file leaves the others as they are.
        """
        name = Path(path).name
        rule = next((rule for pattern, rule in self.rules.items() if fnmatch.fnmatch(name, pattern)), None)
        return replace(self, rules={} if rule is None else {"*": rule})

    @property
    def rule(self) -> Rule:
        """Of a recipe `for_file`: its one rule, or an empty one."""
        return self.rules.get("*", Rule())

    @property
    def hash(self) -> str:
        """32 hexadecimal digits that change when a file could come out otherwise.

        They cover the options, the content of gene tables, ontology files and of the source of the hooks (see
        `hook_files`), the release of the ontologies, and the steps themselves. Where tables and modules lie makes no
        difference.

        Raises:
            FileNotFoundError: a gene table or an ontology file does not exist.
            LookupError: a hook's module does not exist.
            ValueError: the guide has no ontology of a name; or genes are bionty's, and not in a file yet: see
                `with_bionty_genes`.
        """
        parts: dict[str, Any] = asdict(self) | {
            "steps": STEPS,
            "genes": {normalise_organism(organism): _table(path) for organism, path in self.genes.items()},
            "labels": {column: [_ontology(name) for name in names] for column, names in self.labels.items()},
            "hooks": [(hook, [_digest(path) for path in hook_files(hook)]) for hook in (*self.before, *self.after)],
            "rules": [(pattern, asdict(rule)) for pattern, rule in self.rules.items()],
        }
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def is_file(ontology: str) -> bool:
    """Whether an ontology is given by its file, not by its name."""
    return Path(ontology).suffix != ""


def _table(path: str) -> str:
    if path == BIONTY:
        raise ValueError(
            "the recipe takes genes from bionty, and has no hash until they are written to a file; run it with "
            "scdataloader.lamin.curate_into, or use the recipe that lamin.genes.with_bionty_genes returns"
        )
    return _digest(path)


def _ontology(name: str) -> str:
    return _digest(name) if is_file(name) else f"{guide_name(name).lower()} {_release()}"


@cache
def _release() -> str:
    return version("cellxgene-ontology-guide")


def _digest(path: str | PathLike[str]) -> str:
    found = Path(path).expanduser()
    if not found.is_file():
        raise FileNotFoundError(
            f"the recipe names {fspath(path)}, which does not exist (working directory {Path.cwd()})"
        )
    status = found.stat()
    return _digest_of(str(found.absolute()), status.st_size, status.st_mtime_ns)


@cache
def _digest_of(path: str, size: int, mtime_ns: int) -> str:  # noqa: ARG001 (they tell contents apart)
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
