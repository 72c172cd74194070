"""Reads a configuration of HAProxy: its sections with what they inherit, and their servers.

Whether HAProxy accepts it is for ``haproxy -c`` to say: lines that are not known are passed over.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECTION_NAMES = """
global defaults frontend backend listen peers resolvers mailers userlist program http-errors ring
log-forward cache fcgi-app crt-store traces log-profile acme
"""

# What a server's line may have, each with one word after it. All others stand alone.
VALUED_NAMES = """
maxconn minconn maxqueue weight inter fastinter downinter fall rise port addr observe error-limit
on-error on-marked-down on-marked-up agent-port agent-inter agent-send agent-addr slowstart cookie
id guid init-addr resolvers resolve-net resolve-opts resolve-prefer namespace source usesrc
interface proto check-proto alpn check-alpn sni check-sni verify verifyhost track redir ca-file
crl-file crt ciphers ciphersuites curves sigalgs socks4 ssl-min-ver ssl-max-ver tcp-ut ws shard
hash-key log-proto pool-low-conn pool-max-conn pool-purge-delay pool-conn-name max-reuse
"""

# Where in a server's line its address is; of a template, after its prefix and how many there are.
ADDRESSES = {"server": 2, "server-template": 3}

# The kinds of checks, of which a section has the one that it names last.
CHECK_NAMES = """
httpchk tcp-check external-check mysql-check pgsql-check redis-check smtpchk ldap-check spop-check
ssl-hello-chk
"""

SECTIONS = set(SECTION_NAMES.split())
VALUED = set(VALUED_NAMES.split())
CHECKS = set(CHECK_NAMES.split())


class Finding(NamedTuple):
    """A mistake: its line, and what is wrong with it and why."""

    line: int
    text: str


class ConfigLine(NamedTuple):
    """A line of a configuration, in words."""

    number: int
    words: tuple[str, ...]

    def begins(self, text: str) -> bool:
        """Return whether its first words are these."""
        words = tuple(text.split())
        return self.words[: len(words)] == words


class ServerLine(NamedTuple):
    """A line with ``server``, and all its settings, there or by ``default-server``."""

    number: int
    name: str
    where: str
    settings: dict[str, str]

    def on(self, word: str) -> bool:
        """Return whether this is set."""
        return self.settings.get(word, "off") != "off"


class Section(NamedTuple):
    """A section: its own lines, after those of the defaults that it goes by."""

    number: int
    kind: str
    name: str
    lines: tuple[ConfigLine, ...]

    def last(self, text: str) -> ConfigLine | None:
        """Return the last line that begins so, for that is the one that counts."""
        found = [line for line in self.lines if line.begins(text)]
        off = [line for line in self.lines if line.begins(f"no {text}")]
        if not found or (off and off[-1].number > found[-1].number):
            return None
        return found[-1]

    def all(self, text: str) -> list[ConfigLine]:
        """Return every line that begins so."""
        return [line for line in self.lines if line.begins(text)]

    @property
    def in_http(self) -> bool:
        """Whether its mode is http; HAProxy's default is tcp."""
        mode = self.last("mode")
        return mode is not None and mode.words[1:2] == ("http",)

    @property
    def check(self) -> ConfigLine | None:
        """The line with the option that says how its servers are checked."""
        found = [line for kind in CHECKS if (line := self.last(f"option {kind}"))]
        return max(found, default=None)

    @property
    def leads_to(self) -> set[str]:
        """The backends that it may send requests to; ``*`` among them if any may be one."""
        lines = [*self.all("default_backend"), *self.all("use_backend")]
        names = {line.words[1] for line in lines if len(line.words) > 1}
        return {"*" if "%" in name or "$" in name else name for name in names}

    def servers(self) -> list[ServerLine]:
        """Return its servers; those of a template are one."""
        servers: list[ServerLine] = []
        common: dict[str, str] = {}
        for number, words in self.lines:
            if words[0] == "default-server":
                common = {**common, **_settings(words[1:])}
            elif words[0] in ADDRESSES and len(words) > ADDRESSES[words[0]]:
                at = ADDRESSES[words[0]]
                settings = {**common, **_settings(words[at + 1 :])}
                servers.append(ServerLine(number, words[1], words[at], settings))
        return servers


class BackendSection(NamedTuple):
    """A section with servers, and those that may send it requests."""

    section: Section
    servers: Sequence[ServerLine]
    fronts: Sequence[Section]

    def everywhere(self, holds: Callable[[Section], bool]) -> bool:
        """Return whether this holds for the section, or for each that sends it requests."""
        return holds(self.section) or (bool(self.fronts) and all(map(holds, self.fronts)))


def number(text: str) -> int | None:
    """Return a number; ``None`` for what is none, as a variable of the environment.

    Nor is what HAProxy could not count to, and Python not read: it stops at 4300 digits.
    """
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def sections(text: str) -> list[Section]:
    """Return the sections of a configuration, each with the lines of its defaults."""
    found: list[Section] = []
    for number, raw in enumerate(text.splitlines(), 1):
        words = _words(raw)
        if words and words[0] in SECTIONS:
            name = words[1] if len(words) > 1 and words[1] != "from" else ""
            inherited = _inherited(found, words)
            found.append(Section(number, words[0], name, inherited))
        elif words and found:
            found[-1] = found[-1]._replace(
                lines=(*found[-1].lines, ConfigLine(number, tuple(words)))
            )
    return found


def _inherited(before: Sequence[Section], words: Sequence[str]) -> tuple[ConfigLine, ...]:
    """Return the lines that a section begins with: those of its defaults, or of the last ones."""
    defaults = [section for section in before if section.kind == "defaults"]
    if "from" in words[1:-1]:
        name = words[words.index("from") + 1]
        defaults = [section for section in defaults if section.name == name]
    elif words[0] == "defaults":
        return ()
    return defaults[-1].lines if defaults else ()


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # HAProxy quotes in ways of its own; what matters here is not quoted
        return line.partition("#")[0].split()


def _settings(words: Sequence[str]) -> dict[str, str]:
    settings, rest = {}, list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("no-"):
            settings[word[3:]] = "off"
        else:
            settings[word] = rest.pop(0) if word in VALUED and rest else "on"
    return settings
