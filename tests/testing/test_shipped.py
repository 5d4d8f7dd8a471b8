"""The laws of plug-ins hold for every source, sampler, plan, transform and collate function of the package."""

import numpy as np
import pytest
import scipy.sparse as sp

import scdataloader as scd
from scdataloader.protocols import BatchContext
from scdataloader.sampling.samplers import SequentialSampler, ShuffleSampler, Subset, WeightedSampler
from scdataloader.testing import (
    MemorySource,
    check_collate,
    check_sampler,
    check_source,
    check_transform,
    named_batch,
    named_values,
)
from tests.sources.source_files import (
    H5_COMPRESSIONS,
    ZARR_FORMATS,
    coordinates,
    make,
    stored_as,
    write_h5ad,
    write_zarr,
)

FILES = [
    *(("h5ad", kind, how) for kind in ("csr", "csc", "dense") for how in ("contiguous", "gzip+shuffle")),
    ("h5ad", "csr", "lzf"),
    *(("zarr", "csr", how) for how in ("v2", "v3", "v3 sharded")),
    ("zarr", "csc", "v3"),
    ("zarr", "dense", "v3 blosc"),
]
assert {how for form, _, how in FILES if form == "zarr"} <= set(ZARR_FORMATS)


@pytest.mark.filterwarnings("ignore:.*CSC")
@pytest.mark.parametrize(("form", "kind", "how"), FILES)
def test_anndata_on_disk(tmp_path, form, kind, how):
    adata = make(stored_as(coordinates(), kind))
    if form == "h5ad":
        path = write_h5ad(tmp_path / "a.h5ad", adata, H5_COMPRESSIONS[how])
    else:
        path = write_zarr(tmp_path / "a.zarr", adata, how)
    adata.X = sp.csr_matrix(adata.X)
    check_source(lambda: scd.open_source(path), expected=adata)


@pytest.mark.parametrize("shuffle", [False, True])
def test_sources_of_a_store(tmp_path, shuffle):
    sources = [
        MemorySource(
            f"mem://{seed}",
            named_values(n, 30, seed=seed) % 500,
            [f"ENSG{number:011d}" for number in range(seed, 30 + seed)],
            {"type": [f"type {row % 3}" for row in range(n)]},
        )
        for seed, n in enumerate((40, 25))
    ]
    scd.convert(sources, tmp_path / "a.cells", layout="shuffled" if shuffle else None, n_processes=1)
    for source in scd.Store.open(tmp_path / "a.cells").sources:
        check_source(source)


def test_arrays_in_memory():
    genes = [f"ENSG{number:011d}" for number in range(30)]
    check_source(lambda: MemorySource("mem://a", named_values(60, 30), genes, {"age": np.arange(60)}, mapped=True))


CLASSES = np.repeat([0, 1, 2, 3], [3, 7, 40, 150])
SHARES = np.array([0.1, 0.2, 0.3, 0.4])
BY_CLASS = (SHARES / np.bincount(CLASSES))[CLASSES]
WEIGHTS = np.where(np.arange(200) % 5, np.linspace(0, 1, 200), 0)
SAMPLERS = {
    "in order": (lambda: SequentialSampler(200), {"once": True}),
    "shuffled": (lambda: ShuffleSampler(200, seed=3), {"once": True, "weights": np.ones(200)}),
    "shuffled in blocks": (lambda: ShuffleSampler(200, seed=3, block_size=4), {"once": True}),
    "weighted": (lambda: WeightedSampler(WEIGHTS, num_samples=500), {"weights": WEIGHTS}),
    "weighted in blocks": (lambda: WeightedSampler(WEIGHTS, num_samples=500, block_size=4), {"weights": WEIGHTS}),
    "by class": (
        lambda: WeightedSampler(classes=CLASSES, class_weights=SHARES, num_samples=500),
        {"weights": BY_CLASS},
    ),
    "by class in blocks": (
        lambda: WeightedSampler(classes=CLASSES, class_weights=SHARES, num_samples=500, block_size=4),
        {"weights": BY_CLASS},
    ),
    "by quota": (
        lambda: WeightedSampler(classes=CLASSES, class_weights=SHARES, num_samples=500, replacement=False),
        {"weights": BY_CLASS, "classes": CLASSES},
    ),
    "in a curriculum": (
        lambda: WeightedSampler(classes=CLASSES, class_weights=SHARES, num_samples=500, curriculum_epochs=4),
        {},
    ),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_samplers(kind):
    make_one, laws = SAMPLERS[kind]
    check_sampler(make_one, rows=200, **laws)
    rows = np.arange(200) * 3 + 1
    check_sampler(Subset(sampler=make_one(), rows=rows), rows=rows, once=laws.get("once", False))


IDS = [f"ENSG{number:011d}" for number in range(60)]
COLLATES = {
    "dense": scd.Dense(),
    "sparse": scd.Sparse(),
    "most expressed": scd.SelectedGenes(how="most expressed", n_genes=7),
    "random expressed": scd.SelectedGenes(how="random expressed", n_genes=7),
    "filled up": scd.SelectedGenes(how="random expressed", n_genes=40, fill="unexpressed"),
    "all": scd.SelectedGenes(how="all"),
    "given": scd.SelectedGenes(how="given", genes=IDS[50:20:-3]),
}


@pytest.mark.parametrize("kind", COLLATES)
def test_collate_functions(kind):
    check_collate(COLLATES[kind])
    context = BatchContext(
        vocabulary=scd.GeneVocabulary.from_dict({"human": IDS}), labels=("type",), classes={"type": ["B", "T"]}
    )
    check_collate(COLLATES[kind], cells=named_batch(19, 60, with_pad=True), context=context, batch_size=5)


@pytest.mark.parametrize(
    "transform", [scd.Normalize(), scd.Log1p(), scd.QuantileBins(n_bins=5), scd.QuantileBins(ties="random")], ids=repr
)
def test_transforms(transform):
    check_transform(transform)
    check_transform(transform, cells=named_batch(19, 60, with_pad=True), batch_size=5)
