"""What the operator says in ``BUSYGUARD_*``: read from the environment, in the master.

The options themselves are in :mod:`wsgi_busyguard.options`. Knows names and values; no server.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..._support.import_by_name import named
from ..._support.spelling import nearest
from ...haproxy.runtime_api import targets
from ...load import DISABLE
from ...options import GUNICORN, OBJECT, PREFIX, GuardOptions, is_disabled, refusal, taken_by

if TYPE_CHECKING:
    from collections.abc import Mapping

# What Kubernetes puts into the environment for a Service whose name begins with "busyguard".
_SERVICE_VARIABLE = re.compile(r"(?:[A-Z0-9_]+_)?(?:SERVICE_(?:HOST|PORT)|PORT)(?:_[A-Z0-9_]+)?")

OPTIONS = {option.name: option for option in taken_by(GUNICORN)}


def read_options(environ: Mapping[str, str]) -> GuardOptions:
    """Return what ``BUSYGUARD_*`` in ``environ`` says; an empty value is as none.

    What names an object stays a text: the master imports nothing of the app's, see :func:`loaded`.
    What Kubernetes makes of a Service that is called busyguard is passed over.

    :raises ValueError: for a name that is none of ours, and for a value that is not valid.
    """
    given = {
        name[len(PREFIX) :].lower(): value.strip()
        for name, value in environ.items()
        if name.startswith(PREFIX)
        and name != DISABLE
        and not _SERVICE_VARIABLE.fullmatch(name, len(PREFIX))
    }
    unknown = given.keys() - OPTIONS.keys()
    if unknown:
        raise ValueError(_unknown(min(unknown)))
    is_disabled()  # says what it expected
    read = {name: _value(name, text) for name, text in given.items() if text}
    try:
        return GuardOptions(**read)
    except (ValueError, TypeError) as error:  # each is well by itself, and they are not together
        raise ValueError(f"{PREFIX}*: {error}") from None


def loaded(options: GuardOptions) -> GuardOptions:
    """Return the options with the objects that texts name. In a worker, which has the app.

    :raises ImportError: for what cannot be imported.
    """
    found: dict[str, Any] = {}
    for option in OPTIONS.values():
        text = getattr(options, option.name)
        if option.kind is OBJECT and text is not None:
            try:
                found[option.name] = named(text)
            except ImportError as error:
                raise ImportError(f"{option.variable}={text!r}: {error}") from error
    return replace(options, **found)


def _value(name: str, text: str) -> Any:
    option = OPTIONS[name]
    try:
        if name == "push":
            targets(text)
        return text if option.kind is OBJECT else option.kind.read(name, text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{option.variable}={text!r}: {error}") from None


def _unknown(name: str) -> str:
    spelled = PREFIX + name.upper()
    if name in ("threads", "workers"):
        return f"{spelled} is not known; give gunicorn --{name}: its threads are the guard's slots"
    known = nearest(name, OPTIONS)
    hint = f"is {PREFIX}{known.upper()} meant?" if known else "known are " + ", ".join(OPTIONS)
    return refusal(GUNICORN, name, spelled) or f"{spelled} is not known; {hint}"
