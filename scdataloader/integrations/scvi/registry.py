"""The registry of scvi-tools: the description of data that a model is made from, and that a trained model has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.labels.encoder import label_text

KEYS = (
    "batch_key",
    "labels_key",
    "sample_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
)
"""Arguments that name columns of obs, as in ``setup_anndata`` of the models."""

Registry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a trained model states of the data that it was trained on."""

    model_name: str
    """Class of the model."""
    keys: dict[str, Any]
    """{argument of `KEYS`: column or columns}"""
    genes: list[str]
    """Gene ids, in order."""
    labels: list[str]
    """Labels, in the order of their codes, without ``unlabeled_category``."""
    unlabeled_category: str | None
    """Label of cells without a label; None if the model knows of none."""
    covariates: dict[str, list[str]] = field(default_factory=dict)
    """{column: categories in the order of their codes} of the batch, the sample and the categorical covariates."""

    @classmethod
    def of(cls, given: Any) -> Reference:
        """The reference of a model, of the folder of a saved one, or of a registry.

        Raises:
            TypeError: it is none of these.
        """
        registry = _registry_of(given)
        keys = {key: registry["setup_args"].get(key) for key in KEYS}
        states = {name: described["state_registry"] for name, described in registry["field_registries"].items()}
        covariates = {}
        for key, name in (("batch_key", "batch"), ("sample_key", "sample")):
            if keys[key] is not None:
                covariates[keys[key]] = _texts(states[name]["categorical_mapping"])
        mapped = states.get("extra_categorical_covs", {})
        covariates |= {
            column: _texts(names) for column, names in (mapped.get("mappings") or mapped.get("mapping") or {}).items()
        }
        unlabelled = states["labels"].get("unlabeled_category")
        labels = _texts(states["labels"]["categorical_mapping"]) if keys["labels_key"] is not None else []
        return cls(
            model_name=registry["model_name"],
            keys=keys,
            genes=_texts(states["X"]["column_names"]),
            labels=[label for label in labels if label != unlabelled],
            unlabeled_category=unlabelled,
            covariates=covariates,
        )


def _registry_of(given: Any) -> Mapping[str, Any]:
    if isinstance(given, str | PathLike):
        from scvi.model.base import BaseModelClass

        loaded: Registry = BaseModelClass.load_registry(str(given))
        return loaded
    registry = given if isinstance(given, Mapping) else getattr(given, "registry", None)
    if not isinstance(registry, Mapping) or "field_registries" not in registry:
        raise TypeError(
            "reference must be a model of scvi-tools, the folder of a saved one, or a registry; got "
            f"{type(given).__name__}"
        )
    return registry


def _texts(names: Iterable[Any]) -> list[str]:
    return list(map(label_text, names))


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """What the registry states of the data of a run."""

    model_name: str
    keys: Mapping[str, Any]
    """{argument of `KEYS`: column or columns}"""
    n_obs: int
    genes: Sequence[str]
    batches: Sequence[str]
    labels: Sequence[str]
    """With the unlabelled category last, if there are such cells."""
    unlabeled_category: str
    covariates: Mapping[str, Sequence[str]]
    """{column: categories} of the categorical covariates."""
    samples: Sequence[str] = ()
    n_obs_per_sample: Any = None
    """(samples,) cells of each."""

    def registry(self, version: str) -> Registry:
        """The registry, for a model of scvi-tools of a version.

        Every field has ``summary_stats``, whose keys differ between fields, as models require.
        """
        keys, covariates = self.keys, {column: _objects(names) for column, names in self.covariates.items()}
        continuous = list(keys["continuous_covariate_keys"] or ())
        genes = {"n_obs": self.n_obs, "n_vars": len(self.genes), "column_names": _objects(self.genes)}
        per_key = {
            "mappings": covariates,
            "field_keys": list(covariates),
            "n_cats_per_key": [len(names) for names in covariates.values()],
        }
        described = {
            "X": _field("X", None, genes, n_vars=len(self.genes), n_cells=self.n_obs),
            "batch": _categorical("_scvi_batch", self.batches, keys["batch_key"], n_batch=len(self.batches)),
            "labels": _categorical("_scvi_labels", self.labels, keys["labels_key"], n_labels=len(self.labels)),
            "ind_x": _field("obs", "_indices"),
            "size_factor": _field("obs", "_scvi_size_factor") if keys["size_factor_key"] else _field(),
            "extra_categorical_covs": _field(
                "obsm", "_scvi_extra_categorical_covs", per_key, n_extra_categorical_covs=len(covariates)
            )
            if covariates
            else _field(n_extra_categorical_covs=0),
            "extra_continuous_covs": _field(
                "obsm",
                "_scvi_extra_continuous_covs",
                {"columns": _objects(continuous)},
                n_extra_continuous_covs=len(continuous),
            )
            if continuous
            else _field(n_extra_continuous_covs=0),
        }
        described["labels"]["state_registry"]["unlabeled_category"] = self.unlabeled_category
        if self.samples:
            sample = _categorical("_scvi_sample", self.samples, keys["sample_key"], n_sample=len(self.samples))
            described["sample"] = sample | {"n_obs_per_sample": {"n_obs_per_sample": self.n_obs_per_sample}}
        return {
            "scvi_version": version,
            "model_name": self.model_name,
            "setup_method_name": "setup_datamodule",
            "setup_args": {"layer": None, **keys},
            "field_registries": described,
        }


def _field(
    attribute: str | None = None, key: str | None = None, state: Mapping[str, Any] | None = None, **stats: int
) -> Registry:
    where = {} if attribute is None else {"attr_name": attribute, "attr_key": key}
    return {"data_registry": where, "state_registry": dict(state or {}), "summary_stats": stats}


def _categorical(key: str, names: Sequence[str], column: str | None, **stats: int) -> Registry:
    return _field("obs", key, {"categorical_mapping": _objects(names), "original_key": column}, **stats)


def _objects(names: Sequence[str]) -> NDArray[np.object_]:
    return np.array(list(names), object)
