"""Numbers of names of genes: what is found about many names at once is what is found about them one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.genes.names import are_ids
from scdataloader.genes.numbers import GeneNumbers
from scdataloader.genes.organisms import infer_organism

NAMES = st.sampled_from(
    [
        *(f"ENSG{i:011}" for i in range(9)),
        *(f"ENSMUSG{i:011}" for i in range(9)),
        "ENSXXXG00000000001",
        "TP53",
        "ENSG1",
        "0",
    ]
)


@given(st.lists(st.lists(NAMES), max_size=4))
def test_numbers_are_those_of_the_names(sources):
    known = GeneNumbers()
    for names in sources:  # the names of later sources are added
        numbers = known.numbers(iter(names))
        assert [known.names[number] for number in numbers] == names
        assert len(known) == len(set(known.names))
        prefixes = known.prefixes(numbers)
        assert (2 * prefixes.get(None, 0) < len(names)) == are_ids(names)
        fits = known.may_be_of("NCBITaxon:9606")[numbers]
        assert fits.tolist() == [infer_organism([name]) in {None, "NCBITaxon:9606"} for name in names]


@given(st.lists(NAMES, min_size=1))
def test_sorted_names_come_with_their_numbers(names):
    known = GeneNumbers()
    ids, numbers = known.sorted(np.unique(known.numbers(names)))
    assert ids == sorted(set(names))
    assert known.numbers(ids).tolist() == numbers.tolist()
