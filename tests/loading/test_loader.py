"""Batches in order, whoever reads them: threads, windows, ranks, resumed or not."""

import copy
import pickle
import threading

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator, skip_first_batches

from scdataloader.batches.full import Dense, Sparse
from scdataloader.batches.selected_genes import SelectedGenes
from scdataloader.batches.transforms import Log1p
from scdataloader.collection.collection import Collection
from scdataloader.errors import StateMismatchError
from scdataloader.loading.loader import Loader
from scdataloader.sampling.samplers import SequentialSampler, ShuffleSampler, Subset, WeightedSampler
from scdataloader.sampling.tally import Tally
from scdataloader.testing import MemorySource, named_values

GENES = [f"ENSG{i:011d}" for i in range(40)]
CLASSES = np.arange(100) % 7


@pytest.fixture(scope="module")
def collection():
    rng = np.random.default_rng(0)
    return Collection.open(
        [
            MemorySource("a", named_values(60, 40, seed=1), GENES, mapped=True),
            MemorySource("b", named_values(40, 30, seed=2), list(rng.permutation(GENES)[:30])),
        ]
    )


def weighted(n=200):
    return WeightedSampler(classes=CLASSES, num_samples=n, seed=3)


def equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            x, y = (t.to_dense() if t.layout is torch.sparse_csr else t for t in (a[key], b[key]))
            assert torch.equal(x, y), key


def joined(batches, key):
    return torch.cat([batch[key] for batch in batches])


@pytest.mark.parametrize("collate", [Dense(), Sparse(), SelectedGenes(how="all")], ids=lambda c: type(c).__name__)
def test_batches_hold_the_rows_that_the_sampler_draws(collection, collate):
    labels = np.stack([CLASSES, -CLASSES], axis=1).astype(np.int32)
    loader = Loader(collection, weighted(), collate, batch_size=16, labels=labels)
    batches = list(loader)
    assert len(batches) == len(loader) == 13
    assert [len(batch["row"]) for batch in batches] == [16] * 12 + [8]
    rows = weighted().draw(0, 0, 200)
    assert np.array_equal(joined(batches, "row"), rows)
    assert np.array_equal(joined(batches, "labels"), labels[rows])
    x = torch.cat([batch["x"].to_dense() if collate == Sparse() else batch["x"] for batch in batches])
    assert np.array_equal(x, collection.read(rows).to_scipy().toarray())
    assert np.array_equal(joined(batches, "depth"), collection.cells(rows).depth)
    assert np.array_equal(joined(batches, "source"), (rows >= 60).astype(np.int32))
    types = {"labels": torch.int64, "depth": torch.float32, "row": torch.int64, "source": torch.int32}
    assert {key: batches[0][key].dtype for key in types} == types
    assert "pad" not in batches[0]


@pytest.mark.parametrize(("threads", "window"), [(1, 1), (1, 4096), (3, 32), (5, 17)])
def test_threads_and_windows_change_nothing(collection, threads, window):
    collate = SelectedGenes(how="random expressed", n_genes=9, fill="unexpressed")
    expected = list(Loader(collection, weighted(), collate, batch_size=16))
    equal(list(Loader(collection, weighted(), collate, batch_size=16, num_threads=threads, window=window)), expected)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("n", [192, 200])
