"""What is wrong with a plug-in, or with how it is named, is an error that names it."""

import importlib
import re
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest

import scdataloader as scd
from scdataloader import registry
from scdataloader.commands.main import main
from scdataloader.sampling.samplers import ShuffleSampler


@pytest.fixture
def entry_points(tmp_path, monkeypatch):
    """Installs a package that has nothing but entry points."""

    def install(name, **groups):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"[scdataloader.{group}]\n{lines}\n" for group, lines in groups.items()]
        (folder / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(str(tmp_path))
        registry._entry_points.cache_clear()

    yield install
    registry._entry_points.cache_clear()


@pytest.fixture
def registering():
    """What a test registers is forgotten after it."""
    before = dict(registry._registered)
    yield scd.register
    registry._registered.clear()
    registry._registered.update(before)


def toy(module, name):
    return getattr(importlib.import_module(f"toyplugin.{module}"), name)


# ------------------------------------------------------------------------------------------------------------- names


def test_a_name_of_two_packages_is_refused_when_it_is_used(entry_points):
    entry_points("other-plugin", sources="toy:// = other:open_toy")
    with pytest.raises(ValueError, match=r"'toy://' is registered twice.*uninstall") as error:
        scd.Collection.open("toy://30x50")
    for word in ("toyplugin.source:open_toy of scdataloader-toyplugin", "other:open_toy of other-plugin"):
        assert word in str(error.value)
    assert len(registry.load("ontology", "TOY")("TOY")) == 5  # the rest works


def test_a_name_of_the_package_itself_is_refused_when_it_is_used(entry_points):
    entry_points("other-plugin", sources="*.cells = other:open_cells")
    importlib.reload(scd)  # as a new process does: it must start
    with pytest.raises(ValueError, match=r"'\*\.cells' is registered twice.*other-plugin"):
        registry.load("source", "*.cells")


def test_a_name_registered_again_is_refused(registering):
    registering("collate", "mine", toy("collates", "RankTokens"))
    registering("collate", "mine", toy("collates", "RankTokens"))  # the same once more: a module that is reloaded
    with pytest.raises(ValueError, match=r"collate 'mine' is registered already.*RankTokens"):
        registering("collate", "mine", toy("collates", "WithObs"))
    registering("source", "toy://", toy("source", "open_toy"))
    with pytest.raises(ValueError, match=r"'toy://' is registered twice.*open_toy.*scdataloader-toyplugin"):
        scd.Collection.open("toy://30x50")


def test_an_entry_point_that_cannot_be_imported_is_named():
    message = r"'gone://'.*toyplugin\.no_such_module:open_gone.*No module named"
    with pytest.raises(ImportError, match=message):
        scd.Collection.open("gone://a")
    assert len(scd.Collection.open("toy://30x50")) == 30


@pytest.mark.parametrize("text", ["1 / 0", "raise RuntimeError('no licence')", "def f(:", "import no_such_package"])
def test_a_module_that_fails_is_named(entry_points, tmp_path, text):
    (tmp_path / "fails_on_import.py").write_text(text)
    entry_points("failing-plugin", sources="fails:// = fails_on_import:open_it")
    with pytest.raises(ImportError, match=r"'fails://'.*fails_on_import:open_it") as error:
        scd.Collection.open("fails://a")
    assert error.value.__cause__ is not None
    assert len(scd.Collection.open("toy://30x50")) == 30


def test_the_command_line_names_the_entry_point_in_one_line(capsys):
    assert main(["inspect", "gone://a"]) == 2
    shown = capsys.readouterr().err
    assert re.search(r"error: .*gone://.*toyplugin\.no_such_module:open_gone", shown)
    assert "Traceback" not in shown


def test_unknown_names_show_the_nearest():
    with pytest.raises(ValueError, match=r"tou://30x50.*toy://"):
        scd.Collection.open("tou://30x50")
    with pytest.raises(LookupError, match=r"'donor-set'.*did you mean 'donor-sets'"):
        scd.DataModule("toy://30x50", sampling="donor-set").setup("fit")
    with pytest.raises(LookupError, match=r"'rank-token'.*did you mean 'rank-tokens'"):
        scd.DataModule("toy://30x50", collate="rank-token").train_dataloader()
    with pytest.raises((LookupError, ValueError), match=r"'TOI'.*TOY"):
        scd.DataModule("toy://30x50", labels=["cell_type"], hierarchies={"cell_type": "TOI"}).classes  # noqa: B018


@pytest.mark.parametrize("name", ["ftp://bucket/a.h5ad", "hdfs://host/a.h5ad"])
def test_addresses_of_other_machines_say_what_to_do(name):
    with pytest.raises(ValueError, match=f"{name} is not a path on this machine.*download or mount"):
        scd.Collection.open(name)


def test_an_address_that_the_plugin_refuses_is_one_line_of_the_command_line(capsys):
    assert main(["inspect", "toy://30by50"]) == 2
    shown = capsys.readouterr().err
    assert "error: toy://30by50 is not an address of toy cells" in shown
    assert "Traceback" not in shown


# -------------------------------------------------------------------------------------- sources, by their members


OPENED = {
    "n_obs": "n_obs.*str",
    "fingerprint": "fingerprint.*NoneType",
    "var": "var.*list",
    "obs_columns": "lacks obs_columns",
    "opener": "must return sources; got DataFrame",
    "none": "must return.*sources.*NoneType",
}


@pytest.mark.parametrize("member", OPENED)
def test_a_source_that_breaks_the_protocol_is_refused_when_it_is_opened(member):
    with pytest.raises(TypeError, match=f"bad://.*{OPENED[member]}|{OPENED[member]}") as error:
        scd.Collection.open(f"bad://{member}")
    assert "bad://" in str(error.value)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("obs", r"bad://obs.*obs\(.*20 rows; got 19"),
        ("obs as dict", r"bad://obs as dict.*obs\(.*dict"),
    ],
)
def test_obs_that_breaks_the_protocol_is_named(member, message):
    collection = scd.Collection.open(toy("broken", "Bad")(member))
    with pytest.raises((TypeError, ValueError), match=message):
        collection.obs(["age"])


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("read", r"bad://read.*read\(.*CSRRows.*csr_matrix"),
        ("read one less", r"bad://read one less.*read\(.* (3|20) cells; got (2|19)"),
        ("read nothing", r"bad://read nothing.*read\(.*CSRRows.*None"),
    ],
)
def test_a_read_that_breaks_the_protocol_is_named(member, message):
    collection = scd.Collection.open(toy("broken", "Bad")(member))
    with pytest.raises((TypeError, ValueError), match=message):
        collection.read(np.array([3, 0, 7]))
    loader = scd.Loader(collection, ShuffleSampler(20), scd.Dense(), batch_size=3)
    with pytest.raises((TypeError, ValueError), match=message):
        list(loader)


