"""Proves docs/patterns/resilience/service-warm-up.md: services are made once, kept, and closed, in both colors."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
import threading
from typing import Any

import psycopg
import psycopg_pool
import pytest

import warmup_core
from harness.clock import Clock
from harness.color import Color
from harness.waiting import at_once, in_thread, until
from patterns.resilience.service_warm_up_kit import Factory, Service, Warm
from warmup_core import ServicesClosed, keys_from_env

# --- made once


def test_fifty_who_ask_at_once_get_the_same_service_that_was_made_and_warmed_once(color: Color) -> None:
    factory = Factory()
    factory.go.clear()
    services = factory.services(color)
    crowd = in_thread(at_once, 50, lambda: services.get("db"))
    until(lambda: services.joined == 50)
    factory.go.set()
    found = crowd.result(20)
    assert set(map(id, found)) == {id(factory.made[0])}
    assert (factory.calls, found[0].warmed, found[0].closed) == (["db"], 1, 0)
    assert services.get("db") is found[0] is services.peek("db")
    assert factory.calls == ["db"]


def test_a_hit_does_not_wait_for_another_key_that_is_being_made(color: Color) -> None:
    factory = Factory()
    services = Warm(color, lambda key: factory.create(key) if key == "slow" else Service(key))
    services.get("ready")
    factory.go.clear()
    slow = in_thread(services.get, "slow")
    until(lambda: factory.calls)
    assert services.get("ready").key == "ready"
    assert services.get("another").key == "another"
    assert services.peek("slow") is None
    factory.go.set()
    assert slow.result(20) is services.peek("slow")


def test_a_service_without_prewarm_and_close_is_kept_and_dropped(color: Color) -> None:
    services = Warm(color, Factory().create)
    service = services.get("db")
    services.close()
    assert (service.warmed, service.closed) == (0, 0)


# --- failures


def test_a_failure_reaches_every_waiter_with_a_chain_of_its_own_and_is_not_kept(color: Color) -> None:
    errors = iter([ConnectionError("refused")])
    factory = Factory(lambda key: next(errors, None))
    factory.go.clear()
    services = factory.services(color)
    crowd = in_thread(at_once, 5, lambda: services.get("db"))
    until(lambda: services.joined == 5)
    factory.go.set()
    failures = crowd.result(20)
    assert [repr(failure) for failure in failures] == ["ConnectionError('refused')"] * 5
    assert len(set(map(id, failures))) == 5
    # Under threads, who made it raises the failure itself, and is the cause of the others.
    causes = [failure.__cause__ or failure for failure in failures]
    assert len(set(map(id, causes))) == 1
    assert isinstance(services.get("db"), Service)
    assert factory.calls == ["db", "db"]


def test_an_error_that_cannot_be_copied_is_raised_itself(color: Color) -> None:
    class OddError(Exception):
        def __init__(self, host: str, *, port: int) -> None:
            super().__init__(f"{host}:{port}")

    error = OddError("db", port=1)
    factory = Factory(lambda key: error)
    factory.go.clear()
    services = factory.services(color)
    crowd = in_thread(at_once, 2, lambda: services.get("db"))
    until(lambda: services.joined == 2)
    factory.go.set()
    assert crowd.result(20) == [error, error]
    assert error.__cause__ is None


def test_that_the_services_are_closed_can_be_copied_and_sent_to_another_process() -> None:
    for again in (copy.copy(ServicesClosed()), pickle.loads(pickle.dumps(ServicesClosed()))):
        assert type(again) is ServicesClosed
        assert str(again) == "the services are closed"


def test_a_failure_is_repeated_without_a_call_for_failure_ttl(color: Color, clock: Clock) -> None:
    factory = Factory(lambda key: ConnectionError(f"{key} refused"))
    services = factory.services(color, failure_ttl=1.0, clock=clock)
    for later in (0.0, 0.999):
        clock.advance(later)
        with pytest.raises(ConnectionError, match="db refused"):
            services.get("db")
    assert factory.calls == ["db"]
    clock.advance(0.001)
    with pytest.raises(ConnectionError):
        services.get("db")
    assert factory.calls == ["db", "db"]
    for key in range(100):
        clock.advance(1)
        with pytest.raises(ConnectionError):
            services.get(key)
    assert len(services._failed) == 1  # what is over is not kept

    services.discard(99)
    assert len(services._failed) == 0
    with pytest.raises(ConnectionError):
        services.get(99)
    assert factory.calls.count(99) == 2


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, True, "1"])
def test_a_failure_ttl_that_is_no_number_of_seconds_is_refused(color: Color, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^failure_ttl must be a number of seconds, 0 or more, got {wrong!r}$"):
        Factory().services(color, failure_ttl=wrong)


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True])
def test_a_timeout_of_warm_that_is_no_number_of_seconds_is_refused(color: Color, wrong: float) -> None:
    factory = Factory()
    with pytest.raises(ValueError, match=rf"^timeout must be a number of seconds over 0, got {wrong!r}$"):
        factory.services(color).warm(["db"], timeout=wrong)
    assert factory.calls == []


def test_a_prewarm_that_fails_closes_the_half_built_service_once(color: Color) -> None:
    factory = Factory()

    def fail(service: Service) -> None:
        raise ConnectionError("cold")

    services = factory.services(color, prewarm=fail)
    with pytest.raises(ConnectionError, match="cold"):
        services.get("db")
    assert services.peek("db") is None
    services.close()
    assert [service.closed for service in factory.made] == [1]


def test_when_closing_the_half_built_fails_too_the_first_failure_is_told(color: Color) -> None:
    factory = Factory()

    def fail(service: Service) -> None:
        raise ConnectionError("cold")

    def fail_to_close(service: Service) -> None:
        factory.close(service)
        raise OSError("stuck")

    with pytest.raises(ConnectionError, match="cold"):
        factory.services(color, prewarm=fail, close=fail_to_close).get("db")
    assert [service.closed for service in factory.made] == [1]


# --- closing


def test_services_close_in_reverse_order_each_once_and_past_one_that_fails(color: Color) -> None:
    factory = Factory()

    def close(service: Service) -> None:
        factory.close(service)
        if service.key in "ac":
            raise OSError(f"{service.key} is stuck")

    services = factory.services(color, close=close)
    for key in "abc":
        services.get(key)
    with pytest.raises(ExceptionGroup, match="services that did not close") as failure:
        services.close()
    assert factory.closed == ["c", "b", "a"]
    assert [str(error) for error in failure.value.exceptions] == ["c is stuck", "a is stuck"]
    services.close()
    assert factory.closed == ["c", "b", "a"]
    with pytest.raises(ServicesClosed, match="the services are closed"):
        services.get("a")


@pytest.mark.parametrize("how", ["close", "discard"])
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_a_creation_under_way_is_awaited_and_closed(color: Color, how: str, ends: str) -> None:
    factory = Factory(fails=lambda key: None if ends == "well" else ConnectionError())
    factory.go.clear()
    services = factory.services(color)

    def make() -> None:
        with contextlib.suppress(ConnectionError):
            services.get("db")

    making = in_thread(make)
    until(lambda: factory.calls)
    ending = in_thread(services.close) if how == "close" else in_thread(services.discard, "db")
    with pytest.raises(TimeoutError):
        ending.result(0.02)
    assert factory.closed == []
    factory.go.set()
    for each in (making, ending):
        each.result(20)
    assert factory.closed == (["db"] if ends == "well" else [])
    assert services.peek("db") is None


def test_a_discarded_service_is_closed_and_made_anew(color: Color) -> None:
    factory = Factory()
    services = factory.services(color)
    services.discard("unknown")
    first, other = services.get("db"), services.get("other")
    services.discard("db")
    assert (first.closed, other.closed) == (1, 0)
    assert services.get("db") is not first
    assert services.get("other") is other


# --- warming


def test_warm_makes_all_keys_at_the_same_time_and_reports_each(color: Color) -> None:
    together = threading.Barrier(3)

    def create(key: str) -> Service:
        if key == "bad":
            raise ConnectionError("refused")
        together.wait(10)  # so it passes only if the three are made at once
        return Service(key)

    report = Warm(color, create).warm(["a", "bad", "b", "c", "a"], timeout=10)
    assert list(report) == ["a", "bad", "b", "c"]
    assert repr(report.pop("bad")) == "ConnectionError('refused')"
    assert set(report.values()) == {None}


def test_a_key_that_is_not_ready_in_time_is_a_timeout_in_the_report(color: Color) -> None:
    factory = Factory()
    factory.go.clear()
    report = factory.services(color).warm(["slow"], timeout=0.01)
    assert [type(failure) for failure in report.values()] == [TimeoutError]
    factory.go.set()


def test_the_keys_to_warm_stand_in_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys_from_env(environ={}) == []
    monkeypatch.setenv("WARM_ON_START", " db, search ,,")
    assert keys_from_env() == ["db", "search"]
    assert keys_from_env("OTHER", {"OTHER": "a"}) == ["a"]


# --- odd factories


def test_a_factory_may_ask_for_other_keys_and_asking_for_its_own_is_an_error(color: Color) -> None:
    needs = {"app": "db", "db": "vault", "vault": None, "a": "b", "b": "a", "self": "self"}

    def create(key: str) -> Service:
        if need := needs[key]:
            services.get(need)
        return Service(key)

    services = Warm(color, create)
    assert services.get("app").key == "app"
    assert list(services._ready) == ["vault", "db", "app"]
    for key in ("a", "self"):
        with pytest.raises(RuntimeError, match=f"the service of '{key}' needs itself"):
            services.get(key)


def test_forgetting_closes_nothing_and_begins_anew(color: Color) -> None:
    factory = Factory()
    services = factory.services(color)
    services.get("db")
    warmup_core._after_fork()
    services.get("db")
    assert [service.closed for service in factory.made] == [0, 0]


# --- a real server


def test_a_crowd_opens_one_pool_of_postgresql_with_the_connections_it_was_warmed_to(
    color: Color, database_url: str
) -> None:
    kind: Any = color.pick(psycopg_pool.AsyncConnectionPool, psycopg_pool.ConnectionPool)

    def create(name: str) -> Any:
        return color.call(kind, database_url, min_size=2, max_size=2, open=False, kwargs={"application_name": name})

    def prewarm(pool: Any) -> None:
        color.call(pool.open, wait=True, timeout=10)

    services = Warm(color, create, prewarm=prewarm, close=lambda pool: color.call(pool.close))
    counting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    with psycopg.connect(database_url, autocommit=True) as watcher:

        def connections() -> int:
            row = watcher.execute(counting, ["warm-up-proof"]).fetchone()
            return int(row[0]) if row else -1

        at_once(50, lambda: services.get("warm-up-proof"))
        assert connections() == 2
        services.close()
        until(lambda: connections() == 0)  # the server takes a moment to notice
