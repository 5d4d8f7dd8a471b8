"""Data module for the models of scvi-tools that are made from a registry, such as SCVI, SCANVI and TorchMRVI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, wraps
from inspect import signature
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from scdataloader.collection.collection import Collection
from scdataloader.errors import GeneOverlapError
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.integrations.scvi.batches import ScviBatches
from scdataloader.integrations.scvi.names import own_options
from scdataloader.integrations.scvi.registry import KEYS, DataDescription, Reference, Registry
from scdataloader.integrations.scvi.sampling import InOrder, KeepsUnlabelled
from scdataloader.integrations.versions import warn_untested
from scdataloader.labels.column import JOINT
from scdataloader.labels.encoder import UNKNOWN
from scdataloader.labels.table import LabelTable
from scdataloader.loading.loader import Loader
from scdataloader.runtime.messages import shown
from scdataloader.sampling.options import Sampling
from scdataloader.sampling.splits import Split
from scdataloader.sources.locate import takes_type
from scdataloader.training.config import listed, options_of
from scdataloader.training.datamodule import DataModule

MIN_SHARE = 0.8
"""Smallest share of the genes of a reference that each source must have measured, as scvi-tools requires of AnnData."""

logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False, kw_only=True)
class ScviDataModule(DataModule):
    """Cells for models of scvi-tools that take ``registry=``: SCVI, SCANVI, TorchMRVI and others.

    ::

        dm = ScviDataModule("data/*.h5ad", batch_key="donor_id", labels_key="cell_type", model_name="SCANVI")
        model = SCANVI(adata=None, registry=dm.registry, datamodule=dm)
        model.train(max_epochs=20, datamodule=dm)
        model.get_latent_representation(dataloader=dm.inference_dataloader())

    Has the options of `DataModule` besides those that follow, but ``labels``, ``targets`` and ``collate``, which it
    sets. Names of options of the data modules of scvi-tools are understood as well.

    Args:
        batch_key: Column of obs with the batch of each cell. Several are one batch for each of their joint labels. Like
            in the other categorical columns, unknown is a category of its own, the last one, if it occurs.
        labels_key: Column of obs with the labels of cells, for SCANVI. Unknown labels are unlabelled, as are terms of
            ``hierarchies`` that are above others.
        unlabeled_category: Label of unlabelled cells.
        sample_key: Column of obs with the sample of each cell, for MRVI.
        categorical_covariate_keys: Columns of obs; one or a list.
        continuous_covariate_keys: Columns of obs; one or a list. Every cell must have a number.
        size_factor_key: Column of obs with size factors.
        batches: Batches in the order of their codes; others that occur follow them.
        reference: Model of scvi-tools, folder of a saved one, or registry, whose genes, labels and codes are used:
            columns that are not named are those of the reference, new categories are appended, and labels that it lacks
            are unlabelled; see `load_query_data`.
        train_size: Share of the cells for training, in place of ``split``; by default what ``validation_size`` leaves.
        validation_size: Share of the cells for validation; by default what ``train_size`` leaves. Others are for test.
        split_seed: Seed of the split by these shares.
        collection_val: Data for validation, in place of a split; all of ``data`` train.
        shuffle: Whether training cells come in random order, if ``sampling`` is not set.
        model_name: Class of the model, which it checks when it is loaded; by default that of the reference, or "SCVI".
        batch_size: Cells per batch on each rank.
        sampling: See `DataModule`. A `Sampling` by ``labels_key`` without ``unknown_share`` draws unlabelled cells with
            their share of the training cells.

    Raises:
        TypeError: an option does not exist; suggests the nearest one.
        ValueError: options exclude each other.
    """

    batch_key: list[str] | str | None = None
    labels_key: list[str] | str | None = None
    unlabeled_category: str | None = None
    sample_key: list[str] | str | None = None
    categorical_covariate_keys: list[str] | str | None = None
    continuous_covariate_keys: list[str] | str | None = None
    size_factor_key: str | None = None
    batches: list[str] | None = None
    reference: Any = None
    train_size: float | None = None
    validation_size: float | None = None
    split_seed: int = 0
    collection_val: Any = None
    shuffle: bool = True
    model_name: str | None = None
    batch_size: int = 128

    def __post_init__(self) -> None:
        warn_untested("scvi-tools", "1.4.2", "1.5")
        self._reference = None if self.reference is None else Reference.of(self.reference)
        if self._reference is not None:
            self._follow(self._reference)
        self.model_name = self.model_name or "SCVI"
        self.unlabeled_category = self.unlabeled_category or "Unknown"
        for key in ("batch_key", "labels_key", "sample_key"):
            columns = getattr(self, key)
            setattr(self, key, None if not columns else JOINT.join(listed(key, columns)))
        for key in ("categorical_covariate_keys", "continuous_covariate_keys"):
            columns = getattr(self, key)
            setattr(self, key, None if not columns else listed(key, columns))
        if self._reference is not None:
            self._check_columns(self._reference)
        if self.batches is not None and self.batch_key is None:
            raise ValueError("batches are labels of batch_key, which names no column; name it, or omit batches")
        if self.labels_key in self._covariates:
            raise ValueError(f"labels_key={self.labels_key!r} is also a batch or covariate; use another column")
        self.labels = [*self._covariates, *listed("labels_key", self.labels_key or [])]
        numbers = [*(self.continuous_covariate_keys or ()), *([self.size_factor_key] if self.size_factor_key else [])]
        self.targets = list(dict.fromkeys(numbers)) or None
        self.collate = ScviBatches(
            batch=self._place(self.batch_key),
            labels=self._place(self.labels_key),
            sample=self._place(self.sample_key),
            categorical=tuple(map(self.labels.index, self.categorical_covariate_keys or ())),
            n_continuous=len(self.continuous_covariate_keys or ()),
            size_factor=None if self.size_factor_key is None else (self.targets or []).index(self.size_factor_key),
        )
        self._choose_cells()
        super().__post_init__()

    def _follow(self, reference: Reference) -> None:
        """Use the columns and the genes of a reference where the user names none."""
        for key in KEYS:
            if getattr(self, key) is None:
                setattr(self, key, reference.keys[key])
        self.model_name = self.model_name or reference.model_name
        self.unlabeled_category = self.unlabeled_category or reference.unlabeled_category
        alignment = options_of(GeneAlignment, self.alignment, "alignment")
        self._min_share = MIN_SHARE if alignment is None else alignment.min_overlap
        alignment = alignment or GeneAlignment()
        if alignment.vocabulary is not None or alignment.join == "inner":
            raise ValueError("the genes are those of the reference; omit the vocabulary and join of the alignment")
        self.alignment = replace(alignment, vocabulary=reference.genes)

    def _check_columns(self, reference: Reference) -> None:
        for key in KEYS:
            own, known = (listed(key, columns or []) for columns in (getattr(self, key), reference.keys[key]))
            if len(own) != len(known) and key != "labels_key":
                raise ValueError(f"{key} names {own}, but the reference has {known}; name a column for each, in order")

    def _choose_cells(self) -> None:
        """Make the split and the sampling plan of the options that stand for them."""
        by_share = self.train_size is not None or self.validation_size is not None
        if by_share + (self.split is not None) + (self.collection_val is not None) > 1:
            raise ValueError("train_size and validation_size, split, and collection_val exclude each other; give one")
        if by_share:
            val = 1 - (self.train_size or 0) if self.validation_size is None else self.validation_size
            train = 1 - val if self.train_size is None else self.train_size
            self.split = Split(val=round(val, 12), test=round(1 - train - val, 12), seed=self.split_seed)
        if self.collection_val is not None:
            self.data = {"train": self.data, "val": self.collection_val}
            self.split = Split(by="corpus", values={"train": "train", "val": "val"})
        self.sampling = options_of(Sampling, self.sampling, "sampling")
        if not self.shuffle:
            if self.sampling is not None:
                raise ValueError("shuffle=False and sampling exclude each other; omit one of the two")
            self.sampling = InOrder()
        plan, column = self.sampling, self._labels_column
        if isinstance(plan, Sampling) and column in plan.columns and not plan.unknown_share:
            self.sampling = KeepsUnlabelled(plan, str(column), str(self.unlabeled_category))

    @property
    def _labels_column(self) -> str | None:
        return self.labels_key if isinstance(self.labels_key, str) else None  # __post_init__ joins several

    @property
    def _covariates(self) -> list[str]:
        """Columns in which every cell has a category, each once."""
        columns = [self.batch_key, self.sample_key, *(self.categorical_covariate_keys or ())]
        return list(dict.fromkeys(str(column) for column in columns if column))

    def _place(self, column: Any) -> int | None:
        return None if column is None else self.label_columns.index(column)

    # --------------------------------------------------------------------------------------------------- constructors

    @classmethod
    def from_lamin(cls, collection: Any, *, join: str | None = None, **options: Any) -> Self:
        """Cells of a lamindb collection, or of the one with a key, as by ``MappedCollectionDataModule``.

        Args:
            collection: ``ln.Collection``, or its key.
            join: "inner" takes the genes that all files have, "outer" those of any file; by default "inner", or the
                genes of the reference.
            options: Those of the class.
        """
        data = f"lamindb:{collection}" if isinstance(collection, str) else collection
        if join is None and options.get("reference") is None and "alignment" not in options:
            join = "inner"
        return cls(data, **{"join": join, **options})

    @classmethod
    def from_soma_query(cls, query: Any, *, layer_name: str | None = None, **options: Any) -> Self:
        """Cells of a ``tiledbsoma.ExperimentAxisQuery``, as by ``TileDBDataModule``.

        Args:
            query: The query; it needs the extra ``soma``. Its experiment can be closed afterwards.
            layer_name: Name of the layer of X with the counts; by default as for `open_soma`.
            options: Those of the class.

        Raises:
            TypeError: no source is registered for the type of the query.
        """
        if not takes_type(type(query)):
            kind = f"{type(query).__module__}.{type(query).__qualname__}"
            raise TypeError(
                f"no source is registered for {kind}; install a package that registers one for 'type:{kind}', or write "
                "the cells with query.to_anndata(...).write_h5ad(path) and give the path"
            )
        return cls(query, **{"layer_name": layer_name, **options})

    @classmethod
    def from_annbatch(cls, path: str | PathLike[str], **options: Any) -> Self:
        """Cells of an annbatch collection, as by ``AnnbatchDataModule``; any path that `Collection.open` reads."""
        return cls(path, **options)

    # -------------------------------------------------------------------------------------------------- genes and codes

    @cached_property
    def collection(self) -> Collection:
        """The table of cells.

        Raises:
            GeneOverlapError: sources lack too many genes of the reference.
        """
        collection: Collection = super().collection
        if self._reference is not None:
            self._check_genes(collection)
        return collection

    def _check_genes(self, collection: Collection) -> None:
        n_genes = collection.n_genes
        lacking = {
            part.source.name: n_genes - part.genes.n_matched
            for part in collection.parts
            if part.genes.n_matched < n_genes
        }
        sources = shown(f"{name} ({n:,})" for name, n in lacking.items())
        if any(n_genes - n < self._min_share * n_genes for n in lacking.values()):
            raise GeneOverlapError(
                f"sources lack too many of the {n_genes:,} genes of the reference: {sources}; each needs "
                f"{self._min_share:.0%} of them, unless alignment=GeneAlignment(min_overlap=...) sets another share"
            )
        if lacking:
            logger.warning(
                "values of genes that sources lack, of %s of the reference, are 0: %s", f"{n_genes:,}", sources
            )

    @cached_property
    def label_table(self) -> LabelTable:
        """The encoders of the batch, the sample, the categorical covariates and the labels."""
        covariates = LabelTable.fit(self.collection, self._covariates)
        codes = covariates.codes(self.collection)
        unknown = {
            column: encoder.encoder | {UNKNOWN: encoder.n_classes}
            for number, (column, encoder) in enumerate(covariates.encoders.items())
            if (codes[:, number] < 0).any()
        }
        covariates = covariates.extending(unknown)
        known = {} if self._reference is None else self._known_categories(self._reference)
        if self.batches is not None:
            known[str(self.batch_key)] = list(self.batches)
        self._report_new(covariates, known)
        covariates = covariates.extending({column: _numbered(names) for column, names in known.items()})
        if self._labels_column is None:
            return covariates
        if self._reference is not None and self._reference.labels:
            labels = LabelTable.from_encoders({self._labels_column: _numbered(self._reference.labels)})
        else:
            labels = LabelTable.fit(self.collection, [self._labels_column], self.training_cells.hierarchies)
        return LabelTable(encoders={**covariates.encoders, **labels.encoders})

    def _known_categories(self, reference: Reference) -> dict[str, list[str]]:
        """{column: categories} of the reference; columns can have other names than there."""
        known: dict[str, list[str]] = {}
        for key in ("batch_key", "sample_key", "categorical_covariate_keys"):
            pairs = zip(listed(key, getattr(self, key) or []), listed(key, reference.keys[key] or []), strict=True)
            known |= {own: reference.covariates[column] for own, column in pairs}
        return known

    def _report_new(self, covariates: LabelTable, known: Mapping[str, list[str]]) -> None:
        for column, names in known.items():
            new = [label for label in covariates.encoders[column].classes if label not in names]
            if new and self._reference is not None:
                what = "%s: the reference lacks %s, which only a model made by load_query_data of this module knows"
                logger.warning(what, column, shown(map(repr, new)))

    @cached_property
    def label_codes(self) -> NDArray[np.int32]:
        """(n, C) codes of all cells, those of labels as in the model: the last one is that of unlabelled cells."""
        if self._reference is None:
            codes = super().label_codes.astype(np.int32)
        else:
            codes = self.label_table.codes(self.collection, absent_ok=True).astype(np.int32)
        if self._labels_column is not None:
            place, known = self._place(self._labels_column), _numbered(self._real_labels)
            names = self.label_table.encoders[self._labels_column].labels
            # the last entry is for the code -1 of unknown labels
            lut = np.array([*(known.get(name, len(known)) for name in names), len(known)], np.int32)
            codes[:, place] = lut[codes[:, place]]
        return codes

    @cached_property
    def _real_labels(self) -> list[str]:
        """Labels without that of unlabelled cells, in the order of their codes."""
        if self._labels_column is None:
            return ["0"]
        classes = self.label_table.encoders[self._labels_column].classes
        labels = [label for label in classes if label not in {self.unlabeled_category, UNKNOWN}]
        if not labels:
            raise ValueError(
                f"all labels of {self.labels_key!r} are {self.unlabeled_category!r} in {self.n_obs:,} cells; name a "
                "column that contains labels"
            )
        return labels

    @cached_property
    def _model_labels(self) -> list[str]:
        """Labels in the order of their codes, with that of unlabelled cells last, if there are any."""
        has_unlabelled = bool(self.labels_key) and bool((self._label_of_cells == len(self._real_labels)).any())
        if self._reference is not None and self._reference.unlabeled_category and self.model_name != "SCANVI":
            has_unlabelled = bool(self.labels_key)
        return [*self._real_labels, *([str(self.unlabeled_category)] if has_unlabelled else [])]

    @property
    def _label_of_cells(self) -> NDArray[np.int32]:
        place = self._place(self.labels_key)
        return np.zeros(self.n_obs, np.int32) if place is None else self.label_codes[:, place]

    def _categories(self, column: Any) -> list[str]:
        """Categories of a covariate in the order of their codes; one for all cells without a column."""
        return ["0"] if column is None else list(self.label_table.encoders[column].classes)

    # ------------------------------------------------------------------------------------------------------- batches

    def setup(self, stage: str = "fit") -> None:
        """See `DataModule.setup`.

        Raises:
            ValueError: SCANVI has no labelled training cell, and no reference that knows the labels.
        """
        super().setup(stage)
        labels = self._label_of_cells[self.splits.train]
        is_learned = self._is_semisupervised and self._reference is None
        if is_learned and not (labels < len(self._real_labels)).any():
            raise ValueError(
                f"none of the {len(labels):,} training cells has a label in {self.labels_key!r}; use another split, or "
                "train SCVI"
            )

    def inference_dataloader(self, *, indices: ArrayLike | None = None, batch_size: int = 1024) -> InferenceLoader:
        """Batches for ``dataloader=`` of a model's methods, in the order of ``indices``; every rank has all of them.

        Args:
            indices: (n,) row numbers of cells; None is all cells.
            batch_size: Cells per batch.

        Raises:
            TypeError, IndexError, ValueError: see `DataModule.loader`.
        """
        rows = np.arange(self.n_obs) if indices is None else indices
        return InferenceLoader(self, self.loader(rows, batch_size, shared=False))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make X dense, and for SCANVI the pair of all cells and of the labelled ones, which is None without any."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        if not self._is_semisupervised:
            return batch
        labelled = batch["labels"][:, 0] < len(self._real_labels)
        n_labelled = int(labelled.sum())
        # batch normalisation cannot train on one cell
        if n_labelled < (2 if self.trainer is not None and self.trainer.training else 1):
            return [batch, None]
        return [batch, {key: value[labelled] if isinstance(value, Tensor) else value for key, value in batch.items()}]

    @property
    def _is_semisupervised(self) -> bool:
        """Whether the model that is being fitted learns labels."""
        if self.trainer is None or self.trainer.state.fn != "fit" or self.trainer.state.stage is None:
            return False  # the stage of a fit that has ended is None
        from scvi.train import SemiSupervisedTrainingPlan

        return isinstance(self.trainer.lightning_module, SemiSupervisedTrainingPlan)

    def close(self) -> None:
        """End the threads and close the files; a later read opens them again."""
        self.teardown("fit")
        self.collection.close()

    # ---------------------------------------------------------------------------------------- what scvi-tools reads

    @property
    def registry(self) -> Registry:
        """Description of the data for ``registry=`` of a model."""
        import scvi

        described = DataDescription(
            model_name=str(self.model_name),
            keys={key: getattr(self, key) for key in KEYS},
            n_obs=self.n_obs,
            genes=self.genes,
            batches=self._categories(self.batch_key),
            labels=self._model_labels,
            unlabeled_category=str(self.unlabeled_category),
            covariates={column: self._categories(column) for column in self.categorical_covariate_keys or ()},
            samples=self._categories(self.sample_key) if self.sample_key else (),
            n_obs_per_sample=self.n_obs_per_sample,
        )
        return described.registry(scvi.__version__)

    def load_query_data(self, model_class: Any, **options: Any) -> Any:
        """``model_class.load_query_data`` of scvi-tools, for the model ``reference`` and these data.

        That method makes a model with the batches of the reference, unless the registry names another way of setup, and
        keeps the registry of the reference, whose codes a later query would use.

        Args:
            model_class: Class of the model, such as ``scvi.model.SCVI``.
            options: Further arguments of that method, such as ``freeze_dropout``.

        Raises:
            TypeError: ``reference`` is neither a model nor the folder of one.
        """
        if self.reference is None or isinstance(self.reference, Mapping):
            raise TypeError("load_query_data needs the model that is continued; give it, or its folder, as reference")
        if "datamodule" in signature(model_class).parameters:
            options["datamodule"] = self
        own = self.registry | {"model_name": model_class.__name__}
        model = model_class.load_query_data(
            adata=False,
            reference_model=self.reference,
            registry=own | {"setup_method_name": "setup_anndata"},
            **options,
        )
        model.registry_ = own
        if self.labels_key:
            model.labels_ = self.labels_
        return model

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.collection)

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return self.collection.n_genes

    @property
    def var_names(self) -> NDArray[np.object_]:
        """Gene ids."""
        return np.array(self.genes, object)

    @property
    def n_batch(self) -> int:
        """Number of batches."""
        return len(self._categories(self.batch_key))

    @property
    def batch_labels(self) -> NDArray[np.object_]:
        """Batches in the order of their codes."""
        return np.array(self._categories(self.batch_key), object)

    @property
    def n_labels(self) -> int:
        """Number of labels of the model; SCANVI does not count that of unlabelled cells."""
        return len(self._real_labels if self.model_name == "SCANVI" else self._model_labels)

    @property
    def labels_mapping(self) -> NDArray[np.object_]:
        """Labels in the order of their codes, with that of unlabelled cells last, if there are any."""
        return np.array(self._model_labels, object)

    @property
    def label_keys(self) -> list[str] | None:
        """``labels_key`` as a list."""
        return [str(self.labels_key)] if self.labels_key else None

    @property
    def labels_(self) -> NDArray[np.object_]:
        """(n,) label of each cell.

        Raises:
            ValueError: ``labels_key`` is not set.
        """
        if not self.labels_key:
            raise ValueError("the model needs labels of cells; name their column in labels_key")
        names = np.array([*self._real_labels, str(self.unlabeled_category)], object)
        return names[self._label_of_cells]

    @property
    def n_samples(self) -> int:
        """Number of samples; 0 without ``sample_key``."""
        return len(self.samples_mapping)

    @property
    def samples_mapping(self) -> NDArray[np.object_]:
        """Samples in the order of their codes."""
        return np.array(self._categories(self.sample_key) if self.sample_key else [], object)

    @property
    def n_obs_per_sample(self) -> Tensor:
        """(samples,) number of cells of each."""
        place = self._place(self.sample_key)
        codes = np.empty(0, np.int64) if place is None else self.label_codes[:, place]
        return torch.from_numpy(np.bincount(codes, minlength=self.n_samples).astype(np.float32))

    @property
    def train_idx(self) -> NDArray[np.int64]:
        """Rows of training cells."""
        return self.splits.train

    @property
    def val_idx(self) -> NDArray[np.int64]:
        """Rows of validation cells."""
        return self.splits.val

    @property
    def test_idx(self) -> NDArray[np.int64]:
        """Rows of test cells."""
        return self.splits.test

    @property
    def n_train(self) -> int:
        """Number of training cells."""
        return len(self.splits.train)

    @property
    def n_val(self) -> int:
        """Number of validation cells."""
        return len(self.splits.val)


@dataclass(frozen=True)
class InferenceLoader:
    """Batches as a model gets them, again at each pass: scvi-tools calls no hooks for inference."""

    data: ScviDataModule
    loader: Loader

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return map(self.data.ready, self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def _translated(init: Callable[..., None]) -> Callable[..., None]:
    """``init``, which takes the names of `scvi.names` as well."""

    @wraps(init)
    def translated(self: ScviDataModule, *args: Any, **options: Any) -> None:
        init(self, *args, **own_options(options, [option.name for option in fields(ScviDataModule)]))

    return translated


ScviDataModule.__init__ = _translated(ScviDataModule.__init__)  # type: ignore[method-assign]


def _numbered(names: list[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}
