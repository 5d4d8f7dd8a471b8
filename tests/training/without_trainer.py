"""One rank of several that trains without a Trainer; writes the rows that it sees to a file.

Called as a script with a folder of cells and a file; the rank is in the environment, as ``torchrun`` sets it.
"""

import json
import os
import sys
from pathlib import Path

import torch

import scdataloader as scd


def rows(loader):
    return [batch["row"].tolist() for batch in loader]


def main(cells, out):
    data = f"{cells}/*.h5ad"
    made = scd.DataModule(data, batch_size=8)
    early = made.train_dataloader()
    seen = {"environment": rows(made.train_dataloader()), "evaluation": rows(made.predict_dataloader())}
    torch.distributed.init_process_group("gloo")
    for name in ("RANK", "WORLD_SIZE"):
        del os.environ[name]
    seen["process group"] = rows(early)
    seen["torch"] = rows(made.train_dataloader().as_torch())
    seen["given"] = rows(scd.DataModule(data, batch_size=16, rank=0, world_size=1).train_dataloader())
    torch.distributed.destroy_process_group()
    early.set_epoch(0)
    seen["one rank"] = rows(early)
    Path(out).write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
