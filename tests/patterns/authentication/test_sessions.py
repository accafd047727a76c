"""Proves docs/patterns/authentication/sessions.md: a session ends when it should, at once, and never comes back."""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import logging
import re
import time
import traceback
from collections.abc import Callable
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

import sessions_async
import sessions_sync
from harness.clock import Clock
from harness.color import Color
from harness.waiting import at_once
from servers.valkey import Valkey
from sessions_core import Session, SessionInfo, SessionLimits, SessionStoreUnavailable, SessionTooLarge

NOW = 1_800_000_000.25


class Stored:
    """A store of one color, called as if it were sync, and what Redis holds of it; `client` if none is given."""

    def __init__(self, color: Color, url: str, client: Any = None, **limits: Any) -> None:
        self.client = color.closing(client or connect(color, url, timeout=5))
        self.store = color.pick(sessions_async.AsyncSessionStore, sessions_sync.SessionStore)(self.client, **limits)
        self.redis = color.closing(redis.Redis.from_url(url, decode_responses=True, retry=None))
        self._calls = color.blocking(self.store)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calls, name)

    def left(self) -> list[str]:
        """Return the keys in Redis, without those that have expired and are not cleared away yet."""
        return list(self.redis.scan_iter())

    def number(self, session: Session, name: str) -> int:
        return int(str(self.redis.hget(self.key(session), name)))

    def key(self, session: Session) -> str:
        return "{sessions}:s:" + hashlib.sha256(session.token.encode()).hexdigest()

    def index(self, user: str) -> str:
        return "{sessions}:u:" + hashlib.sha256(user.encode()).hexdigest()


def connect(color: Color, url: str, **options: Any) -> Any:
    return color.pick(sessions_async, sessions_sync).connect(url, **options)


Open = Callable[..., Stored]


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def open_store(color: Color, valkey_url: str) -> Open:
    def open_it(**limits: Any) -> Stored:
        return Stored(color, valkey_url, **limits)

    return open_it


# What is kept, and where.


def test_a_session_that_was_created_is_found_by_its_token(open_store: Open, clock: Clock) -> None:
    store = open_store(clock=clock)
    made = store.create("ada", {"cart": ["ä", 1, None]})
    assert made == Session(made.token, "ada", {"cart": ["ä", 1, None]}, NOW, NOW + 43_200)
    assert store.get(made.token) == made
    plain = store.create("bob")
    assert store.get(plain.token) == Session(plain.token, "bob", {}, NOW, NOW + 43_200)


def test_a_token_has_256_random_bits_and_redis_holds_only_its_hash(open_store: Open) -> None:
    store = open_store()
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
def test_a_token_that_the_client_invented_is_never_adopted(open_store: Open, token: Any) -> None:
    store = open_store()
    assert store.get(token) is None
    assert store.rotate(token) is None
    assert store.update(token, {"a": 1}) is False
    store.destroy(token)
    assert store.left() == []
    assert store.create("ada").token != token


def test_what_cannot_be_a_token_asks_redis_nothing(color: Color) -> None:
    store = Stored(color, "redis://127.0.0.1:1/0")  # nobody answers there
    for token in ("x" * 10_240, "", "é" * 43):
        assert store.get(token) is None
        assert store.rotate(token) is None
        assert store.update(token, {}) is False
        store.destroy(token)
    with pytest.raises(SessionStoreUnavailable):
        store.get("x" * 43)


# When it ends.


def test_an_unused_session_is_gone_after_its_idle_time_and_each_use_begins_it_anew(open_store: Open) -> None:
    store = open_store(idle=100, absolute=1_000)
    made = store.create("ada")
    key = store.key(made)
    for _ in range(2):
        assert 60_000 < store.redis.pttl(key) <= 100_000
        store.redis.pexpire(key, 5_000)  # 95 seconds later
        assert store.get(made.token)
    assert 60_000 < store.redis.pttl(key) <= 100_000
    short = open_store(idle=0.02, absolute=1_000)
    gone = short.create("ada")
    time.sleep(0.03)
    assert short.get(gone.token) is None
    assert short.get(made.token)  # whose own time is another


def test_a_session_ends_after_its_absolute_time_even_if_it_is_used_every_second(open_store: Open, clock: Clock) -> None:
    store = open_store(idle=100, absolute=1_000, clock=clock)
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
    assert open_store(idle=100, absolute=10).create("ada").ends_at <= time.time() + 10
    (left,) = (store.redis.pttl(key) for key in store.redis.scan_iter("*:s:*"))
    assert left <= 10_000


