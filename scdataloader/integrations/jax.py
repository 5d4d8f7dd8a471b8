"""Batches as arrays of JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from scdataloader.integrations.versions import warn_untested

__all__ = ["to_jax"]

_INT32 = np.iinfo(np.int32)


def to_jax(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with arrays of JAX in place of tensors, through DLPack: ``for batch in map(to_jax, loader)``.

    Tensors in the CPU's memory are shared without a copy where they begin at a multiple of 64 bytes, as `Dense` ``x``
    does; JAX copies others. Sparse tensors become `jax.experimental.sparse.BCSR`, whose ``todense`` runs on the device.
    dtypes are kept, but for int64: unless ``jax_enable_x64`` is set, JAX has no such arrays and converts them to int32.
    Other values, such as lists of names, stay as they are.

    Raises:
        OverflowError: an integer does not fit into int32, and ``jax_enable_x64`` is not set. JAX would wrap it around.
    """
    warn_untested("jax", "0.10", "0.10")
    return {key: _array(key, value) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def _array(key: str, tensor: torch.Tensor) -> Any:
    import jax

    if tensor.layout is torch.sparse_csr:
        from jax.experimental.sparse import BCSR

        parts = (tensor.values(), tensor.col_indices(), tensor.crow_indices())
        return BCSR(tuple(_array(key, part) for part in parts), shape=tuple(tensor.shape))
    if tensor.dtype is torch.int64 and not jax.config.jax_enable_x64 and tensor.numel():
        least, most = tensor.aminmax()
        if least < _INT32.min or most > _INT32.max:
            raise OverflowError(
                f"{key!r} has the value {int(most if most > _INT32.max else least):,}, which does not fit into int32, "
                "the integers of JAX; set jax.config.update('jax_enable_x64', True)"
            )
    return jax.numpy.from_dlpack(tensor)
