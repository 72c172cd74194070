"""The options of a guard as arguments of a command."""

from __future__ import annotations

from argparse import SUPPRESS
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..haproxy.runtime_api import targets
from ..options import FLAG, POLICY, TARGETS, from_texts
from ..policy import READY_POLICIES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from ..options import Option

#: What ``busyguard agent`` takes, a process outside of those that serve.
AGENT = "agent"


def add_options(
    parser: argparse.ArgumentParser, options: Iterable[Option], is_hidden: bool = False
) -> None:
    """Declare options as arguments. They stay texts, for :func:`read`; ``None`` if not given."""
    for option in options:
        kind: dict[str, Any] = {"metavar": option.kind.metavar}
        if option.kind is FLAG:
            kind = {"action": "store_const", "const": flipped(option)}
        elif option.kind is TARGETS:
            kind["action"] = "append"
        elif option.kind is POLICY:
            kind = {"choices": READY_POLICIES}
        text = SUPPRESS if is_hidden else _small(help_of(option)).replace("%", "%%")
        parser.add_argument(option.argument, dest=option.name, help=text, **kind)


def help_of(option: Option) -> str:
    """Return the help of a command's argument, as a sentence."""
    text = option.text.removesuffix(".")
    if option.kind is FLAG and option.default:
        text = f"Do not {_small(text)}"
    elif option.kind is not FLAG and option.shown:
        text = f"{text} ({option.shown})"
    return f"{text}."


def _small(text: str) -> str:
    """Return it as argparse says its own, which are no sentences; HAProxy keeps its name."""
    first = text[0] if text[1].isupper() else text[0].lower()
    return f"{first}{text[1:]}".removesuffix(".")


def flipped(option: Option) -> str:
    """Return the text that the argument of a flag stands for."""
    return "no" if option.default else "yes"


def read(face: str, texts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that the arguments of a command stand for, those that were given.

    :raises ValueError, TypeError, ImportError: for what is not valid, or is not taken there.
    """
    options = from_texts(face, texts, attrgetter("argument"))
    if "push" in options:
        targets(options["push"])
    return options
