"""Measure the effect of class weights and hierarchical labels on rare cells, with many trainings of a small classifier.

    python benchmarks/rare_cells.py --out RESULTS [--data FOLDER] [--datasets pbmc brain worm] [--seeds N]

The settings in rare_cells.yaml apply to all arms. Data sets that are not in FOLDER are skipped; `pbmc` comes with
scanpy. Writes runs.csv (a line per training, seed by seed), tables.md and rare_cells.svg. A further call runs the
trainings that are not in runs.csv; delete lines from it to repeat them.

Each class is split into training and test cells; in worm, whole plates are. A class of one cell trains and is not
evaluated.
"""

import argparse
import itertools
import logging
import math
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from rare_cells_report import report
from rich.progress import track
from scipy.sparse import csr_matrix

OPTIONS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FILES = {"pbmc": None, "brain": "mouse_brain_merfish.h5ad", "worm": "worm_l2.h5ad"}
"""{data set: file name}; None for data that comes with scanpy."""
ORGANISMS = {"pbmc": "human", "brain": "mouse", "worm": "NCBITaxon:6239"}
PBMC_TERMS = {
    "CD14+ Monocyte": "CL:0001054",
    "CD19+ B": "CL:0000236",
    "CD34+": "CL:0008001",
    "CD4+/CD25 T Reg": "CL:0000792",
    "CD4+/CD45RA+/CD25- Naive T": "CL:0000895",
    "CD4+/CD45RO+ Memory": "CL:0000897",
    "CD56+ NK": "CL:0000623",
    "CD8+ Cytotoxic T": "CL:0000794",
    "CD8+/CD45RA+ Naive Cytotoxic": "CL:0000900",
    "Dendritic": "CL:0000451",
}
"""{label of pbmc: term of the Cell Ontology}, assigned by hand."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training."""

    question: str
    """``weighting``, or ``labels``: the treatment of training cells that are labelled with a term above their class."""
    dataset: str
    weighting: str
    labels: str = "flat"
    """``flat``: every label is a class; ``left out``: cells with coarse labels do not train; ``hierarchical``."""
    coarse: float = 0.0
    """Share of the training cells of each class that get a coarser label."""
    seed: int


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Cells of a data set and their labels."""

    adata: ad.AnnData
    labels: NDArray[np.object_]
    """Term or name of each cell."""
    groups: NDArray[np.object_] | None = None
    """Group of each cell, never split; None splits within classes."""
    has_terms: bool = True
    """Whether labels are terms of the Cell Ontology."""


@cache
def loaded(name: str, folder: Path) -> Cells:
    """A data set, read once per process."""
    if name == "pbmc":
        return pbmc()
    adata = ad.read_h5ad(folder / FILES[name])
    bare = ad.AnnData(csr_matrix(adata.X), obs=pd.DataFrame(index=adata.obs_names), var=adata.var)
    if name == "worm":
        plates = adata.obs["plate"].astype(str).to_numpy(object)
        labels = adata.obs["cao_cell_type"].astype(str).to_numpy(object)
        return Cells(adata=bare, labels=labels, groups=plates, has_terms=False)
    return Cells(adata=bare, labels=adata.obs["cell_type_ontology_term_id"].astype(str).to_numpy(object))


def pbmc() -> Cells:
    """700 cells of scanpy; counts are expm1 of the stored values, divided by the smallest of the cell."""
    import scanpy as sc

    kept = sc.datasets.pbmc68k_reduced()
    x = csr_matrix(kept.raw.X).astype(np.float64)
    x.data = np.expm1(x.data)
    smallest = np.array([row.data.min() for row in x])
    x.data = np.round(x.data / np.repeat(smallest, np.diff(x.indptr)))
    names = {"obs": pd.DataFrame(index=kept.obs_names), "var": pd.DataFrame(index=kept.raw.var_names)}
    labels = kept.obs["bulk_labels"].astype(str).map(PBMC_TERMS).to_numpy(object)
    return Cells(adata=ad.AnnData(x.astype(np.float32), **names), labels=labels)


@cache
def ontology() -> Any:
    from scdataloader import Ontology

    return Ontology.from_guide("CL")


def chosen_to_test(cells: Cells, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mask of the test cells: a share of each class, with at least one cell on both sides, or whole groups."""
    share = OPTIONS["test_share"]
    test = np.zeros(len(cells.labels), dtype=np.bool_)
    if cells.groups is not None:
        groups = np.unique(cells.groups)
        return np.isin(cells.groups, rng.choice(groups, round(share * len(groups)), replace=False))
    for label in np.unique(cells.labels):
        rows = np.flatnonzero(cells.labels == label)
        if len(rows) > 1:
            test[rng.choice(rows, min(max(round(share * len(rows)), 1), len(rows) - 1), replace=False)] = True
    return test


