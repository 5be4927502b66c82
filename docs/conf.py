"""How Sphinx builds these pages: ``make docs`` calls it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import tensair_dask

project = "tensair_dask"
author = "the tensair_dask developers"
copyright = f"2026, {author}"
version = release = tensair_dask.__version__

extensions = [
    "myst_parser",  # pages in Markdown
    "numpydoc",  # docstrings as they are written here
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_click",  # the command line, from the commands themselves
    "tables_of_the_package",  # settings, series and benchmarks, from where they are
]
exclude_patterns = ["_ext", "_templates"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "groupwise"
autodoc_typehints = "none"  # numpydoc's "Parameters" tell them in words
smartquotes = False  # an option such as --limit begins with no dash
default_role = "code"  # `name` in a docstring
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# What dask_sphinx_theme builds on. That one counts visits for Dask's site, has the menu
# of that site, and fetches its fonts; these pages load nothing from elsewhere.
html_theme = "sphinx_book_theme"
html_title = "tensair_dask"
html_static_path = ["_static"]
html_css_files = ["tensair.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "navigation_with_keys": False,
    "navbar_persistent": [],  # a second field to search
}
