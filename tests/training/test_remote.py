"""Training from a URL: by the command line, and on ranks that share one cache."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

pytest.importorskip("obstore")

import scdataloader as scd
from benchmarks.range_server import RangeServer
from scdataloader.commands.main import main
from tests.s3 import s3_server
from tests.store.conversions import here
from tests.training.lightning_runs import SaveIn, fit, on_ranks

N_OBS, N_VARS = 240, 4_000
FIT = """
seed_everything: 1
trainer: {{max_epochs: {epochs}, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}}
model: {{class_path: LabelClassifier, init_args: {{width: 4, dropout: 0.0}}}}
data:
  data: {data}
  labels: [type]
  sampling: {{by: [type], scheme: uniform, num_samples: 96, block_size: 4}}
  batch_size: 16
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose cells take some pages each."""
    made = tmp_path_factory.mktemp("remote")
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"type": pd.Categorical(rng.choice(["T cell", "B cell"], N_OBS))}, index=np.arange(N_OBS).astype(str)
    )
    var = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(N_VARS)])
    counts = rng.poisson(3, (N_OBS, N_VARS)).astype(np.float32)
    here(ad.AnnData(csr_matrix(counts), obs=obs, var=var), made / "atlas.cells", cells_per_shard=60)
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SCDATALOADER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with np.errstate():
        state = np.random.get_state()  # Lightning seeds all generators there are
        yield tmp_path / "cache"
        np.random.set_state(state)


def weights(config: str, *words: str) -> dict[str, np.ndarray]:
    """Parameters of the model after a fit by the command line."""
    import torch

    before = set(Path().rglob("*.ckpt"))
    Path("fit.yaml").write_text(config)
    assert main(["fit", "--config", "fit.yaml", *words]) == 0
    (made,) = set(Path().rglob("*.ckpt")) - before
    return {name: value.numpy() for name, value in torch.load(made, weights_only=False)["state_dict"].items()} | {
        "": made
    }


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in set(one) - {""}:
        np.testing.assert_array_equal(one[name], other[name], name)


def test_fit_by_url_is_fit_by_path(folder: Path) -> None:
    near = weights(FIT.format(data=folder / "atlas.cells", epochs=2))
    with RangeServer(folder) as server:
        url = f"{server.url}/atlas.cells"
        same(weights(FIT.format(data=url, epochs=2)), near)
        first = weights(FIT.format(data=url, epochs=1))[""]
        same(weights(FIT.format(data=url, epochs=2), "--ckpt_path", str(first)), near)


@pytest.mark.s3
def test_fit_from_a_bucket(folder: Path) -> None:
    from scdataloader.runtime.buckets import Bucket

    with s3_server():
        bucket = Bucket.open("s3://atlas/data")
        for file in sorted((folder / "atlas.cells").rglob("*.*")):
            bucket.upload(file, file.relative_to(folder).as_posix())
        found = weights(FIT.format(data="s3://atlas/data/atlas.cells", epochs=1))
    same(found, weights(FIT.format(data=folder / "atlas.cells", epochs=1)))


@pytest.mark.slow
def test_ranks_share_a_cache(folder: Path, tmp_path: Path) -> None:
    """Two processes see the epochs of one, also after a resume amid one, and fetch nothing that either has fetched."""
    options = {"split": None, "collate": scd.SelectedGenes(how="random expressed", n_genes=4)}
    one = fit(
        str(folder / "atlas.cells"),
        options=options | {"batch_size": 16},
        default_root_dir=tmp_path,
        limit_val_batches=0,
    )["train"]
    with RangeServer(folder, 0.01) as server:
        run = {
            "data": f"{server.url}/atlas.cells",
            "options": options | {"batch_size": 8},
            "default_root_dir": tmp_path,
            "limit_val_batches": 0,
        }
        kept = {"callbacks": [SaveIn(tmp_path / "kept")]}
        ranks = on_ranks([run | kept], tmp_path / "first", 2)
        fetched = server.counts()["bytes"]
        resumed = on_ranks([run | {"ckpt": tmp_path / "kept" / "22.ckpt"}], tmp_path / "again", 2)
        n_again = server.counts()["bytes"] - fetched
    for step, (a, b) in enumerate(zip(ranks[0][0]["train"], ranks[1][0]["train"], strict=True)):
        assert a["row"] + b["row"] == one[step]["row"], step
        assert a["x"] + b["x"] == one[step]["x"], step
    for rank, again in zip(ranks, resumed, strict=True):
        assert again[0]["train"] == rank[0]["train"][22:]
    rows = [batch["row"] for rank in ranks for batch in rank[0]["train"] if batch["epoch"] == 1]
    assert sorted(chain.from_iterable(rows)) == list(range(N_OBS))
    size = sum(file.stat().st_size for file in folder.rglob("*.*") if file.is_file())
    assert fetched < 2.1 * size, "at most what both need at the same moment is fetched by both"
    assert n_again < 0.05 * size, "the manifest"
