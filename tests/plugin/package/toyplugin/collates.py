"""Tokens without "x", and cells with what is in obs and in further matrices. Unannotated, on purpose."""

import numpy as np
import torch


class RankTokens:
    """Genes by falling value, one of them masked by chance.

    Args:
        n_tokens: Length of a cell.
    """

    def __init__(self, n_tokens=8):
        self.n_tokens = n_tokens

    def bind(self, context):
        bound = RankTokens(self.n_tokens)
        bound.pad_id = len(context.vocabulary.ids)
        return bound

    def __call__(self, batch, rng):
        ids = np.full((len(batch), self.n_tokens), self.pad_id)
        for cell in range(len(batch)):
            row = batch.x.slice(cell, cell + 1)
            ranked = row.indices[np.argsort(-row.data, kind="stable")][: self.n_tokens]
            ids[cell, : len(ranked)] = ranked
        masked = rng.integers(self.n_tokens, size=len(batch))
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(ids < self.pad_id),
            "masked": torch.from_numpy(masked),
            "cell": torch.from_numpy(batch.row),
            "labels": torch.from_numpy(batch.labels),
        }


class WithObs:
    """Sparse counts under a key of its own, an age, a donor and two further matrices."""

    obs = ("age", "donor")
    matrices = ("layers/double", "obsm/X_toy")
    densify = ("counts",)

    def __call__(self, batch, rng):
        doubled = batch.matrices["layers/double"]
        rows = batch.x
        return {
            "counts": torch.sparse_csr_tensor(
                torch.from_numpy(rows.indptr),
                torch.from_numpy(rows.indices.astype(np.int64)),
                torch.from_numpy(rows.data),
                (len(batch), rows.n_genes),
                check_invariants=False,
            ),
            "doubled": torch.from_numpy(doubled.to_scipy().toarray()),
            "embedding": torch.from_numpy(batch.matrices["obsm/X_toy"].copy()),
            "age": torch.from_numpy(batch.obs["age"].astype(np.float32)),
            "donor": torch.tensor([int(donor.removeprefix("donor ")) for donor in batch.obs["donor"]]),
            "cell": torch.from_numpy(batch.row),
        }
