"""The tables of options are made of the one list when the docs are built: is each of them there?"""

from __future__ import annotations

import re
import sys

import pytest
from support.processes import ROOT

from wsgi_busyguard.options import FLAG, GUNICORN, OPTIONS, SERVE, taken_by

sys.path.insert(0, str(ROOT / "docs"))
from option_tables import MARK, with_tables


def page(name):
    return with_tables((ROOT / "docs" / name).read_text())


@pytest.mark.parametrize("name", ["options.rst", "gunicorn.rst", "cli.rst"])
def test_a_page_has_its_tables(name):
    assert MARK.search((ROOT / "docs" / name).read_text())
    assert not MARK.search(page(name))


def test_the_settings_have_every_option_its_default_and_who_refuses_it():
    text = page("options.rst")
    for option in OPTIONS.values():
        assert f"- ``{option.name}``" in text
        assert f"     - {option.text}\n" in text
        for reason in option.refused.values():
            assert f"     - {reason}" in text
    for name in (f"``{option.variable}``" for option in taken_by(GUNICORN)):
        assert name in text


def test_gunicorns_page_has_every_variable_and_the_commands_page_every_argument():
    variables = re.findall(
        r"^   \* - ``(BUSYGUARD_\w+)``\n     - (\S+)", page("gunicorn.rst"), re.M
    )
    assert dict(variables) == {
        option.variable: f"``{option.shown}``" if option.shown else "none"
        for option in taken_by(GUNICORN)
    }
    arguments = re.findall(r"^   \* - ``(--[\w-]+)( \S+)?``", page("cli.rst"), re.M)
    assert arguments == [
        (option.argument, "" if option.kind is FLAG else f" {option.kind.metavar}")
        for option in taken_by(SERVE)
    ]
