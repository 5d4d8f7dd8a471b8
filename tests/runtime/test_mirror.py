"""Mirror of remote files: its bytes are those of the files, whatever is removed meanwhile."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

pytest.importorskip("obstore")

from benchmarks.range_server import RangeServer
from scdataloader.runtime import sparse
from scdataloader.runtime.buckets import Bucket
from scdataloader.runtime.bytes import MirroredFile
from scdataloader.runtime.mirror import Mirror

SIZES = {"a": 3_000_000, "b": 5, "c": 700_001}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Files without a zero, so that a hole is seen."""
    rng = np.random.default_rng(0)
    return {name: rng.integers(1, 256, n, dtype=np.uint8) for name, n in SIZES.items()}


@pytest.fixture(scope="module")
def server(content: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RangeServer]:
    folder = tmp_path_factory.mktemp("files")
    for name, values in content.items():
        values.tofile(folder / name)
    with RangeServer(folder) as made:
        yield made


@pytest.fixture
def mirror(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setenv("SCDATALOADER_CACHE", str(tmp_path / "cache"))
    server.set()
    return Mirror(Bucket.open(server.url), "1", SIZES)


def ranges(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """File, first byte and length of some ranges, empty ones among them."""
    file = rng.integers(0, 3, n)
    size = np.array([*SIZES.values()])[file]
    begin = (rng.random(n) * size).astype(np.int64)
    return file, begin, np.minimum(rng.integers(0, 9000, n), size - begin)


def expected(content: dict[str, np.ndarray], file: np.ndarray, begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    files = [*content.values()]
    return np.concatenate([files[f][b : b + n] for f, b, n in zip(file, begin, length, strict=True)])


def remove(mirror: Mirror, n_bytes: int = 1 << 40) -> None:
    with mirror._copy._exclusive():
        mirror._copy._remove(n_bytes)


def test_bytes_are_those_of_the_files_while_pages_are_removed(mirror: Mirror, content: dict[str, np.ndarray]) -> None:
    stop = time.monotonic() + 2

    def run() -> None:
        while time.monotonic() < stop:
            remove(mirror, 1 << 19)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    rng, n = np.random.default_rng(1), 0
    while time.monotonic() < stop or n < 10:
        asked = ranges(rng, 100)
        mirror.start(*asked)
        found, starts = mirror.copied(*asked)
        assert_array_equal(found, expected(content, *asked))
        assert_array_equal(starts, np.cumsum(asked[2]) - asked[2])
        n += 1
    for thread in threads:
        thread.join()


def test_a_view_is_wrong_after_a_removal(mirror: Mirror, content: dict[str, np.ndarray]) -> None:
    asked = np.array([0, 2]), np.array([5000, 100]), np.array([600_000, 8192])
    view = mirror.view(*asked)
    assert view is not None
    found = [ctypes.string_at(int(at), int(n)) for at, n in zip(view.address, asked[2], strict=True)]
    assert b"".join(found) == expected(content, *asked).tobytes()
    assert view.is_right()
    other = mirror.view(np.array([0]), np.array([2_500_000]), np.array([9]))
    assert other is not None
    mirror.forget(np.array([2]), np.array([200]), np.array([1]))
    assert not view.is_right()
    assert other.is_right(), "of another segment"
    assert other.n_removals < int(mirror._copy.removals[0])
    mirror.copied(*asked)
    assert not view.is_right(), "what was read meanwhile may have been of a hole"


def test_a_copy_is_not_used_if_pages_are_removed_amid_it(
    mirror: Mirror, content: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = np.array([0, 0]), np.array([5000, 900_000]), np.array([600_000, 8192])
    mirror.copied(*asked)
    copy, n = sparse.copy_ranges, 0

    def disturbed(*arguments: object) -> None:
        nonlocal n
        n += 1
        remove(mirror)
        copy(*arguments)

    monkeypatch.setattr(sparse, "copy_ranges", disturbed)
    assert_array_equal(mirror.copied(*asked)[0], expected(content, *asked))
    assert n > 2


def test_a_removal_that_was_interrupted_hides_its_pages(mirror: Mirror, content: dict[str, np.ndarray]) -> None:
    mirror.read("a")
    mirror._copy._changes[:3] += 1
    sparse._punch(mirror._copy._data, 0, 3 * sparse.SEGMENT_BYTES)
    assert mirror._copy.look(np.array([0]), np.array([10]))[0] == -1
    assert_array_equal(mirror.read("a"), content["a"])
    assert not (mirror._copy._changes & 1).any()


def test_each_page_is_fetched_once(mirror: Mirror, server: RangeServer, content: dict[str, np.ndarray]) -> None:
    server.set(delay=0.05)
    found = []
    threads = [threading.Thread(target=lambda: found.append(mirror.read("c").copy())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, content["c"]) for one in found)
    assert server.counts()["GET"] == 1
    assert mirror.read("c", 700_000, 10**9).tolist() == content["c"][700_000:].tolist()


def test_a_read_waits_for_its_own_pages_alone(mirror: Mirror, server: RangeServer) -> None:
    file, begin, length = np.zeros(1, np.int64), np.array([0]), np.array([4096])
    server.set(delay=1)
    mirror.start(file, begin + 40 * 4096, length)
    deadline = time.monotonic() + 5
    while not server.counts()["requests"]:
        assert time.monotonic() < deadline
    server.set(delay=0.1)
    (slow,) = {id(one): one for ones in mirror._flights.values() for one in ones}.values()
    mirror.start(file, begin, length)
    assert mirror.view(file, begin, length) is not None
    assert not slow.request.done.done()  # of another page of the same segment
    assert mirror.view(file, begin + 40 * 4096, length) is not None
    assert slow.request.done.done()


def test_near_pages_are_fetched_together(mirror: Mirror, server: RangeServer) -> None:
    server.set()
    begin = np.array([0, 17 * 4096, 17 * 4096 + 18 * 4096])  # 16 pages between the first two, 17 before the third
    mirror.copied(np.zeros(3, int), begin, np.full(3, 10))
    assert server.counts()["GET"] == 2
    server.set()
    mirror.read("a", 0, 40 * 4096)
    assert server.counts()["GET"] <= 2


def test_a_file_of_a_mirror(mirror: Mirror, content: dict[str, np.ndarray]) -> None:
    with MirroredFile(mirror, "c") as file:
        assert file.seek(-5, 2) == SIZES["c"] - 5
        assert file.read() == content["c"][-5:].tobytes()
        assert file.read(1) == b""
        assert file.seek(10) == 10
        assert file.read(7) == content["c"][10:17].tobytes()
        assert file.seek(3, 1) == 20
        assert mirror.bucket.url in file.name
