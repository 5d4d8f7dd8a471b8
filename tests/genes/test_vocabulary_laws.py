"""Laws G1 to G4: what a map onto a vocabulary does to counts, and what a vocabulary depends on."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.errors import GeneOverlapError
from scdataloader.genes.vocabulary import GeneVocabulary

NAMES = [f"ENSG{number:011d}" for number in range(8)] + ["GFP", "AC01.2"]
ORGANISMS = ["human", "mouse", "worm"]
names = st.sampled_from(NAMES)


@given(st.lists(names, unique=True, min_size=1), st.lists(names, min_size=1), st.data())
def test_g1_reading_through_the_map_equals_reindexing_with_repeats_summed(wanted, source, data):
    suffixes = data.draw(st.lists(st.sampled_from(["", ".1", ".27"]), min_size=len(source), max_size=len(source)))
    written = [name + (end if name.startswith("ENSG") else "") for name, end in zip(source, suffixes, strict=True)]
    vocabulary = GeneVocabulary.from_dict({"human": wanted})
    # the counts name their own gene: a power of two for each, so that any sum tells what is in it
    counts = 2.0 ** np.arange(len(source))
    expected = pd.Series(counts, index=source).groupby(level=0).sum().reindex(wanted, fill_value=0.0).to_numpy()
    try:
        genes = vocabulary.map(written, "human", source="s")
    except GeneOverlapError:
        assert not set(source) & set(wanted)
        return
    inside = genes.lut >= 0
    got = np.zeros(len(wanted))
    np.add.at(got, genes.lut[inside], counts[inside])
    np.testing.assert_array_equal(got, expected)
    # G2: a gene is measured if the source has it, whatever its counts
    np.testing.assert_array_equal(genes.measured, expected > 0)
    assert genes.n_matched == len(set(source) & set(wanted))
    assert genes.n_dropped == sum(name not in wanted for name in source)
    assert list(genes.duplicates) == [name for name in wanted if source.count(name) > 1]
    assert genes.monotone == all(np.diff(genes.lut[inside]) > 0)


@given(st.lists(names, unique=True, min_size=1), st.lists(names, min_size=1), st.floats(0, 1))
def test_g3_a_source_is_refused_exactly_below_the_overlap_asked_for(wanted, source, min_overlap):
    n_shared = len(set(wanted) & set(source))
    enough = n_shared > 0 and n_shared / min(len(set(source)), len(wanted)) >= min_overlap
    try:
        GeneVocabulary.from_dict({"human": wanted}).map(source, "human", source="s", min_overlap=min_overlap)
    except GeneOverlapError:
        assert not enough
    else:
        assert enough


@given(st.lists(st.tuples(st.lists(st.integers(0, 9)), st.sampled_from(ORGANISMS)), max_size=5), st.randoms())
def test_g4_a_union_depends_on_the_set_of_genes_alone_and_keeps_organisms_apart(sources, random):
    named = [([f"{organism}{number}" for number in numbers], organism) for numbers, organism in sources]
    vocabulary = GeneVocabulary.union(named)
    shuffled = [(random.sample(ids, len(ids)) * 2, organism) for ids, organism in random.sample(named, len(named))]
    assert GeneVocabulary.union(shuffled) == vocabulary
    assert GeneVocabulary.union(shuffled).digest == vocabulary.digest
    assert list(vocabulary.organisms) == sorted(vocabulary.organisms)
    assert [name for ids in vocabulary.genes_dict.values() for name in ids] == vocabulary.ids
    for ids, organism in named:
        if ids:
            genes = vocabulary.map(ids, organism, source="s")
            assert [vocabulary.ids[number] for number in genes.lut] == ids
            start, stop = vocabulary.organisms[genes.organism]
            assert ((genes.lut >= start) & (genes.lut < stop)).all()
            assert vocabulary.map(sorted(set(ids)), organism, source="s").monotone


@given(st.lists(st.lists(names, unique=True), min_size=2, max_size=2))
def test_digests_differ_exactly_where_vocabularies_do(both):
    first, second = (GeneVocabulary.from_dict({"human": ids}) for ids in both)
    assert (first.digest == second.digest) == (both[0] == both[1])
    # the border between organisms counts too
    if len(both[0]) > 1:
        parts = [{"human": both[0][:cut], "mouse": both[0][cut:]} for cut in range(len(both[0]))]
        assert len({GeneVocabulary.from_dict(part).digest for part in parts}) == len(parts)
