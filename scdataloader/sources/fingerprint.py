"""Fingerprints of data: digests of its parts in one text, so that a message can state which part has changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

RULE = "02"
"""Version of the rule by which fingerprints are made. The first one covered the names of obs columns alone."""
_BYTES = 8
_PARTS = ("obs", "var", "X", "the selection of cells", "the order of draws")
_FIRST_RULE = re.compile("[0-9a-f]{32}")


def digest_of(pieces: Iterable[bytes]) -> str:
    """Digest of one part, which depends on where its pieces begin."""
    digest = blake2b(digest_size=_BYTES)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()


def joined(*digests: str) -> str:
    """The fingerprint with these digests, in the order obs, var, X, selection of cells, order of draws."""
    return RULE + "".join(digests)


def parts_of(fingerprint: str) -> tuple[str, ...]:
    """The digests of a fingerprint of this rule; empty for others, such as those of plug-ins."""
    n = 2 * _BYTES
    if (
        not fingerprint.startswith(RULE)
        or len(fingerprint) % n != len(RULE)
        or len(fingerprint) > n * (len(_PARTS) + 1)
    ):
        return ()
    return tuple(fingerprint[at : at + n] for at in range(len(RULE), len(fingerprint), n))


def is_of_first_rule(fingerprint: str) -> bool:
    """Whether a fingerprint may have been made by an earlier release, so that it cannot be compared."""
    return _FIRST_RULE.fullmatch(fingerprint) is not None


def difference(saved: str, current: str) -> str | None:
    """What differs between two fingerprints, for a message; None if they are equal."""
    if saved == current:
        return None
    pairs = zip_longest(_PARTS, parts_of(saved), parts_of(current))
    changed = [str(name) for name, before, now in pairs if before != now]
    both = parts_of(saved) and parts_of(current)
    return " and ".join(changed) if both and changed else "the data"


def mismatch(saved: str, current: str) -> str:
    """Why data that was saved with one fingerprint is not that with another, for a message."""
    if is_of_first_rule(saved) and parts_of(current):
        return (
            "it was saved by an earlier release, whose fingerprints did not cover the values of obs and cannot be "
            "compared"
        )
    return f"{difference(saved, current)} changed since"


def same_cells(saved: str, current: str) -> bool:
    """Whether two collections have the same cells by X and selection, whatever their labels and genes."""
    before, now = parts_of(saved), parts_of(current)
    return before[2:] == now[2:] if before and now else saved == current


def column_content(values: Any) -> Iterator[bytes]:
    """Dtype and values of a column of a table in pandas, independent of library versions; for a digest."""
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        yield json.dumps(["category", len(values), bool(dtype.ordered)]).encode()
        yield from column_content(dtype.categories)
        yield pd.Series(values).cat.codes.to_numpy(np.int64).tobytes()
        return
    yield json.dumps([str(dtype), len(values)]).encode()
    if isinstance(dtype, np.dtype) and dtype.kind in "biufmM":
        yield np.ascontiguousarray(values.to_numpy()).tobytes()
    else:
        texts = [None if missing else str(value) for value, missing in zip(values, pd.isna(values), strict=True)]
        yield json.dumps(texts).encode()
