"""Proves docs/patterns/resilience/service-warm-up.md: services under threads are made once, kept, and closed."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cachetools
import psycopg_pool
import pytest

import warmup_sync
from warmup_sync import Services, ServicesClosed, keys_to_warm


class Service:
    """A service that remembers what was done to it."""

    def __init__(self, key: Any) -> None:
        self.key, self.warmed, self.closed = key, 0, 0


class Factory:
    """Makes services, slowly if told, and remembers them."""

    def __init__(self, takes: float = 0.0, fails: Callable[[Any], BaseException | None] = lambda key: None) -> None:
        self.takes, self.fails, self.made, self.calls, self.closed = (
            takes,
            fails,
            list[Service](),
            list[Any](),
            list[Any](),
        )

    def create(self, key: Any) -> Service:
        self.calls.append(key)
        time.sleep(self.takes)
        if error := self.fails(key):
            raise error
        self.made.append(Service(key))
        return self.made[-1]

    def prewarm(self, service: Service) -> None:
        service.warmed += 1

    def close(self, service: Service) -> None:
        service.closed += 1
        self.closed.append(service.key)

    def services(self, **settings: Any) -> Services[Any, Service]:
        return Services(self.create, **({"prewarm": self.prewarm, "close": self.close} | settings))


def at_once(count: int, fn: Callable[[], Any]) -> list[Any]:
    """Call `fn` in that many threads at the same instant; return results and errors."""
    barrier = threading.Barrier(count)

    def call(_: int) -> Any:
        barrier.wait(10)
        try:
            return fn()
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


class Held:
    """A creation that begins, says so, and goes on when told."""

    def __init__(self, end: Callable[[Any], Any]) -> None:
        self.begun, self.go_on, self.end = threading.Event(), threading.Event(), end

    def __call__(self, key: Any) -> Any:
        self.begun.set()
        self.go_on.wait(10)
        return self.end(key)


def test_twenty_threads_get_the_same_service_that_was_made_and_warmed_once() -> None:
    factory = Factory(takes=0.05)
    services = factory.services()
    found = at_once(20, lambda: services.get("db"))
    assert set(map(id, found)) == {id(factory.made[0])}
    assert (factory.calls, found[0].warmed, found[0].closed) == (["db"], 1, 0)
    assert services.get("db") is found[0] is services.peek("db")
    assert factory.calls == ["db"]


def test_functools_cache_and_a_locked_cachetools_make_one_for_each_of_twenty_threads() -> None:
    for naive in (functools.cache, cachetools.cached({}, lock=threading.Lock())):
        factory = Factory(takes=0.05)
        get = naive(factory.create)
        at_once(20, functools.partial(get, "db"))
        assert len(factory.made) == 20


def test_a_hit_does_not_wait_for_another_key_that_is_being_made_under_threads() -> None:
    held = Held(Service)
    services: Services[str, Service] = Services(lambda key: held(key) if key == "slow" else Service(key))
    services.get("ready")
    thread = threading.Thread(target=services.get, args=("slow",))
    thread.start()
    held.begun.wait(10)
    assert services.get("ready").key == "ready"
    assert services.get("another").key == "another"
    assert services.peek("slow") is None
    held.go_on.set()
    thread.join(10)
    assert services.peek("slow") is not None


def test_warm_makes_all_keys_at_the_same_time_and_reports_each() -> None:
    together = threading.Barrier(3)

    def create(key: str) -> Service:
        if key == "bad":
            raise ConnectionError("refused")
        together.wait(10)  # so it passes only if the three are made at once
        return Service(key)

    services = Services(create)
    report = services.warm(["a", "bad", "b", "c", "a"], timeout=10)
    assert list(report) == ["a", "bad", "b", "c"]
    assert repr(report.pop("bad")) == "ConnectionError('refused')"
    assert set(report.values()) == {None}


def test_a_key_that_is_not_ready_in_time_is_reported_and_kept_when_it_is() -> None:
    held = Held(Service)
    services = Services(held)
    report = services.warm(["slow"], timeout=0.01)
    assert repr(report["slow"]) == "TimeoutError('not ready after 0.01 s')"
    held.go_on.set()
    assert services.get("slow").key == "slow"


def test_a_failure_reaches_every_thread_with_a_chain_of_its_own_and_is_not_kept() -> None:
    errors = iter([ConnectionError("refused")])
    factory = Factory(0.1, lambda key: next(errors, None))
    services = factory.services()
    failures = at_once(5, lambda: services.get("db"))
    assert [repr(failure) for failure in failures] == ["ConnectionError('refused')"] * 5
    assert len(set(map(id, failures))) == 5
    assert isinstance(services.get("db"), Service)
    assert factory.calls == ["db", "db"]


def test_an_error_that_cannot_be_copied_is_raised_itself_under_threads() -> None:
    class OddError(Exception):
        def __init__(self, host: str, *, port: int) -> None:
            super().__init__(f"{host}:{port}")

    error = OddError("db", port=1)
    services = Factory(0.1, lambda key: error).services()
    assert at_once(2, lambda: services.get("db")) == [error, error]


def test_a_failure_is_repeated_without_a_call_for_failure_ttl_under_threads() -> None:
    clock = 100.0
    factory = Factory(fails=lambda key: ConnectionError(f"{key} refused"))
    services = factory.services(failure_ttl=1.0, clock=lambda: clock)
    for later in (0.0, 0.999):
        clock += later
        with pytest.raises(ConnectionError, match="db refused"):
            services.get("db")
    assert factory.calls == ["db"]
    clock = 101.0
    with pytest.raises(ConnectionError):
        services.get("db")
    assert factory.calls == ["db", "db"]
    clock = 102.0
    with pytest.raises(ConnectionError):
        services.get("other")
    assert list(services._failed) == ["other"]
    services.discard("other")
    assert services._failed == {}


@pytest.mark.parametrize("wrong", [-1, math.nan])
def test_a_failure_ttl_below_zero_is_refused_under_threads(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"failure_ttl must be 0 or more, not {wrong}"):
        Services(Factory().create, failure_ttl=wrong)


def test_a_prewarm_that_fails_closes_the_half_built_service_once_and_tells_what_failed_first() -> None:
    factory = Factory()

    def fail(service: Service) -> None:
        raise ConnectionError("cold")

    def fail_to_close(service: Service) -> None:
        factory.close(service)
        raise OSError("stuck")

    for close in (factory.close, fail_to_close):
        with pytest.raises(ConnectionError, match="cold"):
            factory.services(prewarm=fail, close=close).get("db")
    assert [service.closed for service in factory.made] == [1, 1]
    bare = Services(factory.create)
    assert (bare.get("db").warmed, bare.close()) == (0, None)  # type: ignore[func-returns-value]


def test_when_the_thread_that_makes_it_is_interrupted_another_makes_it() -> None:
    results = list[Any]()

    def interrupt(key: Any) -> Any:
        raise SystemExit

    held = Held(interrupt)
    creators = iter(list[Callable[[Any], Any]]([held, Service]))
    services: Services[str, Any] = Services(lambda key: next(creators)(key), failure_ttl=60)

    def first() -> None:
        with pytest.raises(SystemExit):
            services.get("db")

    threads = [threading.Thread(target=first), threading.Thread(target=lambda: results.append(services.get("db")))]
    threads[0].start()
    held.begun.wait(10)
    threads[1].start()
    time.sleep(0.02)  # so that it waits
    held.go_on.set()
    for thread in threads:
        thread.join(10)
    assert [type(result) for result in results] == [Service]


def test_services_close_in_reverse_order_each_once_and_past_one_that_fails_under_threads() -> None:
    factory = Factory()

    def close(service: Service) -> None:
        factory.close(service)
        if service.key in "ac":
            raise OSError(f"{service.key} is stuck")

    services = factory.services(close=close)
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
def test_a_creation_under_way_is_awaited_and_closed_under_threads(how: str, ends: str) -> None:
    factory = Factory(fails=lambda key: None if ends == "well" else ConnectionError())
    held = Held(factory.create)
    services = Services(held, close=factory.close)

    def make() -> None:
        with contextlib.suppress(ConnectionError):
            services.get("db")

    stop = services.close if how == "close" else functools.partial(services.discard, "db")
    threads = [threading.Thread(target=make), threading.Thread(target=stop)]
    threads[0].start()
    held.begun.wait(10)
    threads[1].start()
    time.sleep(0.02)
    assert factory.closed == []
    held.go_on.set()
    for thread in threads:
        thread.join(10)
    assert factory.closed == (["db"] if ends == "well" else [])
    assert services.peek("db") is None


def test_a_discarded_service_is_closed_and_made_anew_under_threads() -> None:
    factory = Factory()
    services = factory.services()
    services.discard("unknown")
    first, other = services.get("db"), services.get("other")
    services.discard("db")
    assert (first.closed, other.closed) == (1, 0)
    assert services.get("db") is not first


def test_a_factory_may_ask_for_other_keys_and_asking_for_its_own_is_an_error_under_threads() -> None:
    needs = {"app": "db", "db": None, "a": "b", "b": "a", "self": "self"}

    def create(key: str) -> Service:
        if need := needs[key]:
            services.get(need)
        return Service(key)

    services = Services(create)
    assert services.get("app").key == "app"
    for key in ("a", "self"):
        with pytest.raises(RuntimeError, match=f"the service of '{key}' needs itself"):
            services.get(key)


def test_a_service_that_is_discarded_between_two_looks_is_made_anew() -> None:
    factory = Factory()
    services = factory.services()

    class Vanishing(dict[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            if not services._making and len(factory.made) == 1:
                dict.__delitem__(self, key)
            return dict.__getitem__(self, key)

    services._ready = Vanishing()
    assert services.get("db") is factory.made[0]
    assert services.get("db") is factory.made[1]


def test_one_that_became_ready_between_two_looks_is_not_made_again() -> None:
    factory = Factory()
    services = factory.services()

    class Late(dict[Any, Any]):
        looks = 0

        def __contains__(self, key: Any) -> bool:
            self.looks += 1
            if self.looks == 2:  # within the lock: another thread was faster
                self[key] = Service("faster")
            return dict.__contains__(self, key)

    services._ready = Late()
    assert services.get("db").key == "faster"
    assert factory.calls == []


def test_eight_threads_and_many_keys_make_each_once_and_leave_nothing_behind() -> None:
    factory = Factory()
    services = factory.services()
    assert at_once(8, lambda: [services.get(key).key for key in range(200)]) == [list(range(200))] * 8
    assert sorted(factory.calls) == list(range(200))
    assert services._making == {}


def test_forgetting_closes_nothing_and_begins_anew_under_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = Factory()
    services = factory.services()
    services.get("db")
    warmup_sync._after_fork()
    services.get("db")
    assert [service.closed for service in factory.made] == [0, 0]
    monkeypatch.setenv("WARM_ON_START", "db, search,")
    assert keys_to_warm() == ["db", "search"]


def test_a_crowd_of_threads_opens_one_pool_of_postgresql(database_url: str) -> None:
    def create(name: str) -> psycopg_pool.ConnectionPool[Any]:
        return psycopg_pool.ConnectionPool(
            database_url, min_size=2, max_size=2, open=False, kwargs={"application_name": name}
        )

    def prewarm(pool: psycopg_pool.ConnectionPool[Any]) -> None:
        pool.open(wait=True, timeout=10)

    services = Services(create, prewarm=prewarm, close=psycopg_pool.ConnectionPool.close)
    try:
        pools = at_once(20, lambda: services.get("warm-up-threads"))
        with pools[0].connection() as connection:
            counting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'warm-up-threads'"
            assert connection.execute(counting).fetchone() == (2,)
    finally:
        services.close()
