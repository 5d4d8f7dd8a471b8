"""Time to register curated files in lamindb, and to register them again unchanged.

    python benchmarks/registering.py --files 500                                            # SQLite
    python benchmarks/registering.py --files 500 --s3                                       # upload to a bucket
    python benchmarks/registering.py --files 500 --db postgresql://lamin:x@127.0.0.1:5432/empty

Creates an instance in a temporary folder, and small curated files with labels in four columns; prints one line of JSON.
Times are in seconds, for `register` only. ``locked_s`` is the longest time for which another process could not write to
the SQLite database. The bucket is a moto server on loopback.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from scdataloader.curation.recipe import Recipe
from scdataloader.curation.report import Outcome

LABELS = {
    "cell_type_ontology_term_id": ["CL:0000084", "CL:0000236", "CL:0000540", "CL:0000097", "CL:0000625", "CL:0000900"],
    "tissue_ontology_term_id": ["UBERON:0000955", "UBERON:0000178", "UBERON:0002048"],
    "disease_ontology_term_id": ["PATO:0000461", "MONDO:0005148"],
    "sex_ontology_term_id": ["PATO:0000383", "PATO:0000384"],
}
N_CELLS, N_GENES = 100, 200


def outcome(folder: Path, number: int) -> Outcome:
    """Write a curated file with some of the labels; returns its outcome."""
    rng = np.random.default_rng(number)
    obs = pd.DataFrame(
        {column: pd.Categorical(rng.choice(ids, N_CELLS)) for column, ids in LABELS.items()},
        index=[f"cell{cell}" for cell in range(N_CELLS)],
    )
    x = csr_matrix(rng.poisson(1.0, (N_CELLS, N_GENES)).astype(np.float32))
    path = folder / f"{number:05d}.h5ad"
    ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"ENSG{gene:011d}" for gene in range(N_GENES)])).write_h5ad(path)
    return Outcome(
        source=f"raw/{path.name}",
        content=hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(),
        recipe="0" * 32,
        status="kept",
        reason="",
        n_cells_in=N_CELLS,
        n_cells_out=N_CELLS,
        n_genes_in=N_GENES,
        n_genes_out=N_GENES,
        output=path,
        labels={column: sorted(obs[column].unique()) for column in LABELS},
        organism="NCBITaxon:9606",
        seconds=0.0,
    )


@contextmanager
def s3_server() -> Iterator[str]:
    """Start an S3 server on loopback; yields the address of a bucket."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_ENDPOINT_URL": address}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1"}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        while not is_open(port):
            time.sleep(0.1)
        boto3.client("s3").create_bucket(Bucket="atlas")
        yield f"s3://atlas/curated?endpoint_url={address}"
    finally:
        server.kill()
        server.wait()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def watch(database: str, pipe: Connection) -> None:
    """Request a write lock repeatedly, and finally send the longest time in seconds for which it was refused."""
    longest, since = 0.0, None
    connection = sqlite3.connect(database, timeout=0, isolation_level=None)
    pipe.send(None)
    while not pipe.poll(0.002):
        now = time.perf_counter()
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            since = None
        except sqlite3.OperationalError:
            since = now if since is None else since
            longest = max(longest, now - since)
    pipe.send(longest)


@contextmanager
def watched(database: Path | None, measured: dict[str, Any]) -> Iterator[None]:
    """Another process requests to write to the database in this context; sets ``locked_s``."""
    if database is None:
        yield
        return
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=watch, args=(str(database), there))
    process.start()
    there.close()  # so that the end of the process is noticed
    here.recv()
    yield
    here.send(None)
    measured["locked_s"] = round(here.recv(), 2)
    process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--db", help="an empty Postgres database; default: SQLite")
    parser.add_argument("--s3", action="store_true", help="upload to a bucket; default: register in place")
    options = parser.parse_args()
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory())
        # lamindb reads these when it is imported
        os.environ |= {"LAMIN_SETTINGS_DIR": root, "LAMIN_CACHE_DIR": f"{root}/cache"}
        os.environ |= {"AWS_MAX_ATTEMPTS": "1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
        os.chdir(root)
        storage = stack.enter_context(s3_server()) if options.s3 else None
        from scdataloader.lamin.instance import init
        from scdataloader.lamin.register import register

        measured: dict[str, Any] = {"files": options.files, "db": "postgres" if options.db else "sqlite"}
        measured["s3"] = options.s3
        start = time.perf_counter()
        init("db", db=options.db)
        measured["init_s"] = round(time.perf_counter() - start, 2)
        folder = Path("curated" if options.s3 else "db/curated").absolute()
        folder.mkdir()
        outcomes = [outcome(folder, number) for number in range(options.files)]
        start = time.perf_counter()
        with watched(None if options.db else Path("db/.lamindb/lamin.db"), measured):
            register(outcomes, key="my/atlas", recipe=Recipe(), storage=storage)
            measured["first_s"] = round(time.perf_counter() - start, 2)
        start = time.perf_counter()
        done = register(outcomes, key="my/atlas", recipe=Recipe(), storage=storage)
        measured["unchanged_s"] = round(time.perf_counter() - start, 2)
        assert (done.n_members, done.n_new, done.is_new) == (options.files, 0, False)
        print(json.dumps(measured))


if __name__ == "__main__":
    main()
