"""Laws of unions: each ontology keeps its answers, and a column of one ontology its codes."""

from __future__ import annotations

from itertools import permutations

import networkx as nx
import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from scdataloader.labels.hierarchy import Hierarchy
from scdataloader.labels.roll_up import RollUp
from scdataloader.ontology.ontology import Ontology
from scdataloader.sampling.weights import Tree, with_below
from tests.ontology.term_tables import dags, ontology

SHORT = {"HsapDv": Ontology.from_guide("HsapDv"), "MmusDv": Ontology.from_guide("MmusDv")}


def with_prefix(parents, prefix):
    """The graph with another prefix."""

    def renamed(term):
        return term.replace("T:", f"{prefix}:")

    return {renamed(term): [renamed(above) for above in over] for term, over in parents.items()}


@st.composite
def apart(draw):
    """Two graphs without a common term; the ids of the second sort before or after those of the first."""
    return draw(dags()), with_prefix(draw(dags()), draw(st.sampled_from(["A", "U"])))


@st.composite
def sharing(draw):
    """Two or three ontologies of one prefix with common terms, some deprecated, and no cycle in the union."""
    whole = draw(dags())
    parts = []
    for _ in range(draw(st.integers(2, 3))):
        terms = sorted(draw(st.sets(st.sampled_from(sorted(whole)), min_size=1)))
        edges = {term: [up for up in whole[term] if up in terms and draw(st.booleans())] for term in terms}
        parts.append(
            ontology(
                edges,
                name=draw(st.sampled_from("ab")),
                deprecated=draw(st.sets(st.sampled_from(terms), max_size=len(terms) - 1)),
                labels={term: draw(st.sampled_from(["x", "y", ""])) for term in terms},
            )
        )
    return parts


def answers(o):
    """All answers of an ontology."""
    said = [(term, o.label(term), o.synonyms(term), o.replaced_by(term)) for term in (*o.terms, *o.deprecated)]
    return o.name, o.version, o.terms, said, [(o.parents(term), o.ancestors(term), o.depth(term)) for term in o.terms]


def column(counts):
    return pd.Series([term for term, n in counts.items() for _ in range(n)], dtype=object)


def some_cells(draw, parents):
    terms = draw(st.lists(st.sampled_from(sorted(parents)), min_size=1, unique=True))
    return {term: draw(st.integers(1, 6)) for term in terms}


roll_ups = st.one_of(
    st.none(), st.builds(RollUp, depth=st.integers(0, 3)), st.builds(RollUp, min_cells=st.integers(1, 9))
)


@given(apart())
def test_without_common_terms_all_that_each_says_holds_and_nothing_more(drawn):
    parts = [ontology(parents) for parents in drawn]
    union = Ontology.union(parts)
    assert union.terms == tuple(sorted(parts[0].terms + parts[1].terms))
    for part in parts:
        for term in part.terms:
            asked = ("parents", "ancestors", "descendants", "depth", "label", "synonyms")
            for question in asked:
                assert getattr(union, question)(term) == getattr(part, question)(term)
    assert not union.ancestor_matrix([*parts[0].terms, *parts[1].terms])[: len(parts[0]), len(parts[0]) :].any()


@given(sharing())
def test_a_common_term_is_one_and_is_below_all_that_it_is_below_in_any(parts):
    union = Ontology.union(parts)
    ids = {term for part in parts for term in (*part.terms, *part.deprecated)}
    assert sorted((*union.terms, *union.deprecated)) == sorted(ids)
    graph = nx.DiGraph((up, term) for part in parts for term in part.terms for up in part.parents(term))
    graph.add_nodes_from(ids)
    for term in union.terms:
        assert union.ancestors(term) == sorted(nx.ancestors(graph, term) & set(union.terms))


@given(sharing())
def test_names_and_deprecation_of_a_common_term_are_of_the_ontology_with_most_terms_of_its_prefix(parts):
    union = Ontology.union(parts)
    for term in (*union.terms, *union.deprecated):
        knows = {part: len(part.terms + part.deprecated) for part in parts if term in part.terms + part.deprecated}
        most = [part for part, n in knows.items() if n == max(knows.values())]
        said = {(part.label(term), part.is_deprecated(term)) for part in most}
        assert (union.label(term), union.is_deprecated(term)) in said


