"""What the proofs of multi-level-cache share: caches of both colors on one namespace, and how to see what they do."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import redis

import multi_level_async
import multi_level_sync
from harness.color import Blocking, Color
from harness.waiting import until
from multi_level_core import LocalLevel


class Cache(Blocking):
    """A cache that proofs call as if it were sync; `load` is a sync function, which may block."""

    def __init__(self, color: Color, inner: Any, client: Any) -> None:
        super().__init__(color, inner)
        self.client = client
        self.level: LocalLevel = inner._level

    def get_or_load(self, key: str, load: Callable[[], Any]) -> Any:
        return self.color.call(self.inner.get_or_load, key, self.color.function(load))


class Maker:
    """Makes clients and caches of one color, and closes them."""

    def __init__(self, color: Color) -> None:
        self.color = color
        self.connect: Any = color.pick(multi_level_async.connect, multi_level_sync.connect)
        self.kind: Any = color.pick(multi_level_async.AsyncMultiLevelCache, multi_level_sync.MultiLevelCache)
        self.namespace = uuid.uuid4().hex

    def client(self, url: str, **options: Any) -> Any:
        return self.color.closing(self.connect(url, **{"timeout": 5.0} | options))

    def cache(self, url: str, *, client: Any = None, enter: bool = True, hears: bool = True, **options: Any) -> Cache:
        client = client or self.client(url)
        made = Cache(self.color, self.kind(client, **{"namespace": self.namespace} | options), client)
        if enter:
            made.__enter__()
            self.color.afterwards(lambda: self._leave(made, url))
            until(lambda: made.level.heard_at > 0 or not hears)
        return made

    def _leave(self, made: Cache, url: str) -> Any:
        if self.color.is_async:
            return made.inner.__aexit__(None, None, None)
        made.inner._listener._stop.set()
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(url, retry=None) as db:
            db.publish(made.inner._channel, "")  # it hears that it is to stop, instead of at its next tick
        return made.inner.__exit__(None, None, None)


@pytest.fixture
def maker(color: Color) -> Maker:
    return Maker(color)


def commands_of(cache: Cache) -> list[Any]:
    """Return a list that grows by each command that the cache sends from now on."""
    sent: list[Any] = []
    client = cache.client
    original = client.execute_command

    def counted(*args: Any, **kwargs: Any) -> Any:
        sent.append(args[0])
        return original(*args, **kwargs)

    client.execute_command = counted
    return sent


def put(cache: Cache, key: str, value: Any, ttl: float | None = None, *, others: Sequence[Cache] = ()) -> None:
    """Set, and wait until this cache has heard its own message, and the others too."""
    wanted = [(cache, cache.level.changes_of(key) + 3)]  # before, after, and by message
    wanted += [(other, other.level.changes_of(key) + 1) for other in others]
    assert cache.set(key, value, ttl) is True
    until(lambda: all(each.level.changes_of(key) == count for each, count in wanted))
