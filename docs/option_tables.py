"""The tables of options in these pages, made of the one list: see wsgi_busyguard/options.py.

A page says where one stands in a comment: ``.. table of options: gunicorn``.
"""

from __future__ import annotations

import re

from wsgi_busyguard.options import FACES, FLAG, GUNICORN, OPTIONS, Option, taken_by

MARK = re.compile(r"^\.\. table of options: (\w+)$", re.MULTILINE)

CALLED = {
    "middleware": "BusyGuard, settings, ini files",
    "prefork": "``guarded_app()`` of uWSGI and mod_wsgi",
    "twisted": "``guarded_site()``",
    "front": "waitress and cheroot",
    "gunicorn": "gunicorn's workers",
    "serve": "``busyguard serve``",
    "twist": "``twist busyguard``",
}


def with_tables(page: str) -> str:
    """Return the page with the tables that its comments ask for."""
    return MARK.sub(lambda mark: table(mark[1]), page)


def table(face: str) -> str:
    """Return the table of the options that a face takes, as it spells them; or of all."""
    if face == "refused":
        return _refused()
    if face == "all":
        head = "``keyword``, variable, argument", "default", "what it is"
        rows = [(_everywhere(one), _default(one), one.text) for one in OPTIONS.values()]
    else:
        head = "name", "default", "what it is"
        rows = [(_spelled(face, one), _default(one), one.text) for one in taken_by(face)]
    return _list_table(head, rows, "32 14 54")


def _refused() -> str:
    rows = []
    for option in OPTIONS.values():
        for reason in dict.fromkeys(option.refused.values()):
            faces = [face for face in FACES if option.refused.get(face) == reason]
            rows.append((f"``{option.name}``", ", ".join(map(CALLED.get, faces)), reason))
    return _list_table(("option", "refused by", "why, and what to do"), rows, "16 32 52")


def _spelled(face: str, option: Option) -> str:
    return f"``{option.variable if face == GUNICORN else _argument(option)}``"


def _argument(option: Option) -> str:
    return option.argument if option.kind is FLAG else f"{option.argument} {option.kind.metavar}"


def _everywhere(option: Option) -> str:
    names = [f"``{option.name}``"]
    if option in taken_by(GUNICORN):
        names.append(f"``{option.variable}``")
    if option in taken_by("serve"):
        names.append(f"``{option.argument}``")
    return ", ".join(names)


def _default(option: Option) -> str:
    return f"``{option.shown}``" if option.shown else "none"


def _list_table(head: tuple[str, ...], rows: list[tuple[str, ...]], widths: str) -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in [head, *rows]:
        lines += [f"   {'*' if n == 0 else ' '} - {cell}" for n, cell in enumerate(row)]
    return "\n".join(lines)
