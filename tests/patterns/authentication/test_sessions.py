"""Proves docs/patterns/authentication/sessions.md: a session ends when it should, at once, and never comes back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import json
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from redis.asyncio import Redis as AsyncRedis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import sessions
import sessions_sync
from servers.valkey import Valkey
from session_core import Session, SessionInfo, SessionStoreUnavailable, SessionTooLarge

NOW = 1_800_000_000.25


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Twin:
    """A store of either kind, called the same way: what returns a coroutine is run."""

    def __init__(self, module: Any, url: str, **limits: Any) -> None:
        self.runner = asyncio.Runner()
        self.module, self.url = module, url
        self.client = module.connect(url, timeout=5)
        self.store = module.SessionStore(self.client, **limits)
        self.redis = redis.Redis.from_url(url, decode_responses=True, retry=None)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self.runner.run(result) if inspect.iscoroutine(result) else result

        return call

    def many(self, name: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Call a method many times at once."""
        method = getattr(self.store, name)
        if self.module is sessions_sync:
            with ThreadPoolExecutor(20) as pool:
                return list(pool.map(lambda given: method(*given), arguments))

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(method(*given) for given in arguments))

        return self.runner.run(all_of_them())

    def close(self) -> None:
        closed = self.client.aclose() if self.module is sessions else self.client.close()
        if inspect.iscoroutine(closed):
            self.runner.run(closed)
        self.redis.close()
        self.runner.close()

    def left(self) -> list[str]:
        """Return the keys in Redis, without those that have expired and are not cleared away yet."""
        return list(self.redis.scan_iter())

    def number(self, session: Session, name: str) -> int:
        return int(str(self.redis.hget(self.key(session), name)))

    def key(self, session: Session) -> str:
        return "{sessions}:s:" + hashlib.sha256(session.token.encode()).hexdigest()

    def index(self, user: str) -> str:
        return "{sessions}:u:" + hashlib.sha256(user.encode()).hexdigest()


both = pytest.mark.parametrize("module", [sessions, sessions_sync], ids=["async", "sync"])
Open = Callable[..., Twin]


@pytest.fixture
def open_store(valkey_url: str) -> Iterator[Open]:
    made: list[Twin] = []

    def open_it(module: Any, **limits: Any) -> Twin:
        made.append(Twin(module, valkey_url, **limits))
        return made[-1]

    yield open_it
    for twin in made:
        twin.close()


# What is kept, and where.


@both
def test_a_session_that_was_created_is_found_by_its_token(module: Any, open_store: Open) -> None:
    clock = Clock()
    store = open_store(module, clock=clock)
    made = store.create("ada", {"cart": ["ä", 1, None]})
    assert made == Session(made.token, "ada", {"cart": ["ä", 1, None]}, NOW, NOW + 43_200)
    assert store.get(made.token) == made
    plain = store.create("bob")
    assert store.get(plain.token) == Session(plain.token, "bob", {}, NOW, NOW + 43_200)


@both
def test_a_token_has_256_random_bits_and_redis_holds_only_its_hash(module: Any, open_store: Open) -> None:
    store = open_store(module)
    made = [store.create("ada") for _ in range(20)]
    tokens = {session.token for session in made}
    assert len(tokens) == 20
    assert all(re.fullmatch(r"[\w-]{43}", token, re.ASCII) for token in tokens)
    kept = "".join(store.left())
    for session in made:
        assert store.redis.hgetall(store.key(session))["user"] == "ada"
        kept += str(store.redis.hgetall(store.key(session)))
    kept += str(store.redis.zrange(store.index("ada"), 0, -1))
    assert not [token for token in tokens if token in kept]


@pytest.mark.parametrize(
    "token", ["x" * 43, "x" * 10_240, "", None, "é" * 43, "x" * 42 + "\n", "x" * 42 + "é", 5, "\ud800" * 43]
)
@both
def test_a_token_that_the_client_invented_is_never_adopted(module: Any, open_store: Open, token: Any) -> None:
    store = open_store(module)
    assert store.get(token) is None
    assert store.rotate(token) is None
    assert store.update(token, {"a": 1}) is False
    store.destroy(token)
    assert store.left() == []
    assert store.create("ada").token != token


