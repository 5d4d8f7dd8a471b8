"""A model that notes the rows of its batches; trained by the command line on nodes of SLURM."""

import json
from pathlib import Path

import lightning.pytorch as pl
import torch


class Noting(pl.LightningModule):
    """A linear model that appends [epoch, rows] of each training batch to ``<folder>/<rank>.jsonl``."""

    def __init__(self, n_genes: int, folder: str):
        super().__init__()
        self.linear = torch.nn.Linear(n_genes, 1)
        self.folder = Path(folder)

    def training_step(self, batch, batch_idx):
        with (self.folder / f"{self.global_rank}.jsonl").open("a") as log:
            print(json.dumps([self.current_epoch, batch["row"].tolist()]), file=log)
        return self.linear(batch["x"]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-6)
