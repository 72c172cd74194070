from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_busyguard.checks import LIVE, METHODS, READY, SOMEBODY_BEHIND, Check, Checks
from wsgi_busyguard.policy import DAMPED

CHECKS = Checks(True, ("/healthz", "/readyz"), ("/livez",))


@pytest.mark.parametrize("path", ["/", "*", ""], ids=["slash", "asterisk", "empty"])
def test_options_of_the_root_is_a_ready_check(path):
    assert CHECKS.match_request("OPTIONS", path, "", ()) == Check(READY, "OPTIONS", "damped")


@pytest.mark.parametrize("method", [*METHODS, "POST", "DELETE"])
@pytest.mark.parametrize(
    ("path", "question"), [("/healthz", READY), ("/readyz", READY), ("/livez", LIVE)]
)
def test_any_method_on_a_check_path_is_a_check(method, path, question):
    policy = "damped" if question is READY and method in METHODS else None
    assert CHECKS.match_request(method, path, "", ()) == Check(question, method, policy)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "options", "TRACE"])
def test_only_options_of_the_root_is_a_check(method):
    assert CHECKS.match_request(method, "/", "", ()) is None


@pytest.mark.parametrize("path", ["/shop/", "/x", "//", "/healthz/", "/index", "/livezz", "/*"])
def test_options_of_anything_else_is_the_apps(path):
    assert CHECKS.match_request("OPTIONS", path, "", ()) is None


@pytest.mark.parametrize(
    "header",
    [
        "HTTP_ORIGIN",
        "HTTP_ACCESS_CONTROL_REQUEST_METHOD",
        "HTTP_X_FORWARDED_FOR",
        "HTTP_FORWARDED",
        "HTTP_VIA",
        "HTTP_X_REAL_IP",
    ],
)
def test_options_with_somebody_behind_it_is_the_apps(header):
    assert header in SOMEBODY_BEHIND
    assert CHECKS.match_request("OPTIONS", "/", "", {header: "x"}) is None


def test_the_names_that_are_written_out_are_all_of_them():
    for header in SOMEBODY_BEHIND:
        assert CHECKS.match_request("OPTIONS", "/", "", {header: "x"}) is None


def test_a_check_path_stays_one_though_somebody_is_behind_it():
    headers = dict.fromkeys(SOMEBODY_BEHIND, "x")
    assert CHECKS.match_request("GET", "/readyz", "", headers) == Check(READY, "GET", "damped")


def test_without_root_options_of_the_root_is_the_apps():
    assert Checks(False, ("/readyz",)).match_request("OPTIONS", "/", "", ()) is None


@pytest.mark.parametrize(
    ("query", "ready"),
    [
        ("", "damped"),
        ("ready=exact", "exact"),
        ("a=b&ready=always", "always"),
        ("ready=exact&ready=damped", "damped"),
        ("ready=", None),
        ("ready", None),
        ("ready=%65xact", "exact"),
        ("already=exact", "damped"),
        ("&&;=%", "damped"),
        ("ready=%ff", None),
    ],
)
def test_a_check_may_name_a_policy(query, ready):
    assert CHECKS.match_request("OPTIONS", "/", query, ()) == Check(READY, "OPTIONS", ready)


def test_without_a_name_it_goes_by_the_policy_of_its_guard():
    checks = Checks(True, ("/readyz",), ready="exact")
    assert checks.match_request("GET", "/readyz", "", ()).policy == "exact"
    assert checks.match_request("OPTIONS", "/", "a=b", ()).policy == "exact"
    assert checks.match_request("GET", "/readyz", "ready=always", ()).policy == "always"


def test_what_cannot_be_meant_has_no_policy_for_the_load_is_not_asked_for():
    for method, query in (("POST", "ready=always"), ("GET", "ready=no"), ("GET", "warn=500")):
        assert CHECKS.match_request(method, "/readyz", query, ()).policy is None
    assert CHECKS.match_request("GET", "/livez", "ready=exact", ()) == Check(LIVE, "GET")


def test_a_match_is_that_of_the_path_the_balancer_asked_for():
    environ = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "/shop", "PATH_INFO": "/healthz"}
    assert CHECKS.match(environ) is None
    here = Checks(True, ("/shop/healthz",))
    assert here.match({**environ, "QUERY_STRING": "warn=429"}) == Check(
        READY, "GET", "damped", "429"
    )
    assert CHECKS.match({"REQUEST_METHOD": "OPTIONS"}) == Check(READY, "OPTIONS", "damped")


