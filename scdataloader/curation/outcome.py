"""What became of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["kept", "dropped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one file; of a file that was split by organism, of each part."""

    source: str
    """The file as named by the user."""
    content: str
    """Hash of the file's content: 32 hexadecimal digits; empty where it could not be read."""
    recipe: str
    """`Recipe.hash` of the recipe as far as it concerns the file: see `Recipe.for_file`."""
    status: Status
    """Kept: ``output`` was written. Dropped: nothing worth keeping was left. Failed: it could not be curated."""
    reason: str
    """Why it was dropped or failed, in one line; empty where kept."""
    n_cells_in: int
    """Cells of the file; of a part, those of its organism."""
    n_cells_out: int
    """Cells of ``output``."""
    n_genes_in: int
    """Genes of the file, as it numbers them."""
    n_genes_out: int
    """Genes of ``output``."""
    output: Path | None
    """The curated .h5ad file; None unless kept."""
    labels: dict[str, list[str]]
    """{obs column: the distinct standardised ids in ``output``, sorted}; without "unknown"."""
    organism: str
    """NCBITaxon id; empty where the file failed before it was known."""
    seconds: float
    """Time that it took."""
    notes: tuple[str, ...] = ()
    """What was changed or left out on the way, with counts, a line each."""
