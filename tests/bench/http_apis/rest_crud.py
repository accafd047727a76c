"""GET one item and PATCH it: ours, with ETags and preconditions, against the routes that fastcrud generates."""

import asyncio
import datetime
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
from fastapi import FastAPI
from fastcrud import crud_router
from pydantic import BaseModel
from sqlalchemy import DateTime, Uuid, func
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench import kit
from rest_crud.api import create_app
from rest_crud.models import ItemIn
from rest_crud.passwords import Scrypt
from rest_crud.store_async import AsyncItemStore
from servers.postgres import Postgres

CLIENTS, REQUESTS = 8, 25  # requests of each client in a round
MERGE = "application/merge-patch+json"


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "fastcrud_items"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    owner_email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    description: Mapped[str | None]
    created_at: Mapped[datetime.datetime] = mapped_column(DateTime(True), server_default=func.now())
    updated_at: Mapped[datetime.datetime] = mapped_column(DateTime(True), server_default=func.now())


class Create(BaseModel):
    owner_email: str
    name: str
    description: str | None = None


class Update(BaseModel):
    name: str | None = None
    description: str | None = None


class Select(Create):
    id: uuid.UUID
    created_at: datetime.datetime
    updated_at: datetime.datetime


def talk_to(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://bench")


async def gets(client: httpx2.AsyncClient, path: str) -> None:
    for _ in range(REQUESTS):
        assert (await client.get(path)).status_code == 200


async def our_patches(client: httpx2.AsyncClient, path: str) -> None:
    tag = (await client.get(path)).headers["ETag"]
    for number in range(REQUESTS):
        headers = {"If-Match": tag, "Content-Type": MERGE}
        response = await client.patch(path, json={"name": f"{tag} {number}"}, headers=headers)
        assert response.status_code == 200
        tag = response.headers["ETag"]


async def their_patches(client: httpx2.AsyncClient, path: str) -> None:
    for number in range(REQUESTS):
        assert (await client.patch(path, json={"name": f"{uuid.uuid4()} {number}"})).status_code == 200


def tables() -> list[kit.Table]:
    """Return requests per second of both, for both operations."""
    server = Postgres()
    try:
        with asyncio.Runner() as runner:
            return runner.run(_prepared(server.url))(runner)
    finally:
        server.stop()


async def _prepared(url: str) -> Callable[[asyncio.Runner], list[kit.Table]]:
    store = await AsyncItemStore(url, scrypt=Scrypt(n=2)).__aenter__()
    await store.create_table()
    engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"), pool_size=10)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def session() -> Any:
        async with sessions() as opened:
            yield opened

    theirs_app = FastAPI()
    theirs_app.include_router(
        crud_router(
            session=session,
            model=Item,
            create_schema=Create,
            update_schema=Update,
            select_schema=Select,
            path="/items",
        )
    )
    ours, theirs = talk_to(create_app(store)), talk_to(theirs_app)
    our_paths, their_paths = [], []
    for number in range(CLIENTS):
        email = f"owner{number}@example.com"
        item = await store.create(uuid.uuid4(), ItemIn(owner_email=email, name="n", password="throw-away password"))
        our_paths.append(f"/items/{item.id}")
        made = await theirs.post("/items", json={"owner_email": email, "name": "n"})
        their_paths.append(f"/items/{made.json()['id']}")

    def measure(runner: asyncio.Runner) -> list[kit.Table]:
        def rounds(
            work: Callable[[httpx2.AsyncClient, str], Awaitable[None]],
            client: httpx2.AsyncClient,
            paths: list[str],
        ) -> Callable[[], None]:
            async def together() -> None:
                await asyncio.gather(*(work(client, path) for path in paths))

            return lambda: runner.run(together())

        per_call = CLIENTS * REQUESTS
        read = kit.compare(
            {"ours": rounds(gets, ours, our_paths), "theirs": rounds(gets, theirs, their_paths)},
            calls=2,
            per_call=per_call,
        )
        write = kit.compare(
            {
                "ours": rounds(our_patches, ours, our_paths),
                "theirs": rounds(their_patches, theirs, their_paths),
            },
            calls=2,
            per_call=per_call,
        )

        async def close() -> None:
            await ours.aclose()
            await theirs.aclose()
            await engine.dispose()
            await store.__aexit__()

        runner.run(close())
        names = {"ours": "this pattern", "theirs": kit.version("fastcrud")}
        rows = [
            [
                names[key],
                f"{1 / read[key]:,.0f}",
                f"{read['ours'] / read[key]:.2f} ×",
                f"{1 / write[key]:,.0f}",
                f"{write['ours'] / write[key]:.2f} ×",
            ]
            for key in names
        ]
        note = (
            f"Requests a second in one process: {CLIENTS} clients at once, {REQUESTS} requests each in a round, "
            "14 rounds, in-process ASGI transport, one PostgreSQL on loopback, psycopg under both. Ours sends and "
            "checks ETags, reads the row before it writes and answers with the item; fastcrud checks no version."
        )
        return [kit.Table("requests", ("", "GET one", "ratio", "PATCH", "ratio"), rows, note)]

    return measure