def leaves(cells: Cells) -> list[str]:
    """The labels without other labels below them, sorted."""
    labels = sorted(set(cells.labels))
    if not cells.has_terms:
        return labels
    return [label for label, row in zip(labels, ontology().ancestor_matrix(labels), strict=True) if row.sum() == 1]


def coarser(classes: list[str]) -> dict[str, str]:
    """{class: the term above it with the fewest other classes below it, but at least one}."""
    above = {label: ontology().ancestors(label) for label in classes}
    n_below = pd.Series([term for terms in above.values() for term in terms]).value_counts()
    return {
        label: min((term for term in terms if n_below[term] > 1), key=lambda term: (n_below[term], term))
        for label, terms in above.items()
    }


def training_labels(arm: Arm, cells: Cells, test: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.object_]:
    """Labels for training; empty for test cells."""
    labels = cells.labels.copy()
    labels[test] = ""
    classes = leaves(cells)
    up = coarser(classes) if arm.coarse else {}
    for label in up:
        rows = np.flatnonzero(labels == label)
        labels[rng.choice(rows, math.floor(arm.coarse * len(rows)), replace=False)] = up[label]
    if arm.labels == "left out":
        labels[~np.isin(labels, classes)] = ""
    return labels


def trained(arm: Arm, cells: Cells, labels: NDArray[np.object_]) -> pd.DataFrame:
    """Train on the cells that have labels; returns probabilities of all cells, a column for each class of the model."""
    import torch
    from lightning.pytorch import Trainer, seed_everything

    import scdataloader as scd
    from scdataloader.models import LabelClassifier

    seed_everything(arm.seed)
    obs = pd.DataFrame({"label": labels, "drawn by": labels}, index=cells.adata.obs_names)
    with tempfile.TemporaryDirectory() as folder:
        ad.AnnData(cells.adata.X, obs=obs, var=cells.adata.var).write_h5ad(Path(folder) / "cells.h5ad")
        with_terms = {"label": arm.labels == "hierarchical", "drawn by": arm.weighting == "tree"}
        dm = scd.DataModule(
            str(Path(folder) / "cells.h5ad"),
            labels=["label"],
            hierarchies={column: ontology() for column, has in with_terms.items() if has},
            sampling=scd.Sampling(
                by="drawn by",
                num_samples=OPTIONS["steps"] * OPTIONS["batch_size"],
                **OPTIONS["weightings"][arm.weighting],
            ),
            alignment=scd.GeneAlignment(organisms=ORGANISMS[arm.dataset]),
            batch_size=OPTIONS["batch_size"],
            num_threads=1,
            seed=arm.seed,
            report=False,
        )
        model = LabelClassifier(len(dm.genes), dm.classes, labels_hierarchy=dm.labels_hierarchy, **OPTIONS["model"])
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=folder, **quiet)
        trainer.fit(model, dm)
        batches = trainer.predict(model, dm)
    probabilities = torch.cat([batch["probabilities"]["label"] for batch in batches]).numpy()
    names = [dm.decoders["label"][code] for code in range(dm.classes["label"])]
    return pd.DataFrame(probabilities, columns=names)


