"""Measure ontologies: time to load, time of queries, and memory; medians of several fresh processes.

    python benchmarks/ontology.py [--names CL UBERON MONDO EFO] [--repeats 5]

Each process imports cellxgene-ontology-guide, loads all of the ontologies from it, and queries each. Memory is the peak
of anonymous pages (RssAnon) minus those before the first ontology is loaded: after loading all, after the queries, and
after building their union.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from measure import PeakMemory

from scdataloader.ontology.ontology import Ontology


def anonymous_mib() -> float:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(names: list[str]) -> tuple[dict[str, dict[str, float]], dict[str, float], float]:
    """``{ontology: {task: seconds}}``, ``{stage: MiB}`` of all ontologies together, and seconds of their union."""
    import cellxgene_ontology_guide.supported_versions  # noqa: F401

    before, peak = anonymous_mib(), PeakMemory()
    kept, times, memory = {}, {}, {}
    for name in names:
        start = time.perf_counter()
        kept[name] = Ontology.from_guide(name)
        times[name] = {"load": time.perf_counter() - start}
    memory["loaded"] = max(peak.mib, anonymous_mib()) - before
    for name, o in kept.items():
        tasks = {
            "ancestors of all terms": partial(all_of, o.ancestors, o.terms),
            "descendants of all terms": partial(all_of, o.descendants, o.terms),
            "ancestor matrix of 1,000 terms": partial(o.ancestor_matrix, o.terms[:1000]),
            "subgraph of 1,000 terms": partial(o.subgraph, o.terms[:1000]),
            "rolling 1,000 terms up to depth 3": partial(o.roll_up, o.terms[:1000], 3, ambiguous="nearest"),
            "first name looked up": partial(o.find, o.label(o.terms[0])),
        }
        times[name] |= {task: seconds(call) for task, call in tasks.items()}
    memory["loaded and queried"] = max(peak.mib, anonymous_mib()) - before
    start = time.perf_counter()
    Ontology.union(list(kept.values()))
    union = time.perf_counter() - start
    memory["loaded, queried and merged"] = max(peak.mib, anonymous_mib()) - before
    return times, memory, union


def all_of(query: Callable[[str], list[str]], terms: tuple[str, ...]) -> None:
    for term in terms:
        query(term)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=["CL", "UBERON", "MONDO", "EFO"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    results = []
    for _ in range(options.repeats):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            results.append(pool.submit(measured, options.names).result())
    print(f"{'ms, medians of ' + str(options.repeats):34}" + "".join(f"{name:>10}" for name in options.names))
    for task in results[0][0][options.names[0]]:
        medians = [statistics.median(times[name][task] for times, _, _ in results) for name in options.names]
        print(f"{task:34}" + "".join(f"{1000 * median:10.1f}" for median in medians))
    print(f"union of all {len(options.names)}: {1000 * statistics.median(seconds for _, _, seconds in results):.1f} ms")
    for what in results[0][1]:
        median = statistics.median(memory[what] for _, memory, _ in results)
        print(f"peak memory, all {len(options.names)} {what}: {median:.0f} MiB")


if __name__ == "__main__":
    main()
