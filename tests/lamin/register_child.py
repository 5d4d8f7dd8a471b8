"""A process that forks children that register three files, and are killed; nothing or all of it is registered then."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

import lamindb
from django.db import connection, connections, transaction

from scdataloader.curation import Outcome, Recipe
from scdataloader.lamin.register import register
from tests.lamin.curated import B, T, curated

N_FILES = 3


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_link(number: int) -> None:
    """Die before the file of that number is put in place."""
    seen = count()

    def hook(event: str, _: object) -> None:
        if event == "os.link" and next(seen) == number:
            die()

    sys.addaudithook(hook)


def at_statement(words: str, number: int = 0, *, done: bool = False, then: Callable[[], None] = die) -> None:
    """Do something before, or after, the database does what has these words for the time of that number."""
    seen = count()

    def wrapper(execute, sql, params, many, context):
        found = words in sql and next(seen) == number
        if found and not done:
            then()
        result = execute(sql, params, many, context)
        if found and done:
            then()
        return result

    connection.execute_wrappers.append(wrapper)


ARTIFACT, COLLECTION = 'INTO "lamindb_artifact"', 'INTO "lamindb_collection"'
STEPS: dict[str, Callable[[], None]] = {
    "before files": lambda: at_link(0),
    "between files": lambda: at_link(N_FILES - 1),
    "before artifacts": lambda: at_statement(ARTIFACT),
    "between artifacts": lambda: at_statement(ARTIFACT, N_FILES - 1),
    "before the collection": lambda: at_statement(COLLECTION),
    "before its members": lambda: at_statement('INTO "lamindb_collectionartifact"'),
    "before the commit": lambda: at_statement('UPDATE "lamindb_run"', done=True),
    "after the commit": lambda: at_statement(ARTIFACT, then=lambda: transaction.on_commit(die)),
}


def killed(step: str, outcomes: list[Outcome], key: str) -> None:
    """Register in a fork of this process, which is killed."""
    connections.close_all()
    child = os.fork()
    if not child:
        try:
            STEPS[step]()
            register(outcomes, key=key, recipe=Recipe())
        except BaseException:  # noqa: BLE001 (it ends here)
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, step


def n_registered(key: str) -> tuple[int, ...]:
    """Artifacts, collections, members and runs."""
    return (
        lamindb.Artifact.objects.filter(key__startswith=f"{key}/").count(),
        lamindb.Collection.objects.filter(key=key).count(),
        lamindb.Collection.artifacts.through.objects.filter(collection__key=key).count(),
        lamindb.Run.objects.filter(transform__key=f"curate/{key}").count(),
    )


def never_while_others_wait() -> None:
    """Have files be put in place outside of transactions only."""
    database = connections["default"]  # that of this thread, which no other sees

    def hook(event: str, _: object) -> None:
        if event == "os.link":
            assert not database.in_atomic_block

    sys.addaudithook(hook)


def main(folder: Path, key: str) -> None:
    """Kill at each step, and do the same again."""
    never_while_others_wait()
    register([curated(folder / "other.h5ad", [T, B])], key=f"{key}/other", recipe=Recipe())  # so that terms are there
    for number, step in enumerate(STEPS):
        here, own_key = folder / str(number), f"{key}/{number}"
        outcomes = [curated(here / f"{name}.h5ad", [T, B]) for name in range(N_FILES)]
        killed(step, outcomes, own_key)
        is_registered = step == "after the commit"
        everything = (N_FILES, 1, N_FILES, 1)
        assert n_registered(own_key) == (everything if is_registered else (0, 0, 0, 0)), step
        done = register(outcomes, key=own_key, recipe=Recipe())
        assert (done.n_new, done.n_members, done.is_new) == (
            0 if is_registered else N_FILES,
            N_FILES,
            not is_registered,
        )
        assert n_registered(own_key) == everything, step
        files = sorted(here.rglob("*.h5ad"))
        assert len(files) == 2 * N_FILES, "what was in place was used"
        assert {artifact.path for artifact in lamindb.Collection.get(key=own_key).artifacts.all()} < set(files)
    assert lamindb.Artifact.get(key=f"{key}/other/raw/other.h5ad").path.exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
