"""Where the time of a loader goes."""

import time

import scdataloader as scd
from scdataloader.loading.stages import TimedPrefetcher
from scdataloader.testing import MemorySource, named_values


def test_a_stage_is_charged_for_its_own_time():
    """A sampler, a transform and a source that each wait, of which only one uses the CPU."""

    def busy(seconds):
        stop = time.thread_time() + seconds
        while time.thread_time() < stop:
            pass

    class Slow(MemorySource):
        def read(self, rows):
            time.sleep(0.003)
            return super().read(rows)

    def transform(batch, rng):
        busy(0.004)
        return batch

    source = Slow("slow", named_values(64, 5), [f"ENSG{i:011d}" for i in range(5)])
    loader = scd.DataModule(source, transforms=transform, batch_size=16, num_threads=1).train_dataloader()
    stages = TimedPrefetcher.of(loader).measure(0.3, lambda _: None).stages
    assert stages["decode"].waited_us >= 1e6 * 0.003 / 16 / 4  # four batches are read at once at most
    assert stages["collate"].cpu_us >= 1e6 * 0.004 / 16
    assert stages["collate"].cpu_us > 2 * max(stages[name].cpu_us for name in ("draw", "read", "decode"))
