"""Code of the documentation that needs the environment scvi."""

import pytest

from tests import pages


@pytest.mark.usefixtures("lamin")  # a tutorial registers files in the connected instance
@pytest.mark.parametrize("page", pages.pages_of("scvi"))
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.run(page, "scvi", monkeypatch)
