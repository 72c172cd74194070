"""Statement timeouts against a real PostgreSQL, where there is one: ``initdb`` and ``postgres``."""

from __future__ import annotations

import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import tempfile
import textwrap

import django
import pytest

ROOT = pathlib.Path(__file__).parents[2]
DEBIAN = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))

CASE = """
import sys, time
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql",
    "NAME": "postgres", "USER": "shop", "HOST": sys.argv[1]}}, USE_TZ=True)
import django; django.setup()
from django.db import OperationalError, connection, transaction
from wsgi_busyguard.deadlines import within
from wsgi_busyguard.integrations.django.database import NotBegun, limit_statements
limit_statements()

def shown():
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        return cursor.fetchone()[0]

def sleep(seconds):
    began = time.monotonic()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", [seconds])
        return "slept"
    except NotBegun:
        return "not begun"
    except OperationalError as error:
        assert time.monotonic() - began < seconds / 2
        return str(error).strip()

print(shown())
with within(0.3):
    print(sleep(30))
with within(60):
    print(sleep(0.01))
    try:
        with transaction.atomic():
            with within(0.5):
                inside = shown()
            raise KeyError
    except KeyError:
        pass
    print(inside.endswith("ms") and int(inside[:-2]) <= 500, sleep(0.7))
    with transaction.atomic():
        print(sleep(0.01))
with within(0.001):
    time.sleep(0.002)
    print(sleep(0.01))
print(shown())
"""

POOLS = """
import sys, time
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql",
    "NAME": "postgres", "USER": "shop", "HOST": sys.argv[1],
    "OPTIONS": {"pool": {"min_size": 1, "max_size": 1}}}}, USE_TZ=True)
import django; django.setup()
from django.db import OperationalError, connection
from psycopg_pool import ConnectionPool, PoolTimeout
from wsgi_busyguard.deadlines import TooLate, within
from wsgi_busyguard.integrations.django.database import limit_pools
from wsgi_busyguard.integrations.psycopg_pool import limit_waits

def wait(take):
    began = time.monotonic()
    try:
        take()
        return "got one"
    except (PoolTimeout, OperationalError) as error:
        assert time.monotonic() - began < 15
        late = isinstance(error, TooLate) or isinstance(error.__cause__, TooLate)
        return "not begun" if late else "timed out"

def ended():
    with within(0.001):
        time.sleep(0.002)
        return wait(pool.getconn)

where = f"dbname=postgres user=shop host={sys.argv[1]}"
with limit_waits(ConnectionPool(where, min_size=1, max_size=1)) as pool:
    with within(20), pool.connection():
        with within(0.3):
            print(wait(pool.getconn))
        print(ended())
        print(wait(lambda: pool.getconn(timeout=0.2)))

limit_pools()
taken = connection.pool
taken.open()
held = taken.getconn()
with within(0.3):
    print(wait(connection.ensure_connection))
taken.putconn(held)
print(wait(connection.ensure_connection))
connection.close()
connection.close_pool()
"""


@pytest.fixture
def postgresql():
    """A database server of our own on a Unix socket; return the folder of the socket."""
    found = shutil.which("initdb") or next((str(d / "initdb") for d in DEBIAN[-1:]), None)
    if found is None or not pathlib.Path(found).with_name("postgres").exists():
        pytest.skip("there is no PostgreSQL here")
    folder = tempfile.mkdtemp()  # pytest's own folders are nobody's but this user's
    data, options = f"{folder}/data", {}
    if os.getuid() == 0:  # as which it refuses to run
        options["user"] = "postgres" if _is_user("postgres") else "nobody"
        shutil.chown(folder, options["user"])
    made = subprocess.run(
        [found, "-D", data, "-U", "shop", "-A", "trust", "--no-sync"],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert made.returncode == 0, made.stderr
    postgres = pathlib.Path(found).with_name("postgres")
    command = [postgres, "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    try:
        for line in server.stderr:
            if "ready to accept connections" in line:
                break
        yield folder
    finally:
        server.terminate()
        server.communicate(timeout=20)
        shutil.rmtree(folder)


def _is_user(name):
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


def test_a_statement_ends_when_its_client_gives_up(postgresql):
    """One that runs is cancelled; what a rollback undoes is set anew; none is begun too late."""
    assert _printed(CASE, postgresql) == [
        "0",
        "canceling statement due to statement timeout",
        "slept",
        "True slept",
        "slept",
        "not begun",
        "0",
    ]


def test_the_wait_for_a_pool_ends_when_its_client_gives_up(postgresql):
    """psycopg_pool's own, and the one that Django makes of it since 5.1."""
    pytest.importorskip("psycopg_pool")
    if django.VERSION < (5, 1):
        pytest.skip("this Django has no pools")
    assert _printed(POOLS, postgresql) == [
        "timed out",
        "not begun",
        "timed out",
        "timed out",
        "got one",
    ]


def _printed(case, folder):
    pytest.importorskip("psycopg")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(case), folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
