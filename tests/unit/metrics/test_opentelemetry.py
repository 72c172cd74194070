from __future__ import annotations

import re
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from wsgi_busyguard import Board, Gate, Monitor
from wsgi_busyguard.board.publisher import Publisher
from wsgi_busyguard.metrics import opentelemetry
from wsgi_busyguard.metrics.figures import FIGURES
from wsgi_busyguard.metrics.opentelemetry import instrument


@pytest.fixture
def reader():
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    reader.meter = provider.get_meter("test")
    yield reader
    provider.shutdown()


def collected(reader):
    data = reader.get_metrics_data()
    if data is None:
        return {}
    [resource] = data.resource_metrics
    [scope] = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def points(metric):
    return {tuple(sorted(p.attributes.items())): p.value for p in metric.data.data_points}


def test_the_figures_are_observed_when_they_are_read(reader):
    gate = Gate(4)
    instrument(Monitor(gate), reader.meter)
    gate.leave(gate.enter())
    gate.enter()
    found = collected(reader)
    assert points(found["busyguard.active"]) == {(): 1}
    assert points(found["busyguard.served"]) == {(): 1}
    assert points(found["busyguard.refused"])[("busyguard.reason", "queue-full"),] == 0
    assert points(found["busyguard.process.active"]) == {(("busyguard.slot", "0"),): 1}
    assert points(found["busyguard.service_time.total"])[()] > 0


def test_names_and_units_are_those_of_the_semantic_conventions(reader):
    instrument(Monitor(Gate(4)), reader.meter)
    found = collected(reader)
    for name, metric in found.items():
        assert re.fullmatch(r"busyguard(\.[a-z]+(_[a-z]+)*)+", name)
        assert metric.unit in ("s", "1", "{request}", "{transition}", "{check}")
        assert metric.description
    assert found["busyguard.queued"].unit == "{request}"
    assert found["busyguard.busy"].unit == "s"
    assert found["busyguard.delay"].unit == "s"
    assert not found["busyguard.queued"].data.is_monotonic
    assert found["busyguard.served"].data.is_monotonic
    assert not [name for name in found if name.startswith("http.")]  # they are OTel-wsgi's own


def test_a_collection_looks_once(reader, adapter):
    instrument(Monitor(adapter), reader.meter)
    before = adapter.looks
    collected(reader)
    assert adapter.looks - before == 1


def test_of_several_processes_one_tells(reader, monkeypatch):
    monkeypatch.setattr(opentelemetry, "FRESH_SECONDS", 0)
    gate = Gate(4)
    publisher = Publisher(Board(), gate)
    instrument(Monitor(publisher), reader.meter)
    assert collected(reader) == {}
    publisher.join()
    publisher.ready()
    assert points(collected(reader)["busyguard.capacity"]) == {(): 4}


def test_there_is_an_instrument_for_each_figure(reader):
    made = []

    class Meter:
        def __getattr__(self, name):
            return lambda name, **_: made.append(name)

    instrument(Monitor(Gate(1)), Meter())
    assert len(set(made)) == len(FIGURES)


def test_without_the_api_it_says_so(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError):
        instrument(Monitor(Gate(1)))
