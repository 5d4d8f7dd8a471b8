"""What happens when the package is imported: the rules of imports that import-linter and ruff cannot check."""

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "scdataloader"


def test_importing_the_package_loads_no_database_and_no_torch_and_opens_no_connection():
    files = sorted(path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py"))
    modules = [".".join(file.parts).removesuffix(".__init__") for file in files if file.stem != "__main__"]
    code = f"""
import importlib, sys

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise PermissionError(f"{{event}} {{args}}")

def assert_not_loaded(*names):
    loaded = sorted(set(names) & set(sys.modules))
    assert not loaded, f"loaded at import: {{loaded}}"

sys.addaudithook(refuse)
import scdataloader
assert "Geneformer" in dir(scdataloader.tokens)
assert_not_loaded("bionty", "django", "lamindb", "lamindb_setup", "torch")
for name in {modules!r}:
    importlib.import_module(name)
assert_not_loaded("bionty", "django", "lamindb", "lamindb_setup")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
