"""Code of the documentation that needs the environment scvi."""

from pathlib import Path

import pytest

from tests import pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all pages: TileDB resolves relative paths by the first working directory of the process."""
    return tmp_path_factory.mktemp("pages")


@pytest.mark.usefixtures("lamin")  # a tutorial registers files in the connected instance
@pytest.mark.parametrize("page", pages.pages_of("scvi"))
def test_code_runs(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    pages.run(page, "scvi", monkeypatch)