@both
def test_what_cannot_be_a_token_asks_redis_nothing(module: Any) -> None:
    store = Twin(module, "redis://127.0.0.1:1/0")  # nobody answers there
    for token in ("x" * 10_240, "", "é" * 43):
        assert store.get(token) is None
        assert store.rotate(token) is None
        assert store.update(token, {}) is False
        store.destroy(token)
    with pytest.raises(SessionStoreUnavailable):
        store.get("x" * 43)
    store.close()


# When it ends.


@both
def test_a_session_that_is_not_used_is_gone_after_its_idle_time_and_each_use_begins_it_anew(
    module: Any, open_store: Open
) -> None:
    store = open_store(module, idle=100, absolute=1_000)
    made = store.create("ada")
    key = store.key(made)
    for _ in range(2):
        assert 60_000 < store.redis.pttl(key) <= 100_000
        store.redis.pexpire(key, 5_000)  # 95 seconds later
        assert store.get(made.token)
    assert 60_000 < store.redis.pttl(key) <= 100_000
    short = open_store(module, idle=0.02, absolute=1_000)
    gone = short.create("ada")
    time.sleep(0.03)
    assert short.get(gone.token) is None
    assert short.get(made.token)  # whose own time is another


@both
def test_a_session_ends_after_its_absolute_time_even_if_it_is_used_every_second(module: Any, open_store: Open) -> None:
    clock = Clock()
    store = open_store(module, idle=100, absolute=1_000, clock=clock)
    made = store.create("ada")
    clock.now = NOW + 999.9
    assert store.get(made.token)
    clock.now = NOW + 1_000
    assert store.get(made.token) is None
    # By the clock of Redis too: what is left is never longer than the way to the end.
    clock.now = NOW
    ends = store.number(made, "ends")
    assert ends - time.time() * 1_000 == pytest.approx(1_000_000, abs=30_000)
    store.redis.hset(store.key(made), "ends", ends - 950_000)
    assert store.get(made.token)
    assert store.redis.pttl(store.key(made)) <= 50_000
    store.redis.hset(store.key(made), "ends", ends - 1_000_000)
    assert store.rotate(made.token) is None
    assert store.get(made.token) is None
    assert store.left() == []
    assert open_store(module, idle=100, absolute=10).create("ada").ends_at <= time.time() + 10
    (left,) = (store.redis.pttl(key) for key in store.redis.scan_iter("*:s:*"))
    assert left <= 10_000


@pytest.mark.parametrize("apart", [-3_600, 3_600])
@both
def test_an_application_clock_that_is_set_back_lengthens_no_session(
    module: Any, open_store: Open, apart: float
) -> None:
    clock = Clock()
    store = open_store(module, idle=5_000, absolute=7_200, clock=clock)
    made = store.create("ada")
    ends = store.number(made, "ends")
    clock.now += apart
    assert store.get(made.token)
    rotated = store.rotate(made.token)
    assert rotated
    assert store.number(rotated, "ends") == ends
    store.redis.hset(store.key(rotated), "ends", int(time.time() * 1_000) + 5_000)  # the end is near, by Redis
    assert store.get(rotated.token)
    assert store.redis.pttl(store.key(rotated)) <= 5_000


@both
def test_data_is_replaced_without_giving_the_session_a_longer_life(module: Any, open_store: Open) -> None:
    store = open_store(module, idle=100)
    made = store.create("ada", {"a": 1})
    store.redis.pexpire(store.key(made), 5_000)
    assert store.update(made.token, {"b": 2}) is True
    assert 0 < store.redis.pttl(store.key(made)) <= 5_000
    assert store.get(made.token).data == {"b": 2}


@both
def test_data_is_json_of_4096_bytes_at_most(module: Any, open_store: Open) -> None:
    store = open_store(module)
    exactly = {"x": "ä" * 2_043 + "y"}
    assert len(json.dumps(exactly, ensure_ascii=False).encode()) == 4_096
    made = store.create("ada", exactly)
    assert store.get(made.token).data == exactly
    larger = {"x": exactly["x"] + "z"}
    for method, first in ((store.create, "ada"), (store.update, made.token)):
        with pytest.raises(SessionTooLarge, match=r"^a session holds at most 4096 bytes of JSON$"):
            method(first, larger)
    for data in ({"x": {1, 2}}, {"x": b"bytes"}, {"x": float("nan")}, {"x": object()}):
        with pytest.raises(ValueError, match=r"^a session holds JSON and nothing else$"):
            store.create("ada", data)
    assert store.get(made.token).data == exactly


