"""Train a classifier of blood cells, three types of them rare, with natural and with uniform weights, and compare.

    make quickstart        or        python examples/quickstart.py [--epochs 2] [--splits 5] [--folder quickstart]

Everything is written to one folder, which is replaced by each call: three datasets, a lamindb instance, two runs, and a
report as a page for the browser.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from shlex import quote
from statistics import mean, pstdev
from typing import Any

from blood import CELL_TYPES, COLLECTION, N_RARE, N_SPLITS, RARE, lamindb_settings, register
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "quickstart.yaml"
SCHEMES = ("natural", "uniform")
LABEL = "cell_type_ontology_term_id"

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Create the data, train twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, help="epochs of each training; default: as in the configuration")
    parser.add_argument("--splits", type=int, default=N_SPLITS, help=f"splits to compare on, 1 to {N_SPLITS}")
    parser.add_argument("--folder", type=Path, default=Path("quickstart"), help="output folder; default: quickstart")
    given = parser.parse_args()
    start = time.perf_counter()
    folder = fresh(given.folder.resolve())
    os.environ.update(lamindb_settings(folder))
    warnings.filterwarnings("ignore", module="(anndata|zarr|lightning)")
    for noisy in ("lightning.pytorch.utilities.rank_zero", "scdataloader"):  # fit, which is shown, says it all
        logging.getLogger(noisy).setLevel(logging.ERROR)

    console.rule("1/4  700 blood cells, three datasets, one lamindb collection", align="left")
    instance, paths = register(folder)
    os.environ["LAMIN_CURRENT_INSTANCE"] = instance
    for path in paths:
        console.print(f"{path.relative_to(folder.parent)}")
    console.print(f"registered in the lamindb instance {instance} as the collection {COLLECTION!r}")
    console.print(
        f"made rare: {', '.join(RARE)}. In each split, only {N_RARE} cells of each are left for training,\n"
        "because many cell types of an atlas are a few cells among very many others"
    )

    for number, scheme in enumerate(SCHEMES, 2):
        console.rule(f"{number}/4  training, {scheme} weights", align="left")
        train(folder, scheme, given.epochs)

    console.rule(f"4/4  held-out cells of {given.splits} random splits", align="left")
    module = data("uniform", 0)
    results = {scheme: [evaluate(folder, scheme, module)] for scheme in SCHEMES}
    if given.splits > 1:
        console.print("the same two trainings on each of the other splits, about two seconds a split")
    others = [(scheme, number) for number in range(1, given.splits) for scheme in SCHEMES]
    for scheme, number in track(others, "training", console=console, transient=True):
        results[scheme].append(train_and_evaluate(scheme, number, given.epochs))
    console.print(comparison(results, *cells_per_class(module)))
    console.print(
        "With natural weights, a rare type is one drawn cell in a hundred, and the model hardly finds it;\n"
        "with uniform weights it is one in ten. An illustration: few cells of one donor, two epochs;\n"
        "after ten epochs the two are closer.\n"
    )
    console.print(f"loader: {cells_per_second(module):,.0f} cells/s on this machine (weighted draws, batches of 64)\n")
    write_report(folder, module)
    show_what_was_written(folder, instance)
    console.print(f"total: {time.perf_counter() - start:.0f} seconds")


def fresh(folder: Path) -> Path:
    """Empty the folder, or create it; only the output of an earlier quickstart is removed."""
    mark = folder / ".quickstart"
    if folder.exists() and any(folder.iterdir()):
        if not mark.exists():
            sys.exit(f"{folder} exists and was not written by the quickstart; move it, or give another --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return folder


def train(folder: Path, scheme: str, epochs: int | None) -> None:
    """Train by ``scdataloader fit``."""
    script = Path(sys.executable).with_name("scdataloader")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "scdataloader"]
    options = [
        "--config",
        str(CONFIG),
        "--data.sampling.scheme",
        scheme,
        "--trainer.default_root_dir",
        str(folder / scheme),
    ]
    if epochs is not None:
        options += ["--trainer.max_epochs", str(epochs)]
    console.print(f"$ scdataloader fit {' '.join(options)}")
    done = subprocess.run([*command, "fit", *options], check=False, cwd=ROOT)  # noqa: S603 (our own command)
    if done.returncode:
        sys.exit(f"training failed with exit code {done.returncode}; see above")


def data(scheme: str, number: int) -> Any:
    """The DataModule of the configuration, on one of the splits."""
    import yaml

    import scdataloader as scd

    section = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["data"]
    sampling = scd.Sampling(**{**section.pop("sampling"), "scheme": scheme})
    split = scd.Split(**{**section.pop("split"), "by": f"split_{number}"})
    return scd.DataModule(**section, split=split, sampling=sampling)


def evaluate(folder: Path, scheme: str, module: Any) -> dict[str, float]:
    """Metrics of the last checkpoint on the test cells: the same cells for both schemes."""
    from lightning.pytorch import Trainer

    from scdataloader.models import LabelClassifier

    (checkpoint,) = folder.glob(f"{scheme}/**/*.ckpt")
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    (metrics,) = trainer.test(LabelClassifier.load_from_checkpoint(checkpoint), datamodule=module, verbose=False)
    return dict(metrics)


def train_and_evaluate(scheme: str, number: int, epochs: int | None) -> dict[str, float]:
    """What ``scdataloader fit`` does with the configuration, in this process; metrics on the test cells of a split."""
    import yaml
    from lightning.pytorch import Trainer, seed_everything

    from scdataloader.models import LabelClassifier

    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    seed_everything(number, verbose=False)
    dm = data(scheme, number)
    dm.setup("fit")
    model = LabelClassifier(len(dm.genes), dm.classes, dm.decoders, **config["model"]["init_args"])
    trainer = Trainer(
        max_epochs=epochs or config["trainer"]["max_epochs"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=dm)
    (metrics,) = trainer.test(model, datamodule=dm, verbose=False)
    return dict(metrics)


def cells_per_class(module: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Training and test cells of each cell type."""
    labels = module.collection.obs([LABEL])[LABEL]
    train, test = (labels.iloc[rows].value_counts().to_dict() for rows in (module.splits.train, module.splits.test))
    return train, test


