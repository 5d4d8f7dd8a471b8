"""Trains with PyTorch alone on as many ranks as ``torchrun`` starts, and again with others when nodes die or join.

Called with a folder of cells and a folder of outputs. Every third step is saved. After step n, all ranks wait as long
as there is a file ``hold-n-on-w``, if there are w of them.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import scdataloader as scd

GLOBAL_BATCH, N_EPOCHS, SAVE_EVERY = 16, 3, 3


def module(cells, world_size):
    """The data of a rank: whatever their number, the ranks share batches of the same cells."""
    return scd.DataModule(
        f"{cells}/*.h5ad", collate=scd.Dense(), batch_size=GLOBAL_BATCH // world_size, split=scd.Split(val=0.2)
    )


def main(cells, out):
    dist.init_process_group("gloo")
    rank, world_size, out = dist.get_rank(), dist.get_world_size(), Path(out)
    loader = module(cells, world_size).train_dataloader()
    weights = torch.nn.Linear(30, 1, bias=False)
    torch.nn.init.zeros_(weights.weight)
    model = DistributedDataParallel(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    n = 0
    if (out / "last.pt").exists():
        saved = torch.load(out / "last.pt")
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
        n = saved["n"]
    with (out / f"rows-{rank}.jsonl").open("a") as log:
        for epoch in range(loader.epoch, N_EPOCHS):
            loader.set_epoch(epoch)
            for batch in loader:
                optimizer.zero_grad()
                model(batch["x"]).mean().backward()
                optimizer.step()
                n += 1
                print(json.dumps([n, world_size, batch["row"].tolist()]), file=log, flush=True)
                if rank == 0 and n % SAVE_EVERY == 0:
                    torch.save({"model": model.state_dict(), "loader": loader.state_dict(), "n": n}, out / "new.pt")
                    (out / "new.pt").replace(out / "last.pt")
                while (out / f"hold-{n}-on-{world_size}").exists():
                    time.sleep(0.02)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
