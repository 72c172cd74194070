from __future__ import annotations

import pytest

from wsgi_busyguard import BusyGuard
from wsgi_busyguard._support.imported import named
from wsgi_busyguard.integrations.options import Unknown, from_capitals, from_strings
from wsgi_busyguard.options import MIDDLEWARE, taken_by

# What an ini file would have for each keyword, and what that is.
STRINGS = {
    "slots": ("8", 8),
    "max_queue": ("inf", float("inf")),
    "max_wait": ("0.5", 0.5),
    "ready": ("exact", "exact"),
    "patience": ("3", 3.0),
    "check_root": ("false", False),
    "ready_paths": ("/healthz /readyz", ("/healthz", "/readyz")),
    "live_paths": ("/alive,/livez", ("/alive", "/livez")),
    "on_busy": ("builtins:print", print),
    "on_free": ("builtins.print", print),
    "refusal": ("wsgiref.simple_server:demo_app", None),
    "retry_after": ("2", 2),
    "client_timeout": ("2.5", 2.5),
    "expose_load": ("On", True),
    "board": ("/run/shop.board", "/run/shop.board"),
    "trust_queue_header": ("yes", True),
    "push": (
        "unix:/run/haproxy.sock#app/web1 tcp:10.0.0.1:9999#app/web1",
        ("unix:/run/haproxy.sock#app/web1", "tcp:10.0.0.1:9999#app/web1"),
    ),
    "client_timeout_header": ("X-Client-Timeout-Ms", "X-Client-Timeout-Ms"),
    "dry_run": ("1", True),
}


# What a guard opens when it is made.
OPENS = ("board", "push")


def test_there_is_a_string_for_each_keyword():
    names = {option.name for option in taken_by(MIDDLEWARE)}
    assert set(STRINGS) | {"monitor"} == names


@pytest.mark.parametrize("name", STRINGS)
def test_a_string_becomes_what_the_signature_wants(name):
    text, value = STRINGS[name]
    converted = from_strings({name: f" {text} "}, "the filter")[name]
    if value is None:
        assert callable(converted)
    else:
        assert converted == value
        assert type(converted) is type(value)


def test_a_guard_takes_what_the_strings_become():
    strings = {name: text for name, (text, _) in STRINGS.items() if name not in OPENS}
    BusyGuard(print, **from_strings(strings, "the filter"))


def test_an_unknown_name_is_refused_with_the_nearest_right_one():
    with pytest.raises(Unknown, match=r"^the filter has no 'slot'; did you mean 'slots'\?$"):
        from_strings({"slot": "8"}, "the filter")


def test_each_of_several_is_named():
    with pytest.raises(Unknown) as raised:
        from_capitals({"SLOT": 8, "MAXQUEUE": 9, "SLOTS": 8}, "BUSYGUARD")
    assert str(raised.value) == (
        "BUSYGUARD has no 'SLOT'; did you mean 'SLOTS'?;"
        " BUSYGUARD has no 'MAXQUEUE'; did you mean 'MAX_QUEUE'?"
    )


def test_where_nothing_is_near_all_are_named():
    with pytest.raises(Unknown, match="there are BOARD, CHECK_ROOT, CLIENT_TIMEOUT"):
        from_capitals({"COLOUR": "green"}, "BUSYGUARD")


def test_small_letters_are_no_capitals():
    with pytest.raises(Unknown, match=r"has no 'slots'; did you mean 'SLOTS'\?"):
        from_capitals({"slots": 8}, "BUSYGUARD")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("slots", "slots must be a whole number of at least 1, not 'many'"),
        ("max_wait", "max_wait must be a number of seconds, not 'many'"),
        ("retry_after", "retry_after must be a whole number of at least 0, not 'many'"),
    ],
)
def test_a_number_must_be_one(name, words):
    with pytest.raises(ValueError, match=words):
        from_strings({name: "many"}, "the filter")


def test_a_flag_must_be_one():
    with pytest.raises(ValueError, match=r"dry_run must be one of .*, not 'perhaps'"):
        from_strings({"dry_run": "perhaps"}, "the filter")


def test_capitals_take_values_as_they_are_and_objects_by_name():
    said = {"SLOTS": 8, "ON_BUSY": "builtins.print", "ON_FREE": repr, "READY_PATHS": ["/x"]}
    assert from_capitals(said, "BUSYGUARD") == {
        "slots": 8,
        "on_busy": print,
        "on_free": repr,
        "ready_paths": ["/x"],
    }


def test_settings_are_a_dict():
    with pytest.raises(TypeError, match=r"BUSYGUARD must be a dict, as \{'SLOTS': 8\}, not 8"):
        from_capitals(8, "BUSYGUARD")


@pytest.mark.parametrize("name", ["print", "builtins.nothing", "no.such.module", ":x"])
def test_what_cannot_be_imported_is_an_import_error(name):
    with pytest.raises(ImportError):
        named(name)
