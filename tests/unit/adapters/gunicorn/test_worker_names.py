"""A worker class that there is not: gunicorn is to tell it in one line."""

from __future__ import annotations

import pytest

from wsgi_busyguard.adapters import gunicorn


def test_a_worker_class_that_there_is_not_is_told_with_those_that_there_are():
    with pytest.raises(RuntimeError) as caught:  # which gunicorn prints in one line, and ends
        getattr(gunicorn, "GuardedThread")  # noqa: B009
    assert str(caught.value) == (
        "no worker class 'GuardedThread' in wsgi_busyguard.adapters.gunicorn:"
        " there are GuardedGevent, GuardedSync, GuardedThreads"
    )


def test_an_import_of_it_is_an_import_error():
    with pytest.raises(ImportError, match="there are GuardedGevent"):
        from wsgi_busyguard.adapters.gunicorn import GuardedGthread  # noqa: F401


def test_any_other_name_is_an_attribute_that_is_missing():
    assert not hasattr(gunicorn, "nothing")
