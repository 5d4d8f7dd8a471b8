"""Geneformer's sequences against the original's, and against NumPy."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

import scdataloader as scd
from scdataloader.batches.tokens.geneformer import Geneformer
from scdataloader.batches.tokens.masking import MaskedTokens
from scdataloader.protocols import BatchContext, Collate
from scdataloader.sampling.samplers import ShuffleSampler
from scdataloader.testing import MemorySource, check_collate
from scdataloader.testing.data import named_batch

VECTORS = Path(__file__).parents[3] / "shared" / "tokens"
SPECIAL = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
IDS = [f"ENSG{number:011d}" for number in range(60)]
RNG = np.random.default_rng(0)


def tables(n=50, step=3):
    """Tokens and medians of the first ``n`` genes; each third median is that of others."""
    tokens = SPECIAL | {gene: 10 + place for place, gene in enumerate(reversed(IDS[:n]))}
    medians = {gene: 0.5 + (place % step) / 4 for place, gene in enumerate(IDS[2:])}
    return {"tokens": tokens, "medians": medians}


def context(ids=IDS):
    return BatchContext(vocabulary=scd.GeneVocabulary.from_dict({"human": ids}))


def batch_of(counts, ids):
    source = MemorySource("cells", np.asarray(counts, np.float32), list(ids))
    collection = scd.Collection.open([source], genes=scd.GeneAlignment(vocabulary=list(ids), organisms="human"))
    return collection.cells(np.arange(len(counts)))


@pytest.mark.parametrize("version", ["V1", "V2"])
def test_the_vectors_of_the_original(version):
    path = VECTORS / f"geneformer_{version.lower()}.json"
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    vector = json.loads(path.read_text())
    genes = vector["genes"]
    tokens = SPECIAL | {gene: token for gene, token in zip(genes, vector["token"], strict=True) if token >= 0}
    medians = dict(zip(genes, vector["median"], strict=True))
    made = Geneformer(tokens=tokens, medians=medians, version=version, max_len=vector["max_len"])
    out = made.bind(context(genes))(batch_of(vector["counts"], genes), RNG)
    attention = np.array(vector["attention_mask"])
    attention[np.array(vector["length"]) == 0, 0] = 1  # ours attends to one place of an empty cell
    assert out["input_ids"].tolist() == vector["input_ids"]
    assert out["attention_mask"].tolist() == attention.tolist()
    assert out["length"].tolist() == vector["length"]
    assert {out[key].dtype for key in ("input_ids", "attention_mask", "length")} == {torch.int64}


def numpy_geneformer(counts, tokens, medians, max_len, *, ends):
    """Rows of token ids, by the definition."""
    rows = []
    for cell in counts:
        genes = [at for at, gene in enumerate(IDS) if cell[at] > 0 and gene in tokens and gene in medians]
        genes.sort(key=lambda at: (-float(cell[at]) / medians[IDS[at]], at))
        ids = [tokens[IDS[at]] for at in genes]
        rows.append([2, *ids[: max_len - 2], 3] if ends else ids[:max_len])
    return rows


@pytest.mark.parametrize("version", ["V1", "V2"])
@pytest.mark.parametrize("max_len", [3, 20, 64])
@pytest.mark.parametrize("pad_to", ["max_len", "longest"])
def test_sequences_are_those_of_the_definition(version, max_len, pad_to):
    counts = RNG.poisson(0.6, (40, 60)) * (RNG.random((40, 1)) < 0.9)
    counts[0], counts[1], counts[2], counts[3] = 0, 5, 0, 0  # none, all, one, and one outside the tables
    counts[2, 7] = counts[3, 0] = 4
    options = tables()
    rows = numpy_geneformer(counts, **options, max_len=max_len, ends=version == "V2")
    made = Geneformer(**options, version=version, max_len=max_len, pad_to=pad_to).bind(context())
    out = made(batch_of(counts, IDS), RNG)
    width = max_len if pad_to == "max_len" else max(map(len, rows))
    assert out["input_ids"].tolist() == [row + [0] * (width - len(row)) for row in rows]
    assert out["length"].tolist() == [len(row) for row in rows]
    assert out["attention_mask"].sum(axis=1).tolist() == [max(1, len(row)) for row in rows]
    assert (out["attention_mask"].diff(axis=1) <= 0).all()
    assert out["row"].tolist() == list(range(40))


def test_defaults_are_those_of_the_version():
    for version, width in (("V1", 2048), ("V2", 4096)):
        out = Geneformer(**tables(), version=version).bind(context())(batch_of(np.ones((2, 60)), IDS), RNG)
        assert out["input_ids"].shape == (2, width)


@pytest.mark.parametrize("masking", [None, MaskedTokens()])
@pytest.mark.parametrize("options", [{"version": "V1"}, {"version": "V2", "pad_to": "longest"}])
def test_the_laws_of_collate_functions(masking, options):
    made = Geneformer(**tables(), max_len=30, masking=masking, **options)
    check_collate(made)
    check_collate(made, cells=named_batch(19, 60, with_pad=True), context=context(), batch_size=5)


def test_masked_genes_have_labels_and_special_tokens_have_none():
    counts = RNG.poisson(0.6, (64, 60))
    plain = Geneformer(**tables(), max_len=30).bind(context())(batch_of(counts, IDS), RNG)
    made = Geneformer(**tables(), max_len=30, masking=MaskedTokens(rate=1.0, mask=1.0, random=0.0)).bind(context())
    out = made(batch_of(counts, IDS), RNG)
    is_gene = plain["input_ids"] >= 10
    assert torch.equal(out["labels"], torch.where(is_gene, plain["input_ids"], -100))
    assert torch.equal(out["input_ids"], torch.where(is_gene, 1, plain["input_ids"]))
    assert torch.equal(out["cell_labels"], plain["labels"])
    assert torch.equal(out["attention_mask"], plain["attention_mask"])


def test_masks_do_not_depend_on_threads_and_differ_between_epochs():
    counts = RNG.poisson(0.6, (64, 60)).astype(np.float32)
    collection = scd.Collection.open([MemorySource("cells", counts, IDS)])
    batches = {}
    for threads, window in ((1, 8), (3, 32)):
        loader = scd.Loader(
            collection,
            ShuffleSampler(64),
            Geneformer(**tables(), max_len=30, masking=MaskedTokens()),
            batch_size=8,
            num_threads=threads,
            window=window,
        )
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            batches[threads, epoch] = {
                int(row): labels.tolist()
                for batch in loader
                for row, labels in zip(batch["row"], batch["labels"], strict=True)
            }
    assert batches[1, 0] == batches[3, 0]
    assert batches[1, 1] == batches[3, 1]
    assert batches[1, 0] != batches[1, 1]


def test_genes_without_a_token_or_median_are_counted(caplog):
    caplog.set_level(logging.INFO)
    Geneformer(**tables(), version="V1").bind(context())
    assert "given tokens: 10 of the 60 genes" in caplog.text
    assert "given medians: 2 of the 60 genes" in caplog.text


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"version": "V3"}, ValueError, "V3"),
        ({"max_len": 2}, ValueError, "max_len must be 3 or more, not 2"),
        ({"max_len": 0, "version": "V1"}, ValueError, "max_len must be 1 or more, not 0"),
        ({"pad_to": "batch"}, ValueError, "pad_to.*'batch'"),
        ({"tokens": {IDS[3]: 5}}, KeyError, "given tokens lack the special tokens <pad>, <cls>, <eos>"),
        ({"tokens": SPECIAL | {IDS[0]: 5}}, ValueError, "no gene of the vocabulary has both"),
        ({"tokens": SPECIAL | {IDS[3]: 2**24}}, ValueError, "16,777,215 or less, not 16,777,216"),
        ({"tokens": "no.json"}, FileNotFoundError, r"no\.json"),
        ({"medians": {IDS[3]: 0.0, IDS[4]: 1.0}}, ValueError, rf"1 genes are not positive \({IDS[3]}\)"),
        ({"medians": {"x": 1.0}}, ValueError, "none of the 60 genes"),
    ],
)
def test_what_cannot_be_right_is_refused(changed, error, message):
    with pytest.raises(error, match=message):
        Geneformer(**(tables() | changed)).bind(context())


def test_masking_needs_its_token_and_possible_shares():
    tokens = {token: number for token, number in tables()["tokens"].items() if token != "<mask>"}
    with pytest.raises(KeyError, match="<mask>"):
        Geneformer(tokens=tokens, medians=tables()["medians"], masking=MaskedTokens()).bind(context())
    for options in ({"rate": 0.0}, {"rate": 1.5}, {"mask": 0.9, "random": 0.2}, {"mask": -0.1}):
        with pytest.raises(ValueError, match="MaskedTokens"):
            MaskedTokens(**options)


def test_tables_are_files_and_a_module_trains_on_them(tmp_path):
    (tmp_path / "tokens.json").write_text(json.dumps(tables()["tokens"]))
    (tmp_path / "medians.json").write_text(json.dumps(tables()["medians"]))
    dm = scd.DataModule(
        data=MemorySource("cells", RNG.poisson(0.6, (64, 60)).astype(np.float32), IDS),
        collate=scd.tokens.Geneformer(
            tokens=str(tmp_path / "tokens.json"), medians=str(tmp_path / "medians.json"), masking=MaskedTokens()
        ),
        batch_size=4,
    )
    dm.setup("fit")
    assert next(iter(dm.train_dataloader()))["input_ids"].shape == (4, 4096)


@pytest.mark.parametrize("room", ["scdataloader.tokens", "scdataloader.batches.tokens"])
def test_a_configuration_names_the_class(room):
    parser = ArgumentParser()
    parser.add_argument("--collate", type=Collate)
    options = {"tokens": "vocab.json", "medians": "medians.pkl", "version": "V1", "masking": {"rate": 0.3}}
    made = parser.instantiate_classes(
        parser.parse_object({"collate": {"class_path": f"{room}.Geneformer", "init_args": options}})
    )
    assert made.collate == Geneformer(
        tokens="vocab.json", medians="medians.pkl", version="V1", masking=MaskedTokens(rate=0.3)
    )
