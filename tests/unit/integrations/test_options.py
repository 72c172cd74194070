from __future__ import annotations

import pytest

from wsgi_busyguard._support.import_by_name import named
from wsgi_busyguard.integrations.options import from_capitals, from_strings


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("slots", " 8 ", 8),
        ("max_queue", "inf", float("inf")),
        ("max_wait", "2", 2.0),
        ("expose_load", "On", True),
        ("ready_paths", "/a /b", ("/a", "/b")),
        ("live_paths", "/a, /b", ("/a", "/b")),
        ("on_free", "builtins.print", print),
        ("on_free", "builtins:print", print),
    ],
)
def test_a_string_may_be_written_in_several_ways(name, text, value):
    read = from_strings({name: text}, "the filter")[name]
    assert read == value
    assert type(read) is type(value)


def test_an_unknown_name_is_refused_with_the_nearest_right_one():
    with pytest.raises(ValueError, match=r"^the filter has no 'slot'; did you mean 'slots'\?$"):
        from_strings({"slot": "8"}, "the filter")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("thread", "slots"), ("path", "ready_paths"), ("queue_siz", "max_queue")],
)
def test_so_is_a_name_that_is_almost_that_of_another_server(typed, meant):
    with pytest.raises(ValueError, match=f"did you mean {meant!r}"):
        from_strings({typed: "8"}, "the filter")


def test_each_of_several_is_named():
    with pytest.raises(ValueError, match="BUSYGUARD has no 'SLOT'") as raised:
        from_capitals({"SLOT": 8, "MAXQUEUE": 9, "SLOTS": 8}, "BUSYGUARD")
    assert str(raised.value) == (
        "BUSYGUARD has no 'SLOT'; did you mean 'SLOTS'?;"
        " BUSYGUARD has no 'MAXQUEUE'; did you mean 'MAX_QUEUE'?"
    )


def test_where_nothing_is_near_all_are_named():
    with pytest.raises(ValueError, match="there are ADAPTIVE, BOARD, CHECK_ROOT, CLIENT_TIMEOUT"):
        from_capitals({"COLOUR": "green"}, "BUSYGUARD")


def test_small_letters_are_no_capitals():
    with pytest.raises(ValueError, match=r"has no 'slots'; did you mean 'SLOTS'\?"):
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
    with pytest.raises(TypeError, match=r"BUSYGUARD must be a dict, such as \{'SLOTS': 8\}, not 8"):
        from_capitals(8, "BUSYGUARD")


@pytest.mark.parametrize("name", ["print", "builtins.nothing", "no.such.module", ":x"])
def test_what_cannot_be_imported_is_an_import_error(name):
    with pytest.raises(ImportError):
        named(name)
