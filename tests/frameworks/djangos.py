"""Folders with old and new versions of Django."""

from __future__ import annotations

import pathlib

from support.versions import folders

ROOT = pathlib.Path(__file__).parents[2]

# The two with long-term support, and whatever is newest for this Python.
VERSIONS = ["4.2", "5.2", "newest"]


def path_to(version, tmp_path_factory):
    """Return the folder that has a version of Django."""
    wanted = "Django" if version == "newest" else f"Django~={version}.0"
    return folders(tmp_path_factory, [wanted])[wanted]
