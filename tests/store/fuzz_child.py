"""A process that damages and reads stores, case by case, so that what ends it is known to be of that case.

Started with a store's folder and a folder to work in. Each line that comes in is a case as JSON; each that goes out
says what came of it: ``{"said": …}``, or ``{"failed": traceback}``.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from tests.store.fuzz_files import Copy
from tests.store.fuzz_records import RecordFuzzer

_ROOM = 1 << 30
"""Bytes that a case may ask for beyond what the process has to begin with."""


def limit_memory() -> None:
    """Have the system refuse what no small store needs."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = Path("/proc/self/statm")
    if pages.exists():
        most = int(pages.read_text().split()[0]) * resource.getpagesize() + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(store: Path, folder: Path) -> None:
    """Answer one line for each line."""
    warnings.simplefilter("error")
    # what AnnData rightly says of tables that damage has given a name twice
    warnings.filterwarnings("ignore", "(Variable|Observation) names are not unique", UserWarning)
    pa.set_memory_pool(pa.system_memory_pool())  # the others reserve addresses for later
    pa.set_cpu_count(1)
    copy = Copy(store, folder)
    records = RecordFuzzer(next(content for name, content in copy.pristine.items() if name.startswith("shards/")))
    for sample in (0, -1):
        records.run({"sample": sample, "steps": [], "longer": 0, "size": 0})
    limit_memory()
    answer = {"said": "ready"}
    with ThreadPoolExecutor(1) as thread:
        while True:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            line = sys.stdin.readline()
            if not line:
                break
            case = json.loads(line)
            ran = thread.submit((records if "sample" in case else copy).run, case)
            error = ran.exception()  # whatever it is, the test is told of it
            failed = {"failed": "".join(traceback.format_exception(error))}
            answer = failed if error else {"said": ran.result()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
