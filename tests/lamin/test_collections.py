"""lamindb collections, artifacts and keys become local paths, in order, without a network where nothing is remote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scdataloader.errors import SourceFormatError
from scdataloader.lamin.collections import LaminFile, is_lamin, resolve_lamin
from tests.s3 import s3_server


def write(path: Path, seed: int) -> Path:
    """A small AnnData at ``path``; another seed gives other content, hence another artifact."""
    rng = np.random.default_rng(seed)
    adata = ad.AnnData(
        csr_matrix(rng.poisson(1.0, (6, 4)).astype(np.float32)),
        obs=pd.DataFrame({"cell_type": list("aabbcc")}, index=[f"cell{i}" for i in range(6)]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(4)]),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_zarr(path) if path.suffix == ".zarr" else adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def collection(lamin: ModuleType, files: Path):
    """Three artifacts, whose alphabetical order is not the collection's."""
    artifacts = [
        lamin.Artifact(write(files / name, seed), key=f"atlas/{name}").save()
        for seed, name in enumerate(["c.h5ad", "a.zarr", "b.h5ad"])
    ]
    return lamin.Collection(artifacts, key="atlas/all").save()


def content(path: Path) -> np.ndarray:
    adata = ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
    return adata.X.toarray()


def test_a_collection_gives_its_files_in_its_own_order(collection, files: Path) -> None:
    resolved = resolve_lamin(collection)
    assert [item.name for item in resolved] == ["atlas/c.h5ad", "atlas/a.zarr", "atlas/b.h5ad"]
    for item, original in zip(resolved, ["c.h5ad", "a.zarr", "b.h5ad"], strict=True):
        assert isinstance(item, LaminFile)
        assert item.path.exists()
        np.testing.assert_array_equal(content(item.path), content(files / original))


def test_every_way_to_name_the_same_artifacts_agrees(lamin: ModuleType, collection) -> None:
    expected = resolve_lamin(collection)
    artifacts = list(collection.ordered_artifacts.all())
    assert resolve_lamin("lamindb:atlas/all") == expected
    assert resolve_lamin(artifacts) == expected
    assert resolve_lamin(collection.ordered_artifacts.all()) == expected
    assert resolve_lamin([f"lamindb:{item.name}" for item in expected]) == expected
    assert resolve_lamin(artifacts[1]) == expected[1:2]
    assert resolve_lamin("lamindb:atlas/a.zarr") == expected[1:2]
    by_key = resolve_lamin(lamin.Artifact.filter(key__startswith="atlas/").order_by("key"))
    assert [item.name for item in by_key] == ["atlas/a.zarr", "atlas/b.h5ad", "atlas/c.h5ad"]


def test_a_file_in_the_instances_storage_is_used_where_it_lies(lamin: ModuleType) -> None:
    path = write(Path(lamin.settings.storage.root_as_str) / "in_place" / "x.h5ad", seed=30)
    lamin.Artifact(path).save()
    assert resolve_lamin("lamindb:in_place/x.h5ad") == [LaminFile(path=path, name="in_place/x.h5ad")]


def test_an_artifact_without_a_key_goes_by_its_uid(lamin: ModuleType, files: Path) -> None:
    artifact = lamin.Artifact(write(files / "nokey.h5ad", seed=31), description="no key").save()
    assert [item.name for item in resolve_lamin(artifact)] == [artifact.uid]


def test_a_key_means_its_newest_version_and_at_names_another(lamin: ModuleType, files: Path) -> None:
    old = lamin.Artifact(write(files / "v1.h5ad", seed=40), key="versioned.h5ad", version="1").save()
    new = lamin.Artifact(write(files / "v2.h5ad", seed=41), key="versioned.h5ad").save()
    assert old.uid != new.uid
    for name, original in {
        "versioned.h5ad": "v2.h5ad",
        "versioned.h5ad@1": "v1.h5ad",
        f"versioned.h5ad@{new.version}": "v2.h5ad",
    }.items():
        [item] = resolve_lamin(f"lamindb:{name}")
        np.testing.assert_array_equal(content(item.path), content(files / original))
    with pytest.raises(LookupError, match=r"'versioned\.h5ad' .* has no version '7', only '1', '0001'"):
        resolve_lamin("lamindb:versioned.h5ad@7")


def test_a_key_that_holds_an_at_sign_is_found(lamin: ModuleType, files: Path) -> None:
    lamin.Artifact(write(files / "at.h5ad", seed=42), key="lab@site/at.h5ad").save()
    assert [item.name for item in resolve_lamin("lamindb:lab@site/at.h5ad")] == ["lab@site/at.h5ad"]


def test_an_unknown_key_names_the_nearest(collection) -> None:
    with pytest.raises(LookupError, match=r"no collection or artifact .* has the key 'atlas/al'; .*'atlas/all'"):
        resolve_lamin("lamindb:atlas/al")


def test_an_unknown_key_like_none_says_so(collection) -> None:
    with pytest.raises(LookupError, match=r"'######'; there are "):
        resolve_lamin("lamindb:######")