@pytest.mark.parametrize("user", ["", None, 5])
@both
def test_a_session_of_nobody_is_refused(module: Any, open_store: Open, user: Any) -> None:
    store = open_store(module)
    for method in (store.create, store.destroy_all, store.list):
        with pytest.raises(ValueError, match=r"^user_id must be a text that is not empty$"):
            method(user)


# Rotation.


@both
def test_rotation_gives_a_new_token_and_the_old_one_is_refused_at_once(module: Any, open_store: Open) -> None:
    clock = Clock()
    store = open_store(module, clock=clock, idle=100)
    first = store.create("ada", {"a": 1})
    store.redis.pexpire(store.key(first), 5_000)
    clock.now += 10
    second = store.rotate(first.token)
    assert second == Session(second.token, "ada", {"a": 1}, NOW, NOW + 43_200)  # the absolute time goes on
    assert second.token != first.token
    assert store.get(first.token) is None
    assert store.get(second.token) == second
    assert store.redis.pttl(store.key(second)) > 60_000
    assert store.redis.zcard(store.index("ada")) == 1
    assert store.destroy_all("ada") == 1
    assert store.get(second.token) is None


@both
def test_of_a_hundred_rotations_at_once_exactly_one_succeeds(module: Any, open_store: Open) -> None:
    store = open_store(module)
    made = store.create("ada")
    done = [session for session in store.many("rotate", [(made.token,)] * 100) if session]
    assert len(done) == 1
    assert store.get(done[0].token)
    assert len(store.left()) == 2


# Logging out.


@both
def test_a_session_that_was_destroyed_is_gone(module: Any, open_store: Open) -> None:
    store = open_store(module)
    one, two = store.create("ada"), store.create("ada")
    store.destroy(one.token)
    store.destroy(one.token)
    assert store.get(one.token) is None
    assert store.get(two.token)
    assert store.redis.zcard(store.index("ada")) == 1
    store.destroy(two.token)
    assert store.left() == []


@both
def test_logging_out_everywhere_ends_all_sessions_of_one_user(module: Any, open_store: Open) -> None:
    clock = Clock()
    store, elsewhere = open_store(module, clock=clock), open_store(module, clock=clock)
    mine = [store.create("ada"), elsewhere.create("ada"), store.create("ada")]
    other = store.create("bob")
    assert elsewhere.list("ada") == (SessionInfo(NOW, {}),) * 3
    assert elsewhere.destroy_all("ada") == 3
    assert [store.get(session.token) for session in mine] == [None] * 3
    assert store.get(other.token)
    assert store.destroy_all("ada") == 0
    assert store.list("ada") == ()


@both
def test_the_list_of_a_users_sessions_holds_no_dead_entry(module: Any, open_store: Open) -> None:
    short, store = open_store(module, idle=0.02), open_store(module, idle=100, absolute=1_000)
    index = store.index("ada")

    def one_that_has_expired() -> None:
        """Make a session, and let its idle time pass."""
        key = store.key(store.create("ada"))
        store.redis.delete(key)
        store.redis.zadd(index, {key.rpartition(":")[2]: time.time() * 1_000 - 1})

    short.create("ada")
    time.sleep(0.03)
    assert store.left() == []  # the list goes with its last session, by itself
    living = store.create("ada", {"here": True})
    one_that_has_expired()
    assert store.redis.zcard(index) == 2
    assert [info.data for info in store.list("ada")] == [{"here": True}]
    assert store.redis.zcard(index) == 1
    one_that_has_expired()
    assert store.get(living.token)  # a use alone takes the dead one out as well
    assert store.redis.zcard(index) == 1
    assert 60_000 < store.redis.pttl(index) <= 100_000
    one_that_has_expired()
    assert store.create("ada")
    assert store.redis.zcard(index) == 2
    one_that_has_expired()
    assert store.destroy_all("ada") == 2
    assert store.left() == []


