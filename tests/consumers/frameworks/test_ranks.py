"""Accelerate, Fabric, transformers and plain PyTorch on two real processes: each cell once, resumed exactly."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from tests.consumers.frameworks import on_ranks, train

N_CELLS, N_TRAIN, BATCH = 107, 86, 16
"""Training cells make 5 global batches, and 6 cells are left."""
N_STEPS = 5


def torchrun(program, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    command += [program.__file__, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def stream(cells):
    """Rows of the global batches of three epochs, as one rank sees them."""
    loader = on_ranks.module(cells, batch_size=BATCH).train_dataloader()
    return [[batch["row"].tolist() for batch in loader] for _ in range(3)]


@pytest.fixture(scope="module")
def frameworks(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("frameworks")
    done = torchrun(on_ranks, cells, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def together(first, second):
    return [a + b for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("name", ["Accelerate", "Accelerate, as_torch", "Fabric"])
def test_ranks_share_the_stream_of_one_rank_and_resume_in_it(frameworks, stream, name):
    assert [len(epoch) for epoch in stream] == [N_STEPS] * 3
    first, second = (rank[name] for rank in frameworks)
    assert [together(a, b) for a, b in zip(first["whole"], second["whole"], strict=True)] == stream
    resumed = [together(a, b) for a, b in zip(first["resumed"], second["resumed"], strict=True)]
    assert resumed == [stream[1][3:], stream[2]]
    for epoch in stream:
        assert len(set(chain(*epoch))) == N_STEPS * BATCH


def test_fabric_resumes_between_two_epochs(frameworks, stream):
    first, second = (rank["Fabric"]["next"] for rank in frameworks)
    assert [together(a, b) for a, b in zip(first, second, strict=True)] == stream[2:]


def test_the_trainer_shares_the_stream_and_predicts_every_cell_once(frameworks, cells, stream):
    first, second = (rank["transformers"] for rank in frameworks)
    steps = list(chain(*stream))[:12]
    assert together(first["whole"], second["whole"]) == steps
    assert together(first["resumed"], second["resumed"]) == steps[8:]
    assert first["predicted"] == second["predicted"] == list(range(N_CELLS))
    assert first["evaluated"] == second["evaluated"] == on_ranks.module(cells).splits.val.tolist()


def logged(out):
    return [[json.loads(line) for line in (out / f"rows-{rank}.jsonl").read_text().splitlines()] for rank in range(2)]


def test_a_run_of_torchrun_that_was_killed_goes_on_where_it_was(cells, stream, tmp_path):
    steps = list(chain(*stream))
    assert torchrun(train, cells, tmp_path, 7).returncode != 0
    n = torch.load(tmp_path / "last.pt")["n"]
    assert 1 <= n <= 7
    assert together(*(rows[:n] for rows in logged(tmp_path))) == steps[:n]
    for rank in range(2):
        (tmp_path / f"rows-{rank}.jsonl").unlink()
    assert torchrun(train, cells, tmp_path).returncode == 0
    assert together(*logged(tmp_path)) == steps[n:]
