"""From files as they were downloaded to validated ones: counts, genes, quality, labels."""

from scdataloader.curation.curator import Curator
from scdataloader.curation.recipe import Recipe, Rule
from scdataloader.curation.report import Outcome

__all__ = ["Curator", "Outcome", "Recipe", "Rule"]
