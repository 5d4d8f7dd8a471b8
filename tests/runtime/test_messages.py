"""Lists and suggestions in messages."""

from scdataloader.runtime.messages import did_you_mean, shown, suggestion


def test_long_lists_are_cut():
    assert shown([]) == ""
    assert shown(range(5)) == "0, 1, 2, 3, 4"
    assert shown(map(repr, "abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"


def test_suggestions():
    columns = ["cell_type", "assay", "donor_id"]
    assert did_you_mean("cel_type", columns) == " (did you mean 'cell_type'?)"
    assert did_you_mean("xyz", columns) == ""
    assert suggestion("cel_type", columns) == "the nearest are 'cell_type'"
    assert suggestion("xyz", columns) == "there are 'cell_type', 'assay', 'donor_id'"
    assert suggestion("xyz", []) == "there are none"
