"""The page of a report, in a browser, and its contents against numbers counted by hand."""

import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import scdataloader as scd
from scdataloader.commands.main import main
from scdataloader.reports.contents import N_ROWS, contents
from scdataloader.sampling.weights import class_weights
from tests.reports.pages import chromium, in_browser, needs_browser

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">&'<b>\u2028"
COUNTS = {"CL:0000236": 60, "CL:0000084": 30, "CL:0000540": 6, "unknown": 4}  # B cell, T cell, neuron
GENES = [f"ENSG{i:011d}" for i in range(12)]


def cells(labels, genes=GENES, seed=0, **columns):
    x = np.random.default_rng(seed).poisson(3, (len(labels), len(genes))).astype(np.float32) + 1
    obs = pd.DataFrame({"cell_type_ontology_term_id": labels, **columns}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(csr_matrix(x), obs=obs.astype("category"), var=pd.DataFrame(index=genes))


@pytest.fixture
def files(tmp_path):
    """100 cells in two files; the second has half of the genes."""
    labels = np.repeat(list(COUNTS), list(COUNTS.values()))
    donors = np.tile(["a", "b", "c", "d", HOSTILE], 20)
    paths = [tmp_path / f"{name}.h5ad" for name in ("all genes", "<i>half")]
    for number, path in enumerate(paths):
        part = slice(number, None, 2)
        cells(labels[part], GENES[: 12 - 6 * number], number, donor_id=donors[part]).write_h5ad(path)
    return [str(path) for path in paths]


@pytest.fixture
def dm(files):
    column = "cell_type_ontology_term_id"
    sampling = scd.Sampling(by=column, scheme="saturating", saturation=10, num_samples=50)
    return scd.DataModule(
        data=files, labels="donor_id", hierarchies=[column], sampling=sampling, split=scd.Split(val=0.2, by="donor_id")
    )


def test_contents_are_the_numbers_of_the_data(dm):
    found = contents(dm)
    assert dict(found["summary"])["cells"] == "100"
    assert [row[:2] for row in found["sources"]["rows"]] == [["all genes.h5ad", 50], ["<i>half.h5ad", 50]]
    organism, by, donors = found["labels"]
    assert (organism["names"], organism["cells"]["all"]) == (["homo sapiens"], [100])
    assert by["names"] == ["B cell (CL:0000236)", "T cell (CL:0000084)", "neuron (CL:0000540)"]
    assert (by["cells"]["all"], by["unknown"]) == ([60, 30, 6], 4)
    assert sorted(donors["names"]) == sorted(["a", "b", "c", "d", HOSTILE])
    assert sorted(donors["cells"]["val"]) == [0, 0, 0, 0, 20]
    classes = found["classes"]
    np.testing.assert_allclose(
        classes["target"], class_weights(np.array(classes["sizes"]), "saturating", saturation=10), rtol=1e-5
    )
    assert dict(zip(classes["terms"]["ids"], classes["terms"]["levels"], strict=True))["CL:0000236"] > 0
    assert [classes["terms"]["ids"][row] for row in classes["row"]] == list(COUNTS)[:3]
    assert found["genes"] == {
        "names": ["all genes.h5ad", "<i>half.h5ad"],
        "n_sources": [1, 1],
        "n_lists": 2,
        "shared": [[12, 6], [6, 6]],
    }
    assert found["sizes"]["genes"]["quantiles"] == [[12] * 5, [6] * 5]
    assert sum(found["sizes"]["counts"]["histograms"][0]) == 50


def test_classes_beyond_those_that_are_named_are_grouped_by_size():
    n = N_ROWS + 500
    sizes = np.append(np.full(N_ROWS, 3), np.tile([1, 2], 250))
    adata = cells(np.repeat([f"type {code}" for code in range(n)], sizes), GENES[:2])
    sampling = scd.Sampling(by="cell_type_ontology_term_id", scheme="uniform")
    found = contents(scd.DataModule(data=adata, sampling=sampling))["classes"]
    assert len(found["names"]) == N_ROWS
    assert found["sizes"][N_ROWS:] == [2, 1]
    assert found["times"][N_ROWS:] == [250, 250]
    assert np.dot(found["target"], found["times"]) == pytest.approx(1, abs=1e-5)


def test_a_report_of_data_drawn_alike_has_no_classes(files):
    found = contents(scd.DataModule(data=files))
    assert found["classes"] is None
    assert found["leaks"] is None
    assert found["epoch"] == {"num_samples": 100, "n_draws": 100, "repeated": 0, "effective": 100}


def test_the_file_contains_what_it_needs_and_escapes_what_users_write(dm, tmp_path):
    report = scd.report(dm, title=HOSTILE)
    html = report.save(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "</script><img" not in html
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", html)
    assert html.count("<script") == html.count("</script>") == 2
    embedded = re.search(r'id="contents">(.*?)</script>', html, re.DOTALL)[1]
    assert not set("<>&") & set(embedded)
    assert HOSTILE in json.loads(embedded)["labels"][2]["names"]
    assert "<img" not in report._repr_html_().partition("srcdoc=")[2]
    assert "100 cells, 2 sources" in repr(report)


@needs_browser
def test_the_page_opens_and_follows_its_controls(dm, tmp_path):
    lines = [f"{epoch},{HOSTILE.split(maxsplit=1)[0]},0.5,1.0,10" for epoch in range(3)]
    (tmp_path / "sampling.csv").write_text("\n".join(["epoch,class,target,observed,draws", *lines]))
    (tmp_path / "metrics.csv").write_text("epoch,data/waiting_share\n0,0.5\n1,\n2,0.25\n")
    html = scd.report(dm, run=tmp_path, title=HOSTILE).html
    found = in_browser(
        html,
        tmp_path,
        """
        const bars = () => [...document.querySelectorAll("#shares td.bar .fill.second")].map((bar) => bar.style.width);
        const told = () => document.getElementById("effective").textContent;
        const move = (id, value) => {
          const input = document.getElementById(id);
          input.value = value;
          input.dispatchEvent(new Event("input", { bubbles: true }));
        };
        const result = { title: document.title };
        result.sections = [...document.querySelectorAll("section")].map((part) => part.id);
        result.images = document.querySelectorAll("img").length;
        result.bars = bars();
        result.effective = told();
        move("saturation", 0);
        result.moved = bars();
        result.movedEffective = told();
        move("tau", 0);
        result.scheme = document.getElementById("scheme").value;
        result.power = bars();
        move("source", 1);
        const terms = () => [...document.querySelectorAll("#tree .name")].map((name) => name.textContent);
        result.terms = terms();
        document.querySelector("#tree .toggle[aria-expanded=false]").click();
        result.unfolded = terms();
        document.querySelectorAll("#tree .zoom")[1].click();
        result.zoomed = terms();
        result.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
        result.lines = document.querySelectorAll("#run polyline").length;
        return result;
        """,
    )
    assert found["title"] == HOSTILE.replace("\u2028", found["title"][-1])
    assert found["sections"] == ["summary", "sources", "labels", "weights", "tree", "genes", "sizes", "leaks", "run"]
    assert found["images"] == 0
    assert len(found["bars"]) == 3
    assert found["moved"] != found["bars"]
    assert found["movedEffective"] != found["effective"]
    assert found["scheme"] == "power"
    assert len(set(found["power"])) == 1  # tau of 0 is uniform
    assert len(found["unfolded"]) > len(found["terms"])
    assert 0 < len(found["zoomed"]) < len(found["unfolded"])
    assert found["lines"] == 2  # waiting and distance of shares; the others were not logged
    assert not found["wide"]


@needs_browser
def test_the_page_prints_and_runs_under_its_own_policy(files, tmp_path, capsys):
    out = tmp_path / "out.html"
    column = "cell_type_ontology_term_id"
    assert main(["report", *files, "--by", column, "--split", "val=0.2", "--out", str(out)]) == 0
    assert "written: " in capsys.readouterr().err
    printed = tmp_path / "out.pdf"
    chromium(out, f"--print-to-pdf={printed}")
    assert printed.read_bytes()[:4] == b"%PDF"


def test_the_command_refuses_what_it_cannot_write_or_read(files, tmp_path, capsys):
    assert main(["report", *files, "--out", str(tmp_path / "none" / "out.html")]) == 2
    assert "the folder of --out" in capsys.readouterr().err
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    (tmp_path / "logs" / "version_0" / "sampling.csv").touch()
    assert main(["report", *files, "--out", str(tmp_path / "out.html"), "--run", str(tmp_path / "logs")]) == 2
    assert "version_0" in capsys.readouterr().err


def test_ids_that_no_ontology_has_are_shown_without_the_tree(tmp_path, capsys):
    path, out = tmp_path / "odd.h5ad", tmp_path / "odd.html"
    cells(["CL:0000236", "CL:9999999"]).write_h5ad(path)
    words = ["report", str(path), "--by", "cell_type_ontology_term_id", "--out", str(out)]
    assert main(words) == 2
    assert "'CL:9999999'" in (message := capsys.readouterr().err)
    assert "--no-tree" in message
    assert not main([*words, "--no-tree"])
    assert out.exists()
