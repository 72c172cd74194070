"""Apaches with mod_wsgi, on loopback, in the foreground, from files of their own; always reaped.

As root Apache has its processes run as nobody, who may not look into pytest's folders or into the
home of whoever runs the tests. So all that it needs is copied to a place that is anybody's.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from support.client import ask, eventually, figures, free_port
from support.gunicorns import Gunicorn
from support.processes import HERE, Process, environment
from support.versions import folders

MODULES = Path("/usr/lib/apache2/modules")
MOD_WSGI = MODULES / "mod_wsgi.so"

# The newest mod_wsgi is built for the interpreter of the system: Apache's processes may not look
# into the folders of one that root has made for itself.
NEWEST = "mod_wsgi>=6.1"
PYTHON = "/usr/bin/python3"
FILES = ("prefork_app.py", "mod_wsgi_site.wsgi", "mod_wsgi_health.wsgi")
PACKAGES = ("wsgi_busyguard", "webob", "werkzeug", "markupsafe")

SERVER = """
ServerName localhost
ServerRoot {place}
DefaultRuntimeDir {place}
PidFile {place}/pid
Listen 127.0.0.1:{port}
ErrorLog /dev/stderr
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {place}/mod_wsgi.so
WSGISocketPrefix {place}/wsgi
{user}
"""

SITE = """
WSGIPythonPath {place}
WSGIDaemonProcess app processes={processes} threads={threads} python-path={place} {more}
WSGIDaemonProcess health threads=1 python-path={place}
WSGIScriptAlias /readyz {place}/mod_wsgi_health.wsgi \
    process-group=health application-group=%{{GLOBAL}}
WSGIScriptAlias / {place}/mod_wsgi_site.wsgi process-group={group} application-group=%{{GLOBAL}}
"""


def apache2():
    """Return the path of Apache, or skip the test by name."""
    found = shutil.which("apache2", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None or not MOD_WSGI.exists():
        missing = "apache2" if found is None else "mod_wsgi"
        pytest.skip(f"{missing} is missing: apt-get install apache2-bin libapache2-mod-wsgi-py3")
    return found


def newest_mod_wsgi(tmp_path_factory):
    """Return the folder of the newest mod_wsgi, or skip the test by name."""
    apache2()
    needs = "apt-get install apache2-dev python3-dev"
    return folders(tmp_path_factory, [NEWEST], python=PYTHON, needs=needs)[NEWEST]


@functools.cache
def packages():
    """Return a folder with the packages that the site needs, compiled, which nobody could do."""
    folder = Path(tempfile.mkdtemp(prefix="busyguard-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in PACKAGES:
        origin = Path(importlib.util.find_spec(name).origin).parent
        shutil.copytree(origin, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    compiled = [PYTHON, "-m", "compileall", "-q", folder]
    subprocess.run(compiled, check=True, env=without_cache_elsewhere())
    return folder


def without_cache_elsewhere(**more):
    """Return an environment in which what is compiled stands beside its source."""
    env = environment(**more)
    return {name: value for name, value in env.items() if name != "PYTHONPYCACHEPREFIX"}


def furnished(place, newest=None):
    """Copy what the site needs; ``newest`` is the folder of another mod_wsgi than Debian's."""
    module = MOD_WSGI
    if newest is not None:  # the package can be imported by apps, as in mod_wsgi-express
        shutil.copytree(Path(newest) / "mod_wsgi", place / "mod_wsgi")
        [module] = (place / "mod_wsgi" / "server").glob("*.so")
    shutil.copy(module, place / "mod_wsgi.so")
    shutil.copytree(packages(), place, dirs_exist_ok=True)
    for name in FILES:
        shutil.copy(HERE / name, place)
    place.chmod(0o777)


class AnyApache(Process):
    """An Apache in a folder of its own.

    :param place: the folder, furnished.
    :param site: the part of the configuration that says what is served.
    :param variables: of the environment.
    """

    logged = Gunicorn.logged

    def __init__(self, place, site, **variables):
        self.place = place
        self.port = free_port()  # Apache does not take port 0
        user = "User nobody\nGroup nogroup" if os.getuid() == 0 else ""
        file = place / "apache.conf"
        server = SERVER.format(place=place, port=self.port, modules=MODULES, user=user)
        file.write_text(server + site)
        command = [apache2(), "-f", file, "-DFOREGROUND"]
        super().__init__(command, env=without_cache_elsewhere(**variables), cwd=place)

    def reap(self):
        super().reap()
        shutil.rmtree(self.place, ignore_errors=True)


class Apache(AnyApache):
    """One with a daemon process group of so many processes and threads.

    :param more: options of ``WSGIDaemonProcess``.
    :param newest: the folder of the mod_wsgi that it loads; ``None`` is the distribution's.
    :param site: the options of the guard.
    """

    def __init__(self, processes, threads, more="", group="app", newest=None, **site):
        apache2()  # or the test is skipped
        place = Path(tempfile.mkdtemp(prefix="busyguard-"))
        self.board = place / "board"
        furnished(place, newest)
        shape = {"processes": processes, "threads": threads, "more": more}
        site = {"board": str(self.board), **site}
        super().__init__(
            place,
            SITE.format(place=place, group=group, **shape),
            SITE=json.dumps(site),
            BOARD=str(self.board),
        )
        try:
            self.logged("resuming normal operations")
            if site.get("side") or site.get("found"):
                self.check = int(self.logged(r"side at (\d+)"))
            if site["board"]:
                eventually(self.board.exists)
        except BaseException:
            self.reap()  # nobody else has it yet
            raise

    @property
    def load(self):
        """What a process of the group reads by itself."""
        return figures(self.check)

    @property
    def ready(self):
        """What the process group for checks says."""
        answer = ask(self.port, path="/readyz")
        return answer.status, answer.text
