"""Ontologies: terms, what they are called, and what is a kind of what.

A term is named by its id (``CL:0000084``). *Current* terms form a directed graph without cycles, in which a term may
have several parents. *Deprecated* terms have a name and perhaps a replacement, and no place in the graph: to ask for
their ancestors is an error that names the replacement. A term is not its own ancestor or descendant, unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scdataloader.ontology import ontology_queries as queries
from scdataloader.ontology.graph import TermGraph
from scdataloader.ontology.names import TermNames
from scdataloader.ontology.ontology_queries import Subgraph
from scdataloader.ontology.readers import read_bionty, read_guide, read_obo
from scdataloader.ontology.table import TermTable, assembled, united

__all__ = ["Ontology", "Subgraph", "TermTable"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Ontology:
    """Terms with names and parents. Immutable; made with `from_guide`, `from_bionty`, `from_obo` or `from_table`.

    Methods that take ids raise LookupError where the ontology has no such term, and those that ask where a term stands
    raise ValueError where it is deprecated. Lists of ids are sorted.
    """

    name: str
    """What it is called, such as ``CL``."""
    version: str
    """Its release, as its source writes it; empty where the source does not say."""
    _names: TermNames
    _graph: TermGraph

    @classmethod
    def from_guide(cls, name: str, *, schema_version: str | None = None) -> Ontology:
        """An ontology of the CELLxGENE schema, from the wheel of cellxgene-ontology-guide: no network, no instance.

        Args:
            name: ``"CL"``, ``"UBERON"``, ``"MONDO"``, ``"EFO"``, ``"HsapDv"`` and so on, in any case. What the guide
                calls an ancestor (in UBERON also what a term is part of) is one here.
            schema_version: version of the CELLxGENE schema, which names the releases; the newest where not given.

        Raises:
            ValueError: the guide has no such ontology or schema, or it is NCBITaxon.
        """
        return cls.from_table(read_guide(name, schema_version))

    @classmethod
    def from_bionty(cls, registry: Any) -> Ontology:
        """The terms of a registry of the connected lamindb instance, in two queries.

        Records without an ontology id are left out; those named "obsolete …" are deprecated. Where no record has an id,
        the terms are those that ``registry.import_source()`` would save, and nothing is saved.

        Args:
            registry: ``bionty.CellType`` or another registry whose records have parents, or its name.

        Raises:
            RuntimeError: no lamindb instance is connected.
            ConnectionError: the registry is empty, its source has to be fetched, and there is no network.
            TypeError: the records of the registry have no parents.
        """
        return cls.from_table(read_bionty(registry))

    @classmethod
    def from_obo(
        cls, path_or_url: str | Path, *, relations: Sequence[str] = (), prefixes: Sequence[str] | None = None
    ) -> Ontology:
        """A file in OBO, OWL (RDF/XML) or OBO graph (JSON) format, compressed or not.

        Args:
            path_or_url: path of the file, or where to fetch it.
            relations: relations that lead to a parent besides ``is_a``, such as ``["part_of"]``.
            prefixes: keep only terms whose ids begin with one of these, such as ``["CL"]``; all where not given. A way
                up through terms that are left out becomes an edge.

        Raises:
            FileNotFoundError: there is no such file.
            ConnectionError: the file cannot be fetched.
            SourceFormatError: the file is no ontology, or is damaged.
            ValueError: terms are their own ancestors, the file lacks one of ``relations``, or no term is left.
        """
        return cls.from_table(read_obo(path_or_url, relations), prefixes=prefixes)

    @classmethod
    def from_table(cls, table: TermTable, *, prefixes: Sequence[str] | None = None) -> Ontology:
        """An ontology of your own; ``prefixes`` as in `from_obo`."""
        names, graph = assembled(table, prefixes)
        return cls(name=table.name, version=table.version, _names=names, _graph=graph)

    @classmethod
    def union(cls, ontologies: Sequence[Ontology]) -> Ontology:
        """Several ontologies side by side, in whatever order; a term that some share is one, below its parents in each.

        Names and deprecation of such a term are as in the one with the most terms of its prefix.

        Raises:
            ValueError: there is none, or terms are their own ancestors where all edges are taken together.
        """
        if not ontologies:
            raise ValueError("a union of no ontologies has no terms; give at least one")
        parts = [(part._names, part._graph) for part in ontologies]  # noqa: SLF001 (of this class)
        return cls.from_table(united(parts)) if len(parts) > 1 else ontologies[0]

    def __repr__(self) -> str:
        return f"Ontology({self.name!r}, version={self.version!r}, {len(self):,} terms)"

    def __len__(self) -> int:
        return self._names.n_current

    def __contains__(self, term: object) -> bool:
        """Whether ``term`` is the id of a current term."""
        return self._names.is_current(term)

    @property
    def terms(self) -> tuple[str, ...]:
        """Ids of the current terms."""
        return self._names.ids[: len(self)]

    @property
    def deprecated(self) -> tuple[str, ...]:
        """Ids of the deprecated terms."""
        return self._names.ids[len(self) :]

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the ids begin with: ``("CL",)``."""
        return self._names.prefixes

    def label(self, term: str) -> str:
        """The term's name; its id where it has none."""
        return self._names.labels[self._names.number(term)] or term

    def synonyms(self, term: str) -> tuple[str, ...]:
        """The term's exact synonyms."""
        return self._names.synonyms[self._names.number(term)]

    def is_deprecated(self, term: str) -> bool:
        """Whether the term is not to be used any more."""
        return self._names.number(term) >= len(self)

    def replaced_by(self, term: str) -> str | None:
        """What a deprecated term is said to be replaced by, be that deprecated too, or of another ontology."""
        return self._names.replaced_by.get(term) if self.is_deprecated(term) else None

    def current(self, term: str) -> str | None:
        """The term itself, or the current term at the end of its replacements; None where this ontology has none."""
        return self._names.current(term)

    def find(self, text: str) -> str:
        """The id of the term with this id, name or exact synonym, in any case; ``CL_0000084`` is ``CL:0000084``.

        A name goes before another term's synonym, and current terms before deprecated ones, which are found too: see
        `current`.

        Raises:
            LookupError: no term goes by that name (the nearest ids or names are shown), several do (they are shown), or
                it is an id of another ontology.
        """
        return self._names.ids[self._names.find(text)]

    def candidates(self, text: str) -> list[str]:
        """The ids of all terms that ``text`` may name: one where `find` finds it, none or several where it cannot."""
        return [self._names.ids[number] for number in self._names.candidates(text)]

    def parents(self, term: str) -> list[str]:
        """The terms that this one is directly a kind of."""
        return self._ids(self._graph.parents[self._names.node(term)])

    def children(self, term: str) -> list[str]:
        """The terms that are directly a kind of this one."""
        return self._ids(self._graph.children[self._names.node(term)])

    def ancestors(self, term: str, *, include_self: bool = False) -> list[str]:
        """All terms that this one is a kind of."""
        node = self._names.node(term)
        row = self._graph.closure.ancestors[node]
        return self._ids(row if include_self else row[row != node])

    def descendants(self, term: str, *, include_self: bool = False) -> list[str]:
        """All terms that are a kind of this one."""
        node = self._names.node(term)
        row = self._graph.descendants[node]
        return self._ids(row if include_self else row[row != node])

    def leaves(self, term: str | None = None) -> list[str]:
        """The terms without children: all of them, or those among the term and its descendants."""
        ends = self._graph.children.sizes == 0
        row = np.arange(len(self)) if term is None else self._graph.descendants[self._names.node(term)]
        return self._ids(row[ends[row]])

    def roots(self, term: str | None = None) -> list[str]:
        """The terms without parents: all of them, or those among the term and its ancestors."""
        row = np.arange(len(self)) if term is None else self._graph.closure.ancestors[self._names.node(term)]
        return self._ids(row[self._graph.levels[row] == 0])

    def depth(self, term: str) -> int:
        """Edges on the shortest way up to a root: 0 for roots."""
        return int(self._depths[self._names.node(term)])

    def distance(self, first: str, second: str) -> int | None:
        """Edges on the shortest way up from one term and down to the other, by a common ancestor; None without one."""
        return queries.distance(self._graph, self._names.node(first), self._names.node(second))

    def lowest_common_ancestors(self, terms: Iterable[str]) -> list[str]:
        """The common ancestors of all ``terms``, themselves included, that are not above another common ancestor."""
        nodes = np.unique(self._names.nodes(terms))
        return self._ids(queries.lowest(self._graph, queries.common(self._graph, nodes)))

    def roll_up(
        self, terms: Iterable[str], to: Iterable[str] | int, *, ambiguous: Literal["refuse", "nearest"] = "refuse"
    ) -> dict[str, str]:
        """For each of ``terms``, the target that stands for it: its lowest ancestor, or itself, among the targets.

        Args:
            terms: ids.
            to: ids of the targets; or a depth: what is deeper goes up to a term of that depth, the rest stays.
            ambiguous: what to do where several targets are lowest, none of them above another. ``"nearest"`` takes
                the fewest edges away, and of these the one with the smallest id.

        Raises:
            ValueError: a term is under no target, or ambiguous where that is refused.
        """
        targets = self._targets(to)
        chosen: dict[str, str] = {}
        for node in self._names.nodes(terms).tolist():
            lowest, steps = queries.standing_in(self._graph, node, targets)
            if len(lowest) == 0:
                raise ValueError(
                    f"{self._names.shown([node])} is under none of the terms to roll up to, "
                    f"{self._names.shown(np.flatnonzero(targets))}; add one of its ancestors to them, or leave it out"
                )
            if len(lowest) > 1 and ambiguous == "refuse":
                raise ValueError(
                    f"{self._names.shown([node])} is under {len(lowest)} of the terms to roll up to, none above "
                    f"another: {self._names.shown(lowest)}; leave out all but one of them, or take ambiguous='nearest'"
                )
            chosen[self._names.ids[node]] = self._names.ids[lowest[np.argmin(steps)]]
        return chosen

    def information_content(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Resnik's information content, in nats: -log of the share of all that is counted which is a kind of the term.

        Args:
            counts: how often each term occurs. It also counts for each of its ancestors, once however many ways lead
                there.

        Returns:
            ``{term: content}`` of all terms whose share is positive; the others' has no bound.

        Raises:
            ValueError: a count is negative or not finite, or none is positive.
        """
        own = np.zeros(len(self))
        own[self._names.nodes(counts)] = list(counts.values())
        if not np.isfinite(own).all() or own.min() < 0 or own.max() == 0:
            raise ValueError("counts must be finite and not negative, and at least one positive")
        mass = queries.mass(self._graph, own)
        total = math.fsum(own)
        # a sum in another order may come out above the total by a rounding
        return {
            self._names.ids[node]: max(math.log(total / mass[node]), 0.0) for node in np.flatnonzero(mass > 0).tolist()
        }

    def among(self, terms: Iterable[str]) -> NDArray[np.bool_]:
        """``(n, n)`` for n terms: [i, j] is True where term i is an ancestor of term j, or the same."""
        return queries.among(self._graph, self._names.nodes(terms))

    def subgraph(self, terms: Iterable[str]) -> Subgraph:
        """The terms with all their ancestors, and the children of each that are among them."""
        return queries.subgraph(self._graph, self._names.nodes(terms), self._names.ids)

    @cached_property
    def _depths(self) -> NDArray[np.int32]:
        return queries.depths(self._graph)

    def _ids(self, nodes: NDArray[np.integer[Any]]) -> list[str]:
        return [self._names.ids[node] for node in nodes.tolist()]

    def _targets(self, to: Iterable[str] | int) -> NDArray[np.bool_]:
        if isinstance(to, int | np.integer):
            if to < 0:
                raise ValueError(f"cannot roll up to depth {to}; roots have depth 0")
            return self._depths <= to
        targets = np.zeros(len(self), dtype=np.bool_)
        targets[self._names.nodes(to)] = True
        if not targets.any():
            raise ValueError("there is no term to roll up to; name at least one, or a depth")
        return targets
