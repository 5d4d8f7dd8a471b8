"""Training on several nodes: a node that dies, one that joins, and Lightning as SLURM starts it."""

import json
import re
import sys
import time

import numpy as np
import pytest
import torch

import scdataloader as scd
from tests.consumers.frameworks import elastic, noting
from tests.consumers.frameworks.nodes import ADDRESSES, torchrun, two_nodes
from tests.pages import ROOT

TIMEOUT = 300


@pytest.fixture
def nodes():
    with two_nodes() as made:
        yield made


def seen(out, rank):
    """[step, number of ranks, rows] of all steps of a rank, also of those that were done again after a restart."""
    path = out / f"rows-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def at(out, rank):
    """The last step of a rank; 0 before the first."""
    return (seen(out, rank) or [[0]])[-1][0]


def wait_until(reached, *processes):
    deadline = time.monotonic() + TIMEOUT
    while not reached():
        assert time.monotonic() < deadline
        assert [process.poll() for process in processes] == [None] * len(processes)
        time.sleep(0.02)


def test_a_run_goes_from_two_nodes_to_one_and_back_to_two(cells, nodes, tmp_path):
    saved, died, saved_again, joined, last = 6, 8, 9, 11, 15
    for place in (f"{died}-on-2", f"{joined}-on-1"):
        (tmp_path / f"hold-{place}").touch()

    def start(node):
        command = torchrun(elastic, cells, tmp_path, nodes="1:2", node=node)
        # otherwise, torch 2.13 does not inform nodes that join later of the address to meet at
        return nodes.start(node, command, tmp_path / f"node{node}.txt", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")

    first, second = start(0), start(1)
    wait_until(lambda: all(at(tmp_path, rank) == died for rank in (0, 1)), first, second)
    nodes.kill(1)
    (tmp_path / f"hold-{died}-on-2").unlink()
    wait_until(lambda: at(tmp_path, 0) == joined, first)
    again = start(1)
    assert [process.wait(TIMEOUT) for process in (first, again)] == [0, 0], (tmp_path / "node0.txt").read_text()[-3000:]

    loader = elastic.module(cells, 1).train_dataloader()
    batches = [batch for _ in range(elastic.N_EPOCHS) for batch in loader]
    assert len(batches) == last
    rows = {n: batch["row"].tolist() for n, batch in enumerate(batches, start=1)}
    ranks = [seen(tmp_path, rank) for rank in (0, 1)]
    alone = [record for record in ranks[0] if record[1] == 1]
    shared = [record for record in ranks[0] if record[1] == 2]
    assert [n for n, *_ in shared] == [*range(1, died + 1), *range(saved_again + 1, last + 1)]
    assert alone == [[n, 1, rows[n]] for n in range(saved + 1, joined + 1)]
    assert [[n, 2, a + b] for (n, _, a), (_, _, b) in zip(shared, ranks[1], strict=True)] == [
        [n, 2, rows[n]] for n, *_ in shared
    ]
    for epoch in np.split(np.array(list(rows.values())), elastic.N_EPOCHS):
        assert len(np.unique(epoch)) == epoch.size
    # every value is an integer and every mean over a power of two, so sums are exact: each cell counted, and once
    expected = -sum(batch["x"].mean(0) for batch in batches)
    assert torch.equal(torch.load(tmp_path / "last.pt")["model"]["module.weight"][0], expected)


def test_the_command_line_trains_on_two_nodes_of_slurm(cells, nodes, tmp_path):
    """The script of the documentation with what ``srun`` sets: Lightning finds the nodes, the loaders their ranks."""
    page = (ROOT / "docs" / "howto" / "clusters.md").read_text(encoding="utf-8")
    script = re.search(r"^(srun scdataloader fit --config fit.yaml \\.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    here = f'cd {tmp_path}; srun() {{ "$@"; }}; scdataloader() {{ {sys.executable} -m scdataloader "$@"; }}; '
    fit = ["bash", "-c", here + script]
    config = {
        "model": {"class_path": f"{noting.__name__}.Noting", "init_args": {"folder": str(tmp_path)}},
        "data": {"data": f"{cells}/*.h5ad", "batch_size": 8},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": False},
    }
    (tmp_path / "fit.yaml").write_text(json.dumps(config))
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NNODES": "2"}
    job |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": " ".join(ADDRESSES), "SLURM_LOCALID": "0"}
    outputs = [tmp_path / f"node{node}.txt" for node in (0, 1)]
    started = [
        nodes.start(node, fit, output, **job, SLURM_NODEID=str(node), SLURM_PROCID=str(node))
        for node, output in enumerate(outputs)
    ]
    assert [process.wait(TIMEOUT) for process in started] == [0, 0], outputs[0].read_text()[-3000:]
    first, second = (
        [json.loads(line) for line in (tmp_path / f"{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)
    )
    loader = scd.DataModule(f"{cells}/*.h5ad", batch_size=16).train_dataloader()
    expected = [[epoch, batch["row"].tolist()] for epoch in (0, 1) for batch in loader]
    assert [[epoch, a + b] for (epoch, a), (_, b) in zip(first, second, strict=True)] == expected
    assert "in the vocabulary" not in outputs[1].read_text()  # notes are those of one rank
