"""What `scdataloader inspect` says, against numbers counted by hand."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scdataloader.collection.collection import Collection
from scdataloader.commands.main import main
from scdataloader.ontology.ontology import Ontology
from scdataloader.reports.tables import class_table, column_table, source_table
from scdataloader.reports.tree import tree_table
from scdataloader.sampling.options import Sampling
from scdataloader.sampling.samplers import AFTER_CURRICULUM, SequentialSampler, Subset
from scdataloader.sampling.splits import Split
from scdataloader.sampling.tally import Tally
from scdataloader.sampling.weights import Tree, class_tree
from scdataloader.training.config import DataConfig
from tests.ontology.term_tables import ontology
from tests.sampling.drawn import weigh

CLASSES = {"large": 60, "middle": 30, "small": 6, "unknown": 4}


@pytest.fixture
def files(tmp_path):
    """100 cells in two files: the first with a gene twice and a column more, the second with its counts in a layer."""
    labels = np.repeat(list(CLASSES), list(CLASSES.values()))
    genes = [f"ENSG{i:011d}" for i in range(10)]
    paths = []
    for number, part in enumerate((slice(0, None, 2), slice(1, None, 2))):
        n = len(labels[part])
        obs = pd.DataFrame({"cell_type": labels[part], "donor": "d"}, index=[f"c{i}" for i in range(n)])
        x = csr_matrix(np.full((n, 11), 2, np.float32))
        if number == 0:
            cells = ad.AnnData(x, obs=obs.assign(batch="b"), var=pd.DataFrame(index=[*genes, f"{genes[0]}.2"]))
        else:
            var = pd.DataFrame(index=[*genes, "ENSG00000000099"])
            cells = ad.AnnData(csr_matrix(x * 0.3), obs=obs, var=var, layers={"counts": x})
        paths.append(str(tmp_path / f"{number}.h5ad"))
        cells.write_h5ad(paths[-1])
    return paths


def weighed(files, split=None, **sampling):
    options = DataConfig(data=files, sampling=Sampling(by="cell_type", **sampling), split=split)
    drawn = options.sampling.describe(options.training_cells_of(options.open()))
    return class_table(drawn, drawn.num_samples).set_index("class")


def test_sources_say_what_they_hold(files):
    table = source_table(Collection.open(files))
    assert list(table["cells"]) == [50, 50]
    assert list(table["genes"]) == [11, 11]
    assert list(table["organism"]) == ["homo sapiens", "homo sapiens"]
    assert list(table["counts in"]) == ["X", "layers/counts"]
    assert list(table["matched"]) == [10, 11]
    assert list(table["duplicates"]) == [1, 0]


def test_columns_say_how_many_sources_have_them(files):
    table = column_table(Collection.open(files))
    assert table.to_dict("list") == {"column": ["cell_type", "donor", "batch"], "sources": [2, 2, 1]}


def test_uniform_weights_give_every_class_the_same(files):
    table = weighed(files, scheme="uniform", num_samples=900)
    assert list(table.index) == ["large", "middle", "small", "unknown"]
    assert list(table["cells"]) == [60, 30, 6, 4]
    np.testing.assert_allclose(table["natural"], [60 / 96, 30 / 96, 6 / 96, np.nan])
    np.testing.assert_allclose(table["target"], [1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(table["draws"], [300, 300, 300, 0])


def test_saturating_weights_are_those_of_the_formula(files):
    table = weighed(files, scheme="saturating", saturation=10)
    weights = np.array([10 * c / (10 + c) for c in (60, 30, 6)])
    np.testing.assert_allclose(table["target"][:3], weights / weights.sum())
    np.testing.assert_allclose(table["draws"].sum(), 96)


def test_unknown_labels_get_their_share_when_asked(files):
    table = weighed(files, scheme="natural", unknown_share=0.1)
    assert table["target"]["unknown"] == pytest.approx(0.1)
    assert table["draws"].sum() == pytest.approx(100)


def test_only_training_cells_are_counted(files):
    assert weighed(files, split=Split(val=0.2, test=0.3))["cells"].sum() == 50


def test_the_terminal_shows_it_all(files, capsys):
    assert main(["inspect", *files, "--by", "cell_type", "--scheme", "power", "--tau", "0", "--top", "1"]) == 0
    shown = capsys.readouterr().out
    assert "2 sources, 100 cells, 11 genes in the vocabulary" in shown
    assert "obs columns in all sources: cell_type, donor\n" in shown
    assert "obs columns in some: batch\n" in shown
    assert "cell_type: 3 classes, power, tau 0" in shown
    assert "… 2 other classes" in shown
    assert "66.67%" in shown
    assert "4 cells of unknown label left out" in shown
    assert "middle" not in shown


def test_a_split_is_given_by_its_options(files, capsys):
    assert main(["inspect", *files, "--by", "cell_type", "--split", "val=0.2", "test=0.3", "seed=1"]) == 0
    classes = capsys.readouterr().out.partition("cell_type: 3 classes")[2]
    assert sum(int(n) for n in re.findall(r"(?:large|middle|small|unknown) +│ +(\d+)", classes)) == 50
    assert main(["inspect", *files, "--split", "vall=0.2"]) == 2
    assert "did you mean 'val'" in capsys.readouterr().err


def epochs_of(files, sampling, epochs=(0,)):
    """Draws, repeated share and effective cells of epochs that are drawn with the seed of ``inspect``."""
    options = DataConfig(data=files, sampling=sampling)
    sampler = sampling.sampler(options.training_cells_of(options.open()))
    for epoch in epochs:
        tally = Tally(100)
        tally.add(sampler.draw(epoch, 0, sampler.num_samples))
        repeated, effective = f"{tally.repeated_share:.2%}", f"{tally.effective_cells:,.0f}"
        yield f"{tally.n_draws:,} draws, {repeated} repeated draws, {effective} effective cells"


def test_an_epoch_is_drawn_and_its_statistics_are_shown(files, capsys):
    def shown(*options):
        assert main(["inspect", *files, "--by", "cell_type", "--scheme", "uniform", *options]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "effective cells" in line]

    sampling = {"by": "cell_type", "scheme": "uniform", "num_samples": 90}
    (epoch,) = epochs_of(files, Sampling(**sampling))
    assert shown("--num_samples", "90") == [f"an epoch: {epoch}"]
    # 30 draws of each class: 60 cells once at most, 30 once each, 6 five times each
    (line,) = shown("--num_samples", "90", "--no-replacement")
    assert line.endswith(f"90 draws, {24 / 90:.2%} repeated draws, {90**2 / (30 + 30 + 150):.0f} effective cells")
    assert shown("--num_samples", "90", "--curriculum_epochs", "3") == [f"an epoch: {epoch}"]  # uniform from the start
    sampling["scheme"], late = "natural", AFTER_CURRICULUM
    first, last = epochs_of(files, Sampling(**sampling, curriculum_epochs=3), (0, late))
    assert shown("--num_samples", "90", "--curriculum_epochs", "3", "--scheme", "natural") == [
        f"epoch 0 of the curriculum: {first}",
        f"an epoch after the curriculum: {last}",
    ]


def test_of_a_long_epoch_only_the_first_draws_are_made(files, capsys, monkeypatch):
    monkeypatch.setattr(Tally.add_epoch, "__defaults__", (50,))
    assert main(["inspect", *files, "--by", "cell_type"]) == 0
    assert "an epoch: the first 50 of 96 draws, " in capsys.readouterr().out


class FirstCells:
    """A plan of a user's own, which says nothing but its draws."""

    def __init__(self, n: int = 5):
        self.n = n

    def sampler(self, cells, *, seed, global_batch_size):
        return Subset(sampler=SequentialSampler(self.n), rows=cells.rows)