@both
def test_a_request_in_flight_cannot_bring_back_a_session_that_was_destroyed(module: Any, open_store: Open) -> None:
    store = open_store(module)
    made = store.create("ada", {"a": 1})
    in_flight = store.get(made.token)  # a request begins,
    store.destroy(made.token)  # the person logs out,
    assert store.update(in_flight.token, {"a": 2}) is False  # and the request ends
    assert store.rotate(in_flight.token) is None
    assert store.get(made.token) is None
    assert store.left() == []


# Redis is not there.


@both
def test_a_redis_that_restarts_is_unavailable_and_never_anonymous(module: Any) -> None:
    server = Valkey()
    store = Twin(module, server.url)
    try:
        made = store.create("ada")
        assert store.get(made.token)
        server.kill()
        calls: list[tuple[str, tuple[Any, ...]]] = [
            ("create", ("ada",)),
            ("get", (made.token,)),
            ("update", (made.token, {})),
            ("rotate", (made.token,)),
            ("destroy", (made.token,)),
            ("destroy_all", ("ada",)),
            ("list", ("ada",)),
        ]
        for name, arguments in calls:
            with pytest.raises(SessionStoreUnavailable) as caught:
                getattr(store, name)(*arguments)
            assert caught.value.__cause__ is None
        server.start()
        assert store.get(made.token) is None  # it came back empty: signed out, and no error
        assert store.get(store.create("ada").token)
    finally:
        store.close()
        server.stop()


@both
def test_a_redis_that_hangs_is_given_up_in_time(module: Any, valkey_url: str, fault_proxy: Any) -> None:
    port = int(valkey_url.rsplit(":", 1)[1].split("/")[0])
    proxy = fault_proxy("127.0.0.1", port)
    proxy.blackhole = True
    store = Twin(module, f"redis://127.0.0.1:{proxy.port}/0")
    store.client = module.connect(store.url, timeout=0.05)
    store.store = module.SessionStore(store.client)
    begin = time.monotonic()
    with pytest.raises(SessionStoreUnavailable, match=r"^TimeoutError$"):
        store.get("x" * 43)
    assert time.monotonic() - begin < 3
    store.close()


# Configuration, and secrets.


@both
def test_the_settings_are_read_and_a_missing_address_is_named(module: Any, valkey_url: str) -> None:
    environ = {"REDIS_URL": valkey_url, "SESSION_IDLE_SECONDS": "60", "SESSION_ABSOLUTE_SECONDS": "600"}
    assert module.SessionStore.from_env(environ)._limits() == [60_000, 600_000]
    assert module.SessionStore.from_env({"REDIS_URL": valkey_url})._limits() == [1_800_000, 43_200_000]
    for wrong in ({}, {"REDIS_URL": ""}):
        with pytest.raises(RuntimeError, match=r"^REDIS_URL is not set, or is empty$"):
            module.SessionStore.from_env(wrong)
    for name in ("SESSION_IDLE_SECONDS", "SESSION_ABSOLUTE_SECONDS"):
        for value in ("soon", "-1", "1e3", " 5", "٥"):
            with pytest.raises(RuntimeError, match=rf"^{name} is not a whole number of seconds$"):
                module.SessionStore.from_env(environ | {name: value})


@pytest.mark.parametrize("limits", [{"idle": 0}, {"absolute": 0}, {"max_bytes": 1}, {"idle": float("nan")}])
@both
def test_a_limit_that_cannot_be_meant_stops_the_start(module: Any, valkey_url: str, limits: dict[str, Any]) -> None:
    client = module.connect(valkey_url)
    with pytest.raises(ValueError, match=r"^idle and absolute must be at least 0.001 s, max_bytes at least 2$"):
        module.SessionStore(client, **limits)
    assert module.SessionStore(client, idle=0.001, absolute=0.001, max_bytes=2)


