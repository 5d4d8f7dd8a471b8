"""Small hierarchies by hand, and invalid arguments; laws: test_graph_laws.py."""

from __future__ import annotations

import pickle

import pytest

from scdataloader.ontology import Ontology, TermTable
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


def test_the_diamond_by_hand():
    terms = ontology(DIAMOND)
    assert len(terms) == 7
    assert "T:1" in terms
    assert "T:9" not in terms
    assert 1 not in terms
    assert repr(terms) == "Ontology('toy', version='', 7 terms)"
    assert terms.roll_up(["T:6", "T:5", "T:7"], 1, ambiguous="nearest") == {"T:6": "T:2", "T:5": "T:3", "T:7": "T:7"}
    sub = terms.subgraph(["T:4", "T:1"])
    assert sub.terms == ("T:1", "T:2", "T:3", "T:4")
    assert sub.parents == ((), (0,), (0,), (1, 2))
    assert sub.levels == (0, 1, 1, 2)
    assert sub.ancestors == ((0,), (0, 1), (0, 2), (0, 1, 2, 3))


def test_a_chain_as_long_as_none_is_real_takes_no_recursion():
    ids = [f"T:{number:05}" for number in range(3000)]
    terms = ontology({term: ids[place : place + 1] for place, term in enumerate(ids[1:])} | {ids[0]: []})
    assert terms.ancestors(ids[-1]) == ids[:-1]
    assert terms.depth(ids[-1]) == 2999
    assert terms.descendants(ids[0]) == ids[1:]
    assert terms.subgraph([ids[99]]).levels == tuple(range(100))


def test_that_a_term_is_a_kind_of_itself_goes_without_saying():
    assert ontology({"T:1": ["T:1"], "T:2": ["T:1", "T:1"]}).parents("T:2") == ["T:1"]
    assert ontology({"T:1": ["T:1"]}).parents("T:1") == []


def test_it_cannot_be_changed_and_can_be_sent_to_another_process():
    terms = ontology(DIAMOND)
    with pytest.raises(AttributeError):
        terms.name = "other"
    terms.ancestors("T:6").clear()
    copy = pickle.loads(pickle.dumps(terms))
    assert (terms.ancestor_matrix(terms.terms) == copy.ancestor_matrix(terms.terms)).all()
    assert copy.ancestors("T:6") == terms.ancestors("T:6") == ["T:1", "T:2", "T:3", "T:4"]


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda o: o.roll_up(["T:6"], []), ValueError, "there is no term to roll up to; give at least one"),
        (lambda o: o.roll_up(["T:6"], -1), ValueError, "cannot roll up to depth -1; roots have depth 0"),
        (
            lambda o: o.roll_up(["T:6", "T:7"], ["T:4"]),
            ValueError,
            r"T:7 \(term 7\) is under none of the targets T:4 \(term 4\); add one of its ancestors",
        ),
        (
            lambda o: o.roll_up(["T:6"], ["T:2", "T:3", "T:1"]),
            ValueError,
            r"T:6 \(term 6\) is under 2 targets, none above another: T:2 \(term 2\), T:3 \(term 3\); .*'nearest'",
        ),
        (lambda o: o.ancestor_matrix("T:6"), TypeError, r"expected ids of terms, got the text 'T:6'; give \['T:6'\]"),
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
    with pytest.raises(ValueError, match=r"toy has the parent 'T:2' of 'T:1', which is not one of its terms"):
        ontology({"T:1": ["T:2"]})
    with pytest.raises(ValueError, match=r"toy has parents of 'T:2', which is not one of its terms"):
        Ontology.from_table(TermTable(name="toy", labels={"T:1": "one"}, parents={"T:2": ["T:1"]}))