# ------------------------------------------------------------------------------------------------- what collates want


class Wants:
    def __init__(self, obs=(), matrices=()):
        self.obs, self.matrices = obs, matrices

    def __call__(self, batch, rng):
        return {"row": batch.row}


def test_a_column_that_a_source_lacks_is_named(tmp_path):
    loader = (scd.Collection.open("toy://30x50"), ShuffleSampler(30))
    with pytest.raises(KeyError, match=r"toy://30x50.*'agee'.*age"):
        list(scd.Loader(*loader, Wants(obs=["agee"]), batch_size=3))


def test_a_matrix_that_a_source_lacks_is_named(tmp_path):
    (tmp_path / "a.toy").write_text("toy://30x50")
    rich = (scd.Collection.open(tmp_path / "a.toy"), ShuffleSampler(30))
    with pytest.raises(KeyError, match=r"toy://30x50.*layers/doubble.*layers/double"):
        list(scd.Loader(*rich, Wants(matrices=["layers/doubble"]), batch_size=3))
    plain = (scd.Collection.open("toy://30x50"), ShuffleSampler(30))
    with pytest.raises((KeyError, TypeError, ValueError), match=r"toy://30x50.*layers/double"):
        list(scd.Loader(*plain, Wants(matrices=["layers/double"]), batch_size=3))


def test_columns_given_as_one_text_are_refused():
    with pytest.raises(TypeError, match=r"obs.*'age'"):
        list(scd.Loader(scd.Collection.open("toy://30x50"), ShuffleSampler(30), Wants(obs="age"), batch_size=3))


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (lambda start, stop: list(range(start, stop)), "got list"),
        (lambda start, stop: np.arange(start, stop, dtype=np.int32), "got int32"),
        (lambda start, stop: np.arange(start, stop + 1), r"must return \d+ int64 .* got int64 of shape"),
    ],
)
def test_draws_that_break_the_protocol_are_named(drawn, message):
    class Broken:
        num_samples = 30

        def draw(self, epoch, start, stop):
            return drawn(start, stop)

    loader = scd.Loader(scd.Collection.open("toy://30x50"), Broken(), Wants(), batch_size=3)
    with pytest.raises(TypeError, match=rf"Broken: draw\(0, .*{message}"):
        list(loader)


def test_too_few_batches_are_named():
    class Broken(Wants):
        def many(self, cells, batch_size):
            return []

    loader = scd.Loader(scd.Collection.open("toy://30x50"), ShuffleSampler(30), Broken(), batch_size=3)
    with pytest.raises(TypeError, match=r"Broken.*many\(\) must return \d+ batches; got 0"):
        list(loader)


def test_a_plan_that_is_none_is_refused():
    with pytest.raises(TypeError, match=r"sampling.*sampler.*int"):
        scd.DataModule("toy://30x50", sampling=3).setup("fit")


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.filterwarnings("ignore:Total length of `list`", "ignore:You defined a `validation_step`")
def test_a_checkpoint_without_our_key_is_refused(tmp_path):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = pl.Trainer(**quiet, max_epochs=1, enable_checkpointing=False)
    loader = scd.Loader(
        scd.Collection.open("toy://30x50"), ShuffleSampler(30), toy("collates", "RankTokens")(), batch_size=10
    )
    trainer.fit(toy("model", "Notes")(), loader)
    trainer.save_checkpoint(Path(tmp_path) / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt.*'scdataloader'"):
        scd.DataModule("toy://30x50", checkpoint=str(tmp_path / "a.ckpt")).setup("predict")
    dm = scd.DataModule("toy://30x50", labels=["cell_type"], collate="rank-tokens", batch_size=10)
    with pytest.raises(ValueError, match="'scdataloader'"):
        pl.Trainer(**quiet, max_epochs=2, enable_checkpointing=False).fit(
            toy("model", "Notes")(), dm, ckpt_path=tmp_path / "a.ckpt"
        )