def test_ranks_share_the_global_batches_of_one(collection, world_size, n):
    collate = SelectedGenes(how="random expressed", n_genes=9)
    make = {"collate": collate, "transforms": [Log1p()], "drop_last": True}
    one = list(Loader(collection, weighted(n), batch_size=32, **make))
    ranks = [
        list(Loader(collection, weighted(n), batch_size=32 // world_size, rank=r, world_size=world_size, **make))
        for r in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {len(one)} == {n // 32}
    for step, batch in enumerate(one):
        for key in batch:
            assert torch.equal(batch[key], torch.cat([ranks[r][step][key] for r in range(world_size)])), key


@pytest.mark.parametrize("n", [1, 5, 23, 24, 25, 100])
def test_evaluation_on_ranks_delivers_every_row_once_besides_the_marked_ones(collection, n):
    rows = np.arange(n) * (100 // n)
    sampler = Subset(sampler=SequentialSampler(n), rows=rows)
    ranks = [list(Loader(collection, sampler, Dense(), batch_size=8, rank=r, world_size=3)) for r in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for rank in ranks for batch in rank]
    assert all(len(batch["row"]) == 8 for batch in batches)
    real = joined(batches, "row")[~joined(batches, "pad")]
    assert np.array_equal(np.sort(real), rows)


def test_every_epoch_is_another_and_evaluation_always_the_same(collection):
    train = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=10)
    first, second = joined(list(train), "row"), joined(list(train), "row")
    assert np.array_equal(np.sort(first), np.sort(second))
    assert not torch.equal(first, second)
    train.set_epoch(0)
    assert torch.equal(joined(list(train), "row"), first)
    collate = SelectedGenes(how="random expressed", n_genes=5)
    fixed = Loader(collection, SequentialSampler(100), collate, batch_size=10, fixed_epoch=True)
    once = list(fixed)
    fixed.set_epoch(4)
    equal(list(fixed), once)


def test_an_epoch_that_is_asked_for_by_name_is_that_epoch_again(collection):
    loader = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=10)
    passes = []
    for epoch in (0, 0, 1, 1, 0):
        loader.set_epoch(epoch)
        passes.append(tuple(joined(list(loader), "row").tolist()))
    assert passes[0] == passes[1] == passes[4] != passes[2] == passes[3]


def test_a_users_own_collate_may_give_what_it_likes(collection):
    def collate(batch, rng):
        return {"coo": torch.eye(3).to_sparse(), "names": ["a", "b"], "row": torch.from_numpy(batch.row)}

    batches = list(Loader(collection, SequentialSampler(100), collate, batch_size=10))
    assert [batch["names"] for batch in batches] == [["a", "b"]] * 10


def test_random_genes_are_others_in_another_epoch_and_for_another_seed(collection):
    def genes(seed, epoch):
        collate = SelectedGenes(how="random expressed", n_genes=5)
        loader = Loader(collection, SequentialSampler(100), collate, batch_size=10, seed=seed)
        loader.set_epoch(epoch)
        return joined(list(loader), "genes")

    first = genes(0, 0)
    assert torch.equal(first, genes(0, 0))
    assert not torch.equal(first, genes(0, 1))
    assert not torch.equal(first, genes(1, 0))


def test_a_stopped_stream_goes_on_bit_for_bit_from_every_step(collection):
    def make(threads=2):
        collate = SelectedGenes(how="random expressed", n_genes=9)
        return Loader(collection, ShuffleSampler(100, seed=1), collate, batch_size=16, num_threads=threads)

    whole = make()
    expected = [*whole, *whole]
    for step in range(14):
        stopped = make()
        seen = []
        while len(seen) < step:
            for batch in stopped:
                seen.append(batch)
                if len(seen) == step:
                    break
        state = stopped.state_dict()
        stopped.close()
        resumed = make(threads=3)
        resumed.load_state_dict(state)
        rest = list(resumed)
        while len(rest) < 14 - step:
            rest += list(resumed)
        equal(rest, expected[step:])


def test_a_set_epoch_between_iter_and_the_first_batch_counts(collection):
    loader = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=10)
    iterator = iter(loader)
    loader.sampler.set_epoch(5)
    assert np.array_equal(next(iterator)["row"], ShuffleSampler(100, seed=1).draw(5, 0, 10))
    loader.close()


def test_a_stream_stopped_on_one_rank_goes_on_on_two(collection):
    def make(rank=0, world_size=1):
        collate = SelectedGenes(how="random expressed", n_genes=9)
        batch_size = 32 // world_size
        return Loader(collection, weighted(192), collate, batch_size=batch_size, rank=rank, world_size=world_size)

    expected = list(make())
    stopped = make()
    iterator = iter(stopped)
    for _ in range(2):
        next(iterator)
    state = stopped.state_dict()
    stopped.close()
    ranks = [make(rank, 2) for rank in range(2)]
    for loader in ranks:
        loader.load_state_dict(state)
    rest = [list(loader) for loader in ranks]
    for step, batch in enumerate(expected[2:]):
        for key in batch:
            assert torch.equal(batch[key], torch.cat([rest[0][step][key], rest[1][step][key]])), key


def test_a_state_of_another_stream_is_refused_with_both_values(collection):
    state = Loader(collection, weighted(), Dense(), batch_size=16).state_dict()
    assert all(isinstance(value, int | str) for value in state.values())
    other_data = Collection.open([MemorySource("z", named_values(100, 40), GENES)])
    factors = np.ones(100)
    factors[17] = 1 + 1e-9  # which changes none of the draws
    other_weights = WeightedSampler(factors, classes=CLASSES, num_samples=200, seed=3)
    for key, loader in [
        ("seed", Loader(collection, weighted(), Dense(), batch_size=16, seed=9)),
        ("global_batch_size", Loader(collection, weighted(), Dense(), batch_size=8)),
        ("num_samples", Loader(collection, weighted(300), Dense(), batch_size=16)),
        ("fingerprint", Loader(other_data, weighted(), Dense(), batch_size=16)),
        ("fingerprint", Loader(collection, other_weights, Dense(), batch_size=16)),
    ]:
        own = loader.state_dict()[key]
        with pytest.raises(StateMismatchError, match=f"has {key} .*{state[key]}.* but this loader has .*{own}"):
            loader.load_state_dict(state)


def test_a_state_names_what_has_changed_of_the_data(tmp_path, caplog):
    path = tmp_path / "a.h5ad"
    x, obs = named_values(100, 40), pd.DataFrame({"kind": ["T", "B"] * 50}, index=list(map(str, range(100))))
    adata = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES))

    def loader():
        adata.write_h5ad(path)
        return Loader(Collection.open(path), weighted(), Dense(), batch_size=16)

    state = loader().state_dict()
    loader().load_state_dict(state)
    assert "files of the data were written to, or copied" in caplog.text
    with pytest.raises(StateMismatchError, match="by an earlier release"):
        loader().load_state_dict(state | {"fingerprint": "0" * 32})
    adata.obs["kind"] = ["T cell", "B cell"] * 50
    with pytest.raises(StateMismatchError, match="; obs changed since"):
        loader().load_state_dict(state)
    adata.X[99, 39] += 1
    with pytest.raises(StateMismatchError, match="; obs and X changed since"):
        loader().load_state_dict(state)


