"""Queries of a hierarchy equal those of networkx, or the definition, on random acyclic graphs."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.ontology.ontology import Ontology
from tests.ontology.term_tables import dags, digraph, ontology, table


@given(dags())
def test_lists_of_terms_are_those_of_networkx_sorted(parents):
    terms, graph = ontology(parents), digraph(parents)
    assert terms.terms == tuple(sorted(parents))
    for term in parents:
        assert terms.parents(term) == sorted(graph.predecessors(term))
        for own, reference in ((terms.ancestors, nx.ancestors), (terms.descendants, nx.descendants)):
            assert own(term) == sorted(reference(graph, term))
            assert own(term, include_self=True) == sorted(reference(graph, term) | {term})


@given(dags())
def test_depth_is_the_shortest_path_to_a_root(parents):
    terms, graph = ontology(parents), digraph(parents)
    for term in parents:
        steps = nx.single_source_shortest_path_length(graph.reverse(copy=False), term)
        assert terms.depth(term) == min(n for other, n in steps.items() if graph.in_degree(other) == 0)


@given(dags(), st.data())
def test_the_ancestor_matrix_is_in_the_order_given(parents, data):
    some = data.draw(st.lists(st.sampled_from(sorted(parents)), max_size=6))
    graph = digraph(parents)
    matrix = ontology(parents).ancestor_matrix(some)
    assert matrix.shape == (len(some), len(some))
    assert matrix.tolist() == [[i == j or i in nx.ancestors(graph, j) for j in some] for i in some]


@given(dags(), st.data())
def test_a_subgraph_is_the_terms_with_all_that_is_above_and_nothing_else(parents, data):
    some = data.draw(st.lists(st.sampled_from(sorted(parents)), max_size=6))
    graph = digraph(parents)
    part = graph.subgraph(set(some).union(*(nx.ancestors(graph, term) for term in some)))
    sub = ontology(parents).subgraph(some)
    assert sorted(sub.terms) == sorted(part)
    place = {term: number for number, term in enumerate(sub.terms)}
    for number, term in enumerate(sub.terms):
        assert list(sub.parents[number]) == sorted(place[parent] for parent in graph.predecessors(term))
        assert all(parent < number for parent in sub.parents[number])
        assert {sub.terms[above] for above in sub.ancestors[number]} == nx.ancestors(graph, term) | {term}
    longest = {term: len(nx.dag_longest_path(graph.subgraph(nx.ancestors(graph, term) | {term}))) - 1 for term in part}
    assert list(zip(sub.levels, sub.terms, strict=True)) == sorted((longest[term], term) for term in part)


@given(dags(), st.data())
def test_terms_roll_up_to_the_lowest_target_above(parents, data):
    terms, graph = ontology(parents), digraph(parents)
    targets = data.draw(st.sets(st.sampled_from(sorted(parents)), min_size=1, max_size=4))
    for term in parents:
        above = targets & (nx.ancestors(graph, term) | {term})
        lowest = {target for target in above if not nx.descendants(graph, target) & above}
        if len(lowest) == 1:
            assert terms.roll_up([term], targets) == {term: lowest.pop()}
            continue
        with pytest.raises(ValueError, match="under none of" if not lowest else f"under {len(lowest)} targets"):
            terms.roll_up([term], targets)
        if lowest:
            nearest = min(lowest, key=lambda target: (nx.shortest_path_length(graph, target, term), target))
            assert terms.roll_up([term], targets, ambiguous="nearest") == {term: nearest}


@given(dags(), st.integers(0, 4))
def test_to_roll_up_to_a_depth_is_to_roll_up_to_all_terms_of_that_depth_or_less(parents, depth):
    terms = ontology(parents)
    rolled = terms.roll_up(terms.terms, depth, ambiguous="nearest")
    assert list(rolled) == list(terms.terms)
    for term, target in rolled.items():
        assert target == term if terms.depth(term) <= depth else terms.depth(target) == depth
        assert target in terms.ancestors(term, include_self=True)


@given(dags(), st.data())
def test_terms_that_are_taken_out_leave_their_ways_behind_and_no_shortcuts(parents, data):
    out = {term for term in sorted(parents)[1:] if data.draw(st.booleans())}
    graph, kept = digraph(parents), sorted(parents.keys() - out)
    terms = ontology(parents, deprecated=out)
    assert list(terms.terms) == kept
    for term in kept:
        above = nx.ancestors(graph, term) - out
        assert terms.ancestors(term) == sorted(above)
        direct = {parent for parent in parents[term] if parent not in out}
        new = set(terms.parents(term)) - direct
        assert direct <= set(terms.parents(term)) <= above
        # an edge that stands for a way through others is there only where nothing else leads up
        assert not any(other in terms.ancestors(parent) for other in new for parent in terms.parents(term))


@given(dags(), st.data())
def test_known_ancestors_complete_edges_that_do_not_tell_them(parents, data):
    graph = digraph(parents)
    ancestry = {term: nx.ancestors(graph, term) for term in parents}
    fewer = {term: [other for other in above if data.draw(st.booleans())] for term, above in parents.items()}
    terms = Ontology.from_table(table(fewer, ancestry=ancestry))
    assert {term: terms.ancestors(term) for term in parents} == {
        term: sorted(nx.ancestors(graph, term)) for term in parents
    }
    assert all(set(fewer[term]) <= set(terms.parents(term)) for term in parents)


@given(dags(), st.data())
def test_a_cycle_is_refused_with_its_terms(parents, data):
    graph = digraph(parents)
    pairs = [(term, other) for term in parents for other in nx.ancestors(graph, term)]
    if not pairs:
        return
    low, high = data.draw(st.sampled_from(sorted(pairs)))
    parents = parents | {high: [*parents[high], low]}
    with pytest.raises(ValueError, match=r"toy has a cycle of terms and their parents: ") as error:
        ontology(parents)
    steps = str(error.value).partition("parents: ")[2].partition(";")[0].split(" → ")
    ids = [step.partition(" ")[0] for step in steps]
    assert ids[0] == ids[-1]
    assert len(set(ids)) == len(ids) - 1
    assert all(parent in parents[child] for child, parent in pairwise(ids))
