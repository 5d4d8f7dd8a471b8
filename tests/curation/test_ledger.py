"""What the folder of curated files remembers."""

import json
import os
from dataclasses import replace

import pytest

from scdataloader.curation.ledger import LEDGER, content_of, open_ledger, stamp_of
from scdataloader.curation.report import Outcome
from tests.curation.helpers import raw


@pytest.mark.parametrize("lost", ['{"path": "/cut sho', "\0" * 300 + "\n"])
def test_a_ledger_that_was_cut_short_goes_on(tmp_path, lost):
    path = raw(tmp_path, 1)[0]
    with open_ledger(tmp_path / "out") as ledger:
        ledger.note_content(path, [1, 2], "c" * 32)
        assert ledger.output(path) == tmp_path / "out" / "0.h5ad"
    with (tmp_path / "out" / LEDGER).open("a") as file:
        file.write(lost)
    with open_ledger(tmp_path / "out") as ledger:
        assert ledger.known(path) == (1, "c" * 32)
        assert ledger.content(path) is None  # another size
        assert ledger.output(tmp_path / "b" / "0.zarr") == tmp_path / "out" / "0-2.h5ad"
    lines = (tmp_path / "out" / LEDGER).read_text().splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [
        ["format"],
        ["content", "path", "stamp"],
        ["name", "path"],
        ["name", "path"],
    ]


def test_a_file_named_like_a_part_is_not_written_where_the_part_is(tmp_path):
    with open_ledger(tmp_path / "out") as ledger:
        names = [ledger.output(tmp_path / name).name for name in ("a.h5ad", "a.NCBITaxon_9606.h5ad")]
    assert names == ["a.h5ad", "a-NCBITaxon_9606.h5ad"]


def test_outcomes_come_back_from_the_ledger(tmp_path):
    outcome = Outcome(
        source="a.h5ad",
        content="c",
        recipe="r",
        status="kept",
        reason="",
        n_cells_in=3,
        n_cells_out=2,
        n_genes_in=5,
        n_genes_out=4,
        output=tmp_path / "out" / "a.h5ad",
        labels={"x": ["T:1"]},
        organism="NCBITaxon:9606",
        seconds=0.5,
        notes=("one", "two"),
    )
    with open_ledger(tmp_path / "out") as ledger:
        outcome.output.write_text("cells")
        ledger.note_outcomes(tmp_path / "a.h5ad", [outcome])
        assert ledger.is_intact(outcome)
        outcome.output.write_text("cut")
        assert not ledger.is_intact(outcome)
        with pytest.raises(RuntimeError, match="another run is curating into"), open_ledger(tmp_path / "out"):
            pass
    (tmp_path / "out").rename(tmp_path / "moved")
    with open_ledger(tmp_path / "moved") as ledger:
        assert ledger.outcomes(tmp_path / "a.h5ad") == [replace(outcome, output=tmp_path / "moved" / "a.h5ad")]
        assert ledger.outcomes(tmp_path / "b.h5ad") == []


def test_a_folder_in_which_one_of_the_files_was_changed_is_another(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("1")
        os.utime(tmp_path / name, ns=(5, 5))
    before = stamp_of(tmp_path)
    (tmp_path / "a").write_text("2")
    os.utime(tmp_path / "a", ns=(3, 3))  # as when copied with its time
    assert stamp_of(tmp_path) != before


def test_a_ledger_of_another_release_is_refused(tmp_path):
    (tmp_path / LEDGER).write_text('{"format": 99}\n')
    with pytest.raises(RuntimeError, match="another release"), open_ledger(tmp_path):
        pass


def test_the_content_of_folders_is_that_of_their_files(tmp_path):
    for name, text in {"one/a/b": "x", "two/a/b": "x", "three/a/b": "y", "four/a/c": "x"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    contents = [content_of(tmp_path / name) for name in ("one", "two", "three", "four")]
    assert contents[0] == contents[1]
    assert len(set(contents)) == 3
