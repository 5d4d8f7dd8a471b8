"""Answers about small hierarchies, by hand, and questions that have none; laws: laws/test_ontology_laws.py."""

from __future__ import annotations

import math
import pickle
from itertools import combinations

import pytest

from scdataloader.ontology.ontology import Ontology
from tests.ontology.term_tables import ontology, table

# A diamond with a tail beside the way, and a lone term:
#       1        7
#      / \
#     2   3
#      \ / \
#       4   5
#       |
#       6
DIAMOND = {"T:1": [], "T:2": ["T:1"], "T:3": ["T:1"], "T:4": ["T:2", "T:3"], "T:5": ["T:3"], "T:6": ["T:4"], "T:7": []}


def test_content_of_the_diamond():
    content = ontology(DIAMOND).information_content({"T:6": 2, "T:5": 1, "T:2": 1})
    assert content == {
        "T:1": 0.0,  # everything is under it, by one way or two
        "T:2": pytest.approx(math.log(4 / 3)),
        "T:3": pytest.approx(math.log(4 / 3)),
        "T:4": pytest.approx(math.log(2)),
        "T:5": pytest.approx(math.log(4)),
        "T:6": pytest.approx(math.log(2)),
    }


def test_content_is_never_below_zero_by_a_rounding():
    # 0.1 + 0.2 + 0.3 in this order is more than the nearest number to their sum
    content = ontology(DIAMOND).information_content({"T:1": 0.1, "T:2": 0.2, "T:3": 0.3})
    assert content["T:1"] == 0.0


@pytest.mark.parametrize("counts", [{}, {"T:1": 0}, {"T:1": -1, "T:2": 3}, {"T:1": math.nan}, {"T:1": math.inf}])
def test_counts_that_give_no_shares_are_refused(counts):
    with pytest.raises(ValueError, match="counts must be finite and not negative, and at least one positive"):
        ontology(DIAMOND).information_content(counts)


def test_the_diamond_by_hand():
    terms = ontology(DIAMOND)
    assert len(terms) == 7
    assert "T:1" in terms
    assert "T:9" not in terms
    assert 1 not in terms
    assert repr(terms) == "Ontology('toy', version='', 7 terms)"
    assert terms.lowest_common_ancestors(["T:6", "T:5"]) == ["T:3"]
    assert terms.lowest_common_ancestors(["T:6", "T:7"]) == []
    assert terms.lowest_common_ancestors([]) == []
    assert terms.distance("T:2", "T:5") == 3
    assert terms.distance("T:7", "T:5") is None
    assert terms.roll_up(["T:6", "T:5", "T:7"], 1, ambiguous="nearest") == {"T:6": "T:2", "T:5": "T:3", "T:7": "T:7"}
    sub = terms.subgraph(["T:4", "T:1"])
    assert sub.terms == ("T:1", "T:2", "T:3", "T:4")
    assert sub.given.tolist() == [True, False, False, True]
    assert sub.indptr.tolist() == [0, 2, 3, 4, 4]
    assert sub.children.tolist() == [1, 2, 3, 3]
    assert sub.n_parents.tolist() == [0, 1, 1, 2]


def test_a_chain_as_long_as_none_is_real_takes_no_recursion():
    ids = [f"T:{number:05}" for number in range(3000)]
    terms = ontology({term: ids[place : place + 1] for place, term in enumerate(ids[1:])} | {ids[0]: []})
    assert terms.ancestors(ids[-1]) == ids[:-1]
    assert terms.depth(ids[-1]) == 2999
    assert terms.distance(ids[0], ids[-1]) == 2999


def test_that_a_term_is_a_kind_of_itself_goes_without_saying():
    assert ontology({"T:1": ["T:1"], "T:2": ["T:1", "T:1"]}).parents("T:2") == ["T:1"]
    assert ontology({"T:1": ["T:1"]}).roots() == ["T:1"]


def test_it_cannot_be_changed_and_can_be_sent_to_another_process():
    terms = ontology(DIAMOND)
    with pytest.raises(AttributeError):
        terms.name = "other"
    terms.ancestors("T:6").clear()
    copy = pickle.loads(pickle.dumps(terms))
    for first, second in combinations(terms.terms, 2):
        assert terms.distance(first, second) == copy.distance(first, second)
    assert copy.ancestors("T:6") == terms.ancestors("T:6") == ["T:1", "T:2", "T:3", "T:4"]


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda o: o.roll_up(["T:6"], []), ValueError, "there is no term to roll up to; name at least one"),
        (lambda o: o.roll_up(["T:6"], -1), ValueError, "cannot roll up to depth -1; roots have depth 0"),
        (
            lambda o: o.roll_up(["T:6", "T:7"], ["T:4"]),
            ValueError,
            r"T:7 \(term 7\) is under none of the terms to roll up to, T:4 \(term 4\); add one of its ancestors",
        ),
        (
            lambda o: o.roll_up(["T:6"], ["T:2", "T:3", "T:1"]),
            ValueError,
            r"T:6 \(term 6\) is under 2 of .*none above another: T:2 \(term 2\), T:3 \(term 3\); .*ambiguous='nearest'",
        ),
        (lambda o: o.among("T:6"), TypeError, r"expected ids of terms, got the text 'T:6'; give \['T:6'\]"),
    ],
)
def test_questions_without_an_answer(ask, error, message):
    with pytest.raises(error, match=message):
        ask(ontology(DIAMOND))


def test_tables_that_are_no_ontology_are_refused():
    with pytest.raises(ValueError, match="toy has no current term"):
        ontology({})
    with pytest.raises(ValueError, match="toy has no current term"):
        ontology({"T:1": []}, deprecated={"T:1"})
    with pytest.raises(ValueError, match="toy has no current term whose id begins with CL, PATO"):
        Ontology.from_table(table(DIAMOND), prefixes=["CL", "PATO"])
    with pytest.raises(ValueError, match=r"begins with CL$"):
        Ontology.from_table(table(DIAMOND), prefixes="CL")
    twice = table({"T:1": [], "T:2": []})
    with pytest.raises(ValueError, match="toy has the id T:1 more than once"):
        Ontology.from_table(
            type(twice)(**{name: getattr(twice, name) for name in twice.__slots__} | {"ids": ["T:1"] * 2})
        )
