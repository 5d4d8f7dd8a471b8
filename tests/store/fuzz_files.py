"""Damage to the files of a store, as data: what a test draws, and what a child process does to a copy and reads."""

from __future__ import annotations

import json
import struct
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdataloader.errors import StoreFormatError
from scdataloader.kernels.records.format import record_checksum
from scdataloader.runtime.memory import row_buffers
from scdataloader.store.export import to_anndata
from scdataloader.store.gene_spaces import GeneTables
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from scdataloader.types import RowBuffers

HEAD, FOOT = 16, 48
EXTREMES = sorted(
    {
        0,
        1,
        2,
        3,
        7,
        8,
        15,
        16,
        17,
        24,
        255,
        256,
        257,
        1000,
        65535,
        65536,
        1 << 24,
        1 << 28,
        (1 << 29) - 1,
        1 << 30,
        3 << 30,
    }
    | {
        (1 << bits) + more
        for bits in (31, 32, 62, 63, 64)
        for more in (-(1 << 20), -24, -16, -8, -1, 0, 8)
        if bits < 64
    }
    | {(1 << 64) - less for less in (1, 8, 16, 24, 1 << 20, 1 << 31, 1 << 32)}
)
"""Numbers at which lengths, places and sums go wrong."""


def digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def sealed(manifest: Any) -> bytes:
    """A manifest with its own checksum, whatever else is in it."""
    content = json.dumps({**manifest, "manifest": ""}, indent=1).encode()[:-3]
    return content + digest(content).encode() + b'"\n}'


def places(shard: bytes) -> list[tuple[int, int]]:
    """(byte, width) of every number in a shard that says how the rest is to be read."""
    _, n, _, _, index = struct.unpack("<16sQQQQ", shard[-FOOT:])
    found = [(0, 8), (8, 4), (12, 4)]
    offsets = struct.unpack(f"<{n + 1}Q", shard[index : index + 8 * (n + 1)])
    for begin, end in pairwise(offsets):
        found += [(begin + at, 4) for at in range(0, 16, 4)]
        n_gaps, n_large = struct.unpack("<II", shard[begin + 8 : begin + 16])
        is_of_bytes = n_gaps < 1 << 31  # otherwise its header may be longer
        n_exceptions = n_gaps + (n_large & (1 << 30) - 1) if is_of_bytes else 4
        exceptions = range(begin + 16, min(end, begin + 16 + 8 * n_exceptions), 4)
        found += [(at, 4) for at in exceptions][:24]
        found += [(at, 1) for at in range(max(begin + 16, end - 16), end)]
    found += [(index + at, 8) for at in range(0, 8 * (n + 1), 8)]
    found += [(at, 4) for at in range(index + 8 * (n + 1), len(shard) - FOOT, 4)]
    return found + [(len(shard) - FOOT + at, 8) for at in range(0, FOOT, 8)]


def put(content: bytearray, at: int, width: int, value: int) -> None:
    """Overwrite what there is of ``width`` bytes at ``at`` by a number modulo its width."""
    new = (value % (1 << 8 * width)).to_bytes(width, "little")[: max(0, len(content) - at)]
    content[at : at + len(new)] = new


