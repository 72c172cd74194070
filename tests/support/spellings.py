"""The ways to spell the path of a check, and whether any server takes one for it."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote

NAMES = ("livez", "readyz", "healthz")
ORIGIN = "^(?i:https?)://[^/]*"


def escaped(text):
    return "".join(f"%{ord(letter):02X}" for letter in text)


def spellings(name):
    """Every way that some server has been seen to take for ``/name``, and some that none does."""
    odd = [f"{escaped(name[0])}{name[1:]}", escaped(name), escaped(name).lower()]
    slashes = ["//", "///", "/%2F", "/%2f%2F", "%2F", "%2F/", "x", ""]
    dots = ["/./", "/x/../", "/../", "/x/y/../../", "/x/..//", "/.//", "//./", "/x%zz/../"]
    dots += ["/x/%2e%2e/", "/x/.%2E/", "/%2e/", "/x%00/../", "/x%/../", "/x/..%2F", "/x/.%2f../"]
    origins = ["http://localhost/", "HTTP://localhost:80//", "http://localhost%2F"]
    ends = ["?ready=always", "?", "#x", "%23x", "%00", ";x", "/", "/.", "%", "%z", "%2", "%zz"]
    for spelled in (name, *odd):
        yield f"/{spelled}"
        yield from (before + spelled for before in [*slashes, *dots, *origins])
        yield from (f"/{spelled}{end}" for end in ends)


def may_be_a_check(target):
    """Return whether a server that drops what it can would take it for a check."""
    path = re.split("[?#]", re.sub(ORIGIN, "", target))[0]
    path = re.sub("%.?$", "", path)  # so does uWSGI
    read = {unquote(path), unquote(collapsed(path))}  # uWSGI drops dots before it decodes,
    read.add(re.sub(ORIGIN, "", unquote(target.split("?")[0])))  # so do all that pass it whole
    read.add(collapsed(unquote(re.sub("%2[Ff]", "%252F", path))))  # Apache after it, without %2F
    if not path.startswith("/"):
        read.add("/" + unquote(path[1:]))  # so does Twisted
    return any(re.fullmatch(f"/+({'|'.join(NAMES)})", seen) for seen in read)


def collapsed(path):
    """Return a path without slashes and dots that can be dropped (RFC 3986, section 5.2.4)."""
    folder, _, last = path.rpartition("/")
    return f"{posixpath.normpath(folder + '/')}/{last if last.strip('.') else ''}"
