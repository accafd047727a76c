"""Proves docs/patterns/caching/redis-cache.md: keys that no two calls share, values that keep their types."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import io
import json
import math
import pickle
import re
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cache_codec
import redis_cache_core as core
from cache_codec import JsonSerializer, UnserializableValue
from harness.clock import Clock
from harness.depth import examples
from redis_cache_core import CacheKeys, UnkeyableArgument
from redis_cache_sync import RedisCache, connect


class Status(enum.Enum):
    OPEN = "open"
    CLOSED = ("closed", 1)


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    id: UUID
    total: Decimal
    status: Status = Status.OPEN
    tags: tuple[str, ...] = ()


@dataclasses.dataclass
class Doubled:
    amount: int

    def __post_init__(self) -> None:
        self.amount *= 2


ORDER = Order(UUID(int=7), Decimal("12.30"), Status.CLOSED, ("new", "gift"))
SERIALIZER = JsonSerializer([Order, Status, Level, Doubled])


@pytest.fixture
def cache() -> Iterator[RedisCache]:
    """A cache that is asked for keys only, so nobody needs to listen on that port."""
    client = connect("redis://127.0.0.1:1")
    yield RedisCache(client, namespace="test", serializer=SERIALIZER)
    client.close()


# --- Keys -----------------------------------------------------------------------------------------


def test_a_call_has_one_key_however_its_arguments_are_written(cache: RedisCache) -> None:
    @cache.cached(ttl=60)
    def f(user_id: int, other: str = "default", *rest: int, **more: int) -> None: ...

    key = f.key_for(1)
    assert key == f.key_for(user_id=1) == f.key_for(1, "default")
    assert key == f.key_for(other="default", user_id=1)
    assert f.key_for(1, x=1, y=2) == f.key_for(1, y=2, x=1) != key
    assert f.key_for(1, "default", 2) != key
    with pytest.raises(TypeError, match="missing a required argument: 'user_id'"):
        f.key_for()  # type: ignore[call-arg]


def test_arguments_that_look_alike_have_different_keys(cache: RedisCache) -> None:
    @cache.cached(ttl=60)
    def f(x: Any) -> None: ...

    alike = [1, "1", True, 1.0, None, "None", b"1", Decimal(1), (1,), [1], {1: 1}, {"1": 1}, {1}]
    alike += [Level.LOW, Status.OPEN, "open", math.nan, "nan", {"$tuple": [1]}, "😀", "\ud83d\ude00"]
    assert len({f.key_for(x) for x in alike}) == len(alike)


def test_equal_dicts_and_sets_have_one_key_whatever_their_order(cache: RedisCache) -> None:
    @cache.cached(ttl=60)
    def f(x: Any) -> None: ...

    assert f.key_for({"a": 1, "b": 2}) == f.key_for({"b": 2, "a": 1})
    assert f.key_for({1: 1, 2: {2: 2, 3: 3}}) == f.key_for({2: {3: 3, 2: 2}, 1: 1})
    assert f.key_for({0, 8, 16}) == f.key_for({16, 8, 0})


def test_functions_of_the_same_name_in_two_modules_or_classes_have_different_keys(
    cache: RedisCache,
) -> None:
    def key_in(module: str, qualified_name: str) -> str:
        def load(x: int) -> None: ...

        load.__module__, load.__qualname__ = module, qualified_name
        return cache.cached(ttl=60)(load).key_for(1)

    places = [("shop", "load"), ("blog", "load"), ("shop", "Cart.load"), ("shop", "Order.load")]
    assert len({key_in(*place) for place in places}) == 4
    assert key_in("shop", "load") == key_in("shop", "load")
    long = "x" * 100  # the part that a person reads is cut; the whole name counts
    assert key_in(f"a{long}", "load") != key_in(f"b{long}", "load")


def test_the_naive_key_mixes_calls_up() -> None:
    def naive(func: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        return f"{func.__name__}:{args}:{kwargs}"

    def f(x: int, y: int = 0) -> None: ...

    def other() -> Callable[..., Any]:
        def f(x: int) -> None: ...

        return f

    class User:
        pass

    assert naive(f, 1) != naive(f, x=1)  # one call, two keys: one of them is never invalidated
    assert naive(f, x=1, y=2) != naive(f, y=2, x=1)
    assert naive(f, 1) == naive(other(), 1)  # two functions, one key
    # Two users, one key: one is gone when the other is made at the same address.
    assert len({naive(f, User()) for _ in range(100)}) < 100


def test_an_argument_without_a_lasting_text_form_is_refused(cache: RedisCache) -> None:
    class User:
        pass

    @cache.cached(ttl=60)
    def f(user: Any) -> None: ...

    itself: list[Any] = []
    itself.append(itself)
    for argument in (User(), object(), len, itself, 10**5000):
        with pytest.raises(UnkeyableArgument, match=r"\.f: .*; or give key="):
            f(argument)
    with pytest.raises(UnkeyableArgument, match=r"locals>\.User is no type this cache keeps"):
        f.invalidate(User())


def test_key_is_given_all_arguments_and_its_text_stands_for_them(cache: RedisCache) -> None:
    class User:
        def __init__(self, name: str) -> None:
            self.name = name

    @cache.cached(ttl=60, key=lambda user, language: f"{user.name}/{language}")
    def greet(user: User, language: str = "en") -> None: ...

    @cache.cached(ttl=60, key=lambda user, language: f"{user.name}/{language}")
    def dismiss(user: User, language: str = "en") -> None: ...

    assert greet.key_for(User("Ada")) == greet.key_for(user=User("Ada"), language="en")
    assert greet.key_for(User("Ada"), "fr") != greet.key_for(User("Ada"))
    assert greet.key_for(User("Bob")) != greet.key_for(User("Ada")) != dismiss.key_for(User("Ada"))


@pytest.mark.parametrize(
    "text",
    ["*", "[a-z]", "a\nb\r\nDEL x", "\x00", "{tag}", "a}b{c", "ü€😀", "\ud800", "x" * 1_000_000],
    ids=["star", "range", "newline", "nul", "tag", "braces", "unicode", "surrogate", "1 MB"],
)
def test_hostile_text_makes_an_ordinary_key(cache: RedisCache, text: str) -> None:
    def f(x: str) -> None: ...

    f.__qualname__ = text
    plain = CacheKeys("test", 1, SERIALIZER)
    for key in (cache.cached(ttl=60)(f).key_for(text), plain.name(text), plain.name("f", text)):
        assert len(core.lock_of(key).encode()) < 200
        assert key.startswith("test:v1:{")
        assert (key.count("{"), key.count("}"), key[-1]) == (1, 1, "}")
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzDELx0123456789_.{}:")


def test_the_longest_key_stays_under_200_bytes() -> None:
    keys = CacheKeys("n" * 48, 999_999_999, SERIALIZER)
    assert len(core.lock_of(keys.name("f" * 500, "x" * 500))) == 180


def test_a_key_tells_a_person_which_function_it_belongs_to(cache: RedisCache) -> None:
    def best_sellers() -> None: ...

    best_sellers.__module__ = "shop.reports"
    best_sellers.__qualname__ = "Weekly.best_sellers"
    key = cache.cached(ttl=60)(best_sellers).key_for()
    assert key.startswith("test:v1:{shop.reports.Weekly.best_sellers:")


def test_a_value_and_its_lock_live_on_one_node_of_a_cluster(cache: RedisCache) -> None:
    @cache.cached(ttl=60)
    def f() -> None: ...

    def hashed(key: str) -> str:  # what a cluster computes the slot from
        return key[key.index("{") + 1 : key.index("}")]

    key = f.key_for()
    assert hashed(key) == hashed(core.lock_of(key)) != ""
    assert core.lock_of(key) == f"{key}:lock"


@pytest.mark.parametrize(
    ("namespace", "version"),
    [
        *[(namespace, 1) for namespace in ("", "a:b", "a b", "{a}", "a" * 49, "a\n", "é")],
        *[("a", version) for version in (-1, 10**9, True, 1.5, "1")],
    ],
)
def test_a_namespace_that_could_meet_another_one_is_refused(namespace: str, version: Any) -> None:
    wrong = version if namespace == "a" else namespace
    wanted = "version must be a whole number of 0 to 999,999,999"
    if namespace != "a":
        wanted = "namespace must be 1 to 48 of A-Z a-z 0-9 _ . -"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{wanted}, got {wrong!r}')}$"):
        CacheKeys(namespace, version, SERIALIZER)


def test_a_version_may_be_a_member_of_an_enumeration_of_numbers() -> None:
    named, plain = (CacheKeys("a", version, SERIALIZER).name("k") for version in (Level.LOW, 1))
    assert named == plain


def test_what_may_be_stored_may_be_an_argument(cache: RedisCache) -> None:
    @cache.cached(ttl=60)
    def f(x: Any) -> None: ...

    assert f.key_for(ORDER) == f.key_for(dataclasses.replace(ORDER))
    assert f.key_for(ORDER) != f.key_for(dataclasses.replace(ORDER, tags=()))

    class Other:
        def dumps(self, value: Any) -> bytes:
            return pickle.dumps(value)

        def loads(self, data: bytes) -> Any:
            raise ValueError

    assert CacheKeys("test", 1, Other()).name("f", [1]) == CacheKeys("test", 1, SERIALIZER).name("f", [1])


# --- Values ---------------------------------------------------------------------------------------


def same(a: Any, b: Any, *, ordered: bool = True) -> bool:
    """Equal, and of equal types all the way down; NaN is itself."""

    def inner(x: Any, y: Any) -> bool:
        return same(x, y, ordered=ordered)

    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(inner, a, b))
    if isinstance(a, dict) and ordered:
        return inner(list(a.items()), list(b.items()))
    if isinstance(a, dict):
        return len(a) == len(b) and all(any(inner(x, y) for y in b.items()) for x in a.items())
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(inner(x, y) for y in b) for x in a)
    if isinstance(a, float | Decimal):
        return repr(a) == repr(b)
    if isinstance(a, datetime):
        zones = [z.key if isinstance(z, ZoneInfo) else z for z in (a.tzinfo, b.tzinfo)]
        return zones[0] == zones[1] and a.fold == b.fold and a.isoformat() == b.isoformat()
    return bool(a == b)


KEPT: tuple[type, ...] = (type(None), bool, int, float, str, bytes, list, tuple, set, frozenset, dict)
KEPT += (Decimal, UUID, date, time_of_day, timedelta, datetime, Order, Status, Level, Doubled)
DAY = timedelta(hours=23, minutes=59)
ZONES: st.SearchStrategy[tzinfo | None] = st.one_of(
    st.none(),
    st.timedeltas(-DAY, DAY).map(timezone),
    st.sampled_from([UTC, ZoneInfo("Europe/Prague"), ZoneInfo("America/New_York")]),
)
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters() | st.characters(categories=["Cs"]), max_size=5),
    st.binary(max_size=5),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.datetimes(timezones=ZONES),
    st.sampled_from([Status.OPEN, Status.CLOSED, Level.LOW, ORDER]),
)
HASHABLE = st.recursive(ATOMS, lambda x: st.tuples(x, x) | st.frozensets(x, max_size=3), max_leaves=4)
VALUES = st.recursive(
    ATOMS,
    lambda x: st.one_of(
        st.lists(x, max_size=3),
        st.tuples(x),
        st.sets(HASHABLE, max_size=3),
        st.dictionaries(HASHABLE, x, max_size=3),
        st.dictionaries(st.sampled_from(["", "a", "b", "$a", "$tuple"]), x, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=examples(80), deadline=None)
@given(VALUES)
def test_every_kept_value_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    data = SERIALIZER.dumps(value)
    assert same(SERIALIZER.loads(data), value)
    json.loads(data.decode("utf-8", "surrogatepass"), parse_constant=pytest.fail)  # no NaN, strict


@settings(max_examples=examples(60), deadline=None)
@given(VALUES)
def test_what_a_key_is_made_of_tells_every_two_arguments_apart(value: Any) -> None:
    # What can be read back from the text is all in the text, so two values never share one.
    text = SERIALIZER.dumps(value, canonical=True)
    back = SERIALIZER.loads(text)
    assert same(back, value, ordered=False)
    assert SERIALIZER.dumps(back, canonical=True) == text


@settings(max_examples=examples(80), deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["Order", "RED"]),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "$class", *cache_codec._FROM_JSON]), x, max_size=2)
        ),
        max_leaves=6,
    )
    .map(json.dumps)
    .map(str.encode)
    | st.binary(max_size=30)
)
def test_hostile_bytes_are_a_plain_value_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):  # any other error, or a value of any other type, is a bug
        assert isinstance(SERIALIZER.loads(data), KEPT)


def test_a_plain_value_is_stored_as_plain_json() -> None:
    value = {"id": 7, "name": "Ada", "tags": ["a", None, True, 1.5]}
    assert SERIALIZER.dumps(value) == b'{"id":7,"name":"Ada","tags":["a",null,true,1.5]}'
    assert SERIALIZER.dumps({"b": "ü", "a": 1}) == '{"b":"ü","a":1}'.encode()
    assert list(SERIALIZER.loads(SERIALIZER.dumps({3: "c", 1: "a"}))) == [3, 1]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, Decimal("NaN"), Decimal("-0"), "caf\udce9"])
def test_special_numbers_and_the_names_of_odd_files_come_back(value: Any) -> None:
    assert same(SERIALIZER.loads(SERIALIZER.dumps(value)), value)


def test_a_time_zone_comes_back_with_its_rules() -> None:
    prague = ZoneInfo("Europe/Prague")
    before = datetime(2026, 10, 24, 12, tzinfo=prague)
    after = SERIALIZER.loads(SERIALIZER.dumps(before)) + timedelta(days=1)
    assert (after.hour, after.utcoffset()) == (12, timedelta(hours=1))  # summer time has ended
    second = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=prague)
    assert SERIALIZER.loads(SERIALIZER.dumps(second)).utcoffset() == timedelta(hours=1)


class Wide(int):
    pass


class Elsewhere(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    dst = tzname = None  # type: ignore[assignment]


@dataclasses.dataclass
class Unknown:
    x: int = 1


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "builtins.object is no type"),
        (Wide(1), "Wide is no type"),
        (Unknown(), r"Unknown is no type this cache keeps; .* JsonSerializer\(types=\[Unknown\]\)"),
        ({"a": [Unknown()]}, "Unknown is no type"),
        (Path(), "PosixPath|WindowsPath"),
        (bytearray(), "builtins.bytearray"),
        (1j, "builtins.complex"),
        (10**5000, "^int: "),
        (datetime(2026, 1, 1, tzinfo=Elsewhere()), "datetime with a tzinfo of type Elsewhere"),
        (time_of_day(tzinfo=UTC), "time with a tzinfo"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_would_not_come_back_is_refused_by_its_name(value: Any, named: str) -> None:
    with pytest.raises(UnserializableValue, match=named):
        SERIALIZER.dumps(value)


def test_a_zone_without_a_name_is_refused() -> None:
    # The smallest file of RFC 8536: version 1, one type of local time, UTC.
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    data = b"TZif" + bytes(16) + counts + struct.pack(">lbb", 0, 0, 0) + b"UTC\0"
    nameless = ZoneInfo.from_file(io.BytesIO(data))
    with pytest.raises(UnserializableValue, match="tzinfo of type ZoneInfo"):
        SERIALIZER.dumps(datetime(2026, 1, 1, tzinfo=nameless))


def test_only_dataclasses_and_enums_can_be_allowed_and_each_name_once() -> None:
    with pytest.raises(TypeError, match="Path is neither a dataclass nor an enum"):
        JsonSerializer([Path])

    @dataclasses.dataclass
    class Order:
        x: int

    with pytest.raises(ValueError, match="two different classes are called Order"):
        JsonSerializer([globals()["Order"], Order])
    JsonSerializer([Order, Order])  # the same one twice is no harm
    with pytest.raises(UnserializableValue, match="Order is no type"):
        SERIALIZER.dumps(Order(1))  # another class of an allowed name


def test_a_dataclass_comes_back_as_it_was_without_running_its_init() -> None:
    back = SERIALIZER.loads(SERIALIZER.dumps(Doubled(1)))
    assert (type(back), back.amount) == (Doubled, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b'{"$os.system":"true"}',
        b'{"$class":["Unknown",{"x":1}]}',
        b'{"$class":["Doubled",{}]}',
        b'{"$class":["Doubled",{"amount":1,"more":2}]}',
        b'{"$class":["Doubled",1]}',
        b'{"$class":["Level",5]}',
        b'{"$tuple":[],"x":1}',
        b'{"$Decimal":"x"}',
        b'{"$datetime":["2026-01-01",0,"../../etc/passwd"]}',
        b'{"$datetime":["2026-01-01",0,"Europe"]}',
        b"[" * 100_000,
        b"1" * 5_000,
    ],
    ids=repr,
)
def test_what_the_cache_did_not_write_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not written by this cache: "):
        SERIALIZER.loads(data)


def test_json_alone_changes_types_and_writes_what_is_not_json() -> None:
    def naive(value: Any) -> Any:
        return json.loads(json.dumps(value))

    assert naive({1: "a"}) == {"1": "a"}
    assert naive((1, 2)) == [1, 2]
    assert json.dumps(math.nan) == "NaN"
    with pytest.raises(TypeError, match="datetime is not JSON serializable"):
        naive(datetime.now(UTC))
    assert same(SERIALIZER.loads(SERIALIZER.dumps({1: (1, 2)})), {1: (1, 2)})


class Payload:
    def __reduce__(self) -> Any:
        return (print, ("code chosen by whoever can write to Redis",))


def test_unpickling_runs_code_and_this_format_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    data = pickle.dumps(Payload())
    pickle.loads(data)
    assert capsys.readouterr().out == "code chosen by whoever can write to Redis\n"
    with pytest.raises(ValueError, match="not written by this cache"):
        SERIALIZER.loads(data)
    assert capsys.readouterr().out == ""


def test_bytes_of_another_format_are_a_miss() -> None:
    data = core.wrap(SERIALIZER, None)
    assert core.unwrap(SERIALIZER, data) is None
    for other in (None, b"", data[1:], data[2:], b"2" + data[1:], b"1:{", b'"text"'):
        assert core.unwrap(SERIALIZER, other) is core.MISS


# --- Lives and settings ---------------------------------------------------------------------------


def test_a_life_is_whole_milliseconds_and_never_none() -> None:
    assert core.milliseconds("ttl", 1.5) == 1500
    assert core.milliseconds("ttl", 0.0016) == 2
    assert core.milliseconds("ttl", 1e-9) == 1


@pytest.mark.parametrize("ttl", [0, -1, -0.0, math.nan, math.inf, True, "1"])
def test_a_life_of_nothing_or_forever_is_refused(cache: RedisCache, ttl: Any) -> None:
    def refused(name: str) -> Any:
        return pytest.raises(ValueError, match=re.escape(f"{name} must be a number of seconds over 0, got {ttl!r}"))

    with refused("ttl"):
        cache.cached(ttl=ttl)(lambda: 1)
    with refused("ttl"):
        cache.set("x", 1, ttl)
    with refused("lock_ttl"):
        RedisCache(cache.client, namespace="test", lock_ttl=ttl)
    with refused("timeout"):
        connect("redis://127.0.0.1:1", timeout=ttl)


def test_a_wait_may_be_nothing_and_not_forever(cache: RedisCache) -> None:
    assert RedisCache(cache.client, namespace="test", wait=0)
    for wait in (-1, math.nan, math.inf, False):
        with pytest.raises(ValueError, match=f"^wait must be a number of seconds from 0, got {wait!r}$"):
            RedisCache(cache.client, namespace="test", wait=wait)


@pytest.mark.parametrize("jitter", [-0.001, 1, math.nan, True])
def test_jitter_is_a_share(cache: RedisCache, jitter: float) -> None:
    with pytest.raises(ValueError, match=r"^jitter must be a number of 0 to under 1, got "):
        cache.cached(ttl=1, jitter=jitter)(lambda: 1)


def test_jitter_reaches_as_far_as_it_says_and_not_further() -> None:
    def life(jitter: float, chance: float) -> int:
        keys = CacheKeys("test", 1, SERIALIZER)
        plan = core.CachingPlan(lambda: 1, keys, 100, None, jitter, True, asynchronous=False)
        return plan.life(lambda: chance)

    assert [life(0.1, chance) for chance in (0, 0.5, 1)] == [90_000, 100_000, 110_000]
    assert [life(0, chance) for chance in (0, 0.5, 1)] == [100_000] * 3


def test_a_server_is_left_alone_after_five_failures_in_a_row() -> None:
    clock = Clock(100.0)
    health = core.ServerHealth(clock)
    assert [health.failed() for _ in range(4)] == [False] * 4
    health.succeeded()
    assert [health.failed() for _ in range(4)] == [False] * 4
    assert health.resting() is False
    assert health.failed() is True
    clock.now = 102.999
    assert health.resting() is True
    clock.now = 103.0
    assert health.resting() is False
    assert health.failed() is True  # one more failure is enough to rest again
    assert health.resting() is True


def test_a_missing_setting_stops_the_start_and_is_named() -> None:
    full = {"REDIS_URL": "redis://127.0.0.1:1", "CACHE_NAMESPACE": "shop"}
    assert core.read_settings(full) == ("redis://127.0.0.1:1", "shop", 1)
    assert core.read_settings(full | {"CACHE_VERSION": "12"})[2] == 12
    assert core.read_settings(full | {"CACHE_VERSION": ""})[2] == 1
    for name in full:
        for gap in ({}, {name: ""}):
            with pytest.raises(RuntimeError, match=f"^{name} is not set, or is empty$"):
                core.read_settings({k: v for k, v in full.items() if k != name} | gap)
    for version in ("1.5", "-1", "v2", "1" * 10):
        with pytest.raises(ValueError, match=r"^CACHE_VERSION must be a whole number of 1 to 9 digits, got "):
            core.read_settings(full | {"CACHE_VERSION": version})
