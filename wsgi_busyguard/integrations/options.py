"""From settings to the keyword arguments of BusyGuard, whose signature says what there is."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from ..middleware import BusyGuard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: What can be said to a guard, with how its signature spells the type.
KEYWORDS: dict[str, str] = {
    name: str(parameter.annotation)
    for name, parameter in inspect.signature(BusyGuard).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
}

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Unknown(ValueError):
    """Raised for settings that there are not."""


def from_capitals(
    settings: Mapping[str, Any], where: str, more: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the keyword arguments that settings in capitals stand for: ``{"SLOTS": 8}``.

    Strings stand for what they name where an object is wanted: ``{"ON_BUSY": "mysite.busy"}``.

    :param where: what the settings are called in errors.
    :param more: further keys that are allowed, and left out.
    :raises Unknown: for keys that there are not.
    :raises ImportError: for names that cannot be imported.
    """
    if not hasattr(settings, "items"):
        raise TypeError(f"{where} must be a dict, as {{'SLOTS': 8}}, not {settings!r}")
    known = {name.upper() for name in KEYWORDS}
    wrong = complaints(settings, where, [*known, *more])
    if wrong:
        raise Unknown("; ".join(wrong))
    return {
        key.lower(): named(value) if is_object(key.lower()) else value
        for key, value in settings.items()
        if key in known
    }


def from_strings(strings: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return the keyword arguments that the strings of an ini file stand for.

    :param where: what the strings are in, for errors.
    :raises Unknown: for names that there are not.
    :raises ValueError: for strings that cannot be meant.
    """
    wrong = complaints(strings, where, KEYWORDS)
    if wrong:
        raise Unknown("; ".join(wrong))
    return {name: _converter(name)(name, text.strip()) for name, text in strings.items()}


def complaints(given: Iterable[str], where: str, known: Iterable[str]) -> list[str]:
    """Return what is to be said about keys that there are not, each with the nearest right name."""
    names = sorted(known)
    said = []
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(str(key).lower(), [n.lower() for n in names], 1, 0.5)
            right = [name for name in names if name.lower() in near] or names
            meant = f"did you mean {right[0]!r}?" if near else f"there are {', '.join(right)}"
            said.append(f"{where} has no {key!r}; {meant}")
    return said


def is_object(name: str) -> bool:
    """Return whether a keyword takes an object that a string can only name."""
    return any(kind in KEYWORDS[name] for kind in ("Listener", "WSGIApplication", "Monitor"))


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


def _converter(name: str) -> Callable[[str, str], Any]:
    """Return what makes a value of a string, by the type in the signature."""
    kind = KEYWORDS[name]
    if is_object(name):
        return lambda _, text: named(text)
    if "Iterable[str]" in kind:
        return lambda _, text: text.replace(",", " ").split()
    for word, convert in (("bool", _flag), ("float", _number), ("int", _number)):
        if word in kind:
            return convert
    return lambda _, text: text


def _flag(name: str, text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError(f"{name} must be true or false, not {text!r}")


def _number(name: str, text: str) -> float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f"{name} must be a number, not {text!r}")
