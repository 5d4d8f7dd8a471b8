"""A reader of stores in plain Python, written from its page alone: what it cannot read, that page does not say.

Slow, and strict: it refuses what breaks any rule of the page.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

M = 2**64 - 1
GAMMA, PRIME = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


def mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M
    return x ^ x >> 31


def checksum(w: tuple[int, ...], cell: int) -> int:
    seed = mix(cell + GAMMA & M)
    a, b, c, d = seed, seed + GAMMA & M, seed ^ GAMMA, seed ^ M
    a = (a ^ w[0] >> 32) * PRIME & M
    k = 1
    while k + 4 <= len(w):
        b = (b ^ w[k]) * PRIME & M
        c = (c ^ w[k + 1]) * PRIME & M
        d = (d ^ w[k + 2]) * PRIME & M
        a = (a ^ w[k + 3]) * PRIME & M
        k += 4
    for word in w[k:]:
        b = (b ^ word) * PRIME & M
    return mix(a ^ mix(b ^ mix(c ^ mix(d)))) % 2**32


@dataclass
class Cells:
    """A source, its cells in the order of the store, its genes in that of its gene table."""

    name: str
    kind: str
    obs: pd.DataFrame
    var: pd.DataFrame
    space: list[str]
    cells: list[dict[int, float]] = field(default_factory=list)
    """{gene: value} of each cell, genes ascending."""
    matrices: dict[str, list[dict[int, float]]] = field(default_factory=dict)
    """{key: {column: value} of each cell} of further matrices."""
    names: dict[str, list[str] | None] = field(default_factory=dict)
    """{key: names of the columns}."""


def read_store(folder: Path) -> list[Cells]:
    """All sources of a store."""
    content = (folder / "manifest.json").read_bytes()
    end = content[-35:]
    assert re.fullmatch(rb'[0-9a-f]{32}"\n}', end)
    assert end[:32].decode() == digest(content[:-35])
    manifest = json.loads(content.decode("ascii"))
    keys = {"version", "layout", "sources", "genes", "spaces", "shards", "manifest"}
    more = {1: set(), 2: {"matrices"}, 3: {"matrices", "release"}, 4: {"matrices", "release"}}
    assert set(manifest) - {"gene_index"} == keys | more[manifest["version"]]
    spaces = []
    for space in manifest["spaces"]:
        spaces.append(read_table(folder, space["file"])["gene"].tolist())
        assert len(spaces[-1]) == space["n_genes"]
        assert spaces[-1] == sorted(set(spaces[-1]))
    sources = [
        Cells(
            name=source["name"],
            kind=source["kind"],
            obs=read_table(folder, source["obs"]),
            var=read_table(folder, manifest["genes"][source["genes"]]),
            space=spaces[source["space"]],
        )
        for source in manifest["sources"]
    ]
    for shard in manifest["shards"]:
        read_shard(folder, shard, sources)
    for matrix in manifest.get("matrices", ()):
        read_matrix(folder, manifest["shards"], matrix, sources)
    for source, said in zip(sources, manifest["sources"], strict=True):
        assert len(source.cells) == len(source.obs) == said["n_cells"]
        assert list(source.var.index) == sorted(set(source.var.index))
        assert set(source.var.index) <= set(source.space)
        for file in manifest.get("gene_index", ()):
            index = read_table(folder, file)
            assert list(index.columns) == ["table", "space", "genes", "are_names"]
            rows = index[(index["table"] == said["genes"]) & (index["space"] == said["space"])]
            for packed in rows["genes"]:
                check_genes(packed, source)
        if "__row__" in source.obs:
            assert sorted(source.obs["__row__"]) == list(range(len(source.obs)))
    return sources


def check_genes(packed: bytes, source: Cells) -> None:
    """Check what the gene index states of a source."""
    assert len(packed) == -(-len(source.space) // 8)
    bits = int.from_bytes(packed, "little")
    assert bits >> len(source.space) == 0
    assert [gene for at, gene in enumerate(source.space) if bits >> at & 1] == list(source.var.index)


def read_matrix(folder: Path, shards: list[dict[str, Any]], matrix: dict[str, Any], sources: list[Cells]) -> None:
    """Read a further matrix into its sources."""
    kind, name = matrix["key"].split("/", 1)
    assert kind in {"layers", "obsm", "obsp"}
    assert name
    assert set(matrix) == {"key", "parts", "shards"}
    assert [(shard["n_cells"], shard["source"]) for shard in matrix["shards"]] == [
        (shard["n_cells"], shard["source"]) for shard in shards
    ]
    for source, part in zip(sources, matrix["parts"], strict=True):
        assert set(part) == {"n_columns", "names", "digest"}
        if kind != "obsm":
            assert part["n_columns"] == (len(source.space) if kind == "layers" else len(source.obs))
        source.names[matrix["key"]] = part["names"]
        source.matrices[matrix["key"]] = []
    for shard in matrix["shards"]:
        read_shard(folder, shard, sources, matrix)


def digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def read_file(folder: Path, file: dict[str, Any], pattern: str) -> bytes:
    assert re.fullmatch(pattern, file["path"])
    content = (folder / file["path"]).read_bytes()
    assert len(content) == file["n_bytes"]
    assert digest(content) == file["checksum"]
    return content


def read_table(folder: Path, file: dict[str, Any]) -> pd.DataFrame:
    read_file(folder, file, r"(obs|var|genes)/[0-9a-f]{5,32}\.parquet")
    frame = pd.read_parquet(folder / file["path"])
    described = pq.read_schema(folder / file["path"]).metadata.get(b"scdataloader.categories", b"{}")
    for column, said in json.loads(described).items():
        categories = pd.Index(said["categories"], dtype=said["dtype"])
        frame[column] = pd.Categorical(frame[column], categories=categories, ordered=said["ordered"])
    return frame


def read_shard(folder: Path, shard: dict[str, Any], sources: list[Cells], matrix: dict[str, Any] | None = None) -> None:
    """Append the cells of a shard, of the counts or of a further matrix, to their sources."""
    pattern = r"shards/[0-9a-f]{5,32}\.cells" if matrix is None else r"matrices/[0-9a-f]{5,32}-[0-9a-f]{5,32}\.cells"
    content = read_file(folder, shard["file"], pattern)
    magic, version, flags = struct.unpack("<8sII", content[:16])
    assert magic == b"SCDCELLS"
    assert version in {1 if matrix is None else 2, 3, 4}
    floats, mixed, further = flags & 1, flags >> 1 & 1, flags >> 2
    assert (further, floats and further) == (matrix is not None, 0)
    assert mixed == (shard["source"] is None)
    before, n, n_values, n_genes, index = struct.unpack("<16sQQQQ", content[-48:])
    assert (n, n_values) == (shard["n_cells"], shard["n_values"])
    assert digest(content[-48:]) == shard["foot"]
    assert digest(content[index:]) == shard["index"]
    assert digest(content[:index]) == before.hex()
    at = index
    offsets = struct.unpack(f"<{n + 1}Q", content[at : at + 8 * (n + 1)])
    at += 8 * (n + 1)
    tables = []
    for _ in range(1 + mixed):
        table = struct.unpack(f"<{n + n % 2}I", content[at : at + 4 * (n + n % 2)])
        assert not any(table[n:])
        tables.append(table[:n])
        at += 4 * (n + n % 2)
    assert at == len(content) - 48
    assert (offsets[0], offsets[-1]) == (16, index)
    assert sum(tables[0]) == n_values
    of_cell = tables[1] if mixed else [shard["source"]] * n
    for cell, number in enumerate(of_cell):
        source = sources[number]
        is_graph = matrix is not None and matrix["key"].startswith("obsp/")
        record = content[offsets[cell] : offsets[cell + 1]]
        is_short = record[11] >> 7 and record[15] & 15 == 6
        assert not record[11] >> 7 or version == 3 + is_short
        found = read_record(record, cell, None if further else floats, as_bits=is_graph)
        assert len(found) == tables[0][cell]
        if matrix is not None:
            n_columns = matrix["parts"][number]["n_columns"]
            assert n_genes == (0 if mixed else n_columns)
            assert max(found, default=-1) < n_columns
            append_matrix(source, matrix["key"], found)
            continue
        assert floats == (source.kind == "float32")
        assert n_genes == (0 if mixed else len(source.space))
        row = {gene: number for number, gene in enumerate(source.var.index)}
        source.cells.append({row[source.space[number]]: value for number, value in found.items()})


def append_matrix(source: Cells, key: str, found: dict[int, float]) -> None:
    """Append a cell of a further matrix."""
    if key.startswith("layers/"):
        row = {gene: number for number, gene in enumerate(source.var.index)}
        found = {row[source.space[number]]: value for number, value in found.items()}
    if key.startswith("obsp/"):
        found = {column: struct.unpack("<f", struct.pack("<I", bits - 1))[0] for column, bits in found.items()}
    assert all(struct.unpack("<f", struct.pack("<f", value))[0] == value for value in found.values())
    source.matrices[key].append(found)


def read_record(record: bytes, cell: int, floats: int | None, *, as_bits: bool = False) -> dict[int, float]:
    """{gene: value} of a cell; None for floats of records that may have either kind."""
    stated, n, n_gaps, last = struct.unpack("<IIII", record[:16])
    assert stated == checksum(struct.unpack(f"<{len(record) // 8}Q", record), cell)
    if n_gaps >> 31 and last >> 24 & 15 == 6:
        return read_short(record, floats)
    if n_gaps >> 31:
        return read_packed(record, floats, as_bits=as_bits)
    n_large, width = last % 2**30, last >> 30
    assert floats in {None, int(width == 3)}
    assert n_large == 0 or width < 2
    long_gaps, large, at = read_exceptions(record, 16, n, n_gaps, n_large)
    letter = "BHIf"[width]
    if as_bits:
        assert n == 0 or width == 3
        letter = "I"
    values = list(struct.unpack(f"<{n}{letter}", record[at : at + struct.calcsize(letter) * n]))
    at += struct.calcsize(letter) * n
    gaps = record[at : at + n]
    assert len(gaps) == n
    assert record[at + n :] == bytes(-(at + n) % 8)
    for place, value in large.items():
        assert values[place] == 0
        assert value >= 256 ** (width + 1)
        values[place] = value
    assert all(values)
    found = {}
    gene = -1
    for place in range(n):
        more = long_gaps.get(place, 0)
        assert more % 256 == 0
        gene += 1 + gaps[place] + more
        found[gene] = values[place]
    assert all(long_gaps.values())
    return found


def read_exceptions(
    record: bytes, at: int, n: int, n_gaps: int, n_large: int
) -> tuple[dict[int, int], dict[int, int], int]:
    """Long gaps and large values from a byte on, {position: number} each, and the byte after them."""
    exceptions = []
    for many in (n_gaps, n_large):
        pairs = dict(struct.iter_unpack("<II", record[at : at + 8 * many]))
        assert list(pairs) == sorted(pairs)
        assert len(pairs) == many
        assert all(place < n for place in pairs)
        exceptions.append(pairs)
        at += 8 * many
    return (*exceptions, at)


def read_short(record: bytes, floats: int | None) -> dict[int, float]:
    """{gene: value} of a short record."""
    _, n, third, fourth, n_gaps, n_wide = struct.unpack("<IIIIII", record[:24])
    assert floats in {None, 0}
    n_raised, n_large = third % 2**31, fourth % 2**24
    assert fourth >> 24 == 6
    assert n <= 2**14
    long_gaps, large, at = read_exceptions(record, 24, n, n_gaps, n_large)
    raised = struct.unpack(f"<{n_raised}H", record[at : at + 2 * n_raised])
    at += 2 * n_raised
    wide = struct.unpack(f"<{n_wide}H", record[at : at + 2 * n_wide])
    at += 2 * n_wide
    q, m = (n + 1) // 2, (n + 3) // 4
    assert len(record) - 8 < at + q + 3 * m + n_raised <= len(record)
    values = [record[at + j % q] >> 4 * (j // q) & 15 for j in range(n)]
    assert n % 2 == 0 or record[at + q - 1] < 16
    at += q
    planes = [record[at + m * plane : at + m * (plane + 1)] for plane in range(3)]
    gaps = [planes[j // m][j % m] & 63 for j in range(min(n, 3 * m))]
    uppers = [sum((planes[plane][j] >> 6) << 2 * plane for plane in range(3)) for j in range(m)]
    gaps += uppers[: max(0, n - 3 * m)]
    assert not any(uppers[max(0, n - 3 * m) :])
    at += 3 * m
    more = record[at : at + n_raised]
    at += n_raised
    assert record[at:] == bytes(-at % 8)
    assert len(record) < 16 + 8 * (n_gaps + n_large) + (2 * n + 7) // 8 * 8
    assert sorted(set(raised)) == list(raised)
    for place, add in zip(raised, more, strict=True):
        assert add
        assert add % 16 == 0
        values[place] += add
    places = [code % 2**14 for code in wide]
    assert sorted(set(places)) == places
    for code in wide:
        assert code >> 14
        gaps[code % 2**14] += (code >> 14) * 64
    for place, value in large.items():
        assert values[place] == 0
        assert value >= 256
        values[place] = value
    assert all(values)
    assert all(more and more % 256 == 0 for more in long_gaps.values())
    found, gene = {}, -1
    for place in range(n):
        gene += 1 + gaps[place] + long_gaps.get(place, 0)
        found[gene] = values[place]
    return found


def read_packed(record: bytes, floats: int | None, *, as_bits: bool) -> dict[int, float]:
    """{gene: value} of a packed record."""
    _, n, third, fourth = struct.unpack("<IIII", record[:16])
    n_raised, n_large, code, low = third % 2**31, fourth % 2**24, fourth >> 24 & 15, 2 ** (fourth >> 28)
    assert low in {2, 4, 8, 16}
    bits = (8, 16, 32, 32, 2, 4)[code] if code < 6 else 0
    assert bits
    assert floats in {None, int(code == 3)}
    assert not as_bits or n == 0 or code == 3
    large = dict(struct.iter_unpack("<II", record[16 : 16 + 8 * n_large]))
    assert list(large) == sorted(large)
    assert len(large) == n_large
    fixed = (n * bits + 7) // 8 + (n * low + 7) // 8 + 2 * n_raised
    at, m = 16 + 8 * n_large, (len(record) - 16 - 8 * n_large - fixed) // 8
    assert m >= 0
    upper = int.from_bytes(record[at : at + 8 * m], "little")
    places = [place for place in range(64 * m) if upper >> place & 1]
    assert len(places) == n
    assert m == (max(places, default=-1) + 64) // 64
    at += 8 * m
    found = read_fields(record[at : at + (n * bits + 7) // 8], n, bits)
    at += (n * bits + 7) // 8
    lower = read_fields(record[at : at + (n * low + 7) // 8], n, low)
    at += (n * low + 7) // 8
    genes = [(place - j << low) + lower[j] for j, place in enumerate(places)]
    assert genes == sorted(set(genes))
    is_raised = bits < 9
    assert is_raised or not n_raised
    assert code in {0, 1, 4, 5} or not n_large
    values: list[float] = [value + is_raised for value in found]
    place, is_step, last = 0, True, -1
    for step, more in zip(record[at : at + n_raised], record[at + n_raised :][:n_raised], strict=True):
        place += step
        is_step = more == 0
        assert is_step == (step == 255)
        assert last < place < n
        if more:
            values[place] += more << bits
            last = place
    assert not n_raised or not is_step
    assert record[at + 2 * n_raised :] == bytes(-fixed % 8)
    for place, value in large.items():
        assert place < n
        assert found[place] == 0
        assert values[place] == is_raised
        assert (value - 1 >> bits) >= 256 if is_raised else value >= 65536
        values[place] = value
    if code == 3 and not as_bits:
        values = list(struct.unpack(f"<{n}f", struct.pack(f"<{n}I", *found)))
    assert all(values)
    return dict(zip(genes, values, strict=True))


def read_fields(planes: bytes, n: int, bits: int) -> list[int]:
    """Fields of some bits; those beyond the last are 0."""
    if bits > 8:
        return [int.from_bytes(planes[at : at + bits // 8], "little") for at in range(0, len(planes), bits // 8)]
    q = len(planes)
    fields = [planes[j % q] >> bits * (j // q) & 2**bits - 1 for j in range(q * 8 // bits)]
    assert not any(fields[n:])
    return fields[:n]
