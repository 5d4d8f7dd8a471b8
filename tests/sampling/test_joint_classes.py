"""Joint classes in steps are those of `joint`, which has all cells in memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.labels.encoder import joint
from scdataloader.sampling import joint_classes, rows
from scdataloader.sampling.joint_classes import CodedColumn, joint_recipe
from scdataloader.sampling.rows import Rows


@given(data=st.data(), n_columns=st.integers(1, 3), n=st.integers(1, 200), limit=st.sampled_from([0, 10, 1 << 24]))
def test_classes_and_their_codes(data, n_columns, n, limit):
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    is_in = rng.random(n) < data.draw(st.sampled_from([0.3, 1.0]))
    columns, plain, sizes = [], [], []
    for _ in range(n_columns):
        size = data.draw(st.integers(1, 6))
        n_labels = data.draw(st.integers(1, 6))
        lut = np.append(rng.integers(-1, size, n_labels), -1)
        codes = rng.integers(-1, n_labels, n).astype(np.int8)
        columns.append(CodedColumn(codes=codes, lut=lut, size=size))
        plain.append(lut[codes][is_in])
        sizes.append(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_classes, "_TABLE_LIMIT", limit)
        patch.setattr(joint_classes, "STEP", 64)
        patch.setattr(rows, "STEP", 64)
        recipe = joint_recipe(columns, Rows(n, is_in))
        found = {name: np.full(m, 99, dtype) for name, (dtype, m) in recipe.shapes.items()}
        recipe.fill(found)
    codes, n_classes = joint(plain, sizes)
    assert found["codes"].tolist() == codes.tolist()
    assert len(recipe.about) == n_classes
    for cell in np.flatnonzero(codes >= 0):
        assert recipe.about[codes[cell]] == [int(column[cell]) for column in plain]
