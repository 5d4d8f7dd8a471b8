"""Nicheformer's sequences against the original's, and against the definition."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import scdataloader as scd
from scdataloader.batches.tokens.masking import MaskedTokens
from scdataloader.batches.tokens.nicheformer import Nicheformer
from scdataloader.protocols import BatchContext
from scdataloader.testing import MemorySource, check_collate

VECTORS = Path(__file__).parents[3] / "shared" / "tokens"
IDS = [f"ENSG{number:011d}" for number in range(60)]
RNG = np.random.default_rng(0)
MEANS = {gene: (place % 4) / 2 for place, gene in enumerate(IDS[5:])}
SPECIAL = {"organism": {"human": 5, "mouse": 6}, "assay": {"a": 10, "b": 11}}


def context(ids=IDS):
    return BatchContext(vocabulary=scd.GeneVocabulary.from_dict({"human": ids}))


def batch_of(counts, ids, **obs):
    source = MemorySource("cells", np.asarray(counts, np.float32), list(ids))
    collection = scd.Collection.open([source], genes=scd.GeneAlignment(vocabulary=list(ids), organisms="human"))
    cells = collection.cells(np.arange(len(counts)))
    return replace(cells, obs={column: np.array(values, object) for column, values in obs.items()})


def test_the_vectors_of_the_original():
    path = VECTORS / "nicheformer.json"
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    vector = json.loads(path.read_text())
    genes, counts = vector["genes"], vector["counts"]
    options = {"genes": genes, "means": dict(zip(genes, vector["mean"], strict=True)), "max_len": vector["max_len"]}
    out = Nicheformer(**options).bind(context(genes))(batch_of(counts, genes), RNG)
    assert out["input_ids"].tolist() == vector["tokens"]
    special = {"organism": {"human": 5}, "assay": {"10x": 11}, "modality": {"dissociated": 3}}
    made = Nicheformer(**options, special=special).bind(context(genes))
    assert list(made.obs) == ["organism", "assay", "modality"]
    labels = {column: [label] * len(counts) for column, (label,) in special.items()}
    assert made(batch_of(counts, genes, **labels), RNG)["input_ids"].tolist() == vector["with_special"]


@pytest.mark.parametrize("max_len", [3, 20, 64])
def test_sequences_are_those_of_the_definition(max_len):
    counts = RNG.poisson(0.6, (40, 60))
    counts[0] = 0
    assays, organisms = RNG.choice(["a", "b"], 40), RNG.choice(["human", "mouse"], 40)
    means = {"a": MEANS, "b": {gene: mean + place % 3 for place, (gene, mean) in enumerate(MEANS.items())}}
    made = Nicheformer(genes=IDS[::-1], means=means, technology="assay", special=SPECIAL, max_len=max_len)
    out = made.bind(context())(batch_of(counts, IDS, assay=assays, organism=organisms), RNG)
    for row, cell in enumerate(counts):
        of_gene = {at: means[assays[row]].get(gene) for at, gene in enumerate(IDS)}
        genes = [at for at, mean in of_gene.items() if cell[at] > 0 and mean is not None]
        genes.sort(key=lambda at: (-float(cell[at]) / (of_gene[at] or 1.0), at))
        first = [SPECIAL["organism"][organisms[row]], SPECIAL["assay"][assays[row]]]
        want = [*first, *[30 + 59 - at for at in genes]][:max_len]
        assert out["length"][row] == len(want)
        assert out["input_ids"][row].tolist() == want + [1] * (max_len - len(want))
        assert out["attention_mask"][row].tolist() == [1] * len(want) + [0] * (max_len - len(want))


@pytest.mark.parametrize("masking", [None, MaskedTokens(rate=0.5)])
def test_the_laws_of_collate_functions(masking):
    obs = {"assay": ["a", "b"] * 12, "organism": ["human"] * 24}
    means = {"a": MEANS, "b": MEANS}
    made = Nicheformer(
        genes=IDS, means=means, technology="assay", special=SPECIAL, max_len=20, pad_to="longest", masking=masking
    )
    check_collate(made, obs=obs)


def test_labels_come_from_obs_and_unknown_ones_are_refused():
    made = Nicheformer(genes=IDS, means=MEANS, special=SPECIAL, max_len=20).bind(context())
    with pytest.raises(KeyError, match=r"obs\['assay'\] has the label 'c'.*'a'"):
        made(batch_of(np.ones((2, 60)), IDS, assay=["a", "c"], organism=["human"] * 2), RNG)
    with pytest.raises(KeyError, match="None"):
        made(batch_of(np.ones((2, 60)), IDS, assay=["a", None], organism=["human"] * 2), RNG)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"max_len": 2, "special": SPECIAL}, ValueError, "max_len must be 3 or more, not 2"),
        ({"pad_to": "batch"}, ValueError, "pad_to.*'batch'"),
        ({"technology": "assay", "means": "means.json"}, TypeError, "label of 'assay'"),
        ({"means": {IDS[3]: -1.0}}, ValueError, rf"not positive \({IDS[3]}\)"),
    ],
)
def test_what_cannot_be_right_is_refused(changed, error, message):
    with pytest.raises(error, match=message):
        Nicheformer(**({"genes": IDS, "means": MEANS} | changed)).bind(context())