@given(sharing())
def test_the_order_of_ontologies_does_not_matter(parts):
    said = [answers(Ontology.union(order)) for order in permutations(parts)]
    assert all(other == said[0] for other in said)


@given(apart(), st.data(), roll_ups)
def test_a_column_of_one_ontology_is_encoded_as_if_it_were_alone(drawn, data, roll_up):
    parents, others = drawn
    counts = some_cells(data.draw, parents)
    alone = Hierarchy.fit("x", [column(counts)], ontology=ontology(parents), roll_up=roll_up).encoder
    beside = [ontology(others, name="other"), ontology(parents)]
    both = Hierarchy.fit("x", [column(counts)], ontology=beside, roll_up=roll_up)
    assert both.encoder.to_dict() | {"ontology": "toy"} == alone.to_dict()
    assert both.encoder == both.with_codes(alone.encoder)
    terms, cells = list(counts), np.array(list(counts.values()), np.int64)
    weight = Tree.of(ontology(parents), terms).weights(cells)
    np.testing.assert_array_equal(Tree.of(both.ontology, terms).weights(cells), weight)


@given(apart(), st.data(), roll_ups)
def test_labels_of_two_ontologies_are_encoded_as_those_of_each_and_nothing_is_above_the_others(drawn, data, roll_up):
    columns = [some_cells(data.draw, parents) for parents in drawn]
    each = [
        Hierarchy.fit("x", [column(counts)], ontology=ontology(parents), roll_up=roll_up).encoder
        for parents, counts in zip(drawn, columns, strict=True)
    ]
    parts = [ontology(parents, name=name) for parents, name in zip(drawn, "ab", strict=True)]
    both = Hierarchy.fit("x", map(column, columns), ontology=parts, roll_up=roll_up).encoder
    assert both == Hierarchy.fit("x", map(column, columns), ontology=parts[::-1], roll_up=roll_up).encoder
    assert both.classes == tuple(sorted(each[0].classes + each[1].classes))
    assert both.inner == tuple(sorted(each[0].inner + each[1].inner))
    assert both.mapped == each[0].mapped | each[1].mapped

    def below(encoder):
        return {
            term: [encoder.classes[code] for code in codes]
            for term, codes in zip(encoder.inner, encoder.leaves, strict=True)
        }

    assert below(both) == below(each[0]) | below(each[1])


@given(apart(), st.data())
def test_draws_are_split_evenly_among_the_roots_of_all(drawn, data):
    parts, columns = [ontology(parents) for parents in drawn], [some_cells(data.draw, parents) for parents in drawn]
    weights, n_roots = [], []
    for part, counts in zip(parts, columns, strict=True):
        tree, cells = Tree.of(part, list(counts)), np.array(list(counts.values()), np.int64)
        weights.append(tree.weights(cells))
        above = tree.parents(cells)
        n_roots.append(np.count_nonzero(with_below(tree.own(cells), above)[above < 0]))
    expected = np.concatenate([weight * n / sum(n_roots) for weight, n in zip(weights, n_roots, strict=True)])
    together = columns[0] | columns[1]
    tree = Tree.of(Ontology.union(parts), list(together))
    np.testing.assert_allclose(tree.weights(np.array(list(together.values()), np.int64)), expected, rtol=1e-12)


@settings(max_examples=15)
@given(st.data())
def test_where_none_is_named_the_ids_say_which_as_if_all_of_them_were(data):
    terms = st.sampled_from([term for part in SHORT.values() for term in part.terms])
    values = pd.Series(data.draw(st.lists(terms, min_size=1, max_size=9)))
    used = {term.partition(":")[0] for term in values}
    found = Hierarchy.fit("x", [values]).encoder
    named = [SHORT[name] for name in data.draw(st.permutations(sorted(used)))]
    assert found == Hierarchy.fit("x", [values], ontology=named).encoder
