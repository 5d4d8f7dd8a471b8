"""A `Loader` as a `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from scdataloader.loading.loader import Loader, Pass


class TorchLoader(DataLoader[Mapping[str, Any]]):
    """The batches of a `Loader`; see `Loader.as_torch`.

    Libraries change the loaders that they are given: they share out the items of the sampler among the ranks, and leave
    out the batches before a checkpoint. The items of this sampler are batches of this rank, so that they can be left
    out, and its class is one that Lightning and Fabric take for shared out already.
    """

    _is_accelerate_prepared = True  # Accelerate would share out the batches of this rank once more

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._n_earlier = 0
        # a pass of a DataLoader draws a seed, which would change the model's dropout by the global generator
        own = torch.Generator()
        super().__init__(_Batches(), batch_sampler=_Steps(loader), collate_fn=_only, generator=own)

    @property
    def sampler(self) -> DistributedSampler[Any]:
        """What libraries inspect; iteration uses ``batch_sampler``."""
        return _Shared(self)

    @sampler.setter
    def sampler(self, sampler: object) -> None:
        """Ignore the default that `DataLoader` sets."""

    def set_epoch(self, epoch: int) -> None:
        """See `Loader.set_epoch`."""
        self._loader.set_epoch(epoch)

    def count_epoch(self, epoch: int) -> None:
        """Go to ``epoch`` as a library counts it: Fabric counts passes of a process from 0, also of a resumed one."""
        if self._loader.is_resumed:
            self._n_earlier = max(0, self._loader.epoch - epoch)
        self._loader.set_epoch(self._n_earlier + epoch)

    def state_dict(self) -> dict[str, Any]:
        """See `Loader.state_dict`."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Loader.load_state_dict`."""
        self._loader.load_state_dict(state)


class _Steps(BatchSampler):
    """Yields each batch of a pass as the pass and the number of the batch in it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[Any]]:
        batches = iter(self._loader)
        yield from ([(batches, number)] for number in range(self._loader.n_left))

    def __len__(self) -> int:
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """See `Loader.set_epoch`."""
        self._loader.set_epoch(epoch)


class _Shared(DistributedSampler[Any]):
    """A sampler that is shared out among the ranks already."""

    def __init__(self, loader: TorchLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """See `TorchLoader.count_epoch`."""
        self._loader.count_epoch(epoch)


class _Batches(Dataset[Mapping[str, Any]]):
    def __getitem__(self, item: tuple[Pass, int]) -> Mapping[str, Any]:
        batches, number = item
        if not batches.is_running:
            batches.n_skipped = number
        return next(batches)


def _only(batches: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return batches[0]
