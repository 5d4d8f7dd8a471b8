"""Lightning DataModule that assembles the stages."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial, wraps
from typing import Any, Never
from weakref import WeakSet

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import ArrayLike, NDArray
from torch import sparse_csr

from scdataloader.batches.full import Sparse
from scdataloader.collection.collection import Collection
from scdataloader.collection.extras import check_matrices
from scdataloader.collection.gene_medians import compute_medians
from scdataloader.collection.neighbours import NeighbourReader
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.kernels.draws.random import seed_of
from scdataloader.labels.column import columns_of
from scdataloader.labels.hierarchy import Hierarchies
from scdataloader.labels.table import LabelTable
from scdataloader.labels.targets import Missing, read_targets
from scdataloader.loading.contents import Contents, check_neighbours, check_sizes
from scdataloader.loading.loader import Loader
from scdataloader.loading.prefetch import STEEP_WINDOW
from scdataloader.loading.ranks import check_ranks
from scdataloader.protocols import (
    BatchContext,
    Collate,
    DescribesClasses,
    DrawnClasses,
    HasTokens,
    HasWindow,
    Sampler,
    SamplingPlan,
    Transform,
)
from scdataloader.runtime.facts import as_html
from scdataloader.runtime.messages import shown, suggestion
from scdataloader.sampling.options import evaluation_of, used_columns
from scdataloader.sampling.rows import Rows
from scdataloader.sampling.samplers import SequentialSampler, Subset
from scdataloader.sampling.splits import SplitRecord, Splits
from scdataloader.sampling.tally import Tally
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.sources.fingerprint import difference, is_of_first_rule, same_cells
from scdataloader.training.checkpoint import STATE_KEY, STATE_VERSION, check_genes, read_state, saved_medians
from scdataloader.training.config import BATCH_SIZE, DataConfig, listed, plugged
from scdataloader.training.monitor import SamplingMonitor, run_folder
from scdataloader.training.resume import ExactResume

logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class DataModule(DataConfig, LightningDataModule):
    """Cells of many datasets for training, validation, test and prediction.

    The properties that describe the data (``genes``, ``classes``, ``encoders``, ``labels_hierarchy``, ``splits`` …) are
    valid right after construction: metadata is read on first access, the matrices by the loaders only.

    The first options are those of `DataConfig`: which cells there are, and how they are split, weighted and drawn.

    Args:
        collate: Makes tensors of a batch, as an object, a class, a class path or a registered name ("sparse", "dense");
            by default `Sparse`, whose tensors are made dense on the model's device.
        transforms: Changes of the values before they are collated, one or a list in order; by default raw counts.
        targets: Columns of numbers in obs whose values every batch has under "targets", (B, T) float32; one or a list.
        missing_targets: "error" refuses cells and sources without a value in ``targets``; "nan" gives them NaN.
        unknown_classes: Columns of ``labels`` in which unknown is a separate class, the last one, and not -1; for
            batches and other covariates of a model that takes no -1.
        layers: Further matrices on the same genes, by their keys in ``layers`` of AnnData; batches have "layers/<key>",
            sparse tensors (B, G) float32 in vocabulary genes. One or a list.
        obsm: Further matrices with their own columns, by their keys in ``obsm`` of AnnData; batches have
            "obsm/<key>", (B, D) float32. One or a list.
        neighbours: Number k of nearest neighbours of each cell by ``obsp["distances"]`` of its source; batches have
            their counts under "knn_cells" and their distances under "knn_cells_info", (B, k) float32. Counts are
            (B, k, L) on ``genes`` of the batch if it has these, and else on all genes. Training cells have neighbours
            of the training split alone.
        metacell: Probability with which a training cell is replaced by the sum of the cell and its ``neighbours``, in
            place of delivering these. Batches have "is_meta" (B,), 1 for such cells.
        batch_size: Cells per batch on each rank.
        num_threads: Threads that read ahead of the model.
        window: Cells that one thread reads at once; None chooses by the cost of reading.
        seed: Seed of the draws and of every random choice after them; None is the one of Lightning's
            ``seed_everything``, or 0 without it.
        drop_last: Whether a last training batch that is not full is left out. Otherwise it is shorter, or, on several
            ranks, filled with repeated cells that ``pad`` marks.
        rank: Index of this process among those that share the batches. By default it is that of the Trainer, of
            ``torch.distributed``, or of the environment that ``torchrun`` sets; give both if only some processes of a
            run share the data.
        world_size: Number of processes that share the batches.
        obs_names: Whether batches have the names of their cells, as a list of strings under "obs_names".
        densify: Whether sparse tensors, those that the collate function names and those of ``layers``, are made dense
            on the device.
        pin_memory: Whether batches are in page-locked memory, from which they are copied to a device while the model
            runs; by default if the Trainer's device is a CUDA device.
        checkpoint: Checkpoint of an earlier run, to apply its model to other data: its genes are the vocabulary and
            its label codes are used; a label that it does not have is -1.
        report: Whether to count what is drawn, and how long the model waits for it, and log both once per epoch; see
            `SamplingMonitor`.
    """

    collate: Collate | str | None = None
    transforms: list[Transform] | Transform | None = None
    targets: list[str] | str | None = None
    missing_targets: Missing = "error"
    unknown_classes: list[str] | str | None = None
    layers: list[str] | str | None = None
    obsm: list[str] | str | None = None
    neighbours: int | None = None
    metacell: float | None = None
    batch_size: int = BATCH_SIZE
    num_threads: int = 2
    window: int | None = None
    seed: int | None = 0
    drop_last: bool = True
    rank: int | None = None
    world_size: int | None = None
    obs_names: bool = False
    densify: bool = True
    pin_memory: bool | None = None
    checkpoint: str | None = None
    report: bool = True

    def __post_init__(self) -> None:
        LightningDataModule.__init__(self)
        super().__post_init__()
        check_sizes(batch_size=self.batch_size, num_threads=self.num_threads, window=self.window)
        check_neighbours(self.neighbours, self.metacell)
        check_ranks(self.rank, self.world_size)
        self.seed = None if self.seed is None else seed_of(self.seed)
        for option in ("targets", "unknown_classes", "layers", "obsm"):
            if getattr(self, option) is not None:
                setattr(self, option, listed(option, getattr(self, option)))
        self._absent_labels_are_unknown = False
        self._loaded_state: dict[str, Any] = {}
        self._medians: dict[str, float] | None = None
        self._restored: Any = None
        self._loaders: WeakSet[Loader] = WeakSet()
        self._sparse_keys: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """The options that are set."""
        return f"{type(self).__name__}({', '.join(f'{option}={value!r}' for option, value in self._given())})"

    __str__ = __repr__  # that of Lightning iterates over the data

    def _repr_html_(self) -> str:
        """The options that are set, and what is known of the data if they have been opened."""
        facts: dict[str, object] = {option: repr(value) for option, value in self._given()}
        if "collection" in self.__dict__:
            facts |= {"cells": len(self.collection), "sources": len(self.collection.parts), "genes": len(self.genes)}
        if "splits" in self.__dict__:
            splits = self.splits
            of_part = {"training": splits.train_rows, "validation": splits.val_rows, "test": splits.test_rows}
            facts["split into"] = ", ".join(f"{len(rows):,} {part}" for part, rows in of_part.items())
        if "label_table" in self.__dict__:
            facts["classes"] = ", ".join(f"{n:,} of {column}" for column, n in self.classes.items())
        return as_html(type(self).__name__, facts)

    def _given(self) -> Iterator[tuple[str, Any]]:
        """The options that are set, and the data."""
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name == "data" or value != option.default:
                yield option.name, value

    def __getstate__(self) -> dict[str, Any]:
        """All but the loaders that were given out."""
        return {name: value for name, value in self.__dict__.items() if name != "_loaders"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without loaders."""
        self.__dict__.update(state, _loaders=WeakSet())

    @cached_property
    def collection(self) -> Collection:
        """The table of cells."""
        _ = self._collate, self._transforms, self.plan  # what is wrong with an option is known before data is opened
        alignment = self.alignment or GeneAlignment()
        if self._trained and alignment.vocabulary is None:
            alignment = replace(alignment, vocabulary=self._trained["genes"])
        return self.open(alignment)

    @cached_property
    def _trained(self) -> dict[str, Any]:
        """State of the data of the earlier run; empty if there is none."""
        return {} if self.checkpoint is None else read_state(self.checkpoint)

    @cached_property
    def splits(self) -> Splits:
        """Which rows train, validate and test."""
        return self.splits_of(self.collection)

    @cached_property
    def label_table(self) -> LabelTable:
        """The encoders of the columns ``labels``."""
        if self._trained:
            return LabelTable.from_dict(self._trained["encoders"], self.label_columns)
        return LabelTable.fit(self.collection, self.label_columns, self._hierarchies, self.unknown_classes or ())

    @cached_property
    def _hierarchies(self) -> Hierarchies:
        used = None if self._trained else [*self.label_columns, *used_columns(self.plan)]
        return self.hierarchies_of(self.collection, used)

    @property
    def encoders(self) -> dict[str, dict[str, int]]:
        """{column: {label: code}}. Can be set to those of a trained model; labels that it does not have become -1."""
        return {column: dict(encoder.encoder) for column, encoder in self.label_table.encoders.items()}

    @encoders.setter
    def encoders(self, encoders: Mapping[str, Mapping[str, int]]) -> None:
        self._use(LabelTable.from_encoders(encoders, self.label_columns, self._hierarchies))

    def extend_encoders(self, reference: Mapping[str, Mapping[str, int]]) -> None:
        """Use the codes of a reference, such as ``encoders`` of another run, and append those of labels that it lacks.

        Args:
            reference: {column: {label: code}}; other columns of ``labels`` keep their codes.

        Raises:
            KeyError: a column is not in ``labels``.
            ValueError: a column has a hierarchy, or its codes are not 0 to one below the number of its labels.
        """
        self._use(self.label_table.extending(reference))

    @property
    def decoders(self) -> dict[str, dict[int, str]]:
        """{column: {code: label}}, -1 for unknown included."""
        return {column: encoder.decoder for column, encoder in self.label_table.encoders.items()}

    @property
    def classes(self) -> dict[str, int]:
        """{column: number of classes}, in the order of the columns of ``labels`` in a batch; leaves alone."""
        return {column: encoder.n_classes for column, encoder in self.label_table.encoders.items()}

    @property
    def labels_hierarchy(self) -> dict[str, dict[int, list[int]]]:
        """{column: {code of a term above others: codes of the classes below it}}, of columns with a hierarchy."""
        return {column: encoder.hierarchy for column, encoder in self.label_table.hierarchical.items()}

    @property
    def membership(self) -> dict[str, NDArray[np.bool_]]:
        """{column: (n_inner, n_classes) whether a class is below a term}; row i is code n_classes + i."""
        return {column: encoder.membership for column, encoder in self.label_table.hierarchical.items()}

    @cached_property
    def label_codes(self) -> NDArray[np.signedinteger[Any]]:
        """(n, C) label codes of all cells, in the narrowest signed type; of large stores, mapped from a file."""
        return self.label_table.codes(self.collection, self._hierarchies, absent_ok=self._absent_labels_are_unknown)

    @cached_property
    def target_values(self) -> NDArray[np.float32] | None:
        """(n, T) values of all cells in the columns ``targets``; None without targets.

        Raises:
            KeyError: a source lacks a column.
            ValueError: a column is not of numbers, or cells have no value; see ``missing_targets``.
        """
        return read_targets(self.collection, self.targets, self.missing_targets) if self.targets else None

    @property
    def genes(self) -> list[str]:
        """The vocabulary: gene ids in order."""
        return list(self.collection.vocabulary.ids)

    @property
    def genes_dict(self) -> dict[str, list[str]]:
        """{organism: gene ids}; joined in order it is ``genes``."""
        return self.collection.vocabulary.genes_dict

    def use_genes(self, genes: Mapping[str, Sequence[str]]) -> None:
        """Make ``genes``, such as those of a model, the vocabulary; loaders made before keep the earlier one.

        Cells, labels and splits stay the same, and no source is opened again.

        Args:
            genes: {organism: gene ids} in the model's order.

        Raises:
            GeneOverlapError: a source shares too few genes with them, or is of another organism.
        """
        alignment = replace(
            self.alignment or GeneAlignment(), vocabulary={name: list(ids) for name, ids in genes.items()}
        )
        self.__dict__["collection"] = self.collection.with_genes(alignment)
        self.alignment = alignment
        self._medians = None
        for name in ("training_cells", "tokens"):  # the cells count values by the genes of their collection
            self.__dict__.pop(name, None)

    @cached_property
    def tokens(self) -> dict[str, int]:
        """{gene or special token: token} of a collate function that `HasTokens`; empty for others."""
        collate = self._collate
        return dict(collate.token_dictionary(self.collection.vocabulary)) if isinstance(collate, HasTokens) else {}

    @cached_property
    def training_cells(self) -> CollectionCells:
        """The cells of the training split, as the sampling plan gets them."""
        return CollectionCells(self.collection, self.splits.train_rows, self._hierarchies)

    @cached_property
    def drawn_classes(self) -> DrawnClasses | None:
        """The classes that the sampling plan draws by; None if it does not describe them."""
        plan = self.plan
        return plan.describe(self.training_cells) if isinstance(plan, DescribesClasses) else None

    def setup(self, stage: str) -> None:
        """Open the data, refuse what is wrong with it, and write ``splits.json`` to the folder of `run_folder`."""
        trainer = self.trainer
        if trainer is not None:
            ExactResume.join(trainer)
        if stage == "predict" and self.checkpoint is not None:
            self._absent_labels_are_unknown = True
        (n, n_labels), n_genes = self.label_codes.shape, f"{self.collection.n_genes:,}"
        check_matrices(self.collection, self._matrices)
        if self.neighbours is not None:
            NeighbourReader(collection=self.collection, k=self.neighbours).check()
        _ = self.target_values
        found = (f"{n:,}", len(self.collection.parts), n_genes, n_labels)
        logger.info("%s cells, sources: %d, genes: %s, label columns: %d", *found)
        if stage == "fit":
            self._log_classes()
            if trainer is not None:
                folder = run_folder(trainer)
                if folder is not None:
                    rank_zero_only(self.splits.save)(folder / "splits.json")
                if self.report:
                    SamplingMonitor.join(trainer, self.drawn_classes)

    def _log_classes(self) -> None:
        for column in self.label_columns:
            sources = [part.source for part in self.collection.parts]
            parts = set(columns_of(self.collection, column)) - set(self.collection.own_columns)
            lacking = dict.fromkeys(source.name for source in sources if parts - set(source.obs_columns))
            if lacking:
                logger.warning("no column %r in %s: the labels of these cells are unknown (-1)", column, shown(lacking))
        drawn = self.drawn_classes
        if drawn is not None:
            n_drawable = drawn.sizes[drawn.target_shares(0) > 0].sum()
            level = logging.WARNING if n_drawable < len(drawn.codes) else logging.INFO
            logger.log(level, drawn.summary())

    def train_dataloader(self) -> Loader:
        """Training cells as the sampling plan draws them; the same in each epoch with Lightning's overfit_batches."""
        return self._loader(self._train_sampler, training=True)

    def val_dataloader(self) -> Loader | list[Never]:
        """Every validation cell once, in order, or by the plan's own plan of evaluation; or an empty list."""
        return self._evaluated(self.splits.val_rows)

    def test_dataloader(self) -> Loader | list[Never]:
        """Every test cell once, in order, or by the plan's own plan of evaluation; or an empty list."""
        return self._evaluated(self.splits.test_rows)

    def predict_dataloader(self) -> Loader:
        """Every cell of the collection once, in order."""
        return self._in_order(Rows(len(self.collection)))

    def loader(self, rows: ArrayLike, batch_size: int | None = None, *, shared: bool = True) -> Loader:
        """Cells of the collection in the order requested, each as often as it is named.

        Args:
            rows: (n,) their row numbers.
            batch_size: Cells per batch on each rank; None is that of the options.
            shared: Whether the ranks share the cells; otherwise every rank gets all of them.

        Raises:
            TypeError: the rows are not integers.
            IndexError: a row is outside [0, number of cells).
            ValueError: ``rows`` is empty.
        """
        numbers = np.asarray(rows)
        if not numbers.size:
            raise ValueError("rows is empty; name one cell or more")
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise TypeError(f"rows must be a list of row numbers; got {numbers.dtype} of shape {numbers.shape}")
        self.collection.check_rows(numbers)
        sampler = Subset(sampler=SequentialSampler(len(numbers)), rows=numbers.astype(np.int64))
        return self._loader(sampler, training=False, batch_size=batch_size, ranks=self._ranks if shared else (0, 1))

    def _in_order(self, rows: Rows) -> Loader:
        return self._loader(Subset(sampler=SequentialSampler(len(rows)), rows=rows), training=False)

    def ready(self, batch: Any) -> Any:
        """A batch of one of the loaders as a model gets it: its sparse tensors are made dense, on their device.

        Lightning does this after it has moved a batch; call it where batches are used without a Trainer.
        """
        if not (self.densify and isinstance(batch, Mapping)):
            return batch
        full = {key: batch[key].to_dense() for key in self._sparse_keys if key in batch}
        near = batch.get("knn_cells") if self.neighbours else None
        if near is not None and near.layout is sparse_csr:
            full["knn_cells"] = near.to_dense().unflatten(0, batch["knn_cells_info"].shape)
        return {**batch, **full} if full else batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Make sparse tensors dense on the model's device."""
        return self.ready(batch)

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        """End the loaders' threads."""
        for loader in list(self._loaders):
            loader.close()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002
        """End the loaders' threads, because Lightning does not call `teardown` after an error."""
        self.teardown("fit")

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: label encoders, vocabulary, and fingerprints of the data and the split.

        Also medians of genes, if the collate function has used those of the training cells.
        """
        medians = {} if self._medians is None else {"medians": self._medians}
        return {
            **medians,
            STATE_KEY: STATE_VERSION,
            "encoders": self.label_table.to_dict(),
            "genes": self.genes_dict,
            "fingerprint": self.collection.fingerprint,
            "sources": self._fingerprints,
            "split": asdict(self._split_record),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use the label encoders of a checkpoint, so that codes have the same meaning as in training.

        Raises:
            StateMismatchError: the checkpoint has other label columns or other genes, or it split the same data
                differently, so that training cells would be validation or test cells.
        """
        self._use(LabelTable.from_dict(state_dict["encoders"], self.label_columns))
        self._loaded_state, self._medians = state_dict, None
        check_genes(state_dict["genes"], self.genes_dict)
        saved, predicting = state_dict["fingerprint"], self.trainer is not None and self.trainer.predicting
        if is_of_first_rule(saved) and not predicting:
            logger.warning(
                "the checkpoint is of an earlier release: its split cannot be compared with that of this run"
            )
        of_source = state_dict.get("sources", {})
        for name, fingerprint in self._fingerprints.items():
            changed = difference(of_source.get(name, fingerprint), fingerprint)
            if changed is not None:
                logger.warning("%s of %s changed since the checkpoint was saved", changed, name)
        if same_cells(saved, self.collection.fingerprint) and not predicting:
            self.splits.check(SplitRecord.from_dict(state_dict["split"]))

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """{source: its fingerprint}."""
        return {part.source.name: part.source.fingerprint for part in self.collection.parts}

    @cached_property
    def _split_record(self) -> SplitRecord:
        return self.splits.record()

    def _use(self, table: LabelTable) -> None:
        self.__dict__["label_table"] = table
        self.__dict__.pop("label_codes", None)

    def _tally(self) -> Tally:
        return Tally.of(self.drawn_classes, self.splits.train_rows)

    def _evaluated(self, rows: Rows) -> Loader | list[Never]:
        if not len(rows):
            return []  # to Lightning, no loader
        plan = evaluation_of(self.plan)
        if plan is None:
            return self._in_order(rows)
        cells = CollectionCells(self.collection, rows, self._hierarchies)
        # picklable, as loaders are
        return self._loader(partial(self._evaluation_sampler, plan, cells), training=False)

    @cached_property
    def _is_training(self) -> NDArray[np.bool_]:
        """(n,) whether a cell is in the training split."""
        return self.splits.train_rows.mask(0, len(self.collection))

    def _restore(self) -> None:
        """Load the state of the checkpoint that the Trainer restores.

        Lightning itself restores the data only if its class has the same name as in the checkpoint.

        Raises:
            StateMismatchError: the checkpoint has no state of the data; or see `load_state_dict`.
        """
        path = None if self.trainer is None else self.trainer.ckpt_path
        if path is not None and path != self._restored:
            self.load_state_dict(read_state(path))
        self._restored = path

    def _evaluation_sampler(self, plan: SamplingPlan, cells: CollectionCells, global_batch_size: int) -> Sampler:
        return plan.sampler(cells, seed=self._seed, global_batch_size=global_batch_size)

    def _train_sampler(self, global_batch_size: int) -> Sampler:
        sampler = self.plan.sampler(self.training_cells, seed=self._seed, global_batch_size=global_batch_size)
        cost, window = self.collection.read_cost, sampler.window if isinstance(sampler, HasWindow) else None
        if cost.is_steep and window is None:
            rate = cost.cells_per_second(len(self.collection), self.window or STEEP_WINDOW)
            logger.warning(
                "single cells are drawn of data that are decoded thousands of cells at a time: about %s cells/s as "
                "long as they are not in memory; draw neighbours together with Sampling(block_size=64), or convert "
                "the data once with scdataloader convert, or scd.convert(data, 'data.cells')",
                f"{float(f'{rate:.2g}'):,.0f}",
            )
        return sampler

    @property
    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", "0")) if self.seed is None else self.seed

    @property
    def _ranks(self) -> tuple[int | None, int | None]:
        """Rank and world size as given or of the Trainer; None if the loader has to find them."""
        if self.rank is None and self.world_size is None and self.trainer is not None:
            # of a model-parallel strategy, the ranks along its data-parallel dimension
            shared = self.trainer.distributed_sampler_kwargs or {}
            return shared.get("rank"), shared.get("num_replicas")
        return self.rank, self.world_size

    def _loader(
        self,
        sampler: Sampler | Callable[[int], Sampler],
        *,
        training: bool,
        batch_size: int | None = None,
        ranks: tuple[int | None, int | None] | None = None,
    ) -> Loader:
        self._restore()
        rank, world_size = ranks or self._ranks
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        loader = Loader(
            self.collection,
            sampler,
            self._collate,
            batch_size=self.batch_size if batch_size is None else batch_size,
            labels=self.label_codes,
            context=self._context,
            transforms=self._transforms,
            seed=self._seed,
            drop_last=training and self.drop_last,
            rank=rank,
            world_size=world_size,
            num_threads=self.num_threads,
            window=self.window,
            fixed_epoch=overfits or not training,
            contents=self._contents(training=training),
            pin_memory=self._pins_memory,
            tally=self._tally() if training and self.report else None,
        )
        self._loaders.add(loader)
        self._sparse_keys = loader.densify
        return loader

    @cached_property
    def _collate(self) -> Collate:
        """``collate`` as an object.

        Raises:
            LookupError: no collate function is registered under the name.
            TypeError: what is given, or registered under the name, cannot be called.
        """
        if self.collate is None:
            return Sparse()
        collate = plugged("collate", self.collate)
        if not isinstance(collate, Collate):
            raise TypeError(f"collate must be called with a batch and a generator; got {type(collate).__name__}")
        return collate

    @cached_property
    def _transforms(self) -> list[Transform]:
        """``transforms`` as objects.

        Raises:
            TypeError: one cannot be called.
        """
        given: Sequence[Any] = self.transforms if isinstance(self.transforms, list | tuple) else [self.transforms]
        made = [step() if isinstance(step, type) else step for step in given if step is not None]
        wrong = [step for step in made if not callable(step)]
        if wrong:
            raise TypeError(
                "transforms must be called with a batch and a generator, as scdataloader.Log1p() is; got "
                f"{type(wrong[0]).__name__} {wrong[0]!r}"
            )
        return made

    def _contents(self, *, training: bool) -> Contents:
        return Contents(
            targets=self.target_values,
            matrices=self._matrices,
            neighbours=self.neighbours,
            metacell=self.metacell if training or self.metacell is None else 0.0,
            neighbours_among=self._is_training if training and self.neighbours else None,
            obs_names=self.obs_names,
        )

    @property
    def _matrices(self) -> list[str]:
        return [*(f"layers/{key}" for key in self.layers or ()), *(f"obsm/{key}" for key in self.obsm or ())]

    @property
    def _pins_memory(self) -> bool:
        if self.pin_memory is None:
            return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return self.pin_memory

    def _training_medians(self) -> dict[str, float]:
        """Medians of the genes over the training cells of this run, or of the run of the checkpoint.

        Raises:
            StateMismatchError: that run had other medians.
        """
        if self._medians is None:
            state = self._loaded_state or self._trained
            if state:
                self._medians = saved_medians(state)
            else:
                logger.info("computing the medians of genes over %s training cells", f"{len(self.splits.train_rows):,}")
                self._medians = compute_medians(self.collection, rows=self.splits.train, progress=False)
        return self._medians

    @property
    def _context(self) -> BatchContext:
        classes = {
            column: [decoder[code] for code in range(len(decoder) - 1)] for column, decoder in self.decoders.items()
        }
        return BatchContext(
            vocabulary=self.collection.vocabulary,
            labels=tuple(self.label_columns),
            classes=classes,
            gene_tables=self.collection.gene_tables,
            medians=self._training_medians,
        )


def _explained(init: Callable[..., None]) -> Callable[..., None]:
    """``init``, which names the nearest option for one that does not exist."""

    @wraps(init)
    def explained(self: DataModule, *args: Any, **options: Any) -> None:
        known = [option.name for option in fields(DataModule)]
        for name in options:
            if name in {"num_workers", "persistent_workers", "prefetch_factor"}:
                raise TypeError(f"DataModule has no option {name!r}: threads read ahead of the model; set num_threads")
            if name not in known:
                raise TypeError(f"DataModule has no option {name!r}; {suggestion(name, known)}")
        init(self, *args, **options)

    return explained


DataModule.__init__ = _explained(DataModule.__init__)  # type: ignore[method-assign]