@pytest.mark.parametrize("apart", [-3_600, 3_600])
def test_an_application_clock_that_is_set_back_lengthens_no_session(
    open_store: Open, apart: float, clock: Clock
) -> None:
    store = open_store(idle=5_000, absolute=7_200, clock=clock)
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


def test_data_is_replaced_without_giving_the_session_a_longer_life(open_store: Open) -> None:
    store = open_store(idle=100)
    made = store.create("ada", {"a": 1})
    store.redis.pexpire(store.key(made), 5_000)
    assert store.update(made.token, {"b": 2}) is True
    assert 0 < store.redis.pttl(store.key(made)) <= 5_000
    assert store.get(made.token).data == {"b": 2}


def test_data_is_json_of_4096_bytes_at_most(open_store: Open) -> None:
    store = open_store()
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
def test_a_session_of_nobody_is_refused(open_store: Open, user: Any) -> None:
    store = open_store()
    for method in (store.create, store.destroy_all, store.list):
        with pytest.raises(ValueError, match=r"^user_id must be a text that is not empty$"):
            method(user)


# Rotation.


def test_rotation_gives_a_new_token_and_the_old_one_is_refused_at_once(open_store: Open, clock: Clock) -> None:
    store = open_store(clock=clock, idle=100)
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


def test_of_a_hundred_rotations_at_once_exactly_one_succeeds(open_store: Open) -> None:
    store = open_store()
    made = store.create("ada")
    done = [session for session in at_once(100, lambda: store.rotate(made.token)) if session]
    assert len(done) == 1
    assert store.get(done[0].token)
    assert len(store.left()) == 2


# Logging out.


def test_a_session_that_was_destroyed_is_gone(open_store: Open) -> None:
    store = open_store()
    one, two = store.create("ada"), store.create("ada")
    store.destroy(one.token)
    store.destroy(one.token)
    assert store.get(one.token) is None
    assert store.get(two.token)
    assert store.redis.zcard(store.index("ada")) == 1
    store.destroy(two.token)
    assert store.left() == []


def test_logging_out_everywhere_ends_all_sessions_of_one_user(open_store: Open, clock: Clock) -> None:
    store, elsewhere = open_store(clock=clock), open_store(clock=clock)
    mine = [store.create("ada"), elsewhere.create("ada"), store.create("ada")]
    other = store.create("bob")
    assert elsewhere.list("ada") == (SessionInfo(NOW, {}),) * 3
    assert elsewhere.destroy_all("ada") == 3
    assert [store.get(session.token) for session in mine] == [None] * 3
    assert store.get(other.token)
    assert store.destroy_all("ada") == 0
    assert store.list("ada") == ()


def test_the_list_of_a_users_sessions_holds_no_dead_entry(open_store: Open) -> None:
    short, store = open_store(idle=0.02), open_store(idle=100, absolute=1_000)
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


def test_a_request_in_flight_cannot_bring_back_a_session_that_was_destroyed(open_store: Open) -> None:
    store = open_store()
    made = store.create("ada", {"a": 1})
    in_flight = store.get(made.token)  # a request begins,
    store.destroy(made.token)  # the person logs out,
    assert store.update(in_flight.token, {"a": 2}) is False  # and the request ends
    assert store.rotate(in_flight.token) is None
    assert store.get(made.token) is None
    assert store.left() == []


# Redis is not there.


def test_a_redis_that_restarts_is_unavailable_and_never_anonymous(color: Color, own_valkey: Valkey) -> None:
    store = Stored(color, own_valkey.url)
    made = store.create("ada")
    assert store.get(made.token)
    own_valkey.kill()
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
    own_valkey.start()
    assert store.get(made.token) is None  # it came back empty: signed out, and no error
    assert store.get(store.create("ada").token)


def test_a_redis_that_hangs_is_given_up_in_time(color: Color, valkey_url: str, fault_proxy: Any) -> None:
    port = int(valkey_url.rsplit(":", 1)[1].split("/")[0])
    proxy = fault_proxy("127.0.0.1", port)
    proxy.blackhole = True
    url = f"redis://127.0.0.1:{proxy.port}/0"
    store = Stored(color, url, connect(color, url, timeout=0.05))
    with pytest.raises(SessionStoreUnavailable, match=r"^TimeoutError$"):
        store.get("x" * 43)
    assert proxy.accepted == 1  # and not asked again, ten times with pauses, as the client does by default


