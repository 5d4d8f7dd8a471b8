"""Rank and world size of this process."""

from __future__ import annotations

import os

import torch.distributed as dist


def find_ranks() -> tuple[int, int]:
    """Rank of this process and number of processes, among which the batches are shared.

    They are those of ``torch.distributed`` where it is initialised (by Lightning, Fabric, Accelerate or the user), and
    otherwise the environment variables ``RANK`` and ``WORLD_SIZE``, which ``torchrun`` and ``accelerate launch`` set.

    Raises:
        ValueError: the environment variables are not a rank below a world size.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    try:
        ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        check_ranks(*ranks)
    except ValueError as error:
        raise ValueError(
            f"the environment has RANK={os.environ['RANK']!r} and WORLD_SIZE={os.environ['WORLD_SIZE']!r}, expected a "
            "number below another; correct or remove them, or give rank= and world_size="
        ) from error
    return ranks


def check_ranks(rank: int | None, world_size: int | None) -> None:
    """See that both are given, or neither, and that they fit.

    Raises:
        ValueError: they do not.
    """
    if rank is None and world_size is None:
        return
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), and both or neither be given; got {rank} of {world_size}")
