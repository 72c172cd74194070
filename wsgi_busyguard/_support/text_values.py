"""What texts from outside stand for, and how they are shown."""

from __future__ import annotations

YES_OR_NO = {"1": True, "yes": True, "true": True, "on": True}
YES_OR_NO |= {"0": False, "no": False, "false": False, "off": False}


def plain(text: str) -> str:
    """Return a text with a ``?`` for each character that is an order or cannot be seen."""
    return "".join(c if c.isprintable() else "?" for c in text)


def yes_or_no(name: str, text: str) -> bool:
    """Return whether a text says yes.

    :raises ValueError: for what is neither yes nor no.
    """
    try:
        return YES_OR_NO[text.lower()]
    except KeyError:
        raise ValueError(f"{name} must be one of {', '.join(YES_OR_NO)}, not {text!r}") from None


def several(_name: str, text: str) -> tuple[str, ...]:
    """Return the items of a list with commas or spaces between."""
    return tuple(text.replace(",", " ").split())


def paths(name: str, text: str) -> tuple[str, ...]:
    """Return paths, likewise.

    :raises ValueError: for one that is none.
    """
    found = several(name, text)
    if not all(path.startswith("/") for path in found):
        raise ValueError(f"{name} must be paths that begin with '/', with commas between")
    return found
