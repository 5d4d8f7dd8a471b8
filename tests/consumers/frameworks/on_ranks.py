"""One rank of several that ``torchrun`` starts: trains by Accelerate, Fabric and the Trainer of transformers.

Called with a folder of cells and a folder of outputs; writes the rows of its steps to ``<rank>.json``.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import scdataloader as scd

BATCH, N_EPOCHS = 8, 3


def module(cells, **options):
    made = {"collate": scd.Dense(), "batch_size": BATCH, "split": scd.Split(val=0.2)} | options
    return scd.DataModule(f"{cells}/*.h5ad", **made)


def step_of(backward, model, optimizer):
    """A training step, which returns the rows of its batch."""

    def step(batch):
        backward(model(batch["x"]).mean())
        optimizer.step()
        return batch["row"].tolist()

    return step


def passes(loader, n, step):
    """Rows of ``n`` passes."""
    return [[step(batch) for batch in loader] for _ in range(n)]


def by_accelerate(cells, out, *, as_torch):
    from accelerate import Accelerator

    seen = {}
    for run in ("whole", "resumed"):
        accelerator = Accelerator(cpu=True)
        own = module(cells).train_dataloader()
        model = torch.nn.Linear(30, 1)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        model, optimizer, loader = accelerator.prepare(model, optimizer, own.as_torch() if as_torch else own)
        accelerator.register_for_checkpointing(own)
        folder = f"{out}/accelerate-{as_torch}"
        step = step_of(accelerator.backward, model, optimizer)
        if run == "resumed":
            accelerator.load_state(folder)
            seen[run] = passes(loader, 2, step)
            continue
        seen[run] = passes(loader, 1, step)
        second = []
        for batch in loader:
            second.append(step(batch))
            if len(second) == 3:
                accelerator.save_state(folder)
        seen[run] += [second, *passes(loader, 1, step)]
    return seen


def by_fabric(cells, out):
    from lightning.fabric import Fabric

    seen = {}
    for run in ("whole", "resumed", "next"):
        fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
        fabric.launch()
        loader = fabric.setup_dataloaders(module(cells).train_dataloader().as_torch())
        model = torch.nn.Linear(30, 1)
        model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 1e-3))
        state = {"model": model, "loader": loader}
        step = step_of(fabric.backward, model, optimizer)
        if run != "whole":
            fabric.load(f"{out}/fabric-{run}.ckpt", state)
            seen[run] = passes(loader, 2 if run == "resumed" else 1, step)
            continue
        seen[run] = passes(loader, 1, step)
        second = []
        for batch in loader:
            second.append(step(batch))
            if len(second) == 3:
                fabric.save(f"{out}/fabric-resumed.ckpt", state)
        fabric.save(f"{out}/fabric-next.ckpt", state)
        seen[run] += [second, *passes(loader, 1, step)]
    return seen


class Model(torch.nn.Module):
    """A model whose outputs are the rows that it gets."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(30, 2)
        self.rows = []

    def forward(self, x, row, labels):
        if self.training:
            self.rows.append(row.tolist())
        return {"loss": torch.nn.functional.cross_entropy(self.linear(x), labels), "logits": row}


def by_trainer(cells, out):
    from transformers import TrainingArguments

    from scdataloader.integrations.huggingface import CellTrainer

    seen = {}
    for run in ("whole", "resumed"):
        options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "max_steps": 12, "save_steps": 4}
        dm, model = module(cells, labels=["type"]), Model()
        trainer = CellTrainer(model, TrainingArguments(f"{out}/trainer-{run}", **options), datamodule=dm)
        trainer.train(resume_from_checkpoint=f"{out}/trainer-whole/checkpoint-8" if run == "resumed" else None)
        seen[run] = model.rows
    seen["predicted"] = trainer.predict(dm).predictions.tolist()
    seen["evaluated"] = trainer.predict(dm.val_dataloader()).predictions.tolist()
    return seen


def main(cells, out):
    dist.init_process_group("gloo")
    seen = {
        "Accelerate": by_accelerate(cells, out, as_torch=False),
        "Accelerate, as_torch": by_accelerate(cells, out, as_torch=True),
        "Fabric": by_fabric(cells, out),
        "transformers": by_trainer(cells, out),
    }
    Path(out, f"{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
