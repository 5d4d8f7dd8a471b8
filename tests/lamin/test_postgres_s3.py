"""The same on Postgres, and with artifacts in a bucket: servers of the tests' own, on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from lamindb_setup.core.hashing import hash_file

from scdataloader import Collection
from scdataloader.curation import Recipe
from scdataloader.lamin.collections import resolve_lamin
from scdataloader.lamin.register import register
from scdataloader.store.convert import convert
from tests.lamin.curated import CELL_TYPE, B, T, curated, failing_database
from tests.lamin.postgres import postgres_server
from tests.s3 import s3_server

ON_POSTGRES = """
import sys
import threading
from pathlib import Path
import lamindb
import psycopg2
from tests.lamin.curated import CD8, CELL_TYPE, NEURON, B, T, curated
from tests.lamin.killed import kill_at_each_step
from scdataloader import Collection
from scdataloader.curation import Recipe
from scdataloader.lamin.register import register
from scdataloader.lamin.genes import import_genes, registered_genes

assert lamindb.setup.settings.instance.dialect == "postgresql"

def count():
    return [table.objects.count() for table in (lamindb.Artifact, lamindb.Collection, lamindb.Run, lamindb.Schema)]

folder = Path("db/files").absolute()
outcomes = [curated(folder / f"{name}.h5ad", labels) for name, labels in (("a", [T, B]), ("b", [NEURON, CD8]))]
first = register(outcomes, key="my/atlas", recipe=Recipe())
assert (first.n_new, first.is_new) == (2, True), first
before = count()
assert register(outcomes, key="my/atlas", recipe=Recipe()).version == first.version
assert count() == before

changed = curated(folder / "new" / "a.h5ad", [T], source=outcomes[0].source)
register([changed], key="my/atlas", recipe=Recipe(n_mads=3.0))
found = Collection.open("lamindb:my/atlas", where={"cell_types": "T cell and below", "organisms": "human"})
assert found.obs([CELL_TYPE])[CELL_TYPE].tolist() == [T, CD8]
assert len(Collection.open(f"lamindb:my/atlas@{first.version}")) == 4

Path("genes.csv").write_text("ENSG00000141510,TP53\\nENSG00000000003,P\\n")
assert "2 genes of human, 2 new" in import_genes("human", "genes.csv")
assert import_genes("human", "genes.csv") == "Gene: 2 genes of human, none new"
rows = [["ENSG00000000003", "P", ""], ["ENSG00000141510", "TP53", ""]]
assert registered_genes("human").to_numpy().tolist() == rows

# who registers in a collection waits for who does so already, and nobody else does
other = psycopg2.connect(sys.argv[1])
other.cursor().execute("SELECT pg_advisory_lock(hashtext('my/atlas'))")
assert register([curated(folder / "d.h5ad", [B])], key="my/other", recipe=Recipe()).n_new == 1
threading.Timer(4, other.close).start()
assert register([curated(folder / "e.h5ad", [B])], key="my/atlas", recipe=Recipe()).n_new == 1
assert other.closed

def hang_up(event, _):
    if event == "os.link":
        with psycopg2.connect(sys.argv[1]) as other, other.cursor() as cursor:
            mine = "datname = current_database() AND pid != pg_backend_pid()"
            cursor.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
        hung_up.append(event)

hung_up = []
sys.addaudithook(hang_up)
assert register([curated(folder / "idle.h5ad", [B])], key="my/idle", recipe=Recipe()).n_new == 1
assert hung_up

