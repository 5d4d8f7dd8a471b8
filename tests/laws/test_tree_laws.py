"""Laws of the mass that is split down an ontology, on random graphs, in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from term_tables import dags, digraph, even_walk, ontology

from scdataloader.tree import Tree


@st.composite
def counted(draw):
    """A graph, the term of each class (several may have the same), and the cells of each, of which some have none."""
    parents = draw(dags())
    terms = draw(st.lists(st.sampled_from(sorted(parents)), min_size=1, max_size=8))
    counts = draw(st.lists(st.integers(0, 9), min_size=len(terms), max_size=len(terms)).filter(any))
    return parents, terms, np.array(counts, np.int64)


def masses(parents, terms, counts):
    return Tree.of(ontology(parents), terms).mass(counts)


def specification(parents, terms, counts):
    cells = dict.fromkeys(terms, 0)
    for term, n in zip(terms, counts, strict=True):
        cells[term] += int(n)
    walk = even_walk(digraph(parents), cells)
    return [
        walk[term] * Fraction(int(n), cells[term]) if n else Fraction(0) for term, n in zip(terms, counts, strict=True)
    ]


@given(counted())
def test_mass_is_the_chance_of_an_even_walk_down(drawn):
    expected = specification(*drawn)
    assert sum(expected) == 1
    np.testing.assert_allclose(masses(*drawn), [float(mass) for mass in expected], rtol=1e-12)


@given(counted())
def test_masses_sum_to_one_and_are_positive_just_where_there_are_cells(drawn):
    mass = masses(*drawn)
    assert mass.sum() == pytest.approx(1)
    assert ((mass > 0) == (drawn[2] > 0)).all()


@given(counted(), st.integers(2, 1000))
def test_how_many_cells_a_term_has_does_not_matter(drawn, times):
    parents, terms, counts = drawn
    np.testing.assert_allclose(masses(parents, terms, counts * times), masses(*drawn))
    if len(set(terms)) == len(terms):
        np.testing.assert_allclose(masses(parents, terms, np.minimum(counts, 1)), masses(*drawn))


@given(counted())
def test_classes_without_cells_might_as_well_not_be_there(drawn):
    parents, terms, counts = drawn
    kept = counts > 0
    few = [term for term, keep in zip(terms, kept, strict=True) if keep]
    np.testing.assert_allclose(masses(parents, few, counts[kept]), masses(*drawn)[kept])


@given(counted(), st.data())
def test_dividing_a_class_divides_its_mass_and_no_other(drawn, data):
    parents, terms, counts = drawn
    split = data.draw(st.integers(0, len(terms) - 1))
    part = data.draw(st.integers(0, int(counts[split])))
    finer = np.append(counts, part)
    finer[split] -= part
    mass = masses(parents, [*terms, terms[split]], finer)
    mass[split] += mass[-1]
    np.testing.assert_allclose(mass[:-1], masses(*drawn), atol=1e-12)