def comparison(results: dict[str, list[dict[str, float]]], train: dict[str, int], test: dict[str, int]) -> Table:
    """Recall of every class and macro-F1 for both schemes: mean and standard deviation over the splits."""
    table = Table(
        title="recall of each class on held-out cells, by the weights in training",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("cell type", no_wrap=True)
    for name in ("train", "test", *SCHEMES):
        table.add_column(name, justify="right", no_wrap=True)

    def shown(metric: str) -> list[str]:
        found = [[metrics[metric] for metrics in results[scheme]] for scheme in SCHEMES]
        return [f"{mean(values):.2f} ± {pstdev(values):.2f}" for values in found]

    for label, (term, _) in sorted(CELL_TYPES.items(), key=lambda item: -train[item[1][0]]):
        recalls = shown(f"test/recall/{term}")
        table.add_row(label, str(train[term]), str(test[term]), *recalls, style="bold" if label in RARE else None)
    table.add_section()
    table.add_row("macro-F1", str(sum(train.values())), str(sum(test.values())), *shown("test/macro_f1"), style="bold")
    return table


def cells_per_second(module: Any) -> float:
    """Speed of the loader for weighted draws, after its kernels are compiled."""
    module.setup("fit")
    loader = module.train_dataloader()
    n_cells, start = 0, time.perf_counter()
    for _ in range(20):
        n_cells += sum(len(batch["row"]) for batch in loader)
    seconds = time.perf_counter() - start
    module.teardown("fit")
    return n_cells / seconds


def write_report(folder: Path, module: Any) -> None:
    """Write the report of the data and of the weights."""
    import scdataloader as scd

    (run,) = folder.glob("uniform/lightning_logs/*")
    scd.report(module, run=run, title="700 blood cells").save(folder / "report.html")


def show_what_was_written(folder: Path, instance: str) -> None:
    """Print the paths of the results, and commands to continue with."""
    console.print("written:")
    for path, what in (
        ("report.html", "the data, the weights and the second run: open it in a browser"),
        ("lamindb/blood", "the three datasets"),
        ("lamindb", f"the lamindb instance {instance}"),
        *(
            (scheme, f"the run with {scheme} weights: checkpoint, metrics.csv, config.yaml, splits.json")
            for scheme in SCHEMES
        ),
    ):
        console.print(f"  {(folder / path).relative_to(folder.parent)!s:28} {what}")
    (run,) = (folder / "uniform" / "lightning_logs").iterdir()
    (checkpoint,) = run.glob("checkpoints/*.ckpt")
    programs, run_config, config, last = (
        quote(str(path)) for path in (Path(sys.executable).parent, run / "config.yaml", CONFIG, checkpoint)
    )
    console.print(
        "next:\n"
        f"  export LAMIN_SETTINGS_DIR={quote(str(folder))} LAMIN_CURRENT_INSTANCE={instance} PATH={programs}:$PATH\n"
        f"  scdataloader inspect lamindb:{COLLECTION} --by {LABEL} --scheme uniform\n"
        f"  scdataloader predict --config {run_config} --ckpt_path {last} --out predictions.parquet\n"
        f"  scdataloader fit --config {config} --data.sampling.scheme saturating --data.sampling.saturation 20\n"
    )


if __name__ == "__main__":
    main()
