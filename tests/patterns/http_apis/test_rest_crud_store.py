"""Proves docs/patterns/http-apis/rest-crud.md: both stores decide every race and know no HTTP."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from harness.color import Blocking, Color
from harness.waiting import in_thread, until
from patterns.http_apis import rest_crud_kit as kit
from patterns.http_apis.rest_crud_kit import ADA, BOB, CHEAP, PASSWORD, rows
from rest_crud import table
from rest_crud.models import ExistsError, ItemIn, ItemPatch, NotFoundError, StaleError, TakenError, UnavailableError
from rest_crud.passwords import Scrypt
from rest_crud.store_async import AsyncItemStore
from rest_crud.store_sync import ItemStore

# Fixtures.
items_url, url = kit.items_url, kit.url


@pytest.fixture
def store(color: Color, url: str) -> Iterator[Blocking]:
    """Either store."""
    kind: Any = color.pick(AsyncItemStore, ItemStore)
    with color.blocking(kind(url, scrypt=CHEAP)) as store:
        yield store


def always(version: int) -> bool:
    return True


def test_both_stores_create_read_replace_change_and_delete(store: Blocking, url: str) -> None:
    item_id = uuid.uuid4()
    item = store.create(item_id, ItemIn.model_validate(ADA | {"description": "d"}))
    assert (item.id, item.owner_email, item.name, item.description) == (item_id, ADA["owner_email"], "Engine", "d")
    assert store.get(item_id) == item
    assert store.first(1) == [item]
    same = store.change(item_id, ItemPatch(name="Engine", password=PASSWORD), always)
    assert same == item
    changed = store.change(item_id, ItemPatch(name="Machine"), lambda version: version == item.version)
    assert (changed.name, changed.description) == ("Machine", "d")
    assert changed.version > item.version
    replaced = store.replace(item_id, ItemIn.model_validate(BOB | {"password": "p" * 12}), always)
    assert (replaced.owner_email, replaced.description) == (BOB["owner_email"], None)
    assert Scrypt.verify("p" * 12, rows(url)[0]["password_hash"])
    store.delete(item_id, lambda version: version == replaced.version)
    assert store.first(1) == []


def test_both_stores_raise_domain_errors_and_know_no_http(store: Blocking) -> None:
    item = store.create(uuid.uuid4(), ItemIn.model_validate(ADA))
    other = store.create(uuid.uuid4(), ItemIn.model_validate(BOB))
    whole, part = ItemIn.model_validate(ADA), ItemPatch(owner_email="ADA@example.com")
    with pytest.raises(ExistsError):
        store.create(item.id, whole)
    taken: list[list[Any]] = [
        ["create", uuid.uuid4(), whole],
        ["replace", other.id, whole, always],
        ["change", other.id, part, always],
    ]
    for name, *arguments in taken:
        with pytest.raises(TakenError):
            getattr(store, name)(*arguments)
    calls: list[list[Any]] = [["replace", whole], ["change", part], ["delete"]]
    for name, *arguments in calls:
        with pytest.raises(NotFoundError):
            getattr(store, name)(uuid.uuid4(), *arguments, always)
        with pytest.raises(StaleError):
            getattr(store, name)(item.id, *arguments, lambda version: False)
    with pytest.raises(NotFoundError):
        store.get(uuid.uuid4())
    for module in (AsyncItemStore, ItemStore):
        source = inspect.getsource(inspect.getmodule(module))  # type: ignore[arg-type]
        assert not any(word in source for word in ("fastapi", "starlette", "HTTPException"))


def test_a_change_that_allows_any_version_is_made_after_a_lost_race(store: Blocking, url: str) -> None:
    item = store.create(uuid.uuid4(), ItemIn.model_validate(ADA))
    rivals = iter(["one", "two"])

    def overtaken(version: int) -> bool:  # between the read and the write, somebody else is quicker
        if (name := next(rivals, None)) is not None:
            with psycopg.connect(url, autocommit=True) as connection:
                statement = "update items set description = %s, version = nextval('item_version')"
                connection.execute(statement, (name,))
        return True

    changed = store.change(item.id, ItemPatch(name="Machine"), overtaken)
    assert (changed.name, changed.description) == ("Machine", "two")  # nobody's edit is lost
    rivals = iter(["three"])
    store.delete(item.id, overtaken)
    with pytest.raises(NotFoundError):
        store.get(item.id)


def test_a_named_version_that_loses_the_race_is_stale(store: Blocking, url: str) -> None:
    item = store.create(uuid.uuid4(), ItemIn.model_validate(ADA))

    stale: int = item.version

    def overtaken(version: int) -> bool:
        if version == stale:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("update items set name = 'rival', version = nextval('item_version')")
        return version == stale

    calls: list[list[Any]] = [["change", ItemPatch(name="Machine")], ["delete"]]
    for name, *arguments in calls:
        with pytest.raises(StaleError):
            getattr(store, name)(item.id, *arguments, overtaken)
        item = store.get(item.id)
        assert item.name == "rival"


async def test_a_sessions_time_zone_does_not_change_the_bytes_behind_an_etag(url: str) -> None:
    async with AsyncItemStore(url, scrypt=CHEAP) as store:
        item = await store.create(uuid.uuid4(), ItemIn.model_validate(ADA))
    async with AsyncItemStore(f"{url}?options=-ctimezone%3DAsia/Tokyo", scrypt=CHEAP) as store:
        assert (await store.get(item.id)).model_dump_json() == item.model_dump_json()


def test_processes_that_start_together_create_one_table(database_url: str, color: Color) -> None:
    def create() -> None:
        kind: Any = color.pick(AsyncItemStore, ItemStore)
        with color.blocking(kind(database_url)) as store:
            store.create_table()

    def waiting(connection: psycopg.Connection[Any]) -> bool:
        query = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return connection.execute(query).fetchone() is not None

    with psycopg.connect(database_url) as first:
        first.execute(table.SCHEMA)  # done, not yet committed
        second = in_thread(create)
        with psycopg.connect(database_url, autocommit=True) as watcher:
            until(lambda: waiting(watcher) or second.done())
        first.commit()
        second.result(20)  # IF NOT EXISTS alone: a unique violation in the catalog
    create()
    assert rows(database_url) == []


async def test_a_password_is_hashed_in_a_thread_so_the_event_loop_is_never_stalled(url: str) -> None:
    at_work: list[tuple[str, threading.Thread]] = []

    class Watched(Scrypt):
        def hash(self, password: str) -> str:
            at_work.append(("hash", threading.current_thread()))
            return super().hash(password)

        def verify(self, password: str, stored: str) -> bool:  # type: ignore[override]
            at_work.append(("verify", threading.current_thread()))
            return super().verify(password, stored)

    async with AsyncItemStore(url, scrypt=Watched(n=2, r=1, p=1)) as store:
        item = await store.create(uuid.uuid4(), ItemIn.model_validate(ADA))
        await store.replace(item.id, ItemIn.model_validate(ADA | {"password": "a new long password"}), always)
        await store.change(item.id, ItemPatch(name="Machine"), always)
    assert [name for name, _ in at_work] == ["hash", "verify", "hash"]
    assert threading.main_thread() not in [thread for _, thread in at_work]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_size": 0}, "max_size must be a whole number of at least 1, got 0"),
        ({"max_size": True}, "max_size must be a whole number of at least 1, got True"),
        ({"max_size": 2.0}, "max_size must be a whole number of at least 1, got 2.0"),
        ({"timeout": 0}, "timeout must be a number of seconds over 0, got 0"),
        ({"timeout": True}, "timeout must be a number of seconds over 0, got True"),
        ({"timeout": math.nan}, "timeout must be a number of seconds over 0, got nan"),
        ({"timeout": math.inf}, "timeout must be a number of seconds over 0, got inf"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [AsyncItemStore, ItemStore])
def test_a_number_that_cannot_be_meant_is_refused(kind: type[Any], setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kind("postgresql://127.0.0.1/x", **setting)


@pytest.mark.parametrize("name", ["n", "r", "p"])
@pytest.mark.parametrize("value", [0, -2, 2.0, True, math.nan], ids=str)
def test_the_cost_of_a_hash_is_made_of_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least 1, got {value!r}$"):
        Scrypt(**{name: value})


@pytest.mark.parametrize("n", [1, 3, 2**14 + 1])
def test_the_work_of_a_hash_is_a_power_of_two(n: int) -> None:
    with pytest.raises(ValueError, match=f"^n must be a power of two over 1, got {n}$"):
        Scrypt(n=n)
    assert Scrypt.verify(PASSWORD, Scrypt(n=2, r=1, p=1).hash(PASSWORD))


@pytest.mark.parametrize("kind", [AsyncItemStore, ItemStore])
def test_the_defaults_are_a_bounded_pool_and_a_password_hash_that_owasp_recommends(kind: type[Any]) -> None:
    store = kind("postgresql://127.0.0.1/x")
    assert store._scrypt == Scrypt() == Scrypt(n=16_384, r=8, p=5)
    assert (store._pool.min_size, store._pool.max_size, store._pool.timeout) == (1, 10, 5.0)
    assert store._pool.kwargs == {"autocommit": True}


def test_a_hash_may_take_more_memory_than_openssl_gives_unasked() -> None:
    with pytest.raises(ValueError, match="memory limit"):
        hashlib.scrypt(b"password", salt=b"salt", n=2**15, r=8, p=1)
    stored = Scrypt(n=2**15, p=1).hash(PASSWORD)
    assert stored.startswith("scrypt$32768$8$1$")


def test_either_store_says_unavailable(color: Color) -> None:
    kind: Any = color.pick(AsyncItemStore, ItemStore)
    store = color.blocking(kind("postgresql://127.0.0.1:1/x", timeout=0.05))
    with store, pytest.raises(UnavailableError):
        store.get(uuid.uuid4())
    with pytest.raises(UnavailableError):  # closed
        store.get(uuid.uuid4())
