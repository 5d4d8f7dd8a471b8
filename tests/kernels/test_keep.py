"""Entries of a row without a gene number are removed, whatever the length of the row."""

import os
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.kernels.rows.keep import renumber

GUARD = -7


@given(n=st.integers(0, 70), at=st.integers(0, 3), seed=st.integers(0, 1 << 32))
def test_renumber_keeps_entries_with_a_number_in_order(n, at, seed):
    lut = np.random.default_rng(seed).choice([-(2**31), -2, -1, 0, 1, 2**31 - 1], n).astype(np.int32)
    genes, values = np.arange(n, dtype=np.int32)[::-1].copy(), np.arange(n) + 0.5
    out_genes, out_values = np.full(at + n + 20, GUARD, np.int32), np.full(at + n + 20, GUARD, np.float32)
    kept = renumber(genes, values.astype(np.float32), lut, out_genes[at : at + n], out_values[at : at + n])
    expected = lut[genes]
    assert kept == (expected >= 0).sum()
    assert out_genes[at : at + kept].tolist() == expected[expected >= 0].tolist()
    assert out_values[at : at + kept].tolist() == values[expected >= 0].tolist()
    for out in (out_genes, out_values):
        assert (out[:at] == GUARD).all()
        assert (out[at + n :] == GUARD).all()


def test_processors_without_compression_keep_the_same_entries():
    code = """
import numpy as np
from scdataloader.kernels.rows.keep import renumber
lut = np.where(np.arange(1000) % 3, np.arange(1000), -1).astype(np.int32)
genes, values = np.arange(1000, dtype=np.int32), np.arange(1000, dtype=np.float32)
kept = renumber(genes, values, lut, genes, values)
assert genes[:kept].tolist() == values[:kept].tolist() == lut[lut >= 0].tolist()
"""
    env = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
