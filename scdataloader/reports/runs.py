"""Statistics of a training run, from the files in the folder of its logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdataloader.runtime.messages import shown

SAMPLING, METRICS = "sampling.csv", "metrics.csv"
"""Files of `SamplingMonitor` and of Lightning's CSVLogger."""
N_CLASSES = 100
_OF_EPOCHS = {"waiting": "data/waiting_share", "cells_per_s": "data/cells_per_s", "repeated": "data/repeated_share"}


def read_run(folder: Path) -> dict[str, Any]:
    """Target and observed shares of the classes of each epoch, and what was logged of the epochs.

    Raises:
        FileNotFoundError: the folder has no sampling.csv; names the folders below it that have one.
        ValueError: the file is not one of `SamplingMonitor`.
    """
    path = folder / SAMPLING
    if not path.is_file():
        below = sorted(str(found.parent) for found in folder.glob(f"**/{SAMPLING}"))
        others = f"; there is one in {shown(below)}" if below else ", which fit writes beside its logs"
        raise FileNotFoundError(f"{folder} has no {SAMPLING}{others}")
    table = pd.read_csv(path, keep_default_na=False, na_values={"target": [""], "observed": ["", "nan"]})
    if missing := [name for name in ("epoch", "class", "target", "draws") if name not in table]:
        raise ValueError(f"{path} has no column {missing[0]!r}; expected a file that fit has written")
    # a resumed epoch has lines of before and after
    table = table.groupby(["epoch", "class"], sort=False).agg({"target": "last", "draws": "sum"}).reset_index()
    table["observed"] = table["draws"] / table.groupby("epoch")["draws"].transform("sum")
    table["error"] = (table["target"] - table["observed"]).abs()
    errors = table.groupby("epoch")["error"].sum(min_count=1) / 2
    last = table[table["epoch"] == table["epoch"].max()].sort_values("draws", ascending=False).iloc[:N_CLASSES]
    return {
        "folder": str(folder),
        "epochs": errors.index.tolist(),
        "share_error": _numbers(errors),
        "last": {
            "names": last["class"].astype(str).tolist(),
            "target": _numbers(last["target"]),
            "observed": _numbers(last["observed"]),
        },
        **_metrics(folder / METRICS, errors.index),
    }


def _metrics(path: Path, epochs: pd.Index) -> dict[str, list[float | None] | None]:
    """What the logger of the run has written for each epoch; None where it has written no such file or column."""
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame({"epoch": []})
    by_epoch = table.groupby("epoch").last()
    return {
        name: _numbers(by_epoch[column].reindex(epochs)) if column in by_epoch else None
        for name, column in _OF_EPOCHS.items()
    }


def _numbers(values: pd.Series[Any]) -> list[float | None]:
    return [None if np.isnan(value) else float(f"{value:.6g}") for value in values.astype(float)]
