"""Curation from buckets and into them."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pytest

from scdataloader.curation import Curator
from scdataloader.runtime.buckets import Bucket
from scdataloader.sources import open_source
from tests.curation.helpers import IDS, cells, written
from tests.s3 import s3_server


@pytest.mark.s3
@pytest.mark.slow
def test_files_of_a_bucket_are_curated_into_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCDATALOADER_CACHE", str(tmp_path / "cache"))
    with s3_server():
        raw, out = Bucket.open("s3://atlas/raw"), Bucket.open("s3://atlas/out")
        for seed, name in enumerate(("a.h5ad", "b.h5ad")):
            raw.upload(written(tmp_path / name, cells(IDS, seed=seed)), name)
        curator = Curator(out=out.url, processes=1)
        outcomes = curator.run("s3://atlas/raw/*.h5ad")
        assert [(one.source, one.status, str(one.output)) for one in outcomes] == [
            (f"s3://atlas/raw/{name}", "kept", f"s3://atlas/out/{name}") for name in ("a.h5ad", "b.h5ad")
        ]
        assert [state.path for state in out.listed()] == ["a.h5ad", "b.h5ad", "curated.jsonl", "report.csv"]
        assert open_source("s3://atlas/out/b.h5ad").n_obs == 10
        before = {state.path: state.etag for state in out.listed()}
        times = {path: out.state(path).etag for path in ("a.h5ad", "b.h5ad")}
        raw.upload(written(tmp_path / "b.h5ad", cells(IDS[:5], n=12, seed=7)), "b.h5ad")
        assert [one.n_cells_out for one in curator.run("s3://atlas/raw/*.h5ad")] == [10, 12]
        after = {state.path: state.etag for state in out.listed()}
        assert before["a.h5ad"] == after["a.h5ad"] == times["a.h5ad"]
        assert before["b.h5ad"] != after["b.h5ad"]
        out.download("a.h5ad", tmp_path / "copy.h5ad")
        assert ad.read_h5ad(tmp_path / "copy.h5ad").X.sum() == cells(IDS, seed=0).X.sum()
        assert not list((tmp_path / "cache" / "uploads").iterdir())
        with pytest.raises(ValueError, match=r"web server"):
            Curator(out="https://127.0.0.1/out", processes=1).run("s3://atlas/raw/a.h5ad")
        (missing,) = curator.run("s3://atlas/raw/none.h5ad")
        assert missing.status == "failed"
        assert "s3://atlas/raw/none.h5ad" in missing.reason
