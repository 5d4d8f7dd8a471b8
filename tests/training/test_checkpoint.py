"""State of the data in checkpoint files: files that run no code, are damaged, or hold users' hyperparameters."""

import argparse
import os
import pathlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import scdataloader as scd
from scdataloader.errors import StateMismatchError
from scdataloader.training.checkpoint import STATE_KEY, STATE_VERSION, read_state

STATE = {STATE_KEY: STATE_VERSION, "encoders": {}, "genes": {"human": ["ENSG00000000001"]}}


class Hostile:
    """An object whose loading makes a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@dataclass
class Settings:
    """A user's hyperparameters."""

    layers: int = 2


@pytest.mark.parametrize("place", ["beside the state", "instead of it", "in an array", "in a shard's metadata"])
def test_loading_a_checkpoint_runs_no_code(tmp_path, place):
    mark, path = tmp_path / "ran", tmp_path / "hostile.ckpt"
    hostile = Hostile(mark)
    if place == "in a shard's metadata":
        path.mkdir()
        torch.save({STATE_KEY: STATE, "x": hostile}, path / "meta.pt")
    elif place == "instead of it":
        torch.save({"state_dict": {}, "x": hostile}, path)
    else:
        torch.save({STATE_KEY: STATE, "x": np.array([hostile], object) if place == "in an array" else hostile}, path)
    with pytest.raises(StateMismatchError, match=r"hostile\.ckpt.*mkdir.*add_safe_globals"):
        _ = scd.DataModule("nowhere.h5ad", labels=["type"], checkpoint=str(path)).classes
    assert not mark.exists()


def test_usual_hyperparameters_are_read_and_a_class_of_the_users_once_it_is_allowed(tmp_path):
    usual = {"path": pathlib.Path("a"), "rate": np.float32(0.1), "n": np.int64(3), "flag": np.bool_(1), "a": np.ones(2)}
    for number, given in enumerate((usual, argparse.Namespace(**usual), Settings())):
        torch.save({STATE_KEY: STATE, "hyper_parameters": given}, tmp_path / f"{number}.ckpt")
    assert read_state(tmp_path / "0.ckpt") == read_state(tmp_path / "1.ckpt") == STATE
    with pytest.raises(StateMismatchError, match=r"2\.ckpt.*Settings.*add_safe_globals"):
        read_state(tmp_path / "2.ckpt")
    with torch.serialization.safe_globals([Settings]):
        assert read_state(tmp_path / "2.ckpt") == STATE


@pytest.mark.parametrize("content", [b"", b"text", "half", torch.zeros(2), {"state_dict": {}}, {"a": {STATE_KEY: 9}}])
def test_a_file_without_a_state_is_refused_by_name(tmp_path, content):
    path = tmp_path / "x.ckpt"
    torch.save({STATE_KEY: STATE} if isinstance(content, bytes | str) else content, path)
    if isinstance(content, bytes | str):
        path.write_bytes(path.read_bytes()[:300] if content == "half" else content)
    with pytest.raises(StateMismatchError, match=r"x\.ckpt (is not a checkpoint|has no entry|has a state.*version 9)"):
        read_state(path)