def test_closing_leaves_no_thread(collection):
    before = threading.enumerate()

    def threads():
        running = [thread for thread in threading.enumerate() if thread not in before]
        return [thread for thread in running if thread.name.startswith("scdataloader")]

    loader = Loader(collection, weighted(), Dense(), batch_size=4, window=8)
    running = iter(loader)
    next(running)
    assert threads()
    loader.close()
    assert not threads()
    with pytest.raises(RuntimeError, match="closed during this pass"):
        next(running)
    list(loader)
    assert not threads()
    next(iter(loader))  # a pass that nobody keeps
    assert not threads()


def test_a_look_at_a_batch_within_a_pass_changes_nothing(collection):
    def make():
        tally = Tally(100, CLASSES.astype(np.int32), [str(n) for n in range(7)])
        return Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=16, tally=tally)

    plain = make()
    whole = [[(batch, plain.state_dict()) for batch in plain] for _ in range(2)]
    for at in range(7):
        loader = make()
        for epoch in range(2):
            seen = []
            for step, batch in enumerate(loader):
                seen.append((batch, loader.state_dict()))
                assert loader.n_drawn == loader.tally.n_draws == len(joined([batch for batch, _ in seen], "row"))
                if (epoch, step) == (0, at):
                    start = 1 if step == 6 else 0  # after the last batch, the next epoch comes
                    equal([next(iter(loader))], [whole[start][0][0]])
            equal([batch for batch, _ in seen], [batch for batch, _ in whole[epoch]])
            assert [state for _, state in seen] == [state for _, state in whole[epoch]]


