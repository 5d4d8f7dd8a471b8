"""A label column of several ontologies: diseases beside "normal", tissues beside cells."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

import scdataloader as scd
from scdataloader.commands.main import main
from scdataloader.labels.hierarchy import Hierarchy
from scdataloader.models.losses import HierarchicalCrossEntropy, HierarchicalF1
from scdataloader.ontology.ontology import Ontology
from scdataloader.testing import MemorySource, named_values
from tests.ontology.term_tables import ontology

#      A:0 disease            B:0 quality
#    A:1 virus  A:2 cancer      B:1 normal
#      A:3 flu
ILL = ontology(
    {"A:0": [], "A:1": ["A:0"], "A:2": ["A:0"], "A:3": ["A:1"], "A:9": []},
    name="ill",
    version="v2",
    labels={"A:0": "disease", "A:1": "virus", "A:2": "cancer", "A:3": "flu", "A:9": "obsolete well"},
    synonyms={"A:3": ("influenza",)},
    deprecated=["A:9"],
    replaced_by={"A:9": "B:1"},
)
STATE = ontology(
    {"B:0": [], "B:1": ["B:0"], "B:2": ["B:0"]},
    name="state",
    version="v1",
    labels={"B:0": "quality", "B:1": "normal", "B:2": "cancer"},
    synonyms={"B:1": ("flu", "well")},
)
COUNTS = {"A:0": 10, "A:2": 60, "A:3": 30, "B:1": 300, "unknown": 20}


def fit(*labels, **options):
    return Hierarchy.fit("ill", [pd.Series(list(labels), dtype=object)], **({"ontology": [ILL, STATE]} | options))


def source(counts=COUNTS):
    values = np.random.default_rng(0).permutation(np.repeat(list(counts), list(counts.values())))
    return MemorySource("a", named_values(len(values), 5), [f"ENSG{i:011d}" for i in range(5)], {"ill": values})


def module(counts=COUNTS, **options):
    made = {"data": [source(counts)], "labels": ["ill"], "hierarchies": {"ill": [ILL, STATE]}, "batch_size": 20}
    return scd.DataModule(**(made | options))


def test_terms_of_several_ontologies_stand_side_by_side():
    encoder = fit("A:0", "A:3", "B:1", "A:2").encoder
    assert encoder.classes == ("A:2", "A:3", "B:1")
    assert encoder.hierarchy == {3: [0, 1]}
    assert encoder.ontology == "ill v2 + state v1"
    union = Ontology.union([STATE, ILL])
    assert repr(union) == "Ontology('ill v2 + state v1', version='', 7 terms)"
    assert union.prefixes == ("A", "B")
    assert [term for term in union.terms if not union.parents(term)] == ["A:0", "B:0"]
    assert Ontology.union([ILL]) is ILL


def test_names_are_looked_for_in_all_and_a_name_goes_before_a_synonym():
    encoder = fit("Normal", "flu", "influenza", "well").encoder
    assert encoder.mapped == {"Normal": "B:1", "flu": "A:3", "influenza": "A:3", "well": "B:1"}


def test_a_term_may_be_replaced_by_one_of_another_ontology(caplog):
    assert fit("A:9", "A:3").encoder.mapped == {"A:9": "B:1"}
    assert "A:9 (obsolete well) by B:1 (normal), 1 cell" in caplog.text


def test_roll_ups_know_the_terms_of_all():
    assert fit("A:3", "A:2", "B:1", roll_up=scd.RollUp(terms=["virus", "quality"])).encoder.mapped == {
        "A:3": "A:1",
        "B:1": "B:0",
    }
    assert fit("A:3", "A:2", "B:1", "B:1", roll_up=scd.RollUp(min_cells=2)).encoder.mapped == {
        "A:2": "A:0",
        "A:3": "A:0",
    }


def test_the_ontology_of_a_term_has_its_word_and_both_have_its_parents():
    """A file of one ontology contains terms of another, perhaps of an older release."""
    cells = ontology({"CL:1": [], "CL:2": ["CL:1"], "CL:3": []}, name="cl", labels={"CL:2": "new"}, deprecated=["CL:3"])
    body = ontology(
        {"U:1": [], "U:2": ["U:1"], "CL:2": ["U:2"], "CL:3": ["U:1"]}, name="uberon", labels={"CL:2": "old"}
    )
    union = Ontology.union([body, cells])
    assert union.label("CL:2") == "new"
    assert union.parents("CL:2") == ["CL:1", "U:2"]
    assert union.ancestors("CL:2") == ["CL:1", "U:1", "U:2"]
    assert union.is_deprecated("CL:3")
    with pytest.raises(LookupError, match="no term 'old'"):
        union.find("old")


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["cancer"], {}, r"'cancer' may be any of 2 terms of ill v2 \+ state v1: A:2 \(cancer\), B:2 \(cancer\); give"),
        (
            ["A:3", "C:1"],
            {},
            r"'C:1' is an id of C, but ill v2 \+ state v1 has only ids of A, B; correct it, or name the ontology",
        ),
        (["A:3"], {"ontology": []}, "the hierarchy of 'ill' names no ontology"),
        (
            ["CL:0000084", "CL:0000236", "ABC:2", "ABC:1"],
            {"ontology": None},
            r"labels of 'ill' are ids of ABC \('ABC:1', 'ABC:2'\): .* 'ABC'.* registered.*; or name a file",
        ),
        (["PATO:0000461", "MONDO:99"], {"ontology": None}, r"MONDO v.* \+ PATO v.* has no term 'MONDO:99'"),
    ],
)
def test_what_is_wrong_is_said(labels, options, message):
    with pytest.raises(ValueError, match=message):
        fit(*labels, **options)


def test_what_is_no_ontology_is_refused_within_a_list_too():
    with pytest.raises(TypeError, match=r"expected an Ontology, .*got 5"):
        fit("A:3", ontology=[ILL, 5])


def test_no_union_is_made_of_nothing_or_of_what_makes_a_cycle():
    with pytest.raises(ValueError, match="union of no ontologies"):
        Ontology.union([])
    up, down = ontology({"A:1": [], "A:2": ["A:1"]}, name="up"), ontology({"A:2": [], "A:1": ["A:2"]}, name="down")
    with pytest.raises(ValueError, match=r"^down \+ up has a cycle .*: A:1 \(term 1\) → A:2 \(term 2\) → A:1"):
        Ontology.union([up, down])


def test_draws_go_evenly_to_the_roots_and_down_from_each():
    dm = module(sampling=scd.Sampling(by="ill", scheme="tree", num_samples=20_000))
    dm.setup("fit")
    codes = np.concatenate([batch["labels"][:, 0].numpy() for batch in dm.train_dataloader()])
    dm.teardown("fit")
    shares = dict(zip(dm.encoders["ill"], np.bincount(codes, minlength=4) / 20_000, strict=True))
    expected = {"A:2": 1 / 6, "A:3": 1 / 6, "A:0": 1 / 6, "B:1": 1 / 2}
    assert shares == pytest.approx(expected, abs=4 * 0.5 / 20_000**0.5)


def test_a_label_above_all_classes_of_its_ontology_teaches_still():
    """With one ontology its probability is 1; beside others it tells the ontology of the cell."""
    dm = module()
    n, below = dm.classes["ill"], dm.labels_hierarchy["ill"]
    assert (dm.encoders["ill"]["A:0"], below) == (3, {3: [0, 1]})
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    loss = HierarchicalCrossEntropy(n, below)(logits, torch.tensor([3]))
    torch.testing.assert_close(loss, -logits.softmax(1)[0, :2].sum().log())
    f1 = HierarchicalF1(n, below)
    f1.update(torch.tensor([0, 2]), torch.tensor([1, 1]))  # cancer for flu shares "disease", and normal nothing
    # 1 in common; cancer, disease and normal are predicted; twice flu and disease are true
    assert f1.compute().item() == pytest.approx(2 * 1 / (3 + 4))


def test_checkpoints_hold_for_data_of_one_of_the_ontologies():
    trained = module()
    later = module({"B:1": 5, "A:9": 5, "A:3": 2, "B:2": 3}, hierarchies={"ill": [STATE, ILL]})
    later.load_state_dict(trained.state_dict())
    assert later.encoders["ill"] == trained.encoders["ill"]
    names = pd.Series([trained.decoders["ill"][code] for code in later.label_codes[:, 0].tolist()])
    assert names.value_counts().to_dict() == {"B:1": 10, "unknown": 3, "A:3": 2}


def test_codes_from_outside_bring_the_ontologies_of_their_ids():
    covid, normal = "MONDO:0100096", "PATO:0000461"
    trained = fit(covid, normal, "MONDO:0005550", ontology=None).encoder
    assert trained.inner == ("MONDO:0005550",)  # infectious disease
    later = fit(normal, normal, ontology=None)
    assert later.ontology.name == "PATO"
    assert later.with_codes(trained.encoder) == trained
    with pytest.raises(LookupError, match=r"is an id of MONDO, but PATO .* has only ids of PATO"):
        fit(normal, ontology="PATO").with_codes(trained.encoder)
    with pytest.raises(LookupError, match="no term 'typical'"):
        later.with_codes({"typical": 0})
    with pytest.raises(ValueError, match=r"are ids of ABC .* 'ABC'.* registered"):
        later.with_codes({"ABC:1": 0})


def test_which_ontologies_the_ids_are_of_is_said(caplog):
    with caplog.at_level(logging.INFO):
        hierarchy = fit(
            "PATO:0000461", "HsapDv:0000001", "PATO:0000461", "unknown", "PATO:1 || HsapDv:1", ontology=None
        )
    assert hierarchy.ontology.prefixes == ("HsapDv", "PATO")
    assert "ill: terms of several ontologies, side by side: PATO in 2 cells, HsapDv in 1 cell" in caplog.messages


@pytest.fixture
def diseased(tmp_path):
    """A file of 100 cells: normal, COVID-19, viral infectious disease, and infectious disease."""
    counts = {"PATO:0000461": 70, "MONDO:0100096": 20, "MONDO:0005108": 8, "MONDO:0005550": 2}
    obs = pd.DataFrame({"disease": np.repeat(list(counts), list(counts.values()))}, index=[f"c{i}" for i in range(100)])
    genes = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(5)])
    path = tmp_path / "cells.h5ad"
    ad.AnnData(csr_matrix(np.ones((100, 5), np.float32)), obs=obs, var=genes).write_h5ad(path)
    return str(path)


def test_the_command_shows_them_in_one_tree(diseased, capsys, tmp_path):
    shown = []
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data: {{data: {diseased}, hierarchies: {{disease: [MONDO, PATO]}}, sampling: {{by: disease, scheme: tree}}}}"
    )
    by = ["inspect", diseased, "--by", "disease", "--scheme", "tree", "--tree"]
    for options in (
        by,
        [*by, "--hierarchies", "disease=PATO,MONDO"],
        [*by, "--hierarchies", "disease=MONDO,PATO"],
        ["inspect", "--config", str(config), "--tree"],
    ):
        assert main(options) == 0
        shown.append(capsys.readouterr().out)
    assert len(set(shown)) == 1
    lines = [" ".join(line.split()) for line in shown[0].replace("│", " ").splitlines()]
    assert "normal (PATO:0000461) 70 70 50.00% 50.00% 50.0 50.0" in lines
    assert "infectious disease (MONDO:0005550) 2 30 25.00% 50.00% 25.0 50.0" in lines
    assert "viral infectious disease (MONDO:0005108) 8 28 12.50% 25.00% 12.5 25.0" in lines
    assert "COVID-19 (MONDO:0100096) 20 20 12.50% 12.50% 12.5 12.5" in lines


def test_the_columns_of_a_real_atlas(real_data):
    """Cell types of CL beside tissues of UBERON: codes and classes are those of each column alone."""
    path = str(real_data / "mouse_brain_merfish.h5ad")
    columns = ["cell_type_ontology_term_id", "tissue_ontology_term_id"]
    dm = scd.DataModule(path, labels=columns, hierarchies=columns)
    obs = dm.collection.obs(columns)
    mixed = obs[columns[0]].astype(str).where(np.arange(len(obs)) % 2 == 0, obs[columns[1]].astype(str))
    parts = [mixed[:500].astype("category"), mixed[500:].astype("category")]
    both = Hierarchy.fit("mixed", parts).encoder
    assert both == Hierarchy.fit("mixed", parts[::-1], ontology=["UBERON", "CL"]).encoder
    used = {"CL": mixed[::2], "UBERON": mixed[1::2]}
    alone = {name: Hierarchy.fit("mixed", [values], ontology=name).encoder for name, values in used.items()}
    assert both.classes == alone["CL"].classes + alone["UBERON"].classes
    assert both.inner == alone["CL"].inner + alone["UBERON"].inner
    assert [both.decoder[code] for code in both.encode(mixed).tolist()] == mixed.tolist()