@pytest.mark.parametrize(
    ("method", "target", "question"),
    [
        ("OPTIONS", "http://web1/", READY),
        ("OPTIONS", "http://web1", READY),
        ("GET", "http://web1/healthz", READY),
        ("GET", "HTTPS://web1:8443/livez", LIVE),
        ("GET", "http://web1//healthz", None),
        ("GET", "http://web1/shop/healthz", None),
        ("GET", "http://web1/page", None),
        ("GET", "http://web1", None),
        ("GET", "ftp://web1/healthz", None),
        ("GET", "/http://web1/healthz", None),
        ("GET", "/to/http://web1/healthz", None),
    ],
)
def test_an_absolute_target_that_a_server_passes_whole_is_one_of_its_path(method, target, question):
    for script in ("", "/shop"):
        environ = {"REQUEST_METHOD": method, "SCRIPT_NAME": script, "PATH_INFO": target}
        check = CHECKS.match(environ)
        assert (check and check.question) == question


def test_an_absolute_target_of_somebody_else_is_the_apps():
    assert CHECKS.match_request("OPTIONS", "http://web1/", "", ("HTTP_ORIGIN",)) is None
    assert Checks(False).match_request("OPTIONS", "http://web1/") is None


@given(st.text(), st.text(), st.text())
def test_nothing_a_peer_sends_can_raise(method, path, query):
    CHECKS.match_request(method, path, query, ())
    CHECKS.match_request(method, "/readyz", query, ())


@pytest.mark.parametrize("path", ["/", "*", "", "/healthz", "/livez"])
def test_what_can_be_a_check_is_a_suspect(path):
    assert path in CHECKS.suspects


def test_a_page_is_no_suspect():
    assert "/articles/1" not in CHECKS.suspects


def test_without_checks_there_are_no_suspects():
    assert Checks(False).suspects == frozenset()


segments = st.lists(st.sampled_from(["a", "b", "", "check"]), min_size=1, max_size=4)


@given(segments, st.data())
def test_a_check_is_a_suspect_wherever_the_app_is_mounted(parts, data):
    path = "/" + "/".join(parts)
    checks = Checks(False, [path])
    for cut in range(len(parts) + 1):
        script = "".join("/" + part for part in parts[:cut])
        assert path[len(script) :] in checks.suspects


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        pytest.param(
            {"ready_paths": "/readyz"},
            TypeError,
            "ready_paths must be a list of paths, not the string '/readyz': ['/readyz']",
            id="a string",
        ),
        pytest.param(
            {"live_paths": None},
            TypeError,
            "live_paths must be a list of paths, not None",
            id="None",
        ),
        pytest.param(
            {"ready_paths": ["readyz"]},
            ValueError,
            "ready_paths must hold paths that begin with '/', not 'readyz'",
            id="no slash",
        ),
        pytest.param(
            {"live_paths": [b"/x"]},
            ValueError,
            "live_paths must hold paths that begin with '/', not b'/x'",
            id="bytes",
        ),
        pytest.param(
            {"ready_paths": ["/a", "/b"], "live_paths": iter(["/b"])},
            ValueError,
            "'/b' cannot be both in ready_paths and in live_paths",
            id="two questions at one path",
        ),
    ],
)
def test_wrong_paths_say_what_was_expected_and_what_came(arguments, error, words):
    with pytest.raises(error) as caught:
        Checks(**arguments)
    assert str(caught.value) == words


def test_of_a_query_the_first_kilobyte_is_looked_at():
    """Parsing 262 kB took 68 ms of the loop that answers checks (issue 12)."""
    checks = Checks(True, ["/readyz"])
    long = "a=b&" * 65536
    assert checks.match_request("GET", "/readyz", "ready=exact&" + long, ()).policy == "exact"
    assert checks.match_request("GET", "/readyz", long + "ready=exact", ()).policy == DAMPED
    began = time.process_time()
    for _ in range(20):
        checks.match_request("GET", "/readyz", long, ())
    assert time.process_time() - began < 0.2  # 1 300 ms where it is parsed whole


def test_paths_may_be_any_iterable():
    checks = Checks(False, iter(["/a"]), {"/b"})
    assert checks.match_request("GET", "/a", "", ()) == Check(READY, "GET", "damped")
    assert checks.match_request("GET", "/b", "", ()) == Check(LIVE, "GET")
