"""A model of one weight that notes every batch to the last bit, one JSON line each."""

import json
from pathlib import Path

import lightning.pytorch as pl
import torch


class Notes(pl.LightningModule):
    """Write down what a Trainer hands to it.

    Args:
        log: File to append to; None for none.
    """

    def __init__(self, log: str | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.log_file = log
        self.seen = []

    def note(self, stage, batch):
        if self.trainer.sanity_checking:
            return
        noted = [stage, self.current_epoch, {key: value.tolist() for key, value in batch.items()}]
        self.seen.append(noted)
        if self.log_file is not None:
            rank = f".{self.global_rank}" if self.trainer.world_size > 1 else ""
            with Path(self.log_file + rank).open("a") as file:
                file.write(json.dumps(noted) + "\n")

    def training_step(self, batch, batch_idx):
        self.note("train", batch)
        return self.weight.sum() * len(batch["cell"])

    def validation_step(self, batch, batch_idx):
        self.note("validate", batch)

    def test_step(self, batch, batch_idx):
        self.note("test", batch)

    def predict_step(self, batch, batch_idx):
        self.note("predict", batch)
        return batch["cell"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
