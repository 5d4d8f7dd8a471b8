"""Names of options of the data modules of scvi-tools and of CELLxGENE Census, as options of `ScviDataModule`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scdataloader.genes.alignment import GeneAlignment
from scdataloader.runtime.messages import shown, suggestion

logger = logging.getLogger(__name__)


def _same(value: Any) -> Any:
    return value


def _layer(name: str) -> str:
    return name if name == "X" or name.startswith("layers/") else f"layers/{name}"


NAMES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("collection", "query", "dataset", "collection_path", "paths", "adatas"), ("data", _same)),
    **dict.fromkeys(("batch_keys", "batch_column_names"), ("batch_key", _same)),
    **dict.fromkeys(("label_key", "label_keys"), ("labels_key", _same)),
    "batch_labels": ("batches", _same),
    **dict.fromkeys(("layer", "layer_name", "X_name"), ("counts", _layer)),
    "join": ("alignment", lambda join: GeneAlignment(join=join)),
    "var_names": ("alignment", lambda ids: GeneAlignment(vocabulary=list(ids))),
}
"""{name: the option that it stands for, and how its value is written there}"""

WITHOUT_EFFECT = {
    **dict.fromkeys(("accelerator", "device"), "the Trainer chooses the device"),
    **dict.fromkeys(
        (
            *("parallel", "dataloader_kwargs", "shuffle_chunk_size", "io_batch_size", "return_sparse_X"),
            *("soma_chunk_size", "shuffle_chunk_count", "use_eager_fetch"),
            *("chunk_size", "preload_nchunks", "preload_to_gpu", "rebuild", "dataset_size"),
        ),
        "the window and the threads that read are chosen by the cost of reading; see num_threads and window",
    ),
}
"""{name: why it is not needed}"""

INSTEAD = {
    "labels": "labels_key, batch_key, sample_key and categorical_covariate_keys",
    "targets": "continuous_covariate_keys and size_factor_key",
    "missing_targets": "where, to leave out cells without a value",
    "unknown_classes": "nothing: unknown is a category of batches, samples and covariates",
    "collate": "DataModule, whose batches are of any form",
    "checkpoint": "reference, with the model or the folder of a saved one",
    **dict.fromkeys(("class_sampler_key", "use_class_sampler"), 'sampling=Sampling(by=..., scheme="uniform")'),
    "class_weights": "sampling=Sampling(by=..., scheme=...)",
    **dict.fromkeys(("num_workers", "persistent_workers", "prefetch_factor"), "num_threads"),
    **dict.fromkeys(("experiment", "measurement_name", "obs_query", "var_query"), "from_soma_query(query)"),
    **dict.fromkeys(("merge", "var_subset"), "alignment=GeneAlignment(...)"),
}
"""{name that is refused: what to use instead}"""


def own_options(given: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The options under their own names; None for an option under another name leaves it out.

    Args:
        given: {name: value}
        known: The names of the options.

    Raises:
        TypeError: a name is unknown or has to be replaced, or an option is given twice.
    """
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name in INSTEAD:
            raise TypeError(f"ScviDataModule has no option {name!r}; use {INSTEAD[name]}")
        if name in WITHOUT_EFFECT:
            logger.warning("%s has no effect: %s", name, WITHOUT_EFFECT[name])
            continue
        if name not in NAMES and name not in known:
            names = [name for name in known if name not in INSTEAD]
            raise TypeError(f"ScviDataModule has no option {name!r}; {suggestion(name, [*names, *NAMES])}")
        option, converted = NAMES.get(name, (name, _same))
        if name in NAMES and value is None:
            continue
        if option in options:
            twice = [other for other in given if NAMES.get(other, (other, _same))[0] == option]
            raise TypeError(f"{shown(twice)} are one option, {option}; give one of them")
        options[option] = converted(value)
    return options
