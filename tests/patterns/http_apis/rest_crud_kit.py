"""What the proofs of rest-crud share: one database a file, the application over ASGI or uvicorn, requests in short."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import psycopg
import pytest
from fastapi import FastAPI
from psycopg.rows import dict_row

from rest_crud.api import create_app
from rest_crud.passwords import Scrypt
from rest_crud.store_async import AsyncItemStore
from rest_crud.store_sync import ItemStore
from servers.http import Uvicorn

CHEAP = Scrypt(n=2, r=1, p=1)
PASSWORD = "correct horse battery"
ADA = {"owner_email": "ada@example.com", "name": "Engine", "password": PASSWORD}
BOB = ADA | {"owner_email": "bob@example.com"}
MERGE = {"Content-Type": "application/merge-patch+json"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def items_url(module_database_url: str) -> str:
    """The file's database, with the table in it."""
    with ItemStore(module_database_url) as store:
        store.create_table()
    return module_database_url


@pytest.fixture
def url(items_url: str) -> str:
    with psycopg.connect(items_url, autocommit=True) as connection:
        connection.execute("delete from items")
    return items_url


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with AsyncItemStore(url, scrypt=CHEAP) as store, talk_to(create_app(store)) as client:
        yield client


@pytest.fixture
def server(url: str) -> Iterator[str]:
    """The application under uvicorn, on a real port."""
    uvicorn = Uvicorn(create_app(AsyncItemStore(url, scrypt=CHEAP)))
    yield uvicorn.url
    uvicorn.stop()


def talk_to(app: FastAPI) -> httpx2.AsyncClient:
    # raise_app_exceptions=False: an unhandled exception is the 500 that a client would get.
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://testserver")


async def made(client: httpx2.AsyncClient, body: dict[str, Any] = ADA) -> tuple[str, str]:
    """Create an item; return its URL and its ETag."""
    response = await client.post("/items", json=body)
    assert response.status_code == 201, response.text
    return response.headers["Location"], response.headers["ETag"]


async def patch(client: httpx2.AsyncClient, path: str, fields: Any, if_match: str = "*") -> httpx2.Response:
    return await client.patch(path, json=fields, headers=MERGE | {"If-Match": if_match})


def rows(url: str) -> list[dict[str, Any]]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return connection.execute("select * from items order by owner_email").fetchall()
