"""From settings and ini files to the keyword arguments of BusyGuard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._support.import_by_name import named
from .._support.spelling import nearest
from ..options import MIDDLEWARE, OBJECT, OPTIONS, from_texts, refusal, taken_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def from_capitals(
    settings: Mapping[str, Any], where: str, more: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the keyword arguments that settings in capitals stand for: ``{"SLOTS": 8}``.

    Strings stand for what they name where an object is wanted: ``{"ON_BUSY": "mysite.busy"}``.

    :param where: what the settings are called in errors.
    :param more: further keys that are allowed, and left out.
    :raises ValueError: for keys that there are not.
    :raises ImportError: for names that cannot be imported.
    """
    if not hasattr(settings, "items"):
        raise TypeError(f"{where} must be a dict, such as {{'SLOTS': 8}}, not {settings!r}")
    wrong = complaints(settings, where, more)
    if wrong:
        raise ValueError("; ".join(wrong))
    return {
        key.lower(): named(value) if OPTIONS[key.lower()].kind is OBJECT else value
        for key, value in settings.items()
        if key not in more
    }


def from_strings(strings: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return the keyword arguments that the strings of an ini file stand for.

    :param where: what the strings are in, for errors.
    :raises ValueError, TypeError, ImportError: for names that there are not, and for strings that
        are not valid.
    """
    wrong = complaints(strings, where, spell=str)
    if wrong:
        raise ValueError("; ".join(wrong))
    return from_texts(MIDDLEWARE, strings, lambda option: option.name)


def complaints(
    given: Iterable[str],
    where: str,
    more: Iterable[str] = (),
    spell: Callable[[str], str] = str.upper,
) -> list[str]:
    """Name the nearest right key for each that there is not, or say why it is not taken here."""
    names = sorted([*(spell(option.name) for option in taken_by(MIDDLEWARE)), *more])
    messages = []
    for key in given:
        if key not in names:
            near = nearest(str(key), names)
            meant = f"did you mean {near!r}?" if near else f"there are {', '.join(names)}"
            reason = refusal(MIDDLEWARE, str(key).lower(), f"{key} in {where}")
            messages.append(reason or f"{where} has no {key!r}; {meant}")
    return messages
