"""How Sphinx builds these pages: sphinx-build -W --keep-going -b html docs docs/_build/html."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the checkout, installed or not
sys.path.insert(0, str(Path(__file__).parent))

from option_tables import with_tables

import wsgi_busyguard

project = "wsgi_busyguard"
author = "The wsgi_busyguard developers"
copyright = f"2026, {author}"  # noqa: A001 (Sphinx's name for it)
version = release = wsgi_busyguard.__version__

extensions = ["sphinx.ext.autodoc"]
root_doc = "index"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_title = f"{project} {version}"
exclude_patterns = ["_build"]
smartquotes_action = "qe"  # not dashes: --threads is to stay what it is

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the signatures are long enough; the words say what is meant


TITLE = re.compile(r"\A(.+\n=+\n\n)")
FRAGMENTS = (
    "*Snippets without a file name are fragments. In them* ``application`` *is your WSGI app.*"
)


def with_note(page):
    """Return the page with a note under its title if it has snippets that are no whole files."""
    if re.search(r"code-block:: python\n\n", page):
        return TITLE.sub(rf"\1{FRAGMENTS}\n\n", page)
    return page


def setup(app):
    """Have the pages get their tables of options, and say which snippets are fragments."""

    def read(app, name, source):
        page = with_tables(source[0])
        source[0] = page if name == root_doc else with_note(page)

    app.connect("source-read", read)
