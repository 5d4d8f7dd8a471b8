"""Pickles of plain values are read, and nothing of any other pickle runs."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from scdataloader.runtime.pickles import read_plain_pickle


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def written(tmp_path, value, protocol=None):
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "number", [3, 2.5, True, None, 2**70, *map(np.float64, (2.5, np.inf)), np.int64(-7), np.float32(0.1)]
)
def test_dictionaries_of_strings_and_numbers_are_read(tmp_path, number, protocol):
    value = {"ENSG00000141510": number, "<pad>": [0, (1, "é", {})]}
    read = read_plain_pickle(written(tmp_path, value, protocol))
    assert read == value
    assert not isinstance(read["ENSG00000141510"], np.generic)


def test_numbers_of_other_byte_orders_are_read(tmp_path):
    assert read_plain_pickle(written(tmp_path, np.array([1, 258], ">u2")[1])) == 258


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Calls(os.mkdir, "made"), r"names posix\.mkdir"),
        (Calls(eval, "__import__('os').mkdir('made')"), r"names builtins\.eval"),
        ({"a": [Calls(os.mkdir, "made")]}, r"names posix\.mkdir"),
        (Calls(np.dtype, "O"), "type 'O'"),
        (np.arange(3), "_reconstruct"),
        (OrderedDict(a=1), r"collections\.OrderedDict"),
        ({"a": b"bytes"}, "holds a bytes"),
        ({"a": {1, 2}}, "holds a set"),
        ({"a": np.dtype("f8")}, "holds a ScalarType"),
        ({"a": 1j}, r"builtins\.complex"),
    ],
)
def test_other_values_are_refused_and_nothing_runs(tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"file\.pkl.*{message}"):
        read_plain_pickle(written(tmp_path, value))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_damaged_files_are_refused_by_name(tmp_path, cut):
    path = written(tmp_path, {"a": 1, "b": np.float64(2)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"file\.pkl"):
        read_plain_pickle(path)
    path.write_text("ENSG00000141510\n")
    with pytest.raises(ValueError, match=r"file\.pkl"):
        read_plain_pickle(path)


def test_a_pickle_cannot_change_how_later_ones_are_read(tmp_path):
    """BUILD sets attributes of the class that stands for NumPy's dtype, which is made anew for each pickle."""
    path = tmp_path / "sets.pkl"
    path.write_bytes(b"cnumpy\ndtype\n(N(dS'numpy'\nS'x'\nstb.")
    with pytest.raises(ValueError, match=r"sets\.pkl"):
        read_plain_pickle(path)
    assert read_plain_pickle(written(tmp_path, np.float64(2.5))) == 2.5
