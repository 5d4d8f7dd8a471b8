"""Statistics of a run, from the files that training writes."""

import numpy as np
import pandas as pd
import pytest

from scdataloader.reports.runs import read_run

LINES = """epoch,class,target,observed,draws
0,rare,0.5,0.25,25
0,NA,0.5,0.75,75
1,rare,0.5,0.5,10
1,NA,0.5,0.5,10
1,rare,0.5,0.75,30
"""


def test_epochs_and_a_resumed_one_are_read(tmp_path):
    (tmp_path / "sampling.csv").write_text(LINES)
    pd.DataFrame(
        {"epoch": [0, 0, 1], "data/waiting_share": [np.nan, 0.5, 0.25], "data/cells_per_s": [np.nan, 1e6, 2e6]}
    ).to_csv(tmp_path / "metrics.csv")
    found = read_run(tmp_path)
    assert found["epochs"] == [0, 1]
    assert found["share_error"] == [0.25, 0.3]
    assert found["waiting"] == [0.5, 0.25]
    assert found["cells_per_s"] == [1e6, 2e6]
    assert found["repeated"] is None
    assert found["last"] == {"names": ["rare", "NA"], "target": [0.5, 0.5], "observed": [0.8, 0.2]}


def test_a_plan_without_targets_and_a_run_without_metrics(tmp_path):
    (tmp_path / "sampling.csv").write_text("epoch,class,target,observed,draws\n0,all cells,,1.0,9\n")
    found = read_run(tmp_path)
    assert found["share_error"] == [None]
    assert found["last"] == {"names": ["all cells"], "target": [None], "observed": [1]}
    assert found["waiting"] is None


def test_a_folder_that_is_none_of_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sampling\.csv"):
        read_run(tmp_path)
    (tmp_path / "sampling.csv").write_text("epoch,class\n0,a\n")
    with pytest.raises(ValueError, match="'target'"):
        read_run(tmp_path)
