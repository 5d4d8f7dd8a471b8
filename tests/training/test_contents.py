"""What batches of a DataModule carry besides counts and label codes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

import scdataloader as scd
from scdataloader.errors import SourcesError, StateMismatchError
from scdataloader.labels.encoder import LabelEncoder
from scdataloader.testing import MemorySource, named_values

GENES = [f"ENSG{i:011d}" for i in range(12)]
AGES = [np.arange(10) + 0.5, np.arange(10, 16)]
"""Float64 in one source, int64 in the other."""


def sources(**second):
    """Two sources; the second has the genes of the first in reverse, and may have other columns."""
    made = []
    for number, (name, ages) in enumerate(zip("ab", AGES, strict=True)):
        n = len(ages)
        values = named_values(n, 12, seed=number)
        obs = {"age": ages, "batch": ["x", "unknown", "y", None, "nan", "x"] * 2, "dose": ages % 2 == 0}
        obs = {column: list(given)[:n] for column, given in obs.items()} | (second if number else {})
        obs = {column: given for column, given in obs.items() if given is not None}
        made.append(
            MemorySource(
                name,
                values,
                GENES[::-1] if number else GENES,
                obs,
                matrices={"layers/double": 2 * values, "obsm/protein": 100.0 * number + named_values(n, 3, density=1)},
            )
        )
    return made


def batches(loader):
    return list(loader)


def module(data=None, **options):
    return scd.DataModule(data or sources(), batch_size=4, **options)


def test_targets_are_the_numbers_of_the_cells():
    dm = module(targets=["age", "dose"])
    dm.setup("fit")
    ages = np.concatenate([AGES[0], AGES[1]]).astype(np.float32)
    for batch in batches(dm.train_dataloader()):
        assert batch["targets"].dtype == torch.float32
        expected = np.stack([ages, np.concatenate([AGES[0] % 2 == 0, AGES[1] % 2 == 0])], axis=1)[batch["row"]]
        assert np.array_equal(batch["targets"].numpy(), expected)


@pytest.mark.parametrize(
    ("second", "column", "error", "message"),
    [
        ({"age": None}, "age", KeyError, "b has no obs column .*age"),
        ({"age": [1.0, np.nan, 2, 3, 4, np.nan]}, "age", ValueError, "b .* 'age' for 2 of 6"),
        ({"age": list("abcdef")}, "age", ValueError, "b .*'age', such as \\['a', 'b', 'c'\\]"),
        ({}, "agee", KeyError, "agee.*age"),
    ],
)
def test_targets_that_a_source_lacks_are_refused_before_training(second, column, error, message):
    with pytest.raises(error, match=message):
        module(sources(**second), targets=column).setup("fit")


def test_every_source_without_a_target_is_named():
    data = sources()
    for source in data:
        source._obs["age"] = np.nan
    with pytest.raises(SourcesError, match=r"(?s)a has.*b has"):
        module(data, targets="age").setup("fit")


def test_missing_targets_are_nan_on_request():
    dm = module(sources(age=None), targets="age", missing_targets="nan")
    expected = np.concatenate([AGES[0], np.full(6, np.nan)]).astype(np.float32)
    assert np.array_equal(dm.target_values[:, 0], expected, equal_nan=True)


def test_nullable_and_categorical_numbers_are_targets():
    ages = pd.array([1, 2, 3, 4, 5, 6], dtype="Int64")
    doses = pd.Categorical([0.1, 0.2, 0.1, 0.2, 0.1, 0.2])
    dm = module(sources(age=ages, dose=doses), targets=["age", "dose"])
    assert np.array_equal(dm.target_values[10:], np.stack([ages, doses], axis=1).astype(np.float32))


def test_unknown_is_the_last_class_on_request():
    dm = module(labels=["batch"], unknown_classes="batch")
    assert dm.classes == {"batch": 3}
    assert dm.encoders == {"batch": {"x": 0, "y": 1, "unknown": 2}}
    assert dm.label_codes[:6, 0].tolist() == [0, 2, 1, 2, 2, 0]
    assert dm.decoders["batch"][2] == "unknown"
    again = module(labels=["batch"])
    again.encoders = dm.encoders
    assert np.array_equal(again.label_codes, dm.label_codes)
    again = module(labels=["batch"])
    again.load_state_dict(dm.state_dict())
    assert np.array_equal(again.label_codes, dm.label_codes)


def test_a_source_without_the_column_is_of_the_unknown_class():
    dm = module(sources(batch=None), labels=["batch"], unknown_classes=["batch"])
    assert set(dm.label_codes[10:, 0]) == {2}


def test_an_unseen_label_is_of_the_unknown_class(caplog):
    dm = module(labels=["batch"], unknown_classes=["batch"])
    other = module(sources(batch=list("xyzzyx")), labels=["batch"])
    other.encoders = dm.encoders
    assert other.label_codes[10:, 0].tolist() == [0, 1, 2, 2, 1, 0]
    assert "2 cells" in caplog.text


def test_unknown_classes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"bacth.*batch"):
        module(labels=["batch"], unknown_classes=["bacth"]).setup("fit")
    with pytest.raises(ValueError, match="hierarchy"):
        LabelEncoder(column="c", classes=("a", "unknown"), inner=("b",), leaves=((0,),), ontology="O")


def test_codes_of_a_reference_come_first_and_new_labels_after_them():
    dm = module(sources(batch=list("zayxza")), labels=["batch"], unknown_classes="batch")
    dm.extend_encoders({"batch": {"y": 0, "unknown": 1, "x": 2}})
    assert dm.encoders == {"batch": {"y": 0, "unknown": 1, "x": 2, "a": 3, "z": 4}}
    assert dm.label_codes[:, 0].tolist() == [2, 1, 0, 1, 1, 2, 2, 1, 0, 1, 4, 3, 0, 2, 4, 3]
    again = module(sources(batch=list("bzaxyb")), labels=["batch"])
    again.extend_encoders(dm.encoders)
    assert again.encoders["batch"] == dm.encoders["batch"] | {"b": 5}
    restored = module(sources(batch=list("zayxza")), labels=["batch"])
    restored.load_state_dict(dm.state_dict())
    assert np.array_equal(restored.label_codes, dm.label_codes)


def test_several_columns_are_one_label_column(caplog):
    dm = module(labels=["batch//source"], split=scd.Split(by="source//batch", val=0.3))
    dm.setup("fit")
    assert dm.decoders["batch//source"][1] == "unknown//b"
    names = [dm.decoders["batch//source"][code] for code in dm.label_codes[:, 0]]
    assert names[:6] == ["x//a", "unknown//a", "y//a", "unknown//a", "unknown//a", "x//a"]
    assert {name.endswith("b") for name in names[10:]} == {True}
    groups = set(dm.splits.groups["val"])
    assert groups == {"//".join(names[row].split("//")[::-1]) for row in dm.splits.val}
    assert "no column" not in caplog.text
    module(sources(batch=None), labels=["batch//source"]).setup("fit")
    assert "no column 'batch//source' in b" in caplog.text
    with pytest.raises(KeyError, match="bacth"):
        _ = module(labels=["bacth//source"]).classes


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ({"bacth": {"x": 0}}, KeyError, r"'bacth'.*'batch'"),
        ({"batch": {"x": 0, "y": 2}}, ValueError, r"'batch' must be 0 … 1 .*got 0, 2"),
        ({"batch": {"x": 0, "y": 0}}, ValueError, r"'batch' must be 0 … 1 .*got 0, 0"),
    ],
)
def test_references_that_cannot_be_extended_are_refused(reference, error, message):
    with pytest.raises(error, match=message):
        module(labels=["batch"]).extend_encoders(reference)


def test_layers_are_aligned_to_the_vocabulary():
    dm = module(layers="double", obsm=["protein"])
    dm.setup("fit")
    values = np.concatenate([named_values(10, 12), named_values(6, 12, seed=1)[:, ::-1]])
    protein = np.concatenate([named_values(10, 3, density=1), 100 + named_values(6, 3, density=1)])
    for batch in batches(dm.train_dataloader()):
        rows = batch["row"].numpy()
        assert batch["layers/double"].layout == torch.sparse_csr
        assert np.array_equal(batch["layers/double"].to_dense().numpy(), 2 * values[rows])
        assert np.array_equal(batch["obsm/protein"].numpy(), protein[rows])
        ready = dm.on_after_batch_transfer(batch, 0)
        assert ready["layers/double"].layout == ready["x"].layout == torch.strided


def test_matrices_that_a_source_lacks_are_refused_before_training():
    with pytest.raises(KeyError, match=r"a has no matrix .*layers/doubel.*layers/double"):
        module(layers=["doubel"]).setup("fit")


class Tokens:
    """A collate function with keys of its own only."""

    def __call__(self, batch, rng):
        return {"n": torch.from_numpy(np.diff(batch.x.indptr))}


def test_batches_of_any_collate_function_carry_them():
    dm = module(collate=Tokens, layers="double", targets="age")
    dm.setup("fit")
    assert set(next(iter(dm.train_dataloader()))) == {"n", "layers/double", "targets"}


def test_keys_of_a_collate_function_are_not_replaced():
    dm = module(collate=lambda batch, rng: {"targets": torch.zeros(len(batch))}, targets="age")
    dm.setup("fit")
    with pytest.raises(TypeError, match="targets"):
        next(iter(dm.train_dataloader()))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_columns_and_matrices_come_from_files(tmp_path, suffix):
    values = csr_matrix(named_values(20, 12))
    adata = ad.AnnData(values, obs={"age": np.arange(20.0)}, layers={"spliced": 3 * values}, obsm={"pca": np.eye(20)})
    adata.var_names = GENES
    path = tmp_path / f"a{suffix}"
    getattr(adata, f"write_{suffix[1:]}")(path)
    dm = module([str(path)], targets="age", layers="spliced", obsm="pca")
    dm.setup("fit")
    batch = next(iter(dm.train_dataloader()))
    rows = batch["row"].numpy()
    assert np.array_equal(batch["targets"][:, 0].numpy(), rows)
    assert np.array_equal(batch["layers/spliced"].to_dense().numpy(), 3 * values.toarray()[rows])
    assert np.array_equal(batch["obsm/pca"].numpy(), np.eye(20)[rows])


class Counted(scd.Log1p):
    """Counts its calls."""

    def __init__(self):
        object.__setattr__(self, "calls", [])

    def __call__(self, batch, rng):
        self.calls.append(len(batch))
        return super().__call__(batch, rng)


class Alone:
    """A transform for single batches."""

    def __call__(self, batch, rng):
        return scd.Log1p()(batch, rng)


def test_transforms_of_single_cells_run_on_many_batches_at_once():
    counted = Counted()
    made = {}
    for name, transforms in {"many": [scd.Normalize(), counted], "single": [scd.Normalize(), Alone()]}.items():
        dm = module(transforms=transforms)
        dm.setup("fit")
        loader = dm.train_dataloader()
        made[name] = [*batches(loader), *batches(loader)]
    assert counted.calls == [4, 4, 4, 4, 16]  # until the size of a batch is known, a task is one batch
    for many, single in zip(made["many"], made["single"], strict=True):
        assert torch.equal(many["x"].to_dense(), single["x"].to_dense())
        assert torch.equal(many["row"], single["row"])


def test_a_saved_position_knows_the_label_codes():
    dm = module(labels=["batch"])
    state = dm.train_dataloader().state_dict()
    module(labels=["batch"]).train_dataloader().load_state_dict(state)
    for other in (module(labels=["batch"], unknown_classes="batch"), module()):
        with pytest.raises(StateMismatchError, match="label columns"):
            other.train_dataloader().load_state_dict(state)


def test_a_compiled_model_takes_the_batches_in_one_graph():
    dm = module(layers="double")
    dm.setup("fit")

    def model(batch):
        return batch["x"].sum() + batch["layers/double"].sum()

    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for batch in batches(dm.train_dataloader()):
        expected = batch["x"].to_dense().sum() + batch["layers/double"].to_dense().sum()
        assert compiled(dm.on_after_batch_transfer(batch, 0)) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches_arrive_unchanged():
    """Patterned values, copied while further batches are made in the memory of earlier ones."""
    dm = module([MemorySource("a", named_values(4096, 2000), [f"g{i}" for i in range(2000)])], pin_memory=True)
    dm.setup("fit")
    expected = named_values(4096, 2000)
    for batch in dm.train_dataloader():
        assert batch["x"].values().is_pinned()
        on_device = {key: value.to("cuda", non_blocking=True) for key, value in batch.items()}
        x = dm.on_after_batch_transfer(on_device, 0)["x"].cpu().numpy()
        assert np.array_equal(x, expected[batch["row"].numpy()])