def test_an_artifact_that_is_no_anndata_is_refused_by_name(lamin: ModuleType) -> None:
    table = lamin.Artifact.from_dataframe(pd.DataFrame({"a": [1, 2]}), key="table.parquet").save()
    with pytest.raises(SourceFormatError, match=r"'table\.parquet' is DataFrame .*expected an AnnData"):
        resolve_lamin(table)


def test_a_file_that_is_gone_is_named(lamin: ModuleType, files: Path) -> None:
    artifact = lamin.Artifact(write(files / "gone.h5ad", seed=50), key="gone.h5ad").save()
    artifact.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"'gone\.h5ad' is not at .*restore the file"):
        resolve_lamin(artifact)


def test_nothing_to_resolve_is_an_error(lamin: ModuleType) -> None:
    with pytest.raises(LookupError, match="contains no artifact"):
        resolve_lamin([])
    with pytest.raises(LookupError, match="contains no artifact"):
        resolve_lamin(lamin.Artifact.filter(key="no such key"))
    with pytest.raises(TypeError, match=r"expected 'lamindb:<key>'.*got int"):
        resolve_lamin(3)  # type: ignore[arg-type]


def test_an_unsaved_collection_is_refused(lamin: ModuleType, collection) -> None:
    artifacts = list(collection.ordered_artifacts.all())[:2]
    with pytest.raises(LookupError, match="not saved yet"):
        resolve_lamin(lamin.Collection(artifacts, key="unsaved"))


def test_a_tracked_run_gets_the_artifacts_as_inputs(lamin: ModuleType, collection) -> None:
    run = lamin.Run(lamin.Transform(key="test_lamin", kind="script").save()).save()
    before, lamin.context._run = lamin.context.run, run
    try:
        resolve_lamin(collection)
    finally:
        lamin.context._run = before
    assert run.input_artifacts.count() == 3


def test_is_lamin(lamin: ModuleType, collection) -> None:
    artifact = collection.ordered_artifacts.first()
    for yes in ("lamindb:x", collection, artifact, collection.ordered_artifacts.all(), [artifact, "lamindb:x"]):
        assert is_lamin(yes), yes
    for no in ("x.h5ad", "lamindb", Path("lamindb:x"), [], [artifact, "x.h5ad"], 3, None):
        assert not is_lamin(no), no


OFFLINE = """
import sys
from scdataloader.lamin.collections import is_lamin, resolve_lamin
assert is_lamin("lamindb:some/key") and not is_lamin("some.h5ad") and not is_lamin(object())
assert not {"lamindb", "lamindb_setup", "django"} & set(sys.modules), "importing or asking imported lamindb"
try:
    resolve_lamin("lamindb:some/key")
except RuntimeError as error:
    assert "'lamindb:some/key'" in str(error) and "lamin connect" in str(error), error
else:
    raise AssertionError("resolved a key without an instance")
"""


def test_without_an_instance_lamindb_is_not_imported_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    environment = os.environ | {"LAMIN_SETTINGS_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_instance_that_does_not_exist_is_named(tmp_path: Path) -> None:
    settings = {"LAMIN_SETTINGS_DIR": str(tmp_path), "LAMIN_CURRENT_INSTANCE": "nobody-has-this"}
    done = subprocess.run(
        [sys.executable, "-m", "scdataloader", "inspect", "lamindb:blood"],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no instance 'nobody-has-this'" in done.stderr
    assert "LAMIN_CURRENT_INSTANCE" in done.stderr


def put(lamin: ModuleType, address: str, local: Path):
    """Upload a file and register it where it lies."""
    import boto3

    boto3.client("s3").upload_file(str(local), "atlas", f"data/{local.name}")
    lamin.Storage(root=f"s3://atlas?endpoint_url={address}").save()
    return lamin.Artifact(f"s3://atlas/data/{local.name}?endpoint_url={address}").save()


@pytest.mark.s3
def test_a_remote_artifact_is_fetched_once_into_the_cache(lamin: ModuleType, files: Path) -> None:
    import boto3

    local = write(files / "remote.h5ad", seed=60)
    with s3_server() as address:
        artifact = put(lamin, address, local)
        [item] = resolve_lamin(artifact)
        assert item.path.is_relative_to(os.environ["LAMIN_CACHE_DIR"])
        np.testing.assert_array_equal(content(item.path), content(local))
        written = item.path.stat().st_mtime_ns
        assert resolve_lamin(f"lamindb:{artifact.key}") == [item]
        assert item.path.stat().st_mtime_ns == written

        boto3.client("s3").delete_object(Bucket="atlas", Key="data/remote.h5ad")
        item.path.unlink()
        with pytest.raises(FileNotFoundError, match=r"remote\.h5ad' is not at s3://atlas.*restore"):
            resolve_lamin(artifact)


@pytest.mark.s3
def test_a_remote_artifact_that_cannot_be_reached_says_what_to_do(lamin: ModuleType, files: Path) -> None:
    with s3_server() as address:
        artifact = put(lamin, address, write(files / "unreachable.h5ad", seed=61))
    with pytest.raises(ConnectionError, match=r"cannot download .*unreachable\.h5ad' .*check the network.*offline"):
        resolve_lamin(artifact)