def judged(arm: Arm, cells: Cells, test: NDArray[np.bool_], probabilities: pd.DataFrame) -> dict[str, float]:
    """Metrics on the test cells; for the question ``labels``, on leaves only, with predictions among leaves."""
    from sklearn.metrics import f1_score, recall_score

    classes = leaves(cells) if arm.question == "labels" else sorted(set(cells.labels))
    among = [label for label in classes if label in probabilities]
    judge = test & np.isin(cells.labels, classes)
    guessed = np.array(among, object)[probabilities.loc[judge, among].to_numpy().argmax(axis=1)]
    true = cells.labels[judge]
    n_train = pd.Series(cells.labels[~test]).value_counts()
    by_size = sorted(set(true), key=lambda label: (n_train[label], label))
    third = math.ceil(len(by_size) / 3)

    def recall(labels: list[str]) -> float:
        return recall_score(true, guessed, labels=labels, average="macro", zero_division=0)

    return {
        "macro_f1": f1_score(true, guessed, labels=by_size, average="macro", zero_division=0),
        "rare_recall": recall(by_size[:third]),
        "common_recall": recall(by_size[-third:]),
        "accuracy": float((true == guessed).mean()),
        "hierarchical_f1": hierarchical_f1(cells, true, guessed),
        "n_classes": len(by_size),
        "n_rare": third,
        "largest_rare": int(n_train[by_size[third - 1]]),
        "n_train": int((~test).sum()),
        "n_test": int(judge.sum()),
    }


def hierarchical_f1(cells: Cells, true: NDArray[np.object_], guessed: NDArray[np.object_]) -> float:
    """F1 of the sets of each label and its ancestors, without ancestors of all labels; NaN if labels are not leaves."""
    import torch

    from scdataloader.models.losses import HierarchicalF1

    if not cells.has_terms:
        return math.nan
    codes = {label: code for code, label in enumerate(leaves(cells))}
    if not set(true) <= set(codes):  # an inner label is evaluated as a class, but is not a leaf
        return math.nan
    above = sorted({term for label in codes for term in ontology().ancestors(label)})
    below = {term: [codes[label] for label in codes if term in ontology().ancestors(label)] for term in above}
    metric = HierarchicalF1(len(codes), {len(codes) + place: below[term] for place, term in enumerate(above)})
    metric.update(*(torch.tensor([codes[label] for label in labels]) for labels in (guessed, true)))
    return metric.compute().item()


def run(arm: Arm, folder: Path) -> dict[str, Any]:
    """Train one arm and evaluate it."""
    cells = loaded(arm.dataset, folder)
    test = chosen_to_test(cells, np.random.default_rng([arm.seed, 0]))
    labels = training_labels(arm, cells, test, np.random.default_rng([arm.seed, 1]))
    return asdict(arm) | judged(arm, cells, test, trained(arm, cells, labels))


def arms(datasets: list[str], n_seeds: int) -> list[Arm]:
    """All trainings, seed by seed."""
    found: list[Arm] = []
    for seed, dataset in itertools.product(range(n_seeds), datasets):
        weightings = [name for name in OPTIONS["weightings"] if name != "tree" or dataset != "worm"]
        found += [Arm(question="weighting", dataset=dataset, weighting=name, seed=seed) for name in weightings]
        if dataset == "worm":  # its labels are names without an ontology
            continue
        for coarse, weighting in itertools.product(OPTIONS["coarse_shares"], OPTIONS["coarse_weightings"]):
            base = Arm(question="labels", dataset=dataset, weighting=weighting, coarse=coarse, seed=seed)
            found += [replace(base, labels=labels) for labels in ("left out", "flat", "hierarchical")]
    return found


def arms_of(runs: pd.DataFrame) -> list[Arm]:
    """The arms that were trained."""
    return [Arm(**run) for run in runs[[field.name for field in fields(Arm)]].to_dict("records")]


def quiet() -> None:
    """Set up a training process: one thread, no warnings and logs."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--datasets", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--seeds", type=int, default=OPTIONS["seeds"])
    options = parser.parse_args()
    datasets = [name for name in options.datasets if FILES[name] is None or (options.data / FILES[name]).is_file()]
    print(f"data sets: {', '.join(datasets)}, of {', '.join(options.datasets)}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.csv"
    done = arms_of(pd.read_csv(path)) if path.exists() else []
    todo = [arm for arm in arms(datasets, options.seeds) if arm not in done]
    with ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=quiet) as pool:
        results = pool.map(run, todo, itertools.repeat(options.data))
        for result in track(results, "trainings", total=len(todo)):
            pd.DataFrame([result]).to_csv(path, mode="a", header=not path.exists(), index=False, float_format="%.5f")
    report(pd.read_csv(path), options.out)


if __name__ == "__main__":
    main()