@both
def test_a_client_that_decodes_its_answers_works_as_well(module: Any, valkey_url: str) -> None:
    store = Twin(module, valkey_url)
    kind: Any = AsyncRedis if module is sessions else redis.Redis
    store.client = kind.from_url(valkey_url, decode_responses=True)
    store.store = module.SessionStore(store.client, prefix="other")
    made = store.create("ada", {"a": "ä"})
    assert store.get(made.token) == made
    assert [info.data for info in store.list("ada")] == [{"a": "ä"}]
    assert all(key.startswith("{other}:") for key in store.redis.scan_iter())
    store.close()


@both
def test_no_token_and_no_data_is_shown_whatever_happens(
    module: Any, open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    canary = "canary-" + "k" * 30
    store = open_store(module)
    made = store.create("ada", {"secret": canary})
    rotated = store.rotate(made.token)
    shown = [repr(thing) for thing in (made, rotated, store.store, store.list("ada"), store.get(rotated.token))]
    down = Twin(module, f"redis://:{canary}@127.0.0.1:1/0")
    attempts: list[Callable[[], Any]] = [
        lambda: down.get(rotated.token),
        lambda: down.create("ada", {"secret": canary}),
        lambda: store.create("ada", {"secret": canary * 1_000}),
        lambda: store.create("ada", {"secret": canary.encode()}),
    ]
    for attempt in attempts:
        with pytest.raises((SessionStoreUnavailable, ValueError)) as caught:
            attempt()
        shown += [*traceback.format_exception(caught.value), repr(caught.value)]
    down.close()
    everything = "\n".join([*shown, caplog.text])
    for secret in (canary, made.token, rotated.token):
        assert secret not in everything


# The naive ways.


def test_naive_signed_cookie_works_after_the_logout_and_shows_what_it_holds() -> None:
    async def login(request: Request) -> JSONResponse:
        request.session.update(user="ada", plan="secret offer")
        return JSONResponse({})

    async def me(request: Request) -> JSONResponse:
        return JSONResponse(request.session.get("user"))

    async def logout(request: Request) -> JSONResponse:
        request.session.clear()
        return JSONResponse({})

    routes = [Route("/login", login), Route("/me", me), Route("/logout", logout)]
    app = Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, secret_key="k" * 32)])
    with TestClient(app) as client:
        client.get("/login")
        stolen = client.cookies["session"]
        client.get("/logout")
        client.cookies.clear()
        assert client.get("/me").json() is None
        assert client.get("/me", headers={"cookie": f"session={stolen}"}).json() == "ada"
    assert b"secret offer" in base64.b64decode(stolen.split(".")[0] + "==")


def test_naive_get_and_set_brings_back_a_session_that_was_destroyed(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        client.set("session", "ada", ex=1_800)
        read = client.get("session")  # a request begins,
        client.delete("session")  # the person logs out,
        client.set("session", str(read), ex=1_800)  # and the request slides the session
        assert client.get("session") == "ada"
        client.delete("session")
        assert client.expire("session", 1_800) == 0  # these do not
        assert client.getex("session", ex=1_800) is None
        assert client.set("session", str(read), xx=True) is None


def test_naive_set_takes_the_time_to_live_away(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        client.set("session", "ada", ex=1_800)
        client.set("session", "ada, changed")
        assert client.ttl("session") == -1  # it never ends
        client.set("session", "ada", ex=1_800)
        client.set("session", "ada, changed", keepttl=True)
        assert 0 < client.ttl("session") <= 1_800


def test_naive_sliding_outlives_the_absolute_limit(valkey_url: str) -> None:
    idle, absolute, created = 1_800, 43_200, 0
    with redis.Redis.from_url(valkey_url) as client:
        client.set("session", "ada", ex=idle)
        for _ in range(created, 2 * absolute, 1_000):  # used every 1,000 seconds, for a day
            assert client.expire("session", idle)
        assert client.exists("session")


def test_naive_store_without_an_expiry_keeps_a_stolen_cookie_alive_whatever_max_age_says(
    valkey_url: str, open_store: Open
) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        client.set("session", "ada")  # the cookie's Max-Age is advice to an honest browser
        assert client.ttl("session") == -1
    store = open_store(sessions_sync)
    made = store.create("ada")
    assert 0 < store.redis.ttl(store.key(made)) <= 1_800
