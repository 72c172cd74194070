"""Names that a server has for itself and the guard does not find, as in a version of tomorrow."""

from __future__ import annotations

import sys


class Renamed:
    """In place of an attribute of a server's class: the server finds it as ever, the guard not."""

    def __init__(self, kind, name):
        self._name = name
        self._original = getattr(kind, name, None)

    def __get__(self, thing, kind=None):
        if sys._getframe(1).f_globals.get("__name__", "").startswith("wsgi_busyguard"):
            raise AttributeError(f"renamed: {self._name}")
        if thing is not None and self._name in vars(thing):
            return vars(thing)[self._name]
        return self._original

    def __set__(self, thing, value):
        vars(thing)[self._name] = value
