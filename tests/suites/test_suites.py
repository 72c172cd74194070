"""Servers' own tests, with the guarded ones in place of the stock ones: what is installed anyway.

``python tests/suites/run.py`` also runs those that have to be fetched.
"""

from __future__ import annotations

import pytest

from suites.run import SUITES, ran


@pytest.mark.slow
def test_twisteds_own_tests_of_its_resource(tmp_path):
    passed, failed, said = ran("twisted", tmp_path)
    assert failed <= SUITES["twisted"][1].keys(), said[-3000:]
    assert passed >= 99