def change(content: bytearray, where: list[tuple[int, int]], step: dict[str, Any]) -> None:
    """Change a number at (byte, width) ``where``: to a value, by a little, or to about what one beside it is."""
    at = step["at"] % len(where)
    byte, width = where[at]
    value, how = step["value"], step["how"]
    if how == "by":
        value = _number(content, byte, width) + step["from"] % 7 - 3
    elif how == "like":
        beside = where[(at + step["from"] % 5 - 2) % len(where)]
        value = _number(content, *beside) + (-16, -8, -1, 0, 1, 8, 16)[step["from"] // 5 % 7]
    put(content, byte, width, value)


def _number(content: bytearray, byte: int, width: int) -> int:
    return int.from_bytes(content[byte : byte + width], "little")


def damage(files: dict[str, bytes], step: dict[str, Any]) -> None:
    """Do to the files what ``step`` says; places and files are taken modulo their number."""
    names = sorted(files)
    chosen = [name for name in names if name.startswith(step["among"])]
    if not chosen:
        return
    name = chosen[step["file"] % len(chosen)]
    content, at = bytearray(files[name]), step["at"]
    op, value = step["op"], step["value"]
    if op == "flip" and content:
        content[at % len(content)] ^= 1 << value % 8
    elif op == "byte" and content:
        put(content, at % len(content), 1, value)
    elif op == "place":
        change(content, step["places"].get(name) or [(at % max(1, len(content)), 4)], step)
    elif op == "cut":
        del content[at % (len(content) + 1) :]
    elif op == "extend":
        content += bytes(value % 64 + 1)
    elif op == "splice":  # some bytes of one place go to another
        length = value % 256 + 1
        begin = step["from"] % max(1, len(content)) // 8 * 8
        piece = content[begin : begin + length]
        to = at % max(1, len(content)) // 8 * 8
        content[to : to + len(piece)] = piece
    elif op == "swap":
        other = chosen[at % len(chosen)]
        files[name], files[other] = files[other], files[name]
        return
    elif op == "delete":
        del files[name]
        return
    files[name] = bytes(content)


def reseal(files: dict[str, bytes], pristine: dict[str, bytes], *, records: bool) -> None:
    """Have the manifest say of the files what is in them; with ``records``, have their checksums match as well."""
    manifest = json.loads(pristine["manifest.json"])
    for shard in manifest["shards"]:
        content = files.get(shard["file"]["path"], b"")
        if len(content) >= HEAD + FOOT:
            _, n, _, _, index = struct.unpack("<16sQQQQ", content[-FOOT:])
            if records and index + 8 * (n + 1) <= len(content):
                content = files[shard["file"]["path"]] = _with_checksums(content, n, index)
            shard["index"] = digest(content[min(index, len(content)) :])
            shard["foot"] = digest(content[-FOOT:])
    for record in _file_records(manifest):
        content = files.get(record["path"], b"")
        record["n_bytes"], record["checksum"] = len(content), digest(content)
    files["manifest.json"] = sealed({key: value for key, value in manifest.items() if key != "manifest"})


def _with_checksums(content: bytes, n: int, index: int) -> bytes:
    made = bytearray(content)
    offsets = struct.unpack(f"<{n + 1}Q", content[index : index + 8 * (n + 1)])
    for cell, (begin, end) in enumerate(pairwise(offsets)):
        if begin + 8 <= end <= len(content) and not (begin | end) % 8:
            words = np.frombuffer(bytes(made[begin:end]), np.uint64)
            put(made, begin, 4, int(record_checksum(words, cell)))
    return bytes(made)


def _file_records(manifest: Any) -> list[Any]:
    of_sources = [source["obs"] for source in manifest["sources"]]
    spaces = [space["file"] for space in manifest["spaces"]]
    index = manifest.get("gene_index", [])
    return [*of_sources, *manifest["genes"].values(), *spaces, *index, *(shard["file"] for shard in manifest["shards"])]


class Copy:
    """A copy of a store, which is damaged and made whole again, case by case."""

    def __init__(self, store: Path, folder: Path) -> None:
        self.folder = folder
        self.pristine = {
            file.relative_to(store).as_posix(): file.read_bytes() for file in sorted(store.rglob("*")) if file.is_file()
        }
        self.places = {name: places(content) for name, content in self.pristine.items() if name.startswith("shards/")}
        for part in ("obs", "var", "genes", "shards"):
            (folder / part).mkdir(parents=True)
        self._there: dict[str, bytes] = {}
        self.put(self.pristine)
        self.expected = {how: read(folder, how) for how in HOW}

    def put(self, files: dict[str, bytes]) -> None:
        """Have exactly these files; those that change are new ones, so that no old memory map sees it."""
        for name in {*self._there, *files}:
            if self._there.get(name) != files.get(name):
                (self.folder / name).unlink(missing_ok=True)
                if name in files:
                    (self.folder / name).write_bytes(files[name])
        self._there = dict(files)

    def run(self, case: dict[str, Any]) -> str:
        """Damage the copy, read it; what came of it, in a word. Raises what should not have been raised."""
        files = dict(self.pristine)
        for step in case["steps"]:
            damage(files, {**step, "places": self.places})
        if case["seal"] in {"files", "records"}:
            reseal(files, self.pristine, records=case["seal"] == "records")
        if case.get("manifest") is not None:
            files["manifest.json"] = case["manifest"].encode("utf-8", "surrogatepass")
        self.put(files)
        try:
            found = read(self.folder, case["how"])
        except StoreFormatError as error:
            return f"refused: {error}"
        finally:
            self.put(self.pristine)
        if case["seal"]:
            return "read"
        for name, expected in self.expected[case["how"]].items():
            assert _equal(found[name], expected), f"{name} is not what was written"
        return "equal"


HOW = ("sources", "tables", "one pass", "verify", "export")


def read(folder: Path, how: str) -> dict[str, Any]:
    """Read all of a store in one of the ways there are."""
    if how == "verify":
        return {"summary": str(verify(folder))}
    store = Store.open(folder)
    if how == "one pass":
        return _one_pass(store)
    found: dict[str, Any] = {}
    for number, source in enumerate(store.sources):
        if how == "sources":
            cells = source.read(np.arange(source.n_obs))
            parts = {"data": cells.data, "indices": cells.indices, "indptr": cells.indptr, "nnz": source.nnz()}
        elif how == "tables":
            parts = {"obs": source.obs(source.obs_columns), "var": source.var}
        else:
            adata = to_anndata(store, number)
            parts = {"obs": adata.obs, "data": adata.X.data, "indices": adata.X.indices, "indptr": adata.X.indptr}
        found.update({f"{name} of source {number}": part for name, part in parts.items()})
    store.close()
    return found


def _some(n: int) -> np.ndarray:
    return np.where(np.arange(n) % 3 > 0, np.arange(n), -1).astype(np.int32)


LUTS = (lambda n: np.arange(n, dtype=np.int32), _some, lambda n: _some(n)[::-1].copy())
"""All genes in order, some in order, and some in another order."""


def _one_pass(store: Store) -> dict[str, Any]:
    """All cells twice, shuffled, in a vocabulary of all or some of a source's genes, in order or not."""
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(store.n_obs), 2))
    found = store.locate(rows)
    places = [source.places for source in store.sources]
    n_genes = max((len(own.place) for own in places), default=0)
    parts: dict[str, Any] = {}
    for way in range(len(LUTS)):
        luts = [LUTS[(number + way) % len(LUTS)](len(own.place)) for number, own in enumerate(places)]
        genes, slots = GeneTables(luts, places, n_genes), row_buffers(found.records.size)
        found.decode(store.sources_of(found), genes, np.arange(len(rows)), slots)
        _see_genes(slots, n_genes)
        rooms = [np.arange(start, start + size) for start, size in zip(slots.starts[:-1], slots.sizes, strict=True)]
        used = np.concatenate([np.empty(0, np.int64), *rooms])
        read = {"sizes": slots.sizes, "depth": slots.depth, "indices": slots.indices[used], "data": slots.data[used]}
        parts.update({f"{name}, {way}": part for name, part in read.items()})
    return parts


def _see_genes(slots: RowBuffers, n_genes: int) -> None:
    """Gene numbers index memory without a check: whatever the bytes, they have to be in range."""
    for start, size in zip(slots.starts[:-1], slots.sizes, strict=True):
        genes = slots.indices[start : start + size]
        assert not len(genes) or (genes.min() >= 0 and genes.max() < n_genes), "a gene number out of range"


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, pd.DataFrame):
        return bool(found.equals(expected) and (found.dtypes == expected.dtypes).all())
    if isinstance(expected, np.ndarray):
        same = found.dtype == expected.dtype and found.shape == expected.shape
        return bool(same and found.tobytes() == expected.tobytes())  # bytes, since NaN equals nothing
    return bool(found == expected)
