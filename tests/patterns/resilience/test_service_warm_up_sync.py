"""Proves docs/patterns/resilience/service-warm-up.md: what is particular to services under threads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import cachetools
import pytest

from harness.color import Color
from harness.waiting import at_once, in_thread, until
from patterns.resilience.service_warm_up_kit import Factory, Service, Warm
from warmup_sync import Services


def test_functools_cache_and_a_locked_cachetools_make_one_for_each_of_twenty_threads() -> None:
    for naive in (functools.cache, cachetools.cached({}, lock=threading.Lock())):
        all_make_it = threading.Barrier(20)
        get = naive(lambda key, barrier=all_make_it: (barrier.wait(20), Service(key))[1])
        made = at_once(20, functools.partial(get, "db"))
        assert {type(each) for each in made} == {Service}  # the barrier opened: all twenty made one


def test_a_key_that_is_not_ready_in_time_is_kept_when_it_is() -> None:
    factory = Factory()
    factory.go.clear()
    services = Services(factory.create)
    report = services.warm(["slow"], timeout=0.01)
    assert repr(report["slow"]) == "TimeoutError('not ready after 0.01 s')"
    factory.go.set()
    assert services.get("slow").key == "slow"
    assert factory.calls == ["slow"]


def test_when_the_thread_that_makes_it_is_interrupted_another_makes_it() -> None:
    factory = Factory(lambda key: SystemExit())
    factory.go.clear()
    creators = iter(list[Callable[[Any], Any]]([factory.create, Service]))
    services = Warm(Color("sync"), lambda key: next(creators)(key), failure_ttl=60)
    first = in_thread(services.get, "db")
    until(lambda: factory.calls)
    second = in_thread(services.get, "db")
    until(lambda: services.joined == 2)
    factory.go.set()
    with pytest.raises(SystemExit):
        first.result(20)
    assert type(second.result(20)) is Service


def test_a_service_that_is_discarded_between_two_looks_is_made_anew() -> None:
    factory = Factory()
    services = factory.services(Color("sync"))

    class Vanishing(dict[Any, Any]):
        def __getitem__(self, key: Any) -> Any:
            if not services._making and len(factory.made) == 1:
                dict.__delitem__(self, key)
            return dict.__getitem__(self, key)

    services.inner._ready = Vanishing()
    assert services.get("db") is factory.made[0]
    assert services.get("db") is factory.made[1]


def test_one_that_became_ready_between_two_looks_is_not_made_again() -> None:
    factory = Factory()
    services = factory.services(Color("sync"))

    class Late(dict[Any, Any]):
        looks = 0

        def __contains__(self, key: Any) -> bool:
            self.looks += 1
            if self.looks == 2:  # within the lock: another thread was faster
                self[key] = Service("faster")
            return dict.__contains__(self, key)

    services.inner._ready = Late()
    assert services.get("db").key == "faster"
    assert factory.calls == []


def test_eight_threads_and_many_keys_make_each_once_and_leave_nothing_behind() -> None:
    factory = Factory()
    services = factory.services(Color("sync"))
    assert at_once(8, lambda: [services.get(key).key for key in range(200)]) == [list(range(200))] * 8
    assert sorted(factory.calls) == list(range(200))
    assert services._making == {}
