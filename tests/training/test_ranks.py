"""Ranks share one stream: in real DDP runs, and whatever number of ranks stopped and goes on."""

import json
import os
import socket
import subprocess
import sys
from itertools import chain

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

import scdataloader as scd
from scdataloader.batches.selected_genes import SelectedGenes
from scdataloader.collection.collection import Collection
from scdataloader.errors import StateMismatchError
from scdataloader.loading.loader import Loader
from scdataloader.sampling.samplers import ShuffleSampler, WeightedSampler
from scdataloader.testing import MemorySource, named_values
from tests.training import without_trainer
from tests.training.lightning_runs import (
    GENES,
    QUIET,
    TIMEOUT,
    Recorder,
    SaveIn,
    fit,
    module,
    on_ranks,
    write_cells,
)

WEIGHTED = {"by": ["type"], "scheme": "uniform", "num_samples": 70}
KINDS = {
    "shuffled": {},
    "weighted": {"sampling": scd.Sampling(**WEIGHTED)},
    "in blocks": {"sampling": scd.Sampling(**WEIGHTED, block_size=4, curriculum_epochs=2)},
    "by quota": {"sampling": scd.Sampling(**WEIGHTED, replacement=False)},
}
AFTERWARDS = {"shuffled": ("test", "predict")}
ON_TWO = [("shuffled", 4), ("shuffled", 6), ("weighted", 7), ("in blocks", 6), ("by quota", 9)]
GLOBAL_BATCH = 16
STEPS_PER_EPOCH = 4
EPOCHS = 3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def cells(folder):
    return write_cells(folder)


@pytest.fixture(scope="module")
def one_rank(cells, folder):
    """What one rank sees that trains on the whole of each global batch; a checkpoint of each of its steps is kept."""
    seen = {}
    for kind, options in KINDS.items():
        own = folder / "one" / kind
        whole = {"options": options | {"batch_size": GLOBAL_BATCH}, "then": AFTERWARDS.get(kind, ())}
        seen[kind] = fit(cells, default_root_dir=own, callbacks=[SaveIn(own)], **whole)
    return seen