def test_any_sampling_plan_can_be_inspected(files, tmp_path, capsys):
    config = tmp_path / "fit.yaml"
    plan = "{class_path: tests.commands.test_inspect.FirstCells, init_args: {n: 7}}"
    config.write_text(f"data: {{data: [{', '.join(files)}], sampling: {plan}}}")
    assert main(["inspect", "--config", str(config)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "an epoch: 7 draws, 0.00% repeated draws, 7 effective cells"


LABELS = {"CL:0000624": 40, "CL:0000625": 30, "CL:0000084": 20, "CL:0000236": 6, "": 4}


@pytest.fixture
def typed(files):
    """The same files, labelled with CD4 and CD8 T cells, T cells, B cells, and nothing."""
    for number, path in enumerate(files):
        cells = ad.read_h5ad(path)
        cells.obs["term"] = np.repeat(list(LABELS), list(LABELS.values()))[number::2]
        cells.write_h5ad(path)
    return files


def test_the_tree_has_every_class_below_what_it_is_a_kind_of(typed):
    options = DataConfig(
        data=typed, hierarchies=["term"], sampling=Sampling(by=["term", "donor"], scheme="tree", num_samples=960)
    )
    cells = options.training_cells_of(options.open())
    tree = class_tree(cells, options.sampling.columns)
    table = tree_table(tree, Ontology.from_guide("CL"), options.sampling.describe(cells), 960).set_index("name")
    t_cells = ["CD4-positive, alpha-beta T cell", "CD8-positive, alpha-beta T cell"]
    assert list(table.index) == ["lymphocyte", "T cell", "mature alpha-beta T cell", *t_cells, "B cell"]
    assert list(table["level"]) == [0, 1, 2, 3, 3, 1]
    assert list(table["cells"]) == [0, 20, 0, 40, 30, 6]
    assert list(table["cells below"]) == [96, 90, 70, 40, 30, 6]
    # two ways, by alpha-beta and by mature T cells, lead down to mature alpha-beta ones, and one is taken
    np.testing.assert_allclose(table["target"], [0, 1 / 4, 0, 1 / 8, 1 / 8, 1 / 2])
    np.testing.assert_allclose(table["target below"], [1, 1 / 2, 1 / 4, 1 / 8, 1 / 8, 1 / 2])
    np.testing.assert_allclose(table["draws below"], table["target below"] * 960)


def test_a_term_with_several_parents_is_shown_where_it_stands_and_counts_there():
    dag = ontology({"T:0": [], "T:1": ["T:0"], "T:2": ["T:1"], "T:3": ["T:2", "T:5"], "T:4": ["T:2"], "T:5": ["T:0"]})
    names = ["T:3", "T:4", "T:5", "T:2"]
    codes = np.repeat(np.arange(4), [5, 3, 2, 1]).astype(np.int32)
    tree, sampling = Tree.of(dag, names), Sampling(by="x", scheme="tree")
    table = tree_table(tree, dag, weigh(codes, 4, sampling, tree=tree), 11)
    # T:5 is above two classes, and T:2 above three
    assert list(table["term"]) == ["T:0", "T:5", "T:3", "T:2", "T:4"]
    assert list(table["level"]) == [0, 1, 2, 1, 2]
    assert list(table["cells below"]) == [11, 7, 5, 4, 3]
    np.testing.assert_allclose(table["target below"], [1, 1 / 2, 1 / 4, 1 / 2, 1 / 4])


def test_the_terminal_shows_the_tree_and_what_was_rolled_up(typed, capsys, tmp_path):
    assert main(["inspect", *typed, "--by", "term", "--scheme", "tree"]) == 0
    assert "term: 4 classes, tree" in capsys.readouterr().out
    assert main(["inspect", *typed, "--by", "term", "--scheme", "tree", "--tree"]) == 0
    shown = capsys.readouterr().out
    assert "term: 4 classes, tree" in shown
    assert "│ lymphocyte (CL:0000542) " in shown
    assert "│   T cell (CL:0000084) " in shown
    assert "│       CD4-positive, alpha-beta T cell (CL:0000624)" in shown
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data: {{data: [{', '.join(typed)}], hierarchies: [term], roll_up: {{term: {{min_cells: 35}}}},"
        " sampling: {by: [term], scheme: uniform}}"
    )
    assert main(["inspect", "--config", str(config), "--tree"]) == 0
    shown, noted = capsys.readouterr()
    assert "term: CL:0000625 (CD8-positive, alpha-beta T cell) → CL:0000791 (mature alpha-beta T cell)" in shown
    assert "term: rolled up to CL:0000791 (mature alpha-beta T cell): CL:0000625 (CD8-positive, alpha" in noted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tree"], "--tree shows the classes of a column; name it in --by"),
        (["--by", "term", "donor", "--tree"], "the classes of ['term', 'donor'] are not in one ontology; name one"),
        (["--by", "term", "donor", "--scheme", "tree"], "but none of ['term', 'donor'] has one"),
        (
            ["--by", "term", "--hierarchies", "tissue"],
            "--hierarchies names tissue, but classes are counted",
        ),
        (["--by", "cell_type", "--tree"], "are names ('large', 'middle', 'small')"),
        (["--by", "term", "--tree", "--hierarchies", "term=MONDO"], "'CL:0000236', 'CL:0000624'"),
    ],
)
def test_trees_that_cannot_be_shown_are_refused(typed, options, message, capsys):
    assert main(["inspect", *typed, *options]) == 2
    assert message in capsys.readouterr().err


def test_cell_factors_count_in_an_epoch(files, capsys):
    for path in files:
        cells = ad.read_h5ad(path)
        cells.obs["quality"] = (np.arange(cells.n_obs) == 0).astype(float)
        cells.write_h5ad(path)
    options = ["--by", "donor", "--cell_factors", "quality", "--num_samples", "10"]
    assert main(["inspect", *files, *options]) == 0
    (epoch,) = epochs_of(files, Sampling(by="donor", cell_factors=["quality"], num_samples=10))
    assert f"an epoch: {epoch}" in capsys.readouterr().out
    assert epoch.startswith("10 draws, 80.00% repeated")  # of the two cells with a factor


def test_a_configuration_names_the_data_and_options_override_it(files, tmp_path, capsys):
    config = tmp_path / "fit.yaml"
    config.write_text(
        f"model: Any\ndata:\n  data: {files}\n  labels: [cell_type]\n  batch_size: 7\n"
        "  sampling: {by: [donor], scheme: uniform}\n  split: {val: 0.5}\n"
    )
    assert main(["inspect", "--config", str(config)]) == 0
    assert "donor: 1 class, uniform" in capsys.readouterr().out
    assert main(["inspect", "--config", str(config), "--by", "cell_type", "donor", "--scheme", "natural"]) == 0
    assert "cell_type | donor: 3 classes, natural" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no data: name files"),
        (["nothing.h5ad"], "nothing.h5ad does not exist"),
        (["FILES", "--by", "celltype"], "no source has the obs column 'celltype'"),
        (["FILES", "--scheme", "uniform"], "by names no column"),
        (["FILES", "--organisms", "a=human", "mouse"], "NAME=VALUE pairs, got 'mouse'"),
        (["--config", "nothing.yaml"], "nothing.yaml"),
        (["--config", "model.yaml"], "model.yaml has no section data"),
        (["--config", "typo.yaml"], "schema"),
        (["--config", "broken.yaml"], "broken.yaml is not YAML"),
        (["FILES", "--by", "cell_type", "--block_size", "0"], "block_size must be 1 cell or more"),
        (["FILES", "--by", "cell_type", "--curriculum_epochs", "-1"], "curriculum_epochs must be 0 or more"),
        (["FILES", "--by", "cell_type", "--tau", "3", "--scheme", "power"], "tau must be from 0"),
    ],
)
def test_bad_input_is_told(options, said, files, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text("model: Any\n")
    (tmp_path / "typo.yaml").write_text("data: {data: 0.h5ad, sampling: {schema: uniform}}\n")
    (tmp_path / "broken.yaml").write_text("data: [\n")
    args = [word for option in options for word in (files if option == "FILES" else [option])]
    assert main(["inspect", *args]) == 2
    message = capsys.readouterr().err.rpartition("error: ")[2]
    assert said in message


def test_the_other_files_are_shown_and_what_is_wrong_with_each_is_listed(files, tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "0.h5ad").write_bytes(b"no HDF5")
    cells = ad.read_h5ad(files[0])[:, ::-1].copy()
    cells.var_names = [f"gene {i}" for i in range(11)]  # of no organism
    cells.write_h5ad(tmp_path / "named.h5ad")
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *files, str(tmp_path / "deep" / "0.h5ad"), "none.h5ad", str(tmp_path / "named.h5ad")])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert "2 sources, 100 cells" in shown
    listed = shown[shown.index("3 sources cannot be used:") :].splitlines()[1:4]
    wrong = ["deep/0.h5ad is not an HDF5 file", "none.h5ad does not exist", "no organism found for named.h5ad"]
    assert [text in line for text, line in zip(wrong, listed, strict=True)] == [True] * 3


def test_two_species_of_real_files(real_data, capsys):
    files = [str(real_data / name) for name in ("mouse_brain_merfish.h5ad", "human_placenta_cl22.h5ad")]
    organisms = ["--organisms", "human_placenta*=human", "mouse*=mouse"]
    assert main(["inspect", *files, "--by", "cell_type_ontology_term_id", "--top", "1", *organisms]) == 0
    shown = capsys.readouterr().out
    assert "2 sources, 1,220 cells, 19,479 genes in the vocabulary" in shown
    assert "CL:0000679" in shown
    assert "298" in shown
    assert "42 classes, natural" in shown


def test_many_sources_are_folded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        genes = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(4)])
        made = ad.AnnData(csr_matrix(np.full((3, 4), number + 1, np.float32)), var=genes)
        made.write_h5ad(f"{number}.h5ad")
    seen = {}
    for option in ("", "-v", "-q"):
        assert main(["inspect", "*.h5ad", "--top", "3", *filter(None, [option])]) == 0
        shown = capsys.readouterr()
        seen[option] = shown.err.count(" genes are in the vocabulary")
        assert "… 5 other sources" in shown.out
    assert seen == {"": 5, "-v": 8, "-q": 0}
