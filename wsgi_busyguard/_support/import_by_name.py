"""What a text names."""

from __future__ import annotations

import importlib
from typing import Any


def named(value: Any) -> Any:
    """Return what ``package.module.name`` or ``package.module:name`` names; all else as it is."""
    if not isinstance(value, str):
        return value
    module, _, name = value.partition(":") if ":" in value else value.rpartition(".")
    if not module or not name:
        raise ImportError(f"expected package.module.name, not {value!r}")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ImportError(f"{module} has no {name!r}") from error
    return found
