"""Models of masked tokens and masked values: what counts in the loss, and what they give."""

import pytest
import torch

from scdataloader.models import MaskedTokenModel, MaskedValueModel

N_TOKENS, PAD = 20, 0


@pytest.fixture(autouse=True)
def own_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tokens(n=6, length=9, *, more=0):
    """Cells of some tokens, every third one masked, with ``more`` places of padding."""
    rng = torch.Generator().manual_seed(0)
    true = torch.randint(4, N_TOKENS, (n, length), generator=rng)
    masked = (torch.arange(length) % 3 == 0).expand(n, length)
    batch = {
        "row": torch.arange(n),
        "input_ids": torch.where(masked, 1, true),
        "attention_mask": torch.ones(n, length, dtype=torch.long),
        "labels": torch.where(masked, true, -100),
    }
    padded = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
    for key, value in padded.items():
        batch[key] = torch.nn.functional.pad(batch[key], (0, more), value=value)
    return batch


def values(n=6, length=9, *, more=0):
    """Cells of some tokens with bins, every third one masked, with ``more`` places of padding."""
    rng = torch.Generator().manual_seed(0)
    expr = torch.randint(1, 51, (n, length), generator=rng).float()
    expr[:, 0] = 0
    masked = (torch.arange(length) % 3 == 1).expand(n, length)
    batch = {
        "row": torch.arange(n),
        "gene": torch.randint(4, N_TOKENS, (n, length), generator=rng),
        "expr": expr,
        "masked_expr": torch.where(masked, -1.0, expr),
    }
    for key in ("gene", "expr", "masked_expr"):
        batch[key] = torch.nn.functional.pad(batch[key], (0, more), value=PAD)
    return batch


SMALL = {"width": 8, "n_layers": 1, "n_heads": 2}
CASES = [
    (lambda: MaskedTokenModel(N_TOKENS, **SMALL), tokens),
    (lambda: MaskedValueModel(N_TOKENS, PAD, **SMALL), values),
]
both = pytest.mark.parametrize(("make", "cells"), CASES, ids=["tokens", "values"])


@both
def test_padding_changes_nothing(make, cells):
    model = make().eval()
    short, long = (model._restored(cells(more=more)) for more in (0, 5))
    torch.testing.assert_close(short, long)
    ours, padded = (model.predict_step(cells(more=more), 0)["embedding"] for more in (0, 5))
    torch.testing.assert_close(ours, padded)
    assert ours.shape == (6, 8)


@both
def test_repeated_cells_do_not_count(make, cells):
    model, batch = make().eval(), cells()
    kept = {key: value[:4] for key, value in batch.items()}
    marked = batch | {"pad": torch.arange(6) >= 4}
    torch.testing.assert_close(model._restored(marked), model._restored(kept))
    loss, metric, n = model._restored(batch | {"pad": torch.ones(6, dtype=torch.bool)})
    assert (loss, metric, n) == (0, 0, 0)


@both
def test_embeddings_are_of_cells_with_nothing_masked(make, cells):
    model, batch = make().eval(), cells()
    if "labels" in batch:
        whole = {key: value for key, value in batch.items() if key != "labels"}
        whole["input_ids"] = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
    else:
        whole = {key: value for key, value in batch.items() if key != "masked_expr"}
    torch.testing.assert_close(model.predict_step(batch, 0), model.predict_step(whole, 0))


def test_masked_values_are_not_seen():
    model, batch = MaskedValueModel(N_TOKENS, PAD, **SMALL).eval(), values()
    hidden = batch["masked_expr"] != batch["expr"]
    other = batch["expr"].where(~hidden, 50 - batch["expr"])
    predicted = [model.head(model(batch["gene"], expr / 50, hidden))[hidden] for expr in (batch["expr"], other)]
    torch.testing.assert_close(*predicted)


@both
def test_a_batch_without_masking_is_refused(make, cells):
    batch = cells()
    batch.pop("labels" if "labels" in batch else "masked_expr")
    with pytest.raises(ValueError, match=r"needs batches with '(labels|masked_expr)'.* with masking"):
        make()._restored(batch)


@pytest.mark.parametrize("make", [MaskedTokenModel, lambda n: MaskedValueModel(n, PAD)])
def test_a_model_without_tokens_is_refused(make):
    with pytest.raises(ValueError, match="has no tokens"):
        make(0)


def test_a_vocabulary_without_padding_is_refused():
    with pytest.raises(ValueError, match="<pad>"):
        MaskedValueModel(N_TOKENS, None)