before = count()
assert register([curated(folder / "c.h5ad", ["CL:9999999"])], key="my/atlas", recipe=Recipe()).refused
assert count() == before
kill_at_each_step(folder / "killed", "my/killed")
"""


@pytest.mark.slow
@pytest.mark.postgres
def test_the_same_on_postgres(tmp_path: Path) -> None:
    path = str(Path(__file__).parents[2])
    environment = {**os.environ, "LAMIN_SETTINGS_DIR": str(tmp_path / "settings"), "PYTHONPATH": path}
    command = [sys.executable, "-m", "scdataloader"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    with postgres_server("atlas") as address:
        done = run(*command, "instance", "init", "--storage", "db", "--db", address)
        assert done.returncode == 0, done.stderr
        assert "lamindb needs about a minute" in done.stderr
        assert run(*command, "instance", "init", "--storage", "db", "--db", address).stdout == done.stdout
        done = run(sys.executable, "-c", ON_POSTGRES, address)
        assert done.returncode == 0, done.stderr
    done = run(*command, "inspect", "lamindb:my/atlas")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the database of the lamindb instance does not answer" in done.stderr


@pytest.mark.s3
def test_artifacts_in_a_bucket(lamin: ModuleType, tmp_path: Path) -> None:
    import boto3

    outcomes = [curated(tmp_path / f"{name}.h5ad", [T, B, T]) for name in "ab"]
    with s3_server() as address:
        storage = f"s3://atlas/curated?endpoint_url={address}"
        done = register(outcomes, key="s3/atlas", recipe=Recipe(), storage=storage)
        assert (done.n_new, done.n_members) == (2, 2)
        assert register(outcomes, key="s3/atlas", recipe=Recipe(), storage=storage).n_new == 0
        kept = boto3.client("s3").list_objects_v2(Bucket="atlas", Prefix="curated/")["Contents"]
        assert sum(item["Key"].endswith(".h5ad") for item in kept) == 2
        found = Collection.open("lamindb:s3/atlas", where={"cell_types": "T cell"})
        assert found.obs([CELL_TYPE])[CELL_TYPE].tolist() == [T] * 4

        gone = curated(tmp_path / "c.h5ad", [T])
        more = curated(tmp_path / "d.h5ad", [T, B])
        gone.output.unlink()
        with pytest.raises(FileNotFoundError, match=r"c\.h5ad"):
            register([more, gone], key="s3/atlas", recipe=Recipe(), storage=storage)
        again = boto3.client("s3").list_objects_v2(Bucket="atlas", Prefix="curated/")["Contents"]
        assert [item["Key"] for item in again] == [item["Key"] for item in kept]
        assert lamin.Collection.filter(key="s3/atlas").count() == 1


@pytest.mark.s3
def test_a_store_in_a_bucket_is_downloaded_once(lamin: ModuleType, tmp_path: Path) -> None:
    """By lamindb, into its own cache, as every artifact; by its URL it is read in parts."""
    import boto3

    files = [curated(tmp_path / f"{name}.h5ad", [T, B, T]).output for name in "ab"]
    convert(files, tmp_path / "atlas.cells")
    with s3_server() as address:
        for file in (tmp_path / "atlas.cells").rglob("*.*"):
            boto3.client("s3").upload_file(file, "atlas", f"kept/{file.relative_to(tmp_path).as_posix()}")
        lamin.Storage(root=f"s3://atlas/kept?endpoint_url={address}").save()
        url = f"s3://atlas/kept/atlas.cells?endpoint_url={address}"
        lamin.Artifact(url, key="kept/atlas.cells", run=False).save()
        found = Collection.open("lamindb:kept/atlas.cells")
        rows = np.array([5, 0, 3])
        near = Collection.open(tmp_path / "atlas.cells").read(rows)
        np.testing.assert_array_equal(found.read(rows).data, near.data)
        assert found.obs([CELL_TYPE])[CELL_TYPE].tolist() == [T, B, T] * 2
        np.testing.assert_array_equal(Collection.open("s3://atlas/kept/atlas.cells").read(rows).data, near.data)
        (cached,) = {found.path for found in resolve_lamin("lamindb:kept/atlas.cells")}
        before = (cached / "manifest.json").stat().st_mtime_ns
        assert len(Collection.open("lamindb:kept/atlas.cells")) == 6
        assert (cached / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.s3
def test_what_was_uploaded_is_neither_uploaded_again_nor_downloaded(lamin: ModuleType, tmp_path: Path) -> None:
    import boto3

    def uploads() -> list[str]:
        kept = boto3.client("s3").list_object_versions(Bucket="atlas", Prefix="again/versions/")
        return [item["Key"] for item in kept.get("Versions", [])]

    def n_cells(version: str = "") -> int:
        return len(Collection.open(f"lamindb:s3/again{version}"))

    first = curated(tmp_path / "a.h5ad", [T, B])
    changed = curated(tmp_path / "new" / "a.h5ad", [T, B, T], source=first.source)
    more = curated(tmp_path / "b.h5ad", [T])
    with s3_server() as address:
        boto3.client("s3").put_bucket_versioning(Bucket="atlas", VersioningConfiguration={"Status": "Enabled"})
        storage = f"s3://atlas/again?endpoint_url={address}"
        old = register([first], key="s3/again", recipe=Recipe(), storage=storage).version
        cached = [found.path for found in resolve_lamin("lamindb:s3/again")]
        written = [path.stat().st_ctime_ns for path in cached]
        assert n_cells() == 2
        assert [path.stat().st_ctime_ns for path in cached] == written, "was downloaded"

        with failing_database('INSERT INTO "lamindb_collection"'), pytest.raises(RuntimeError, match="answer"):
            register([changed, more], key="s3/again", recipe=Recipe(), storage=storage)
        assert n_cells() == 2, "what is in lamindb's cache is what is registered"
        in_place = uploads()
        assert len(in_place) == 3
        assert register([changed, more], key="s3/again", recipe=Recipe(), storage=storage).n_new == 2
        assert uploads() == in_place
        assert (n_cells(), n_cells(f"@{old}")) == (4, 2)
        assert {artifact.hash for artifact in lamin.Artifact.filter(key__startswith="s3/again/")} == {
            hash_file(outcome.output)[1] for outcome in (first, changed, more)
        }

        # lamindb's cache takes the younger object for the newer version: so has each version to be
        late, next_one = (
            curated(tmp_path / name / "a.h5ad", [T] * 5, source=first.source) for name in ("late", "next")
        )
        with failing_database('INSERT INTO "lamindb_collection"'), pytest.raises(RuntimeError, match="answer"):
            register([late], key="s3/again", recipe=Recipe(), storage=storage)
        for outcome in (next_one, late):
            register([outcome], key="s3/again", recipe=Recipe(), storage=storage)
        assert len(uploads()) == 3 + 3


@pytest.mark.s3
def test_a_bucket_that_refuses_or_does_not_answer(lamin: ModuleType, tmp_path: Path) -> None:
    from moto.core import set_initial_no_auth_action_count

    first, second = (curated(tmp_path / f"{name}.h5ad", [T, B]) for name in "ab")
    with s3_server() as address:
        known, new = (f"s3://atlas{folder}?endpoint_url={address}" for folder in ("/known", "/new"))
        register([first], key="s3/refused", recipe=Recipe(), storage=known)
        before = lamin.Artifact.filter().count()
        # within, the server looks at credentials, and knows none
        refused = set_initial_no_auth_action_count(0)(register)
        for storage in (known, new):
            with pytest.raises(PermissionError, match=r"the bucket refuses these credentials.*AWS_ACCESS_KEY_ID"):
                refused([first, second], key="s3/refused", recipe=Recipe(), storage=storage)
    with pytest.raises(ConnectionError, match=r"the bucket cannot be reached .*endpoint_url"):
        register([first, second], key="s3/refused", recipe=Recipe(), storage=known)
    assert lamin.Artifact.filter().count() == before
    assert lamin.Collection.filter(key="s3/refused").count() == 1
    assert second.output.exists(), "what was to be uploaded is still there"
