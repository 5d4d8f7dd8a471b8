"""From files as they were downloaded to validated ones: counts, genes, quality, labels."""

from scdataloader.curate.curator import Curator
from scdataloader.curate.outcome import Outcome
from scdataloader.curate.recipe import Recipe, Rule

__all__ = ["Curator", "Outcome", "Recipe", "Rule"]
