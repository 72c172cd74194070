"""SQLAlchemy's pool: a request waits for a connection for as long as its client does."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from wsgi_busyguard.deadlines import TooLate, within
from wsgi_busyguard.integrations.sqlalchemy import DeadlinePool


@pytest.fixture
def engine(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/shop", poolclass=DeadlinePool, pool_size=1, max_overflow=0
    )
    yield engine
    engine.dispose()


def select(engine):
    with engine.connect() as connection:
        return connection.execute(text("SELECT 1")).scalar()


def test_a_wait_ends_when_the_client_gives_up(engine):
    """And not after the 30 s that the pool would have it wait."""
    began = time.monotonic()
    with (
        engine.connect(),
        within(0.2),
        pytest.raises(PoolTimeout, match="the client had left"),
    ):
        select(engine)
    assert time.monotonic() - began < 15.0
    assert select(engine) == 1


def test_a_wait_that_would_outlive_its_client_is_not_begun(engine):
    with engine.connect(), within(0.001):
        time.sleep(0.002)
        with pytest.raises(PoolTimeout, match="not begun") as raised:
            select(engine)
    assert isinstance(raised.value, TooLate)


def test_a_connection_that_is_free_is_never_refused(engine):
    select(engine)
    with within(0.001):
        time.sleep(0.002)
        assert select(engine) == 1


def test_without_a_deadline_the_pools_own_timeout_holds(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/shop",
        poolclass=DeadlinePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=0.1,
    )
    for _ in range(2):
        with engine.connect(), pytest.raises(PoolTimeout, match="QueuePool limit of size 1"):
            select(engine)
        with engine.connect(), within(30), pytest.raises(PoolTimeout, match=r"timeout 0\.10"):
            select(engine)
        engine.dispose()  # makes a new pool with the same limits
