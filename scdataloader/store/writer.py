"""Sources to a store: what has to be written, what is there already, and in which order the rest comes."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from scdataloader.errors import StoreWriteError
from scdataloader.store.claim import LOCK, Claim, claimed
from scdataloader.store.disk import writing
from scdataloader.store.layout import (
    MANIFEST,
    PARTIAL,
    VERSION,
    FileRecord,
    Manifest,
    ShardRecord,
    SourceRecord,
    file_record,
    sync_folder,
)
from scdataloader.store.plan import PLAN, UNORDERED, Plan, load_record
from scdataloader.store.pool import run_tasks, workers
from scdataloader.store.progress import cells_bar
from scdataloader.store.relayout import relayout_tasks
from scdataloader.store.scan import Scan
from scdataloader.store.table_writer import GeneList, write_table
from scdataloader.store.tasks import EncodeCells, Place, Task, WriteObs

logger = logging.getLogger(__name__)

FOLDERS = ("obs", "var", "shards")
_OWN_FILE = re.compile(r"[0-9a-f]{5,32}\.(parquet|cells|json)(\.partial|\.progress)?")
"""All that a conversion writes into those folders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Who does the work of a conversion."""

    executor: Executor | None = None
    """Runs the tasks; None for processes of our own."""
    n_processes: int | None = None
    """How many of these; None for as many as there are cores."""
    shown: bool = False
    """Whether to show how far it is."""


def write_store(folder: Path, scan: Scan, options: WriteOptions, workers: Workers) -> Written:
    ...