@pytest.mark.parametrize("value", [0, -1, True, float("nan"), float("inf"), "1", None])
def test_a_time_or_number_that_a_client_cannot_have_is_refused(color: Color, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^timeout must be a number of seconds over 0, got {value!r}$"):
        connect(color, "redis://127.0.0.1:1/0", timeout=value)
    with pytest.raises(ValueError, match=rf"^max_connections must be a whole number of at least 1, got {value!r}$"):
        connect(color, "redis://127.0.0.1:1/0", max_connections=value)


# Configuration, and secrets.


def test_the_settings_are_read_and_a_missing_address_is_named(color: Color, valkey_url: str) -> None:
    kind: Any = color.pick(sessions_async.AsyncSessionStore, sessions_sync.SessionStore)
    environ = {"REDIS_URL": valkey_url, "SESSION_IDLE_SECONDS": "60", "SESSION_ABSOLUTE_SECONDS": "600"}
    assert kind.from_env(environ)._limits == SessionLimits(idle=60, absolute=600)
    assert kind.from_env({"REDIS_URL": valkey_url})._limits == SessionLimits(idle=1_800, absolute=43_200)
    for wrong in ({}, {"REDIS_URL": ""}):
        with pytest.raises(RuntimeError, match=r"^REDIS_URL is not set, or is empty$"):
            kind.from_env(wrong)
    for name in ("SESSION_IDLE_SECONDS", "SESSION_ABSOLUTE_SECONDS"):
        for value in ("soon", "-1", "0", "1e3", " 5", "٥"):
            with pytest.raises(ValueError, match=rf"^{name} must be a whole number of seconds over 0, got '{value}'$"):
                kind.from_env(environ | {name: value})


NO_NUMBERS = [-1, True, float("nan"), float("inf"), "60", None]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("idle", "absolute") for value in (*NO_NUMBERS, 0)]
    + [("max_bytes", value) for value in (*NO_NUMBERS, 1, 2.5)],
)
def test_a_limit_that_cannot_be_meant_stops_the_start(open_store: Open, name: str, value: Any) -> None:
    needed = "a whole number of at least 2" if name == "max_bytes" else "a number of seconds of at least 0.001"
    with pytest.raises(ValueError, match=rf"^{name} must be {needed}, got {value!r}$"):
        open_store(**{name: value})
    assert open_store(idle=0.001, absolute=0.001, max_bytes=2)


def test_both_stores_have_the_same_methods_and_arguments() -> None:
    one, two = sessions_async.AsyncSessionStore, sessions_sync.SessionStore
    names = {name for name in vars(one) if not name.startswith("_")}
    assert names == {name for name in vars(two) if not name.startswith("_")}
    for name in (*names, "__init__"):
        assert list(inspect.signature(getattr(one, name)).parameters) == list(
            inspect.signature(getattr(two, name)).parameters
        )


def test_a_client_that_decodes_its_answers_works_as_well(color: Color, valkey_url: str) -> None:
    kind: Any = color.pick(AsyncRedis, redis.Redis)
    store = Stored(color, valkey_url, kind.from_url(valkey_url, decode_responses=True), prefix="other")
    made = store.create("ada", {"a": "ä"})
    assert store.get(made.token) == made
    assert [info.data for info in store.list("ada")] == [{"a": "ä"}]
    assert all(key.startswith("{other}:") for key in store.redis.scan_iter())


def test_no_token_and_no_data_is_shown_whatever_happens(
    color: Color, open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    canary = "canary-" + "k" * 30
    store = open_store()
    made = store.create("ada", {"secret": canary})
    rotated = store.rotate(made.token)
    shown = [repr(thing) for thing in (made, rotated, store.store, store.list("ada"), store.get(rotated.token))]
    down = Stored(color, f"redis://:{canary}@127.0.0.1:1/0")
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


def test_naive_store_without_an_expiry_keeps_a_stolen_cookie_alive_despite_max_age(
    valkey_url: str,
) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        client.set("session", "ada")  # the cookie's Max-Age is advice to an honest browser
        assert client.ttl("session") == -1
        store = sessions_sync.SessionStore(client)
        token = store.create("ada").token
        (key,) = client.keys("*:s:*")
        assert 0 < client.ttl(key) <= 1_800
        assert store.get(token)
