"""Small files as scDataLoader's Preprocessor makes them, and a configuration of scPRINT-2 for them."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import yaml
from lightning.pytorch import Callback
from scipy.sparse import csr_matrix

from scdataloader.integrations.scprint.genes import load_genes

ORGANISM = "organism_ontology_term_id"
CELL_TYPE = "cell_type_ontology_term_id"
HUMAN, MOUSE = "NCBITaxon:9606", "NCBITaxon:10090"
# T cell is above CD4 and CD8 T cells, lymphocyte above all three and B cell
TYPES = ["CL:0000624", "CL:0000625", "CL:0000236", "CL:0000084", "unknown"]
N_GENES = {"human_a": 320, "human_b": 280, "mouse": 300}


class Seen(Callback):
    """Writes what each step gets as a line of JSON: stage, rows, classes, and shape and type of each tensor."""

    def __init__(self, path: str):
        self.path = Path(path)

    def note(self, stage, trainer, batch):
        step = {
            "stage": stage,
            "epoch": trainer.current_epoch,
            "rows": batch["row"].tolist(),
            "classes": batch["class"].tolist(),
            "genes": [batch["genes"].min().item(), batch["genes"].max().item()],
            "tensors": {key: [list(values.shape), str(values.dtype)] for key, values in batch.items()},
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step) + "\n")

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        self.note("train", trainer, batch)

    def on_validation_batch_start(self, trainer, model, batch, batch_idx, dataloader_idx=0):
        self.note("val", trainer, batch)

    def on_predict_batch_start(self, trainer, model, batch, batch_idx, dataloader_idx=0):
        self.note("predict", trainer, batch)


def cells(name, n, seed, *, graph=True):
    """An AnnData of named genes: cells express a quarter of the first genes, each type those of its own."""
    organism = MOUSE if name == "mouse" else HUMAN
    rng = np.random.default_rng(seed)
    genes = load_genes(organism).query("symbol != ''").index[: N_GENES[name]]
    kind = rng.choice(len(TYPES), n, p=[0.4, 0.2, 0.2, 0.1, 0.1])
    rates = np.full((n, len(genes)), 0.3)
    rates[np.arange(len(genes)) % len(TYPES) == kind[:, None]] = 3
    obs = pd.DataFrame(
        {
            ORGANISM: organism,
            CELL_TYPE: pd.Categorical(np.array(TYPES)[kind]),
            "assay_ontology_term_id": pd.Categorical(rng.choice(["EFO:0009899", "EFO:0009922"], n)),
            "sex_ontology_term_id": pd.Categorical(rng.choice(["PATO:0000383", "PATO:0000384", "unknown"], n)),
            "day": rng.integers(0, 5, n).astype(np.float32),
        },
        index=[f"{name}{i}" for i in range(n)],
    )
    adata = ad.AnnData(csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes))
    if graph:
        places = np.stack([rng.choice(n - 1, 8, replace=False) for _ in range(n)])
        places += places >= np.arange(n)[:, None]  # never the cell itself
        distances = rng.random(places.size).astype(np.float32) + 0.1
        adata.obsp["distances"] = csr_matrix((distances, places.ravel(), np.arange(0, places.size + 1, 8)), (n, n))
    return adata


def write_cells(folder):
    """Paths of three files of two organisms."""
    paths = []
    for seed, (name, n) in enumerate([("human_a", 160), ("human_b", 90), ("mouse", 90)]):
        paths.append(folder / f"{name}.h5ad")
        cells(name, n, seed).write_h5ad(paths[-1])
    return [str(path) for path in paths]


def write_config(path, **data):
    """A file of the sections that scPRINT-2's own configurations have, with a small model."""
    labels = [CELL_TYPE, "assay_ontology_term_id", "sex_ontology_term_id", ORGANISM]
    config = {
        "project": "test",
        "seed_everything": 42,
        "trainer": {
            "default_root_dir": str(path.parent),
            "accelerator": "cpu",
            "max_epochs": 1,
            "limit_train_batches": 4,
            "limit_val_batches": 2,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(path.parent)},
            },
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(path.parent / "${project}"), "save_top_k": -1},
                },
                {"class_path": f"{__name__}.Seen", "init_args": {"path": str(path.parent / "seen.jsonl")}},
            ],
        },
        "scprint_training": {"noise": [0.6], "do_generate": False, "run_full_forward": True, "name": "test"},
        "scprint_early_stopping": {"patience": 3},
        "model": {
            "d_model": 16,
            "nhead": 2,
            "num_heads_kv": 1,
            "nlayers": 1,
            "layers_cls": [16],
            "attention": "normal",
            "expr_encoder_layers": 1,
            "normalization": "log",
            "pred_embedding": [CELL_TYPE],
        },
        "data": {
            "how": "random expr",
            "max_len": 120,
            "pin_memory": True,
            "prefetch_factor": 3,
            "weight_scaler": 50,
            "n_samples_per_epoch": 64,
            "validation_split": 0.1,
            "test_split": 0,
            "batch_size": 16,
            "num_workers": 2,
            "hierarchical_clss": [CELL_TYPE],
            "clss_to_weight": [*labels, "nnz"],
            "clss_to_predict": labels,
        }
        | data,
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return config
