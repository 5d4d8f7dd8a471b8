"""The hook of `curate_six`: author labels to names of the Cell Ontology."""

from __future__ import annotations

from anndata import AnnData

LABEL = "cell_type_ontology_term_id"
NAMES = {
    "Celltype": {
        "B cells": "B cell",
        "Endothelial cells": "endothelial cell",
        "Enterocytes": "enterocyte",
        "Enteroendocrine cells": "enteroendocrine cell",
        "Fibroblasts": "fibroblast",
        "Glial cells": "glial cell",
        "Goblet cells": "goblet cell",
        "Macrophages": "macrophage",
        "Mast cells": "mast cell",
        "Monocytes": "monocyte",
        "NK cells": "natural killer cell",
        "Paneth cells": "paneth cell",
        "Pericytes": "pericyte",
        "Plasma cells": "plasma cell",
        "Stem cells": "stem cell",
        "T cells": "T cell",
        "T cells CD4": "CD4-positive, alpha-beta T cell",
        "T cells CD8": "CD8-positive, alpha-beta T cell",
    },
    "cao_cell_type": {
        "Canal associated neurons": "neuron",
        "Ciliated sensory neurons": "sensory neuron",
        "Other interneurons": "interneuron",
        "Oxygen sensory neurons": "sensory neuron",
        "Pharyngeal neurons": "neuron",
        "Touch receptor neurons": "sensory neuron",
        "Unclassified neurons": "neuron",
        "flp-1(+) interneurons": "interneuron",
    },
}
"""{column: {prefix of a label: name of a cell type}}; the longest prefix applies."""


def author_labels(block: AnnData) -> AnnData:
    """Make cell types from the author labels of a block, if it has any; other labels become unknown."""
    for column, names in NAMES.items():
        if column in block.obs:
            known = {label: _name(str(label), names) for label in block.obs[column].unique()}
            block.obs[LABEL] = [known[label] for label in block.obs[column]]
    return block


def _name(label: str, names: dict[str, str]) -> str:
    fitting = [beginning for beginning in names if label == beginning or label.startswith(f"{beginning} ")]
    return names[max(fitting, key=len)] if fitting else "unknown"
