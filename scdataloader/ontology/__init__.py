"""Ontologies of labels: terms, their names, and their hierarchy."""

from scdataloader.ontology.graph import Subgraph
from scdataloader.ontology.locate import open_ontology
from scdataloader.ontology.names import Match
from scdataloader.ontology.ontology import Ontology
from scdataloader.ontology.table import TermTable

__all__ = ["Match", "Ontology", "Subgraph", "TermTable", "open_ontology"]
