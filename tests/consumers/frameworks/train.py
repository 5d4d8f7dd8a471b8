"""Trains with PyTorch alone; run by ``torchrun``, again after it was stopped.

Called with a folder of cells, a folder of outputs, and the number of batches after which the second rank kills itself.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import scdataloader as scd

N_EPOCHS = 3


def main(cells, out, n_until_killed=0):
    dist.init_process_group("gloo")
    rank, last = dist.get_rank(), Path(out, "last.pt")
    dm = scd.DataModule(f"{cells}/*.h5ad", collate=scd.Dense(), batch_size=8, split=scd.Split(val=0.2))
    dm.setup("fit")
    loader = dm.train_dataloader()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(30, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    if last.exists():
        saved = torch.load(last)
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
    n = 0
    with Path(out, f"rows-{rank}.jsonl").open("a") as log:
        for epoch in range(loader.epoch, N_EPOCHS):
            loader.set_epoch(epoch)
            for batch in loader:
                optimizer.zero_grad()
                loss = ((model(batch["x"])[:, 0] - batch["depth"]) ** 2).mean()
                loss.backward()
                optimizer.step()
                print(json.dumps(batch["row"].tolist()), file=log, flush=True)
                n += 1
                if rank == 0:
                    torch.save({"model": model.state_dict(), "loader": loader.state_dict(), "n": n}, f"{last}.new")
                    Path(f"{last}.new").replace(last)
                if rank == 1 and n == int(n_until_killed):
                    os.kill(os.getpid(), signal.SIGKILL)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
