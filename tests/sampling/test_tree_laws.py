"""Laws of the weight that is split down an ontology, on random graphs, against sets and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scdataloader.sampling.weights import Tree
from tests.ontology.term_tables import dags, digraph, even_split, ontology, placed


@st.composite
def counted(draw):
    """A graph, the term of each class (several may have the same), and the cells of each, of which some have none."""
    parents = draw(dags())
    terms = draw(st.lists(st.sampled_from(sorted(parents)), min_size=1, max_size=8))
    counts = draw(st.lists(st.integers(0, 9), min_size=len(terms), max_size=len(terms)).filter(any))
    return parents, terms, np.array(counts, np.int64)


def weights(parents, terms, counts):
    return Tree.of(ontology(parents), terms).weights(counts)


def cells_of(terms, counts):
    cells = dict.fromkeys(terms, 0)
    for term, n in zip(terms, counts, strict=True):
        cells[term] += int(n)
    return cells


def placed_here(parents, terms, counts):
    """The same for every term as `Tree` has it."""
    tree = Tree.of(ontology(parents), terms)
    above = tree.parents(counts).tolist()
    names = tree.graph.terms
    return {term: names[at] if at >= 0 else None for term, at in zip(names, above, strict=True)}


def n_at_or_below(parents, term, terms, counts):
    """How many terms with cells a term is above, itself included."""
    return len(
        {other for other, n in cells_of(terms, counts).items() if n} & {term, *nx.descendants(digraph(parents), term)}
    )


@given(counted())
def test_every_term_is_placed_below_the_most_specific_parent(drawn):
    parents, terms, counts = drawn
    expected = placed(digraph(parents), cells_of(terms, counts))
    found = placed_here(*drawn)
    assert found == {term: expected[term] for term in found}
    assert all(above in parents[term] if parents[term] else above is None for term, above in found.items())


@given(counted())
def test_weight_is_split_evenly_down_the_path_to_each_class(drawn):
    parents, terms, counts = drawn
    cells = cells_of(terms, counts)
    split = even_split(digraph(parents), cells)
    assert sum(split.values()) == 1
    expected = [split[term] * Fraction(int(n), cells[term]) if n else 0 for term, n in zip(terms, counts, strict=True)]
    np.testing.assert_allclose(weights(*drawn), [float(weight) for weight in expected], rtol=1e-12)


@given(counted(), st.data())
def test_a_parent_above_one_of_the_parents_changes_nothing(drawn, data):
    parents, terms, counts = drawn
    graph = digraph(parents)
    further = [
        (term, above) for term in sorted(parents) for above in sorted(nx.ancestors(graph, term) - set(parents[term]))
    ]
    assume(further)
    term, above = data.draw(st.sampled_from(further))
    more = parents | {term: [*parents[term], above]}
    assert placed_here(more, terms, counts) == placed_here(*drawn)
    np.testing.assert_array_equal(weights(more, terms, counts), weights(*drawn))


@given(counted(), st.data())
def test_a_further_parent_that_is_above_more_does_not_move_a_term(drawn, data):
    parents, terms, counts = drawn
    before, graph = placed_here(*drawn), digraph(parents)
    further = [
        (term, above)
        for term in sorted(before)
        for above in sorted(set(parents) - nx.descendants(graph, term) - {term, *parents[term]})
        if before[term]
    ]
    assume(further)
    term, above = data.draw(st.sampled_from(further))
    more = parents | {term: [*parents[term], above]}
    n_above, n_before = (n_at_or_below(more, other, terms, counts) for other in (above, before[term]))
    moved = placed_here(more, terms, counts)[term] != before[term]
    assert not (moved and n_above > n_before)


@given(counted())
def test_weights_sum_to_one_and_are_positive_just_where_there_are_cells(drawn):
    weight = weights(*drawn)
    assert weight.sum() == pytest.approx(1)
    assert ((weight > 0) == (drawn[2] > 0)).all()


@given(counted(), st.integers(2, 1000))
def test_the_number_of_cells_of_a_term_does_not_matter(drawn, times):
    parents, terms, counts = drawn
    np.testing.assert_allclose(weights(parents, terms, counts * times), weights(*drawn))
    if len(set(terms)) == len(terms):
        np.testing.assert_allclose(weights(parents, terms, np.minimum(counts, 1)), weights(*drawn))


@given(counted())
def test_classes_without_cells_have_no_effect(drawn):
    parents, terms, counts = drawn
    kept = counts > 0
    few = [term for term, keep in zip(terms, kept, strict=True) if keep]
    np.testing.assert_allclose(weights(parents, few, counts[kept]), weights(*drawn)[kept])


@given(counted(), st.data())
def test_dividing_a_class_divides_its_weight_and_no_other(drawn, data):
    parents, terms, counts = drawn
    split = data.draw(st.integers(0, len(terms) - 1))
    part = data.draw(st.integers(0, int(counts[split])))
    finer = np.append(counts, part)
    finer[split] -= part
    weight = weights(parents, [*terms, terms[split]], finer)
    weight[split] += weight[-1]
    np.testing.assert_allclose(weight[:-1], weights(*drawn), atol=1e-12)
