"""The system checks: ``settings.BUSYGUARD``, and with ``--deploy`` what is around it."""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import math
import os
import re
import shlex
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Info
from django.urls import ResolverMatch, get_resolver, resolve

from ..._support.import_by_name import named
from ...adapters.thread_budget import needed
from ...bulkhead import bulkheads as every_bulkhead
from ...middleware import BusyGuard
from ...options import OPTIONS
from ...policy import limits
from ..bulkheads import OTHER_HOSTS
from ..options import complaints
from .conf import BULKHEADS, INNER, bulkheads, options, our_settings

TAG = "busyguard"

# A name with a dot, an address, or this machine: what a URL may have for a host.
HOST = re.compile(r"localhost|[\w-]+(\.[\w-]+)+|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*")

# What a guard opens, starts or calls; the rest of its arguments can be tried out.
NOT_TRIED = ("board", "monitor", "on_busy", "on_free", "push")


def right(**_: Any) -> list[CheckMessage]:
    """Return what is wrong with ``settings.BUSYGUARD``."""
    given = our_settings()
    if not isinstance(given, dict):
        return [
            Error(
                f"BUSYGUARD must be a dict, such as {{'SLOTS': 8}}, not {given!r}", id=f"{TAG}.E002"
            )
        ]
    wrong = complaints(given, "BUSYGUARD", [INNER, BULKHEADS])
    if wrong:
        return [Error(text, id=f"{TAG}.E001") for text in wrong]
    try:
        keywords = options()
        bulkheads()
        for name in ("on_busy", "on_free"):
            if not callable(keywords.get(name, print)):
                raise TypeError(
                    f"{name} must be a function that takes a Transition, not {keywords[name]!r}"
                )
        _folder_of(keywords.get("board"))
        _app_of(given.get(INNER))
        BusyGuard(_nothing, **{n: value for n, value in keywords.items() if n not in NOT_TRIED})
    except (ValueError, TypeError, ImportError) as error:
        return [Error(f"BUSYGUARD: {error}", id=f"{TAG}.E002")]
    return []


def _app_of(path: object) -> None:
    """Raise :exc:`ImportError` if the app behind the guard is not where the settings say."""
    try:
        named(path)
    except ImportError as error:
        raise ImportError(f"{INNER}: {error}") from error
    except Exception:  # whatever else it raises, the server says it better
        return


def _folder_of(board: object) -> None:
    """Raise :exc:`ValueError` if the folder for a board is missing; nothing is made there."""
    if isinstance(board, str | os.PathLike):
        folder = os.path.dirname(os.path.abspath(os.fspath(board)))
        if not os.path.isdir(folder):
            raise ValueError(f"the folder {os.fsdecode(folder)!r} for the board is missing")


def known_services(**_: Any) -> list[CheckMessage]:
    """Return which of ``BUSYGUARD["BULKHEADS"]`` are neither a bulkhead's name nor a host's."""
    if right():
        return []
    with suppress(Exception):  # whatever it is, Django's own checks say it better
        len(get_resolver().url_patterns)  # imports the views, which have the bulkheads
    names = sorted({one.name for one in every_bulkhead()} | {OTHER_HOSTS})
    messages = []
    for name in bulkheads():
        if name not in names and not HOST.fullmatch(name):
            near = difflib.get_close_matches(name, names, 1, 0.5)
            meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            text = f'BUSYGUARD["{BULKHEADS}"] has {name!r}, which is no bulkhead and no host'
            messages.append(checks.Warning(text, hint=meant, id=f"{TAG}.W003"))
    return messages


def shadowed_views(**_: Any) -> list[CheckMessage]:
    """Return which views are never called, because the guard answers their paths."""
    if right():
        return []
    keywords, messages = options(), []
    for name in ("ready_paths", "live_paths"):
        for path in keywords.get(name, OPTIONS[name].default):
            view = _view(path)
            # One that also answers a path which nobody has is a catch-all, and was not meant.
            if view is None or getattr(_view(f"{path}-that-nobody-has"), "func", None) is view.func:
                continue
            text = f"the guard answers {path}, so the view {view.view_name!r} is never called"
            hint = f"give the view another path, or leave {path} out of {name.upper()} in BUSYGUARD"
            messages.append(checks.Warning(text, hint=hint, id=f"{TAG}.W004"))
    return messages


def enough_threads(**_: Any) -> list[CheckMessage]:
    """Return how many threads the server needs, unless it is known to have them."""
    if right() or not our_settings().get("SLOTS"):
        return []
    worker, threads = _gunicorn()
    if worker.startswith("wsgi_busyguard."):
        text = f"BUSYGUARD has SLOTS, and {worker} is a guard in front of its threads already"
        hint = "leave SLOTS out; its limits are BUSYGUARD_MAX_QUEUE and such in the environment"
        return [checks.Warning(text, hint=hint, id=f"{TAG}.W002")]
    keywords = options()
    names = ("slots", "max_queue", "max_wait", "client_timeout")
    bound = limits(**{name: keywords[name] for name in names if name in keywords})
    least = needed(bound)
    if worker == "sync" and threads in (None, 1):
        text = "BUSYGUARD has SLOTS, and gunicorn's sync workers run one request at a time"
        hint = (
            "leave SLOTS out and start gunicorn with -k"
            f" wsgi_busyguard.adapters.gunicorn.GuardedSync; or give it --threads {least}"
        )
        return [checks.Warning(text, hint=hint, id=f"{TAG}.W002")]
    if math.isinf(least) or (threads is not None and threads >= least):
        return []
    text = f"BUSYGUARD has SLOTS={bound.slots} and room for {bound.max_queue} that wait"
    hint = f"start the server with at least {least} threads, or lower SLOTS or MAX_QUEUE"
    if threads is None:
        hint += (
            "; leave SLOTS out where a guard stands in front of the threads (gunicorn's guarded"
            " workers, Twisted, waitress, cheroot)"
        )
        return [Info(text, hint=hint, id=f"{TAG}.I001")]
    text += f", and GUNICORN_CMD_ARGS has --threads {threads}"
    return [checks.Warning(text, hint=hint, id=f"{TAG}.W001")]


def hosts(**_: Any) -> list[CheckMessage]:
    """Return which of ``ALLOWED_HOSTS`` checks do not need any more."""
    spare = [host for host in settings.ALLOWED_HOSTS if host == "*" or _is_address(host)]
    if not spare:
        return []
    text = "checks need nothing in ALLOWED_HOSTS: the guard answers them before Django sees them"
    hint = f"if {', '.join(spare)} stood there for a balancer, take it out"
    return [Info(text, hint=hint, id=f"{TAG}.I002")]


def register() -> None:
    """Have ``manage.py check`` run these."""
    checks.register(right, TAG)
    checks.register(known_services, TAG)
    checks.register(shadowed_views, TAG)
    for hint in (enough_threads, hosts):
        checks.register(hint, TAG, deploy=True)


def _gunicorn() -> tuple[str, int | None]:
    """Return gunicorn's worker class and its threads, where the environment tells of them."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-k", "--worker-class", default="")
    parser.add_argument("--threads", type=int)
    try:
        known, _ = parser.parse_known_args(shlex.split(os.environ.get("GUNICORN_CMD_ARGS", "")))
    except (argparse.ArgumentError, ValueError, SystemExit):  # gunicorn says it better
        return "", None
    return known.worker_class, known.threads


def _view(path: str) -> ResolverMatch | None:
    try:
        return resolve(path)
    except Exception:  # there is none, or the project's URLs are wrong, which Django says itself
        return None


def _is_address(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _nothing(environ: Any, start_response: Any) -> list[bytes]:
    return []
