"""Which cells are read at once: stretches of steps that end where a sampler's windows do."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.batches.full import Dense
from scdataloader.collection.collection import CellLocations, Collection
from scdataloader.loading.loader import Loader
from scdataloader.protocols import ReadCost
from scdataloader.runtime.stopping import check_stopped
from scdataloader.sampling.samplers import SequentialSampler, ShuffleSampler, Subset
from scdataloader.testing import MemorySource, named_values

GENES = [f"ENSG{i:011d}" for i in range(3)]
N = 20_000


def collection(*, mapped=True):
    return Collection.open([MemorySource("a", named_values(N, 3), GENES, mapped=mapped)])


def loader(sampler, cells=None, **options):
    return Loader(cells or collection(), sampler, Dense(), **({"batch_size": 10} | options))


class Spread(SequentialSampler):
    """An order that says over how many draws it spreads neighbours."""

    def __init__(self, n, window):
        super().__init__(n)
        self.window = window


@given(st.integers(1, 40), st.integers(1, 3000), st.data())
def test_windows_cover_the_steps_and_end_at_multiples_of_their_length(length, n_steps, data):
    step = data.draw(st.integers(0, n_steps - 1))
    prefetcher = loader(Spread(N, 10 * length), batch_size=10)._ahead
    windows = list(prefetcher._windows(step, n_steps))
    assert np.array_equal(np.concatenate([np.arange(*window) for window in windows]), np.arange(step, n_steps))
    assert all(last % length == 0 or last == n_steps for _, last in windows[1:])
    assert windows[0][1] - windows[0][0] <= 102  # an eighth of 8,192 cells in batches of 10
    assert all(first % length == 0 for first, _ in windows[2:])


@pytest.mark.parametrize(
    ("window", "options", "together", "at_once"),
    [
        (None, {}, 8192, 2048),
        (None, {"mapped": False}, 8192, 8192),
        (None, {"window": 300}, 8192, 300),
        (2048, {}, 8192, 2048),
        (2048, {"mapped": False}, 8192, 8192),
        (3000, {"mapped": False}, 6000, 6000),
        (2048, {"window": 256}, 8192, 256),
        (2048, {"rank": 0, "world_size": 4}, 8192, 2048),
        (16_384, {}, 16_384, 2048),
        (16_384, {"mapped": False}, 16_384, 8192),
        (16_384, {"rank": 0, "world_size": 4}, 8192, 2048),
        (300, {}, 8100, 2048),
        (2, {"rank": 0, "world_size": 4}, 8192, 2048),
    ],
)
def test_whole_windows_of_the_sampler_are_drawn_together(window, options, together, at_once):
    mapped = options.pop("mapped", True)
    sampler = SequentialSampler(3 * N) if window is None else Spread(3 * N, window)
    sampler = Subset(sampler=sampler, rows=np.arange(3 * N) % N)
    prefetcher = loader(sampler, collection(mapped=mapped), batch_size=1, **options)._ahead
    windows = list(prefetcher._windows(0, 50_000))
    assert {last - first for first, last in windows[2:-1]} == {together}
    drawn = prefetcher._drawn(0, *windows[2], loader=None)
    prefetcher._prepare(0, drawn.slice(0, 1))  # which tells how little room a batch takes
    pieces = [len(piece.located) for piece in prefetcher._pieces(drawn)]
    assert sum(pieces) == together
    assert set(pieces[:-1]) <= {at_once}
    assert pieces[-1] <= at_once


@pytest.mark.parametrize("window", [None, 10_000])
def test_what_was_read_ahead_is_read_in_small_pieces(window):
    class Ahead(MemorySource):
        read_cost = ReadCost(cell=200.0, neighbour=5.0, is_ahead=True)

    cells = Collection.open(Ahead("ahead", named_values(N, 3), GENES))
    prefetcher = loader(SequentialSampler(N), cells, batch_size=1, window=window)._ahead
    drawn = prefetcher._drawn(0, 0, 1000, loader=None)
    prefetcher._prepare(0, drawn.slice(0, 1))
    # four pieces for two threads: the first batch does not wait until the next draws are located
    assert {len(piece.located) for piece in prefetcher._pieces(drawn)} == {1000 // (prefetcher.num_threads + 2)}
    prefetcher._cells_per_task = 100  # as if a batch took more memory
    assert {len(piece.located) for piece in prefetcher._pieces(drawn)} == {100}


class Steep(MemorySource):
    """A source whose neighbours are much faster to read together."""

    read_cost = ReadCost(cell=1000.0, neighbour=1.0)

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.calls = []

    def read(self, rows):
        self.calls.append(rows)
        return super().read(rows)


@pytest.mark.parametrize(("window", "first", "together"), [(None, 1020, 65_530), (10_000, 150, 10_000)])
def test_cells_of_a_steep_source_are_read_once_for_all_draws_of_a_window(window, first, together):
    values = named_values(N, 3)
    steep = Steep("steep", values, GENES)
    cells = Collection.open([steep, MemorySource("flat", values[:100], GENES, mapped=True)])
    sampler = Subset(sampler=ShuffleSampler(80_000, seed=1), rows=np.arange(80_000) % len(cells))
    for batch in loader(sampler, cells, window=window):
        row = batch["row"].numpy()
        np.testing.assert_array_equal(batch["x"], values[np.where(row < N, row, row - N)])
    drawn = [sampler.draw(0, start, stop) for start, stop in ((0, first), (first, together))]
    for called, rows in zip(steep.calls, drawn, strict=False):
        np.testing.assert_array_equal(called, rows[rows < N])
    assert len(steep.calls) == -(-80_000 // together) + 1


def test_leaving_a_pass_ends_a_long_read():
    steps = []

    class Slow(Steep):
        def read(self, rows):
            for step in range(3000 if len(rows) > 2000 else 0):  # of the second range of draws
                steps.append(step)
                check_stopped()
                time.sleep(0.02)
            return super().read(rows)

    for _ in loader(SequentialSampler(N), Collection.open(Slow("slow", named_values(N, 3), GENES))):
        while not steps:
            time.sleep(0.01)
        break
    n = len(steps)
    time.sleep(0.1)
    assert len(steps) == n < 3000


def test_the_rate_of_single_cells_is_estimated():
    cost = ReadCost(cell=100_000.0, neighbour=100.0)  # of units of 1,000 cells
    assert cost.is_steep
    assert cost.cells_per_second(1000, 10_000) == pytest.approx(1e10 / (1e5 + 1e6))  # one unit serves all
    assert cost.cells_per_second(10**12, 10_000) == pytest.approx(1e10 / (1e9 + 1e6), rel=1e-3)  # each has its own
    assert not ReadCost(cell=100.0, neighbour=1.0).is_steep


def test_the_disk_is_asked_for_each_row_once_and_before_it_is_read(monkeypatch):
    events = []
    read, ask = Collection.read_located, CellLocations.read_ahead
    monkeypatch.setattr(
        Collection, "read_located", lambda c, found: (events.append(("read", found.rows)), read(c, found))[1]
    )
    monkeypatch.setattr(CellLocations, "read_ahead", lambda found: (events.append(("ask", found.rows)), ask(found)))
    batches = list(loader(SequentialSampler(N), num_threads=1))
    asked = np.concatenate([rows for event, rows in events if event == "ask"])
    assert np.array_equal(np.sort(asked), np.arange(N))
    assert len(batches) == N // 10
    known = set()
    for event, rows in events:
        if event == "ask":
            known.update(rows.tolist())
        else:
            assert known.issuperset(rows.tolist())


def test_a_resumed_pass_reads_up_to_the_next_edge_first(monkeypatch):
    read = []
    whole_read = Collection.read_located
    monkeypatch.setattr(
        Collection, "read_located", lambda c, found: (read.append(sorted(found.rows)), whole_read(c, found))[1]
    )
    edge = 8192 // 200 * 200
    state = loader(Spread(N, 200)).state_dict() | {"samples_seen": edge - 50}
    resumed = loader(Spread(N, 200), num_threads=1)
    resumed.load_state_dict(state)
    assert np.array_equal(np.concatenate([batch["row"] for batch in resumed]), np.arange(edge - 50, N))
    assert read[0][0] == edge - 50
    assert [rows for rows in read if rows[0] < edge <= rows[-1]] == []


def test_a_thread_reads_no_more_cells_than_it_makes_a_task_of(monkeypatch):
    def wide(batch, rng):
        return {"row": torch.from_numpy(batch.row), "x": torch.zeros(len(batch), 100_000)}  # 4 MB a batch

    read = []
    whole_read = Collection.read_located
    monkeypatch.setattr(
        Collection, "read_located", lambda c, found: (read.append(len(found.rows)), whole_read(c, found))[1]
    )
    rows = [batch["row"] for batch in Loader(collection(), SequentialSampler(2000), wide, batch_size=10)]
    assert np.array_equal(np.concatenate(rows), np.arange(2000))
    assert read[0] == 10  # nothing is known yet
    assert max(read) == 80


def test_whatever_is_read_at_once_the_stream_is_the_same():
    def rows(sampler, **options):
        return np.concatenate([batch["row"] for batch in loader(sampler, **options)])

    expected = ShuffleSampler(5000, seed=1).draw(0, 0, 5000)
    for window in (7, 64, 1000, 9999):
        assert np.array_equal(rows(ShuffleSampler(5000, seed=1), window=window), expected)
    blocks = ShuffleSampler(5000, seed=1, block_size=4, window=512)
    assert np.array_equal(rows(blocks), blocks.draw(0, 0, 5000))
