from __future__ import annotations

import textwrap
from importlib.metadata import EntryPoint

import pytest
from webob import Request

from wsgi_busyguard import BusyGuard
from wsgi_busyguard.integrations.paste import filter_app_factory, filter_factory

INI = """
    [app:shop]
    paste.app_factory = paste_shop:app_factory

    [pipeline:main]
    pipeline = busyguard shop

    [filter:busyguard]
    {use}
    slots = 8
    max_wait = 0.5
    ready_paths = /healthz /ready
    expose_load = true
"""


def shop(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"shop"]


@pytest.fixture
def ini(tmp_path, monkeypatch):
    """Write an ini file; return its URI."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "paste_shop.py").write_text(
        textwrap.dedent("""
        def app(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"shop"]

        def app_factory(global_conf):
            return app
        """)
    )

    def ini(text):
        (tmp_path / "shop.ini").write_text(textwrap.dedent(text))
        return f"config:{tmp_path / 'shop.ini'}"

    return ini


WAYS = {
    "filter_app_factory": "paste.filter_app_factory ="
    " wsgi_busyguard.integrations.paste:filter_app_factory",
    "filter_factory": "paste.filter_factory = wsgi_busyguard.integrations.paste:filter_factory",
}


@pytest.mark.parametrize("use", WAYS.values(), ids=WAYS)
def test_an_ini_file_puts_the_guard_in_front(ini, use):
    deploy = pytest.importorskip("paste.deploy")
    app = deploy.loadapp(ini(INI.format(use=use)))
    assert isinstance(app, BusyGuard)
    assert app.monitor.load.capacity == 8
    assert Request.blank("/").get_response(app).text == "shop"
    assert Request.blank("/ready").get_response(app).text.startswith("free queued=0 ")


@pytest.mark.parametrize("group", ["paste.filter_app_factory", "paste.filter_factory"])
def test_the_entry_points_lead_there(group):
    """Read from setup.cfg, whatever is installed."""
    import configparser
    import pathlib

    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(__file__).parents[2] / "setup.cfg")
    name, _, value = setup["options.entry_points"][group].strip().partition(" = ")
    factory = EntryPoint(name, value, group).load()
    assert name == "main"
    made = factory({}, slots="2") if group == "paste.filter_factory" else None
    guard = made(shop) if made else factory(shop, {}, slots="2")
    assert guard.monitor.load.capacity == 2


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(
        ValueError, match="the filter busyguard has no 'slot'; did you mean 'slots'"
    ):
        filter_factory({}, slot="8")
    with pytest.raises(
        ValueError, match="the filter busyguard has no 'slot'; did you mean 'slots'"
    ):
        filter_app_factory(shop, {}, slot="8")


def test_a_wrong_value_is_refused():
    with pytest.raises(ValueError, match="slots must be at least 1, not 0"):
        filter_app_factory(shop, {}, slots="0")


def test_what_is_global_is_not_for_the_guard():
    assert filter_app_factory(shop, {"debug": "true", "here": "/srv"}).monitor
