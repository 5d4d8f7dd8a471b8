"""Recipes: the options of curation, with rules for single files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from scdataloader.curation.hooks import hook_files
from scdataloader.genes.organisms import normalise_organism
from scdataloader.labels.encoder import label_text
from scdataloader.ontology.locate import fingerprint, is_file
from scdataloader.runtime.names import matches, name_of
from scdataloader.schema import LABEL_COLUMNS

STEPS = 3
"""Version of the curation steps; it is part of the hash of each recipe."""

BIONTY = "bionty"
"""Stands for a gene table with the genes of the connected lamindb instance."""

_NUMBERS = (
    *("min_genes_per_cell", "min_counts_per_cell", "min_cells_per_gene"),
    *("min_cells_per_file", "min_genes_per_file"),
)


def _standard_labels() -> dict[str, list[str]]:
    return {column: list(known.ontologies) for column, known in LABEL_COLUMNS.items()}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Options for some of the files.

    Args:
        organism: Organism by id or name; None takes it from obs, uns or the gene ids.
        counts: Matrix of the counts; None as in the recipe.
        genes: Column of var with gene ids or symbols; None finds it.
        columns: {column of the file: standard column to make from it}, such as
            {"Celltype": "cell_type_ontology_term_id"}; the column itself is kept.
        values: {obs column: {value: replacement}}, for columns of the file and those made by ``columns``, such as
            {"cell_type_ontology_term_id": {"Naive CD4 T": "CL:0000895", "debris": "unknown"}}. Values are compared as
            text; all other values are kept, as text.
        constants: {obs column: value for all cells}.
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
            raise ValueError(f"a rule makes {', '.join(twice)} more than once, in columns or constants; keep one")
        # YAML reads the name of a cluster as a number
        texts = {column: {label_text(value): to for value, to in put.items()} for column, put in self.values.items()}
        for column, put in self.values.items():
            if column in self.constants:
                raise ValueError(f"a rule has both values and a constant for {column}; keep one")
            if len(texts[column]) < len(put):
                raise ValueError(f"a rule replaces a value of {column} twice, as a number and as text; keep one")
        object.__setattr__(self, "values", texts)
        if self.organism is not None:
            normalise_organism(self.organism)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of curation. Together with the content of a file they determine its output.

    Args:
        genes: {organism: gene table}, a csv, tsv or parquet file of ids, symbols and optionally synonyms, or "bionty"
            for the genes of the connected lamindb instance. Genes of an organism without a table are kept by their
            Ensembl-style ids.
        unmatched_genes: Whether to drop genes that the table lacks, or keep them under their own names.
        min_gene_overlap: Minimum fraction of genes that a file shares with its table, relative to the smaller of the
            two.
        counts: Matrix of the counts: "X", "layers/<key>", "raw", or "auto" for the first that holds counts.
        mixed_organisms: Whether to refuse a file with several organisms in obs, or to split it into one output each.
        labels: {obs column: ontologies} of the columns whose labels are standardised. An ontology is a registered
            name, such as "CL", or an OBO or OWL file.
        required: Columns without which a file fails.
        n_mads: Number of median absolute deviations from the median beyond which a cell is an outlier.
        drop_outliers: Whether to drop outliers; they are always flagged.
        min_genes_per_cell: Drop cells with fewer genes.
        min_counts_per_cell: Drop cells with a smaller total count.
        max_pct_mt: Drop cells with a larger percentage of mitochondrial counts; None keeps all.
        min_cells_per_gene: Drop genes that fewer of the kept cells express.
        assays: Keep only cells of these assays and their descendants in EFO, by id or name; empty keeps all.
        primary_only: Drop cells whose ``is_primary_data`` is false; files without this column keep all cells.
        min_cells_per_file: Drop files that are left with fewer cells.
        min_genes_per_file: Drop files that are left with fewer genes.
        before: Hooks ``module:function`` that are applied first, to blocks of cells in the genes of the file.
        after: Hooks that are applied last, to blocks of cells in the genes and with the labels of the output.
        compression: Compression of the output. Uncompressed files are read fastest.
        rules: {pattern of file names, such as "placenta*" or, by folder, "mouse/*": options for these files}; the
            first match applies.
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
            raise ValueError(f"min_gene_overlap must be from 0 to 1, not {self.min_gene_overlap}")
        if not self.n_mads > 0:
            raise ValueError(f"n_mads must be positive, not {self.n_mads}")
        if self.max_pct_mt is not None and not 0 <= self.max_pct_mt <= 100:  # noqa: PLR2004 (percent)
            raise ValueError(f"max_pct_mt must be a percentage from 0 to 100, not {self.max_pct_mt}")
        for name in _NUMBERS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        organisms = [normalise_organism(organism) for organism in self.genes]
        if len(set(organisms)) < len(organisms):
            raise ValueError(f"genes names an organism twice: {', '.join(self.genes)}; keep one table for each")

    def for_file(self, path: str | PathLike[str]) -> Recipe:
        """The part of the recipe that concerns one file: all of it but the rules for other files.

        Its hash identifies how the file was curated, so that a rule for one file does not affect the others.
        """
        rule = next((rule for pattern, rule in self.rules.items() if is_of(pattern, path)), None)
        return replace(self, rules={} if rule is None else {"*": rule})

    @property
    def rule(self) -> Rule:
        """The rule of a recipe `for_file`; an empty one if no rule matches."""
        return self.rules.get("*", Rule())

    @property
    def hash(self) -> str:
        """32 hexadecimal digits that change with everything that can change an output.

        The hash covers the options, the content of gene tables, ontology files and the source of hooks (see
        `hook_files`), the release of the ontologies, and `STEPS`; not the paths of tables and modules.

        Raises:
            FileNotFoundError: a gene table or an ontology file does not exist.
            LookupError: the module of a hook does not exist, or an ontology is not registered.
            ValueError: genes are to be taken from bionty and not yet written to a file.
        """
        parts: dict[str, Any] = asdict(self) | {
            "steps": STEPS,
            "genes": {normalise_organism(organism): _table(path) for organism, path in self.genes.items()},
            "labels": {column: [_ontology(name) for name in names] for column, names in self.labels.items()},
            "hooks": [(hook, [_digest(path) for path in hook_files(hook)]) for hook in (*self.before, *self.after)],
            "rules": [(pattern, asdict(rule)) for pattern, rule in self.rules.items()],
        }
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def is_of(pattern: str, path: str | PathLike[str]) -> bool:
    """Whether a rule of a pattern is for a file."""
    absolute = Path(path).absolute()
    return matches(pattern, name_of(absolute), absolute)


def _table(path: str) -> str:
    if path == BIONTY:
        raise ValueError(
            "the recipe takes genes from bionty, and has no hash until they are written to a file; run it with "
            "scdataloader.lamin.curate_into, or use the recipe that lamin.genes.with_bionty_genes returns"
        )
    return _digest(path)


def _ontology(name: str) -> str:
    return _digest(name) if is_file(name) else fingerprint(name)


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
