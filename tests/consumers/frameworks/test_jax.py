"""Batches as arrays of JAX: memory is shared, dtypes are kept, sparse tensors are sparse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental.sparse import BCSR

import scdataloader as scd
from scdataloader.integrations.jax import to_jax
from scdataloader.testing import MemorySource, named_values

N_CELLS, N_GENES = 100, 37
GENES = [f"ENSG{i:011d}" for i in range(N_GENES)]


def module(collate=None, **options):
    source = MemorySource("cells", named_values(N_CELLS, N_GENES), GENES)
    return scd.DataModule([source], collate=collate, batch_size=16, **options)


@pytest.mark.parametrize("collate", [scd.Dense(), scd.SelectedGenes(how="most expressed", n_genes=8)])
def test_a_dense_batch_is_shared_and_not_copied(collate):
    for batch in module(collate).train_dataloader():
        made = to_jax(batch)
        assert isinstance(made["x"], jax.Array)
        assert made["x"].unsafe_buffer_pointer() == batch["x"].data_ptr()


def test_values_shapes_and_dtypes_are_those_of_the_tensors():
    batches = list(module(scd.SelectedGenes(how="random expressed", n_genes=8), drop_last=False).train_dataloader())
    made = list(map(to_jax, batches))
    for batch, arrays in zip(batches, made, strict=True):
        assert arrays.keys() == batch.keys()
        for key, tensor in batch.items():
            assert arrays[key].shape == tensor.shape
            np.testing.assert_array_equal(arrays[key], tensor.numpy())
    dtypes = {key: str(array.dtype) for key, array in made[0].items()}
    # JAX has no int64 by default
    expected = {"x": "float32", "genes": "int32", "labels": "int32", "depth": "float32", "row": "int32"}
    assert dtypes == expected | {"source": "int32"}


def test_int64_is_kept_where_jax_has_it_and_else_never_wraps_around():
    batch = {"row": torch.tensor([1, 2**40]), "low": torch.tensor([-(2**31), 2**31 - 1])}
    assert to_jax({"low": batch["low"]})["low"].tolist() == [-(2**31), 2**31 - 1]
    with pytest.raises(OverflowError, match=r"'row' has the value 1,099,511,627,776, .*int32.*jax_enable_x64"):
        to_jax(batch)
    with jax.enable_x64(True):
        made = to_jax(batch)
        assert made["row"].dtype == jnp.int64
        assert made["row"].tolist() == [1, 2**40]


def test_sparse_tensors_become_sparse_arrays():
    dm = module(drop_last=False)
    batches = list(dm.train_dataloader())
    product = jax.jit(lambda x, weights: x @ weights)
    weights = np.arange(N_GENES * 3, dtype=np.float32).reshape(N_GENES, 3)
    for batch in batches:
        x = to_jax(batch)["x"]
        assert isinstance(x, BCSR)
        np.testing.assert_array_equal(x.todense(), batch["x"].to_dense().numpy())
        np.testing.assert_allclose(product(x, weights), batch["x"].to_dense().numpy() @ weights, rtol=1e-6)
    first = batches[0]["x"]
    assert to_jax(batches[0])["x"].data.unsafe_buffer_pointer() == first.values().data_ptr()


def test_batches_without_values_or_labels_and_other_values_pass():
    source = MemorySource("empty", named_values(8, N_GENES) * 0, GENES)
    batch = next(iter(scd.DataModule([source], batch_size=4, obs_names=True).train_dataloader()))
    made = to_jax(batch)
    assert made["x"].todense().shape == (4, N_GENES)
    assert made["labels"].shape == (4, 0)
    assert made["obs_names"] == batch["obs_names"]


def test_arrays_stay_as_they_are_while_the_loader_goes_on():
    loader = module(scd.Dense()).train_dataloader()
    kept = [(arrays["x"], np.array(arrays["x"])) for _ in range(5) for arrays in map(to_jax, loader)]
    assert all(np.array_equal(shared, copied) for shared, copied in kept)


def test_a_regression_is_fitted_and_goes_on_after_a_restart():
    @jax.jit
    def step(weights, x, depth):
        def loss(weights):
            return jnp.mean((jnp.log1p(x) @ weights - jnp.log1p(depth)) ** 2)

        value, gradient = jax.value_and_grad(loss)(weights)
        return weights - 1e-4 * gradient, value

    def train(loader, n, weights):
        seen = []
        for _, arrays in zip(range(n), map(to_jax, loader), strict=False):
            weights, value = step(weights, arrays["x"].todense(), arrays["depth"])
            seen.append((arrays["row"].tolist(), float(value)))
        return weights, seen

    zeros = jnp.zeros(N_GENES)
    _, whole = train(module().train_dataloader(), 6, zeros)
    loader = module().train_dataloader()
    weights, first = train(loader, 2, zeros)
    resumed = module().train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    _, rest = train(resumed, 4, weights)
    assert first + rest == whole
    assert whole[-1][1] < whole[0][1]