@pytest.fixture(scope="module")
def two_ranks(cells, folder, one_rank):
    """What each of two ranks sees in the same runs, and in runs that go on from where one rank had stopped."""
    runs = {}
    for kind, options in KINDS.items():
        own = folder / "two" / kind
        run = {"data": cells, "options": options | {"batch_size": GLOBAL_BATCH // 2}, "default_root_dir": own}
        runs[kind] = run | {"callbacks": [SaveIn(own)], "then": AFTERWARDS.get(kind, ())}
        for step in (step for other, step in ON_TWO if other == kind):
            runs[kind, step] = run | {"ckpt": folder / "one" / kind / f"{step}.ckpt"}
    ranks = on_ranks(list(runs.values()), folder / "processes", world_size=2)
    return {name: [rank[number] for rank in ranks] for number, name in enumerate(runs)}


def together(ranks, stage="train"):
    """The batches of all ranks at each step, put together."""
    assert len({len(rank[stage]) for rank in ranks}) == 1
    for batches in zip(*(rank[stage] for rank in ranks), strict=True):
        assert len({batch["epoch"] for batch in batches}) == 1
        whole = {key: [value for batch in batches for value in batch[key]] for key in batches[0] if key != "epoch"}
        yield {"epoch": batches[0]["epoch"]} | whole


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_of_a_fit_share_the_batches_of_one_rank(one_rank, two_ranks, kind):
    expected = one_rank[kind]["train"]
    assert len(expected) == EPOCHS * STEPS_PER_EPOCH
    assert list(together(two_ranks[kind])) == expected  # rows, values, selected genes, labels: every key
    assert {len(batch["row"]) for rank in two_ranks[kind] for batch in rank["train"]} == {GLOBAL_BATCH // 2}


def test_ranks_train_on_every_row_once_per_epoch_but_for_a_last_batch_that_is_not_full(cells, two_ranks):
    dm = module(cells)
    n_seen = STEPS_PER_EPOCH * GLOBAL_BATCH
    steps = list(together(two_ranks["shuffled"]))
    orders = set()
    for epoch in range(EPOCHS):
        rows = [row for step in steps if step["epoch"] == epoch for row in step["row"]]
        left_out = dm.plan.sampler(dm.training_cells, seed=dm.seed).draw(epoch, n_seen, len(dm.splits.train))
        assert len(rows) == n_seen
        assert np.array_equal(np.sort([*rows, *left_out]), dm.splits.train)
        orders.add(tuple(rows))
    assert len(orders) == EPOCHS


@pytest.mark.parametrize(("stage", "passes"), [("validate", EPOCHS), ("test", 1), ("predict", 1)])
def test_ranks_evaluate_every_row_once_besides_the_marked_ones(cells, one_rank, two_ranks, stage, passes):
    dm = module(cells)
    rows = {"validate": dm.splits.val, "test": dm.splits.test, "predict": np.arange(len(dm.collection))}[stage]
    expected = _by_row(one_rank["shuffled"][stage])
    got = _by_row(together(two_ranks["shuffled"], stage))
    assert [row for row, *_ in got] == [row for _ in range(passes) for row in rows]
    assert got == expected
    n_handed_out = sum(len(batch["row"]) for rank in two_ranks["shuffled"] for batch in rank[stage])
    assert n_handed_out == passes * -(-len(rows) // GLOBAL_BATCH) * GLOBAL_BATCH


def _by_row(batches):
    """Row, label, depth, selected genes and their values, of each cell that is not marked."""
    cells = []
    for batch in batches:
        pad = batch.get("pad", [False] * len(batch["row"]))
        parts = zip(*(batch[key] for key in ("row", "labels", "depth", "genes", "x")), strict=True)
        cells += [cell for cell, repeated in zip(parts, pad, strict=True) if not repeated]
    return cells


@pytest.mark.parametrize("step", [1, 4, 6, 8, 11])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_stopped_on_two_ranks_goes_on_on_one(cells, folder, one_rank, two_ranks, kind, step, tmp_path):
    options = KINDS[kind] | {"batch_size": GLOBAL_BATCH}
    kept = folder / "two" / kind / f"{step}.ckpt"
    rest = fit(cells, ckpt=kept, options=options, default_root_dir=tmp_path)["train"]
    assert rest == one_rank[kind]["train"][step:]


@pytest.mark.parametrize(("kind", "step"), ON_TWO)
def test_a_fit_stopped_on_one_rank_goes_on_on_two(one_rank, two_ranks, kind, step):
    assert list(together(two_ranks[kind, step])) == one_rank[kind]["train"][step:]


def test_a_fit_with_another_global_batch_is_refused_with_the_batch_size_to_give(cells, folder, two_ranks, tmp_path):
    kept = folder / "two" / "shuffled" / "6.ckpt"
    with pytest.raises(StateMismatchError, match=r"global_batch_size 16, but .* 8; .* batch_size=16 on 1 ranks"):
        fit(cells, ckpt=kept, options={"batch_size": GLOBAL_BATCH // 2}, default_root_dir=tmp_path)


# ------------------------------------------------------------------------------------------- loaders, without Lightning


def test_ranks_share_batches_without_a_trainer(cells, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    outs = [folder / f"without_trainer_{rank}.json" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, without_trainer.__file__, folder, out],
            env=os.environ | where | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank, out in enumerate(outs)
    ]
    assert [process.wait(TIMEOUT) for process in processes] == [0, 0]
    first, second = (json.loads(out.read_text()) for out in outs)
    given = first["given"]  # of one rank with batches of both
    assert len(given) == 6
    for how in ("environment", "process group", "torch"):
        assert [a + b for a, b in zip(first[how], second[how], strict=True)] == given, how
    assert first["given"] == second["given"]
    assert list(chain(*first["one rank"]))[:96] == list(chain(*given))
    evaluated = list(chain(*first["evaluation"], *second["evaluation"]))
    assert sorted(set(evaluated)) == list(range(107))
    assert len(evaluated) == 112


def test_a_loader_that_is_given_to_fit_is_shared_by_its_ranks(cells, tmp_path):
    dm = module(cells, batch_size=8)
    model = Recorder(log=tmp_path / "log")
    pl.Trainer(**QUIET, max_epochs=1, devices=2, strategy="ddp_spawn", default_root_dir=tmp_path).fit(
        model, train_dataloaders=dm.train_dataloader()
    )
    seen = [json.loads(line)[1]["row"] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(seen) == 8
    assert len(set(chain(*seen))) == 64


@pytest.fixture(scope="module")
def collection():
    sources = [("a", 60, False), ("b", 47, True)]
    return Collection.open(
        [MemorySource(name, named_values(n, 30), GENES, mapped=mapped) for name, n, mapped in sources]
    )


SAMPLERS = {
    "shuffled": ShuffleSampler(107, seed=1),
    "weighted": WeightedSampler(classes=np.arange(107) % 7, num_samples=500, seed=3),
}


def loaders(collection, world_size, *, kind="weighted", global_batch=48, **options):
    made = {"collate": SelectedGenes(how="random expressed", n_genes=6), "batch_size": global_batch // world_size}
    return [
        Loader(collection, SAMPLERS[kind], rank=rank, world_size=world_size, **(made | options))
        for rank in range(world_size)
    ]


def steps(ranks, n=None):
    """The global batches of the next ``n`` steps, or of the rest of the epoch, without the marked rows."""
    iterators = [iter(loader) for loader in ranks]
    found = []
    while (n is None or len(found) < n) and None not in (batches := [next(it, None) for it in iterators]):
        keep = [~batch.get("pad", torch.zeros(len(batch["row"]), dtype=torch.bool)) for batch in batches]
        found.append(
            {
                key: torch.cat([batch[key][kept] for batch, kept in zip(batches, keep, strict=True)]).tolist()
                for key in ("row", "genes", "x", "depth")
            }
        )
    for loader in ranks:
        loader.close()
    return found


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_any_number_of_ranks_that_divides_the_global_batch_has_the_same_stream(collection, world_size, kind, drop_last):
    (one,), ranks = (loaders(collection, n, kind=kind, drop_last=drop_last) for n in (1, world_size))
    n_draws = len(one) * 48 if drop_last else SAMPLERS[kind].num_samples
    for _ in range(2):
        expected = steps([one])
        assert steps(ranks) == expected
        assert sum(len(step["row"]) for step in expected) == n_draws


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_stream_goes_from_four_ranks_to_one_to_two_to_three(collection, kind):
    (whole,) = loaders(collection, 1, kind=kind, global_batch=24)
    turns = ((4, 3), (1, 1), (2, len(whole) - 4), (3, 1), (4, len(whole)), (2, 2))
    expected = go_on([whole], sum(n for _, n in turns))
    got, state = [], None
    for world_size, n in turns:
        ranks = loaders(collection, world_size, kind=kind, global_batch=24)
        for loader in ranks if state else ():
            loader.load_state_dict(state)
        got += go_on(ranks, n)
        states = [loader.state_dict() for loader in ranks]
        assert states == [states[0]] * world_size  # so that it does not matter which rank saves
        state = states[0]
    assert got == expected


def go_on(ranks, n):
    """The global batches of the next ``n`` steps, over as many epochs as it takes."""
    found = []
    while len(found) < n:
        found += steps(ranks, n - len(found))
    return found


@pytest.mark.parametrize(
    ("saved", "world_size", "batch_size", "remedy"),
    [
        (32, 2, 32, "batch_size=16 on 2 ranks"),
        (32, 1, 16, "batch_size=32 on 1 ranks"),
        (32, 3, 8, "3 ranks cannot share batches of 32 cells evenly; resume on 2 or 4 ranks"),
        (48, 5, 8, "5 ranks cannot share batches of 48 cells evenly; resume on 4 or 6 ranks"),
        (4, 5, 1, "5 ranks cannot share batches of 4 cells evenly; resume on 4 ranks"),
    ],
)
def test_a_state_that_the_ranks_cannot_share_is_refused_with_what_to_do(
    collection, saved, world_size, batch_size, remedy
):
    (one,) = loaders(collection, 1, global_batch=saved)
    own = world_size * batch_size
    for loader in loaders(collection, world_size, global_batch=own):
        with pytest.raises(StateMismatchError) as refused:
            loader.load_state_dict(one.state_dict())
        assert f"has global_batch_size {saved}, but this loader has {own}; " in str(refused.value)
        assert remedy in str(refused.value)