def test_passes_side_by_side_are_independent(collection):
    loader = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=10)
    first, second = zip(*zip(loader, loader, strict=True), strict=True)
    equal(first, second)
    assert loader.position == (0, 10)


def test_a_state_after_the_last_batch_goes_on_with_the_next_epoch(collection):
    def make():
        return Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=16)

    loader = make()
    list(loader)
    state, expected = loader.state_dict(), list(loader)
    resumed = make()
    resumed.load_state_dict(state)
    equal(list(resumed), expected)
    resumed.load_state_dict(state)
    resumed.set_epoch(0)
    assert not list(resumed)  # nothing is left of the epoch that is named
    equal(list(resumed), expected)


def test_passes_that_repeat_within_an_epoch_are_further_epochs(collection):
    def make():
        return Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=25)

    def run(loader, state=None):
        """Positions and states of three epochs of ten steps, of which each pass has four."""
        seen, first = [], 0
        if state is not None:
            first, state = state
            loader.load_state_dict(state)
        batches = iter(loader)
        for step in range(first, 30):
            if step % 10 == 0 or step == first:
                loader.set_epoch(step // 10)
            if step % 10 == 0:
                batches = iter(loader)
            try:
                batch = next(batches)
            except StopIteration:
                batches = iter(loader)
                batch = next(batches)
            seen.append((loader.position, batch["row"].tolist(), loader.state_dict()))
        return seen

    whole = run(make())
    assert [position for position, _, _ in whole[:12]] == [(n // 4, n % 4 + 1) for n in range(10)] + [(3, 1), (3, 2)]
    for n in range(1, 30):
        assert run(make(), (n, whole[n - 1][2])) == whole[n:]


@pytest.mark.parametrize("begun", [False, True])
def test_copies_go_on_from_the_same_position(collection, begun):
    loader = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=10)
    batches = iter(loader)
    if begun:
        next(batches)
    for other in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert other.state_dict() == loader.state_dict()
        equal(list(other), list(Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=10)))


def test_ranks_are_found_at_each_pass(collection, monkeypatch):
    def sampler(global_batch_size):
        return Subset(sampler=SequentialSampler(96), rows=np.roll(np.arange(96), global_batch_size))

    loader = Loader(collection, sampler, Dense(), batch_size=8)
    assert (loader.ranks, len(loader)) == ((0, 1), 12)
    assert joined(list(loader), "row").tolist() == np.roll(np.arange(96), 8).tolist()
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert (loader.ranks, len(loader), loader.state_dict()["global_batch_size"]) == ((2, 3), 4, 24)
    expected = np.roll(np.arange(96), 24).reshape(4, 3, 8)[:, 2]
    assert joined(list(loader), "row").tolist() == expected.ravel().tolist()
    given = Loader(collection, sampler, Dense(), batch_size=8, rank=0, world_size=1)
    assert given.ranks == (0, 1)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ValueError, match="RANK='3' and WORLD_SIZE='3'"):
        len(loader)


def test_torch_reads_the_same_batches(collection):
    loader = Loader(collection, ShuffleSampler(100, seed=1), Sparse(), batch_size=16)
    as_torch = loader.as_torch()
    assert isinstance(as_torch, torch.utils.data.DataLoader)
    assert len(as_torch) == len(loader) == 7
    first = list(as_torch)
    assert not np.array_equal(joined(as_torch, "row"), joined(first, "row"))
    as_torch.set_epoch(0)
    batches = iter(as_torch)
    equal([next(batches)], first[:1])
    state = as_torch.state_dict()
    assert state["samples_seen"] == 16
    as_torch.load_state_dict(state)
    equal(list(as_torch), first[1:])


@pytest.mark.parametrize("skipped", [0, 3, 7])
def test_batches_before_a_checkpoint_are_skipped_without_reading(collection, skipped):
    loader = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=16)
    epochs = [list(loader) for _ in range(2)]
    resumed = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=16)
    rest = skip_first_batches(resumed.as_torch(), skipped)
    rest.batch_sampler.batch_sampler.set_epoch(1)  # as the Trainer of Hugging Face does
    equal(list(rest), epochs[1][skipped:])
    assert resumed.n_drawn == (100 - 16 * skipped if skipped < 7 else 0)


