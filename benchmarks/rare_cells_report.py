"""Tables and a figure of the runs of rare_cells.py."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

METRICS = {
    "macro_f1": "macro-F1",
    "rare_recall": "recall, rarest third",
    "common_recall": "recall, commonest third",
    "accuracy": "accuracy",
    "hierarchical_f1": "hierarchical F1",
}
LABELS = ("left out", "flat", "hierarchical")
COLOURS = dict(zip(LABELS, ("#7f7f7f", "#d95f02", "#1b6ca8"), strict=True))


def half_width(values: pd.Series) -> float:
    """Half of the 95 % t-interval of a mean over seeds."""
    return float(t.ppf(0.975, len(values) - 1) * values.std() / np.sqrt(len(values)))


def differs(runs: pd.DataFrame, base: pd.DataFrame, metric: str) -> bool:
    """Whether the mean difference on the same splits has a 95 % interval without 0.

    Splits of the same cells are not independent, and the usual interval is too narrow: the variance is corrected by the
    ratio of test to training cells, as in Nadeau and Bengio, Inference for the generalization error (2003).
    """
    difference = runs.set_index("seed")[metric] - base.set_index("seed")[metric]
    ratio = (runs["n_test"] / runs["n_train"]).mean()
    error = difference.std() * np.sqrt(1 / len(difference) + ratio)
    return bool(abs(difference.mean()) > t.ppf(0.975, len(difference) - 1) * error)


def table(runs: pd.DataFrame, arms: Sequence[str], bases: dict[str, str], metrics: Sequence[str]) -> str:
    """Markdown: a row for each arm, bold if it differs from its base arm, which has the values of ``bases``."""
    lines = [" | ".join(["", *arms, *(METRICS[metric] for metric in metrics), ""]).strip()]
    lines.append("|" + "---|" * len(arms) + "---:|" * len(metrics))
    for key, own in runs.groupby(list(arms), sort=False):
        base = runs
        for arm, value in zip(arms, key, strict=True):
            base = base[base[arm] == bases.get(arm, value)]
        cells = []
        for metric in metrics:
            text = f"{own[metric].mean():.3f} ± {half_width(own[metric]):.3f}"
            cells.append(f"**{text}**" if differs(own, base, metric) else text)
        lines.append(" | ".join(["", *map(str, key), *cells, ""]).strip())
    return "\n".join(lines)


def tables(runs: pd.DataFrame) -> str:
    """All tables, as Markdown."""
    parts = []
    for (question, dataset), own in runs.groupby(["question", "dataset"], sort=False):
        sizes = own[["n_train", "n_test", "n_classes", "n_rare", "largest_rare"]].mean().round().astype(int)
        parts.append(
            f"### {question}: {dataset}\n\n{own['seed'].nunique()} seeds; {sizes.n_train:,} training cells, "
            f"{sizes.n_test:,} test cells of {sizes.n_classes} classes; the rarest third are {sizes.n_rare} "
            f"classes of at most {sizes.largest_rare} training cells."
        )
        if question == "weighting":
            parts.append(table(own, ["weighting"], {"weighting": "natural"}, list(METRICS)[:-1]))
        else:
            arms = ["coarse", "weighting", "labels"]
            parts.append(table(own.sort_values("coarse", kind="stable"), arms, {"labels": "left out"}, list(METRICS)))
    return "\n\n".join(parts) + "\n"


def plot(runs: pd.DataFrame, path: Path) -> None:
    """Means with intervals: the weightings in the first row, then a row of label forms for each data set with terms."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "rare cells", "font.size": 8, "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    weighted, labelled = (runs[runs["question"] == question] for question in ("weighting", "labels"))
    rows = labelled["dataset"].unique()
    figure, grid = plt.subplots(1 + len(rows), 3, figsize=(9, 2.6 * (1 + len(rows))), layout="constrained")
    for axes, (dataset, own) in zip(np.atleast_2d(grid)[0], weighted.groupby("dataset", sort=False), strict=False):
        for metric, colour, shift in (("macro_f1", "#1b6ca8", -0.1), ("rare_recall", "#d95f02", 0.1)):
            groups = own.groupby("weighting", sort=False)[metric]
            places = np.arange(len(groups)) + shift
            means, errors = groups.mean(), groups.apply(half_width)
            axes.errorbar(means, places, xerr=errors, fmt="o", ms=3, color=colour, label=METRICS[metric])
        axes.set(title=dataset, yticks=range(len(means)), yticklabels=means.index, ylim=(len(means) - 0.5, -1.6))
    np.atleast_2d(grid)[0, 0].legend(fontsize=7, loc="upper left", ncols=2)
    for row, dataset in zip(np.atleast_2d(grid)[1:], rows, strict=True):
        own = labelled[labelled["dataset"] == dataset]
        for axes, (weighting, arm) in zip(row, own.groupby("weighting", sort=False), strict=False):
            for labels in LABELS:
                groups = arm[arm["labels"] == labels].groupby("coarse")["macro_f1"]
                means, errors = groups.mean(), groups.apply(half_width)
                axes.errorbar(means.index, means, yerr=errors, fmt="o-", ms=3, color=COLOURS[labels], label=labels)
            axes.set(title=f"{dataset}, {weighting}", xlabel="share of coarse labels", ylim=(0, 1))
        row[0].set_ylabel("macro-F1")
        row[0].legend(fontsize=7, loc="lower left")
    figure.savefig(path, metadata={"Date": None})


def report(runs: pd.DataFrame, folder: Path) -> None:
    """Write ``tables.md`` and ``rare_cells.svg``."""
    text = tables(runs)
    (folder / "tables.md").write_text(text, encoding="utf-8")
    plot(runs, folder / "rare_cells.svg")
    print(text)
