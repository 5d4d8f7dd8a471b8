"""Runs the page of a report in headless Chromium, and its formulas in Node."""

import json
import re
import shutil
import subprocess
from html import unescape
from importlib.resources import files

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NODE = shutil.which("node")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
needs_node = pytest.mark.skipif(NODE is None, reason="no Node")

_RUNNER = """<script>addEventListener("load", () => {
  let result;
  try { result = (() => { %s })(); } catch (error) { result = { error: String(error) }; }
  const shown = document.createElement("pre");
  shown.id = "result";
  shown.textContent = JSON.stringify(result);
  document.body.append(shown);
});</script>"""


def chromium(path, *options):
    """Open a file; the output, after a check that the page has logged nothing to the console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", *options]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    done = subprocess.run([*command, profile, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console
    return done.stdout


def in_browser(html, folder, script):
    """What the body of a function in JavaScript returns on the page."""
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    path = folder / "tested.html"
    path.write_text(policy.sub("", html).replace("</body>", _RUNNER % script + "</body>"), encoding="utf-8")
    page = chromium(path, "--dump-dom")
    return json.loads(unescape(re.search(r'<pre id="result">(.*?)</pre>', page, re.DOTALL)[1]))


def in_node(expression):
    """The value of an expression with the formulas of the page."""
    script = files("scdataloader.reports").joinpath("page", "formulas.js").read_text(encoding="utf-8")
    code = f"{script}\nprocess.stdout.write(JSON.stringify({expression}))"
    return json.loads(subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, check=True).stdout)
