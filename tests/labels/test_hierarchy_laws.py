"""Laws L1, L2 and L4 of labels that are terms of an ontology, on random graphs, against networkx."""

from __future__ import annotations

import networkx as nx
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.labels.encoder import LabelEncoder
from scdataloader.labels.hierarchy import Hierarchy
from scdataloader.labels.roll_up import RollUp
from tests.ontology.term_tables import dags, digraph, ontology


@st.composite
def labelled(draw):
    """A graph, and a column of its terms: {term: cells}."""
    parents = draw(dags())
    terms = draw(st.lists(st.sampled_from(sorted(parents)), min_size=1, unique=True))
    return parents, {term: draw(st.integers(1, 6)) for term in terms}


def column(counts):
    return pd.Series([term for term, n in counts.items() for _ in range(n)])


def fit(parents, counts, **options):
    return Hierarchy.fit("x", [column(counts)], ontology=ontology(parents), **options).encoder


@given(labelled())
def test_l2_leaves_first_then_inner_terms_each_with_its_leaves(drawn):
    parents, counts = drawn
    graph = digraph(parents)
    encoder = fit(parents, counts)
    below = {term: nx.descendants(graph, term) & set(counts) for term in counts}
    assert encoder.classes == tuple(sorted(term for term in counts if not below[term]))
    assert encoder.inner == tuple(sorted(term for term in counts if below[term]))
    for row, term, codes in zip(encoder.membership, encoder.inner, encoder.leaves, strict=True):
        assert [encoder.decoder[code] for code in codes] == sorted(below[term] & set(encoder.classes))
        assert row.nonzero()[0].tolist() == list(codes)
        assert encoder.hierarchy[encoder.encoder[term]] == list(codes)
    values = column(counts)
    assert [encoder.decoder[code] for code in encoder.encode(values).tolist()] == values.tolist()
    assert LabelEncoder.from_dict(encoder.to_dict()) == encoder


@given(labelled(), st.randoms(use_true_random=False))
def test_l1_order_and_sources_do_not_matter(drawn, random):
    parents, counts = drawn
    values = column(counts).tolist()
    random.shuffle(values)
    cut = random.randrange(len(values) + 1)
    parts = [pd.Series(part, dtype=object).astype("category") for part in (values[:cut], values[cut:])]
    assert Hierarchy.fit("x", parts, ontology=ontology(parents)).encoder == fit(parents, counts)


@given(labelled(), st.data())
def test_deprecated_terms_are_encoded_as_what_replaces_them(drawn, data):
    parents, counts = drawn
    replaced = {f"T:{100 + n}": term for n, term in enumerate(sorted(counts)) if data.draw(st.booleans())}
    o = ontology(parents | {old: [] for old in replaced}, deprecated=list(replaced), replaced_by=replaced)
    old = {term: name for name, term in replaced.items()}
    values = column({old.get(term, term): n for term, n in counts.items()})
    encoder = Hierarchy.fit("x", [values], ontology=o).encoder
    assert encoder.encoder == fit(parents, counts).encoder
    assert encoder.encode(values).tolist() == encoder.encode(column(counts)).tolist()


@given(labelled(), st.integers(1, 12))
def test_rolled_up_until_every_class_has_enough_cells_and_no_further(drawn, n):
    parents, counts = drawn
    graph = digraph(parents)
    encoder = fit(parents, counts, roll_up=RollUp(min_cells=n))
    classes = {term: encoder.mapped.get(term, term) for term in counts}
    cells = dict.fromkeys(encoder.labels, 0)
    for term, to in classes.items():
        assert to == term or to in nx.ancestors(graph, term)
        cells[to] += counts[term]
    for leaf in encoder.classes:
        assert cells[leaf] >= n or not parents[leaf]
    for term, to in classes.items():
        if to != term:  # a term that was left had too few cells, and no class below it
            under = nx.descendants(graph, term) | {term}
            assert sum(counts[t] for t, c in classes.items() if t in under and c == to and t != to) < n or parents[to]
            assert not (set(encoder.labels) & under)
            assert counts[term] < n


@given(labelled(), st.integers(0, 4))
def test_rolled_up_to_a_depth_nothing_is_deeper(drawn, depth):
    parents, counts = drawn
    o = ontology(parents)
    encoder = fit(parents, counts, roll_up=RollUp(depth=depth))
    assert all(o.depth(term) <= depth for term in encoder.labels)
    assert all(term in encoder.labels for term in counts if o.depth(term) <= depth)


@given(labelled(), st.data())
def test_rolled_up_to_terms_labels_stand_at_a_target_or_under_none(drawn, data):
    parents, counts = drawn
    graph = digraph(parents)
    target = data.draw(st.sampled_from(sorted(parents)))
    under = {term for term in counts if term == target or target in nx.ancestors(graph, term)}
    if not under:
        with pytest.raises(ValueError, match="none of the"):
            fit(parents, counts, roll_up=RollUp(terms=[target]))
        return
    encoder = fit(parents, counts, roll_up=RollUp(terms=[target]))
    for term in counts:
        assert encoder.mapped.get(term, term) == (target if term in under else term)


@given(labelled(), labelled())
def test_l4_encoders_from_outside_keep_their_codes(drawn, other):
    parents, counts = drawn
    trained = fit(parents, counts)
    later = {term: n for term, n in other[1].items() if term in parents} or counts
    hierarchy = Hierarchy.fit("x", [column(later)], ontology=ontology(parents))
    assert hierarchy.with_codes(trained.encoder) == trained
    unseen = [term for term in later if term not in counts]
    assert trained.unseen(column(later)) == {term: later[term] for term in unseen}
    codes = trained.encode(column(later)).tolist()
    assert [code == -1 for code in codes] == [term in unseen for term in column(later)]