@pytest.mark.parametrize("step", [3, 7])
def test_a_resumed_loader_goes_on_where_a_library_counts_its_passes_from_0(collection, step):
    loader = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=16)
    epochs = [list(loader) for _ in range(4)]
    loader.set_epoch(1)
    batches = iter(loader)
    for _ in range(step):
        next(batches)
    resumed = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=16).as_torch()
    resumed.load_state_dict(loader.state_dict())
    passes = []
    for number in range(2):
        resumed.sampler.set_epoch(number)
        passes.append(list(resumed))
    first, second = (epochs[1][step:], epochs[2]) if step < 7 else (epochs[2], epochs[3])
    equal(passes[0], first)
    equal(passes[1], second)


def test_a_pass_of_torch_draws_no_global_random_number(collection):
    as_torch = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=16).as_torch()
    before = torch.get_rng_state()
    list(as_torch)
    next(iter(skip_first_batches(as_torch, 2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_accelerate_leaves_the_batches_of_a_rank_as_they_are(collection):
    loader = Loader(collection, ShuffleSampler(100, seed=1), Dense(), batch_size=16)
    prepared, as_torch = Accelerator(cpu=True).prepare(loader, loader.as_torch())
    assert prepared is loader
    assert type(as_torch).__name__ == "TorchLoader"


def test_an_error_in_a_thread_reaches_the_caller():
    values = named_values(50, 5, density=1)
    values[40, 0] = -1
    broken = Collection.open([MemorySource("n", values, GENES[:5], mapped=True)])
    loader = Loader(broken, SequentialSampler(50), Dense(), batch_size=5)
    with pytest.raises(ValueError, match="cell 40 of n has a value that is not a count"):
        list(loader)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"batch_size": 4, "num_threads": 0}, "num_threads must be 1 or more"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, r"rank must be in \[0, world_size\)"),
        ({"batch_size": 4, "labels": np.zeros((3, 1), np.int32)}, "labels are for 3 cells, .* 100"),
        ({"batch_size": 201, "drop_last": True}, "200 draws has no full batch of 201 cells"),
    ],
)
def test_what_cannot_be_loaded_is_refused(collection, arguments, message):
    with pytest.raises(ValueError, match=message):
        Loader(collection, weighted(), Dense(), **arguments)


class Pairs(SequentialSampler):
    """Rows in order; each pair is a cell and its control."""

    set_size, n_controls = 2, 1


@pytest.mark.parametrize("sampler", [Pairs(60), Subset(sampler=Pairs(60), rows=np.arange(60))], ids=["own", "subset"])
def test_batches_hold_whole_sets(collection, sampler):
    assert len(Loader(collection, sampler, Dense(), batch_size=8)) == 8
    with pytest.raises(ValueError, match=r"batch_size of 7 cells .* sets of 2; .* 8"):
        Loader(collection, sampler, Dense(), batch_size=7)
    ranks = [list(Loader(collection, sampler, Dense(), batch_size=8, rank=r, world_size=2)) for r in range(2)]
    for batch in [*ranks[0], *ranks[1]]:
        assert (batch["row"].reshape(-1, 2)[:, 1] - batch["row"].reshape(-1, 2)[:, 0]).tolist() == [1] * 4


def test_an_epoch_holds_whole_sets(collection):
    with pytest.raises(ValueError, match=r"an epoch of 61 cells .* sets of 2"):
        Loader(collection, Pairs(61), Dense(), batch_size=8)


def test_a_collate_function_is_bound_to_the_sets_of_the_sampler(collection):
    class Bound:
        def bind(self, context):
            self.context = context
            return Dense()

        __call__ = Dense.__call__

    bound = Bound()
    Loader(collection, Pairs(60), bound, batch_size=8)
    assert (bound.context.set_size, bound.context.n_controls) == (2, 1)
    Loader(collection, SequentialSampler(60), bound, batch_size=8)
    assert (bound.context.set_size, bound.context.n_controls) == (1, 0)
