"""Measure the loader on your own files: each case in fresh processes, medians of several runs.

    python benchmarks/run.py --plain 'DATA/h5ad/*.h5ad' [--gzip 'GZIP/h5ad/*.h5ad'] [--store ATLAS] [--repeats 3]

Files are read once before, so that the page cache is warm. Cases are interleaved, so that a slow minute of the machine
affects all of them. With ``--store``, natural draws are also measured for one second without the files of the store in
the page cache. RESULTS.md describes the data and machine of its figures.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PLAIN = [
    ("sparse", 64),
    ("sparse", 4096),
    ("shuffle", 64),
    ("selected", 64),
    ("most", 64),
    ("dense", 64),
    ("mapped", 64),
]
GZIP = [("sparse", 64), ("sparse", 4096), ("mapped", 64)]
STORE = [
    ("sparse", 64),
    ("sparse", 4096),
    ("shuffle", 64),
    ("selected", 64),
    ("most", 64),
    ("geneformer", 64),
    ("geneformer masked", 64),
    ("dense", 64),
]
COLD = [("shuffle", 64), ("shuffle", 4096), ("blocks", 64)]


def files_of(paths: list[str]) -> list[Path]:
    found = [file for path in map(Path, paths) for file in (path.rglob("*") if path.is_dir() else [path])]
    return [path for path in found if path.is_file()]


def warm(paths: list[str]) -> None:
    for path in files_of(paths):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def cool(paths: list[str]) -> None:
    os.sync()
    for path in files_of(paths):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(paths: list[str], case: str, batch: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", str(HERE / "measure.py"), *paths]
    command += ["--case", case, "--batch", str(batch), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    record: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return record


def table(name: str, paths: list[str], cases: list[tuple[str, int]], repeats: int, seconds: float) -> None:
    cold = cases is COLD
    if not cold:
        warm(paths)
    runs: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(repeats):
        for case, batch in cases:
            if cold:
                cool(paths)
            runs[case, batch].append(measure(paths, case, batch, 1 if cold else seconds))
    mapped = [run["cells_per_s"] for run in runs.get(("mapped", 64), [])]
    reference = statistics.median(mapped) if mapped else float("nan")
    print(f"\n{name}: {len(paths)} files, medians of {repeats}\n")
    print("| case | batch | cells/s | × MappedCollection | open, s | first batch, s | cores | anonymous memory, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for (case, batch), records in runs.items():
        median = {key: statistics.median(r[key] for r in records) for key in records[0] if key != "case"}
        print(
            f"| {case} | {batch} | {median['cells_per_s']:,.0f} | {median['cells_per_s'] / reference:.1f} "
            f"| {median['open_s']:.2f} | {median['first_s']:.2f} | {median['cores']:.2f} | {median['anon_mib']:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", help="glob of uncompressed .h5ad files")
    parser.add_argument("--gzip", help="glob of gzip .h5ad files")
    parser.add_argument("--store", help="a store made of the same files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    if not (options.plain or options.gzip or options.store):
        parser.error("give --plain, --gzip or --store, of files with counts and obs['cell_type_ontology_term_id']")
    requested = [("uncompressed", options.plain, PLAIN), ("gzip", options.gzip, GZIP)]
    requested += [("store", options.store, STORE), ("store, cold", options.store, COLD)]
    for name, pattern, cases in requested:
        if pattern:
            table(name, sorted(glob.glob(pattern)), cases, options.repeats, options.seconds)


if __name__ == "__main__":
    main()
