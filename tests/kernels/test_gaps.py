"""Gaps to gene numbers: as a running sum gives them, whatever the length, where the bytes lie and what comes before."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.kernels.records.gaps import look_up_genes, number_genes

GUARD = -7


def numbers(gaps, first):
    """The numbers of genes, the first of which lies its own gap after ``first``."""
    return first + np.cumsum(gaps.astype(np.int64) + 1) - 1


@given(
    gaps=st.lists(st.sampled_from([0, 1, 7, 254, 255]) | st.integers(0, 255), max_size=90),
    at=st.integers(0, 9),
    first=st.integers(-50_000, 1 << 30),
    streams=st.booleans(),
)
def test_numbers_are_a_running_sum(gaps, at, first, streams):
    memory = np.array([9] * at + gaps + [9] * 20, np.uint8)
    gaps = memory[at : at + len(gaps)]
    out = np.full(at + len(gaps) + 20, GUARD, np.int32)
    after = number_genes(gaps, np.int64(first), out[at : at + len(gaps)], streams)
    expected = numbers(gaps, first)
    assert out[at : at + len(gaps)].tolist() == expected.tolist()
    assert after == (expected[-1] + 1 if len(gaps) else first)
    assert (out[:at] == GUARD).all()
    assert (out[at + len(gaps) :] == GUARD).all()


@given(gaps=st.lists(st.integers(0, 255), max_size=40), first=st.integers(0, 1000))
def test_look_up_is_what_the_table_has_for_the_numbers(gaps, first):
    gaps = np.array(gaps, np.uint8)
    lut = np.random.default_rng(0).integers(-1, 1 << 31, 12_000, dtype=np.int64).astype(np.int32)
    out = np.empty(len(gaps), np.int32)
    after = look_up_genes(gaps, np.int64(first), lut, out)
    expected = numbers(gaps, first)
    assert out.tolist() == lut[expected].tolist()
    assert after == (expected[-1] + 1 if len(gaps) else first)


@pytest.mark.parametrize("n", [16, 17, 100])
def test_numbers_beyond_32_bits_stay_inside_the_output(n):
    out = np.full(n + 16, GUARD, np.int32)
    after = number_genes(np.full(n, 255, np.uint8), np.int64((1 << 40) + 5), out[:n])
    assert after == (1 << 40) + 5 + 256 * n
    assert (out[n:] == GUARD).all()


def test_processors_without_dot_products_find_the_same_numbers():
    code = """
import numpy as np
from scdataloader.kernels.records.gaps import number_genes
gaps, out = (np.arange(1000) * 37 % 256).astype(np.uint8), np.empty(1000, np.int32)
after = number_genes(gaps, np.int64(3), out)
expected = 3 + np.cumsum(gaps + 1.0) - 1
assert out.tolist() == expected.tolist() and after == expected[-1] + 1
"""
    env = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
