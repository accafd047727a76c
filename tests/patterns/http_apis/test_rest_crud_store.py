"""Proves docs/patterns/http-apis/rest-crud.md: both stores decide every race and know no HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from patterns.http_apis import rest_crud_kit as kit
from patterns.http_apis.rest_crud_kit import ADA, BOB, CHEAP, PASSWORD, rows
from rest_crud import table
from rest_crud.models import ExistsError, ItemIn, ItemPatch, NotFoundError, StaleError, TakenError, UnavailableError
from rest_crud.passwords import Scrypt
from rest_crud.store import AsyncItemStore
from rest_crud.store_sync import ItemStore

# Fixtures.
items_url, url = kit.items_url, kit.url


Call = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["async", "sync"])
async def store(request: pytest.FixtureRequest, url: str) -> AsyncIterator[Call]:
    """Both stores behind one call, of a name and its arguments; the sync one works in a thread."""
    if request.param == "async":
        async with AsyncItemStore(url, scrypt=CHEAP) as asynchronous:
            yield lambda name, *args: getattr(asynchronous, name)(*args)
    else:
        with ItemStore(url, scrypt=CHEAP) as synchronous:
            yield lambda name, *args: asyncio.to_thread(getattr(synchronous, name), *args)


def always(version: int) -> bool:
    return True


async def test_both_stores_create_read_replace_change_and_delete(store: Call, url: str) -> None:
    item_id = uuid.uuid4()
    item = await store("create", item_id, ItemIn.model_validate(ADA | {"description": "d"}))
    assert (item.id, item.owner_email, item.name, item.description) == (item_id, ADA["owner_email"], "Engine", "d")
    assert await store("get", item_id) == item
    assert await store("first", 1) == [item]
    same = await store("change", item_id, ItemPatch(name="Engine", password=PASSWORD), always)
    assert same == item
    changed = await store("change", item_id, ItemPatch(name="Machine"), lambda version: version == item.version)
    assert (changed.name, changed.description) == ("Machine", "d")
    assert changed.version > item.version
    replaced = await store("replace", item_id, ItemIn.model_validate(BOB | {"password": "p" * 12}), always)
    assert (replaced.owner_email, replaced.description) == (BOB["owner_email"], None)
    assert Scrypt.verify("p" * 12, rows(url)[0]["password_hash"])
    await store("delete", item_id, lambda version: version == replaced.version)
    assert await store("first", 1) == []


async def test_both_stores_raise_domain_errors_and_know_no_http(store: Call) -> None:
    item = await store("create", uuid.uuid4(), ItemIn.model_validate(ADA))
    other = await store("create", uuid.uuid4(), ItemIn.model_validate(BOB))
    whole, part = ItemIn.model_validate(ADA), ItemPatch(owner_email="ADA@example.com")
    for refused, call in (
        (ExistsError, store("create", item.id, whole)),
        (TakenError, store("create", uuid.uuid4(), whole)),
        (TakenError, store("replace", other.id, whole, always)),
        (TakenError, store("change", other.id, part, always)),
    ):
        with pytest.raises(refused):
            await call
    for name, *arguments in (["replace", whole], ["change", part], ["delete"]):
        with pytest.raises(NotFoundError):
            await store(name, uuid.uuid4(), *arguments, always)
        with pytest.raises(StaleError):
            await store(name, item.id, *arguments, lambda version: False)
    with pytest.raises(NotFoundError):
        await store("get", uuid.uuid4())
    for module in (AsyncItemStore, ItemStore):
        source = inspect.getsource(inspect.getmodule(module))  # type: ignore[arg-type]
        assert not any(word in source for word in ("fastapi", "starlette", "HTTPException"))


async def test_a_change_that_allows_any_version_is_made_after_a_lost_race(store: Call, url: str) -> None:
    item = await store("create", uuid.uuid4(), ItemIn.model_validate(ADA))
    rivals = iter(["one", "two"])

    def overtaken(version: int) -> bool:  # between the read and the write, somebody else is quicker
        if (name := next(rivals, None)) is not None:
            with psycopg.connect(url, autocommit=True) as connection:
                statement = "update items set description = %s, version = nextval('item_version')"
                connection.execute(statement, (name,))
        return True

    changed = await store("change", item.id, ItemPatch(name="Machine"), overtaken)
    assert (changed.name, changed.description) == ("Machine", "two")  # nobody's edit is lost
    rivals = iter(["three"])
    await store("delete", item.id, overtaken)
    with pytest.raises(NotFoundError):
        await store("get", item.id)


async def test_a_named_version_that_loses_the_race_is_stale(store: Call, url: str) -> None:
    item = await store("create", uuid.uuid4(), ItemIn.model_validate(ADA))

    stale: int = item.version

    def overtaken(version: int) -> bool:
        if version == stale:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("update items set name = 'rival', version = nextval('item_version')")
        return version == stale

    for name, *arguments in (["change", ItemPatch(name="Machine")], ["delete"]):
        with pytest.raises(StaleError):
            await store(name, item.id, *arguments, overtaken)
        item = await store("get", item.id)
        assert item.name == "rival"


async def test_a_sessions_time_zone_does_not_change_the_bytes_behind_an_etag(url: str) -> None:
    async with AsyncItemStore(url, scrypt=CHEAP) as store:
        item = await store.create(uuid.uuid4(), ItemIn.model_validate(ADA))
    async with AsyncItemStore(f"{url}?options=-ctimezone%3DAsia/Tokyo", scrypt=CHEAP) as store:
        assert (await store.get(item.id)).model_dump_json() == item.model_dump_json()


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_processes_that_start_together_create_one_table(database_url: str, kind: str) -> None:
    async def create_async() -> None:
        async with AsyncItemStore(database_url) as store:
            await store.create_table()

    def create() -> None:
        with ItemStore(database_url) as store:
            store.create_table()

    def waiting(connection: psycopg.Connection[Any]) -> bool:
        query = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        return connection.execute(query).fetchone() is not None

    with ThreadPoolExecutor(1) as thread, psycopg.connect(database_url) as first:
        first.execute(table.SCHEMA)  # done, not yet committed
        second = thread.submit(create if kind == "sync" else lambda: asyncio.run(create_async()))
        with psycopg.connect(database_url, autocommit=True) as watcher:
            while not waiting(watcher) and not second.done():
                time.sleep(0.002)
        first.commit()
        second.result()  # IF NOT EXISTS alone: a unique violation in the catalog
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


def test_the_sync_store_says_unavailable_too() -> None:
    with ItemStore("postgresql://127.0.0.1:1/x", timeout=0.05) as store, pytest.raises(UnavailableError):
        store.get(uuid.uuid4())
    with pytest.raises(UnavailableError):  # closed
        store.get(uuid.uuid4())
