"""Configuration of Sphinx. Neither the build nor a reader of its pages fetches anything."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for commands in notebooks

import scdataloader  # noqa: E402

project = "scdataloader"
version = release = scdataloader.__version__
copyright = "the authors of scdataloader"  # noqa: A001

extensions = [
    "benchmarks",
    "changelog",
    "commands",
    "reference",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_extensions"]

# Pages. Headings are anchors as on GitHub, so that the same links work there.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_links_external_new_tab = False
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "site" / ".notebooks")
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_merge_streams = True

# Reference. Docstrings are in Google's style; `name` in backticks is code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False
autodoc_mock_imports = ["cellarium", "jax", "scprint2", "scvi", "tiledbsoma", "transformers"]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"
nitpicky = True
suppress_warnings = ["ref.python"]  # two classes of one name: the first is meant
# Names of other packages have no page here.
nitpick_ignore_regex = [(r"py:.*", r"(?!scdataloader\.).*")]

html_theme = "pydata_sphinx_theme"
html_title = f"scdataloader {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {page: [] for page in ("index", "faq", "benchmarks")}  # they have no pages below them
html_theme_options = {
    "logo": {"text": "scdataloader"},
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 8,
    "navigation_with_keys": False,
    "collapse_navigation": True,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
