"""Small, aimed damage to a store, and manifests that agree with it."""

from __future__ import annotations

import json
import struct

from tests.store.fuzz_files import digest, put, sealed

SHARD = "shards/00000.cells"


def patch(store, name, *changes):
    """Overwrite numbers of a file, given as (byte, width, value)."""
    content = bytearray((store / name).read_bytes())
    for at, width, value in changes:
        put(content, at % len(content), width, value)
    (store / name).write_bytes(content)


def reseal(store, **changes):
    """Have the manifest say what the files are; then change entries of it, given as path__to__entry=value."""
    manifest = json.loads((store / "manifest.json").read_bytes())
    for shard in manifest["shards"]:
        content = (store / shard["file"]["path"]).read_bytes()
        shard["index"] = digest(content[struct.unpack("<Q", content[-8:])[0] :])
        shard["foot"] = digest(content[-48:])
    files = [*(source["obs"] for source in manifest["sources"]), *manifest["genes"].values()]
    files += [space["file"] for space in manifest["spaces"]]
    files += manifest.get("gene_index", [])
    for file in [*files, *(shard["file"] for shard in manifest["shards"])]:
        content = (store / file["path"]).read_bytes()
        file["n_bytes"], file["checksum"] = len(content), digest(content)
    for path, value in changes.items():
        *keys, last = path.split("__")
        node = manifest
        for key in keys:
            node = node[int(key) if isinstance(node, list) else key]
        node[last] = value
    manifest.pop("manifest")
    (store / "manifest.json").write_bytes(sealed(manifest))


def index_of(store, name=SHARD):
    return struct.unpack("<Q", (store / name).read_bytes()[-8:])[0]
