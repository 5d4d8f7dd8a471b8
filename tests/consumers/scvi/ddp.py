"""Train SCVI on two processes; each writes the rows that it trained on. Run by test_scvi.py."""

import sys
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback
from scvi.model import SCVI

from scdataloader.integrations.scvi import ScviDataModule
from tests.consumers.scvi.cells import data


class Rows(Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.append(batch["ind_x"][:, 0].numpy())


if __name__ == "__main__":
    folder, rows = Path(sys.argv[1]), Rows()
    dm = ScviDataModule(data(), batch_key="batch", batch_size=32)
    model = SCVI(adata=None, registry=dm.registry, n_latent=2, n_hidden=8)
    model.train(
        max_epochs=1,
        datamodule=dm,
        accelerator="cpu",
        devices=2,
        strategy="ddp_find_unused_parameters_true",
        enable_progress_bar=False,
        callbacks=[rows],
    )
    latent = model.get_latent_representation(dataloader=dm.inference_dataloader())
    np.savez(folder / f"{model.trainer.global_rank}.npz", rows=np.concatenate(rows.rows), latent=latent)
