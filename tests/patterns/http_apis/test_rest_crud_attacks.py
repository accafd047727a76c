"""Proves docs/patterns/http-apis/rest-crud.md: hostile requests and a dead database end in the right 4xx or 503."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation

from harness.depth import examples
from patterns.http_apis import rest_crud_kit as kit
from patterns.http_apis.rest_crud_kit import ADA, BOB, CHEAP, JSON, MERGE, PASSWORD, made, patch, rows, talk_to
from rest_crud.api import MAX_BODY, app_from_env, create_app
from rest_crud.models import ItemIn, ItemOut, ItemPatch
from rest_crud.passwords import Scrypt
from rest_crud.store_async import AsyncItemStore
from servers.faults import FaultProxy

# Fixtures.
client, items_url, server, url = kit.client, kit.items_url, kit.server, kit.url


# --- unique values, unknown fields, secrets ---


async def test_a_taken_email_is_409_on_post_put_and_patch_and_names_the_field(
    client: httpx2.AsyncClient, url: str
) -> None:
    await made(client, ADA)
    path, tag = await made(client, BOB)
    state = rows(url)
    shouted = "ADA@Example.COM"
    for answer in (
        await client.post("/items", json=ADA),
        await client.put(path, json=ADA, headers={"If-Match": tag}),
        await patch(client, path, {"owner_email": ADA["owner_email"]}, tag),
        await client.post("/items", json=ADA | {"owner_email": shouted}),
        await client.put(path, json=ADA | {"owner_email": shouted}, headers={"If-Match": tag}),
        await patch(client, path, {"owner_email": shouted}, tag),
    ):
        assert answer.status_code == 409
        expected = {"type": "taken", "loc": ["body", "owner_email"], "msg": "owner_email is taken"}
        assert answer.json() == {"detail": [expected]}
    assert rows(url) == state


async def test_handling_the_unique_violation_in_create_alone_leaves_update_a_500(
    client: httpx2.AsyncClient, url: str
) -> None:
    await made(client, ADA)
    path, _ = await made(client, BOB)
    naive = FastAPI()

    @naive.patch("/items/{item_id}")
    async def change(item_id: str, body: dict[str, str]) -> None:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute("update items set owner_email = %s where id = %s", (body["owner_email"], item_id))

    email = {"owner_email": ADA["owner_email"]}
    async with talk_to(naive) as other:
        assert (await other.patch(path, json=email)).status_code == 500
    assert (await patch(client, path, email)).status_code == 409


async def test_email_uniqueness_ignores_case_and_an_owner_may_change_their_own(
    client: httpx2.AsyncClient, url: str
) -> None:
    path, _ = await made(client, ADA | {"owner_email": "Info@Example.com"})
    assert (await client.post("/items", json=ADA | {"owner_email": "iNFO@eXAMPLE.COM"})).status_code == 409
    recased = await patch(client, path, {"owner_email": "info@example.com"})
    assert (recased.status_code, recased.json()["owner_email"]) == (200, "info@example.com")
    with psycopg.connect(url) as connection:  # decided by the index, so in every locale and for every writer
        query = "select indexdef from pg_indexes where indexname = 'items_owner_email'"
        definition = connection.execute(query).fetchone()
    assert definition
    assert 'lower((owner_email COLLATE "C"))' in definition[0]
    assert "UNIQUE" in definition[0]


async def test_mass_assignment_is_422_and_stores_nothing(client: httpx2.AsyncClient, url: str) -> None:
    path, _ = await made(client)
    state = rows(url)
    for field in ("id", "is_admin", "created_at", "version", "password_hash"):
        extra = {field: "2000-01-01"}
        for answer in (
            await client.post("/items", json=BOB | extra),
            await client.put(path, json=BOB | extra, headers={"If-Match": "*"}),
            await client.put(f"/items/{uuid.uuid4()}", json=BOB | extra, headers={"If-None-Match": "*"}),
            await patch(client, path, extra),
        ):
            assert answer.status_code == 422
            [error] = answer.json()["detail"]
            assert (error["type"], error["loc"]) == ("extra_forbidden", ["body", field])
    assert rows(url) == state


async def test_columns_named_by_request_keys_are_a_500_or_worse(client: httpx2.AsyncClient, url: str) -> None:
    path, _ = await made(client)
    naive = FastAPI()

    @naive.patch("/items/{item_id}")
    async def change(item_id: str, body: dict[str, str]) -> None:
        columns = ", ".join(f"{name} = %({name})s" for name in body)
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute(f"update items set {columns} where id = '{item_id}'", body)

    new = {"password": "a new long password"}
    async with talk_to(naive) as other:
        assert (await other.patch(path, json=new)).status_code == 500  # there is no column `password`
        assert (await other.patch(path, json={"password_hash": "mine"})).status_code == 200
    assert rows(url)[0]["password_hash"] == "mine"
    again, _ = await made(client, BOB)
    assert (await patch(client, again, new)).status_code == 200
    assert Scrypt.verify(new["password"], rows(url)[1]["password_hash"])


async def test_a_password_is_stored_as_a_salted_hash_and_never_answered(client: httpx2.AsyncClient, url: str) -> None:
    path, _ = await made(client, ADA)
    await made(client, BOB)
    one, other = (row["password_hash"] for row in rows(url))
    assert one != other  # the same password, another salt
    assert one.split("$")[:4] == ["scrypt", "2", "1", "1"]
    assert [len(part) for part in one.split("$")[4:]] == [32, 64]  # hex of 16 and 32 bytes
    assert Scrypt.verify(PASSWORD, one)
    assert not Scrypt.verify(PASSWORD + "!", one)
    answers = [
        await client.get(path),
        await client.get("/items"),
        await patch(client, path, {"password": "a new long password"}),
        await client.put(path, json=ADA, headers={"If-Match": "*"}),
        await client.post("/items", json=ADA),
        await client.post("/items", json=ADA | {"name": ""}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 409, 422]
    for answer in answers:
        assert not any(word in answer.text for word in ("scrypt", "password", PASSWORD, one))
    assert PASSWORD not in repr(ItemIn.model_validate(ADA)) + repr(ItemPatch(password=PASSWORD))
    with pytest.raises(ValidationError, match="password_hash"):
        ItemOut.model_validate({**answers[0].json(), "version": 1, "password_hash": one})


async def test_a_rejected_password_is_not_echoed(client: httpx2.AsyncClient) -> None:
    naive = FastAPI()

    @naive.post("/items")
    async def create(item: ItemIn) -> None: ...

    body = ADA | {"password": "too short"}
    async with talk_to(naive) as other:
        assert "too short" in (await other.post("/items", json=body)).text
        half = await other.post("/items", content=rb'{"name": "\ud800"}', headers=JSON)
        assert half.status_code == 500  # the answer quotes what cannot be sent
    refused = await client.post("/items", json=body)
    assert refused.status_code == 422
    assert refused.json()["detail"] == [
        {
            "type": "string_too_short",
            "loc": ["body", "password"],
            "msg": "String should have at least 12 characters",
        }
    ]


# --- hostile bodies ---

BROKEN = {
    "malformed": b'{"name": ',
    "not utf-8": b'{"name": "\xff"}',
    "utf-16": json.dumps(ADA).encode("utf-16"),
    "5,000 digits": b'{"name": ' + b"9" * 5_000 + b"}",
    "100,000 brackets": b"[" * 100_000,
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": [-Infinity]}',
    "a name twice": json.dumps(ADA).encode()[:-1] + b', "name": "other"}',
    "half a surrogate pair as a name": rb'{"\ud800": 1}',
}


async def test_what_is_not_json_is_400_and_stores_nothing(client: httpx2.AsyncClient, url: str) -> None:
    path, _ = await made(client)
    state = rows(url)
    for what, content in BROKEN.items():
        for answer in (
            await client.post("/items", content=content, headers=JSON),
            await client.put(path, content=content, headers=JSON | {"If-Match": "*"}),
            await client.patch(path, content=content, headers=MERGE | {"If-Match": "*"}),
        ):
            assert answer.status_code == 400, what
            assert answer.json()["detail"].startswith("the body must be JSON")
    assert rows(url) == state


async def test_of_duplicate_json_keys_the_last_wins_silently_unless_refused(
    client: httpx2.AsyncClient,
) -> None:
    naive = FastAPI()

    @naive.post("/items")
    async def create(body: dict[str, str]) -> dict[str, str]:
        return body

    twice = b'{"name": "checked by the proxy", "name": "stored"}'
    async with talk_to(naive) as other:
        assert (await other.post("/items", content=twice, headers=JSON)).json() == {"name": "stored"}
    assert (await client.post("/items", content=twice, headers=JSON)).status_code == 400
    nested = b'{"name": {"a": 1, "a": 2}}'
    assert (await client.post("/items", content=nested, headers=JSON)).status_code == 400


async def test_another_content_type_is_415_and_says_which_is_taken(client: httpx2.AsyncClient) -> None:
    naive = FastAPI()

    @naive.post("/items")
    async def create(item: ItemIn) -> None: ...

    content, plain = json.dumps(ADA), {"Content-Type": "text/plain"}
    async with talk_to(naive) as other:
        assert (await other.post("/items", content=content, headers=plain)).status_code == 422
    path, tag = await made(client, BOB)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/merge-patch+json", ""):
        headers = {"Content-Type": kind, "If-Match": tag}
        for answer in (
            await client.post("/items", content=content, headers=headers),
            await client.put(path, content=content, headers=headers),
        ):
            assert (answer.status_code, answer.headers["Accept"]) == (415, "application/json")
            assert answer.json() == {"detail": "send application/json"}
    answer = await client.patch(path, content=content, headers=JSON | {"If-Match": tag})
    assert (answer.status_code, answer.headers["Accept-Patch"]) == (415, "application/merge-patch+json")
    assert "Accept" not in answer.headers
    odd = {"Content-Type": "Application/JSON ; charset=utf-8"}
    assert (await client.post("/items", content=content, headers=odd)).status_code == 201


async def test_a_body_above_one_megabyte_is_413(client: httpx2.AsyncClient) -> None:
    async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    assert MAX_BODY == 1_000_000
    fits = json.dumps(ADA).encode().ljust(1_000_000)
    assert (await client.post("/items", content=fits, headers=JSON)).status_code == 201
    assert (await client.post("/items", content=fits + b" ", headers=JSON)).status_code == 413
    chunked = await client.post("/items", content=in_chunks(fits + b" "), headers=JSON)
    assert "content-length" not in chunked.request.headers
    assert chunked.status_code == 413


@pytest.mark.parametrize("field", ["owner_email", "name", "description", "password"])
async def test_nul_and_half_a_surrogate_pair_in_text_are_422(client: httpx2.AsyncClient, url: str, field: str) -> None:
    with psycopg.connect(url) as connection, pytest.raises(psycopg.DataError, match="NUL"):
        connection.execute("select %s::text", ("nul\0",))  # what an unguarded handler turns into a 500
    path, _ = await made(client)
    for text in ("nul\\u0000inside@text", "half\\ud800inside@text"):
        body = json.dumps(BOB | {field: "TEXT"}).replace("TEXT", text).encode()
        for answer in (
            await client.post("/items", content=body, headers=JSON),
            await client.put(path, content=body, headers=JSON | {"If-Match": "*"}),
            await client.patch(path, content=body, headers=MERGE | {"If-Match": "*"}),
        ):
            assert answer.status_code == 422
            assert [error["loc"] for error in answer.json()["detail"]] == [["body", field]]


SQL = "'); drop table items; -- \" %s %(id)s {0} $1 \\"


async def test_sql_in_a_field_is_stored_as_text_or_refused(client: httpx2.AsyncClient, url: str) -> None:
    path, _ = await made(client, ADA | {"name": SQL, "description": SQL, "password": SQL})
    item = (await client.get(path)).json()
    assert (item["name"], item["description"]) == (SQL, SQL)
    assert Scrypt.verify(SQL, rows(url)[0]["password_hash"])
    quoted = await patch(client, path, {"owner_email": "o'brien'--@example.com", "name": "x" + SQL})
    assert (quoted.status_code, quoted.json()["owner_email"]) == (200, "o'brien'--@example.com")
    assert (await patch(client, path, {"owner_email": SQL})).status_code == 422
    assert (await patch(client, path, {SQL: "x"})).status_code == 422
    assert len(rows(url)) == 1


async def test_lengths_are_checked_at_their_exact_bounds(client: httpx2.AsyncClient) -> None:
    path, _ = await made(client)
    local = "@example.com"
    good = {
        "owner_email": ["a@b", "a.b+c@x-y.example.com", "a" * (254 - len(local)) + local],
        "name": ["n", "n" * 200, "\N{SNOWMAN}\n"],
        "description": ["", "d" * 2000],
        "password": ["p" * 12, "p" * 128],
    }
    bad: dict[str, list[Any]] = {
        "owner_email": ["", "a", "@b", "a@", "a@b@c", "a b@c", "a@b.", "a@b\n", "é@b", "a@b c", "a" * 243 + local],
        "name": ["", "n" * 201, 1, True, ["n"], {"a": "b"}],
        "description": ["d" * 2001, 0],
        "password": ["p" * 11, "p" * 129],
    }
    for field, values in good.items():
        for value in values:
            assert (await patch(client, path, {field: value})).status_code == 200, (field, value)
    for field, values in bad.items():
        for value in values:
            assert (await patch(client, path, {field: value})).status_code == 422, (field, value)
    for body in ([], None, "text", 1, [ADA]):
        assert (await patch(client, path, body)).status_code == 422


async def test_a_flood_of_errors_is_answered_with_the_first_twenty(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/items", json=ADA | {f"x{n}": n for n in range(30)})
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) == 20


def test_the_openapi_document_says_what_each_error_status_means(server: str) -> None:
    document = httpx2.get(f"{server}/openapi.json").json()
    meanings = {
        "400": "not JSON, or malformed precondition",
        "404": "no such item",
        "409": "a unique value is taken",
        "412": "another version than the precondition allows",
        "413": "body too large",
        "415": "wrong media type",
        "428": "If-Match is missing",
        "503": "the database does not answer",
    }
    for methods in document["paths"].values():
        for operation in methods.values():
            told = {status: answer["description"] for status, answer in operation["responses"].items()}
            assert {status: told.get(status) for status in meanings} == meanings
            assert set(told) - set(meanings) <= {"200", "201", "204", "304", "422"}
    one = document["paths"]["/items/{item_id}"]
    assert set(one) == {"get", "put", "patch", "delete"}  # HEAD is answered, and is no operation of its own
    assert set(document["paths"]["/items"]) == {"get", "post"}
    assert one["get"]["responses"]["304"]["description"] == "not modified"
    assert {"200", "201"} <= set(one["put"]["responses"])
    assert httpx2.get(f"{server}/items?limit=1").status_code == 200


def test_no_request_that_fits_the_openapi_document_or_breaks_it_is_a_5xx(server: str) -> None:
    document = schemathesis.openapi.from_url(f"{server}/openapi.json")
    known = f"{server}/items/{uuid.UUID(int=1)}"
    assert httpx2.put(known, json=ADA, headers={"If-None-Match": "*"}).status_code == 201
    seen: Counter[int] = Counter()

    def attack(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> None:
        @settings(
            max_examples=examples(5),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(case=operation.as_strategy(generation_mode=mode), reach=st.booleans())
        def probe(case: schemathesis.Case[Any], reach: bool) -> None:
            if reach and "item_id" in case.path_parameters:  # or nearly all of them end at 400 and 404
                case.path_parameters["item_id"] = str(uuid.UUID(int=1))
                case.headers["If-Match"] = "*"
                case.headers.pop("If-None-Match", None)
            status = case.call().status_code
            seen[status] += 1
            assert status < 500
            assert str(status) in operation.definition.raw["responses"]  # the document tells the truth

        probe()

    for result in document.get_all_operations():
        assert isinstance(result, Ok)
        for mode in GenerationMode:
            attack(result.ok(), mode)
    assert {200, 422} <= set(seen)


# --- failure ---


async def test_a_database_that_is_down_is_503_and_nothing_of_it_is_told(
    url: str, fault_proxy: type[FaultProxy], caplog: pytest.LogCaptureFixture
) -> None:
    at = urlsplit(url)
    assert at.hostname
    proxy = fault_proxy(at.hostname, at.port or 5432)
    behind = at._replace(netloc=f"{at.username}@127.0.0.1:{proxy.port}").geturl()
    async with AsyncItemStore(behind, scrypt=CHEAP) as store, talk_to(create_app(store)) as client:
        path, tag = await made(client)
        store._pool.timeout = 0.05  # from now on nobody waits long
        proxy.refuse = True
        proxy.reset_all()
        with caplog.at_level(logging.WARNING, "rest_crud"):
            answers = [
                await client.get(path),
                await client.post("/items", json=BOB),
                await client.put(path, json=BOB, headers={"If-Match": tag}),
                await patch(client, path, {"name": "x"}, tag),
                await client.delete(path, headers={"If-Match": tag}),
                await client.get("/items"),
            ]
        for answer in answers:
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json() == {"detail": "the database does not answer"}
        logged = [record for record in caplog.records if record.name == "rest_crud.errors"]
        assert len(logged) == 6
        assert logged[0].getMessage() == f"GET {path}: the database does not answer"
        assert logged[0].exc_info
        proxy.heal()
        store._pool.timeout = 20.0
        while (back := await client.get(path)).status_code == 503:  # pytest ends a test that hangs
            await asyncio.sleep(0.02)
        assert (back.status_code, back.headers["ETag"]) == (200, tag)


def test_a_missing_database_url_stops_the_start_and_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for environ in ({}, {"DATABASE_URL": ""}):
        with pytest.raises(RuntimeError, match=r"^DATABASE_URL is not set, or is empty$"):
            app_from_env(environ)
    base = {"DATABASE_URL": "postgresql://127.0.0.1/x"}
    assert app_from_env(base).state.public_base_url == ""
    monkeypatch.setenv("DATABASE_URL", base["DATABASE_URL"])
    monkeypatch.setenv("PUBLIC_BASE_URL", "https://api.example.com/")
    assert app_from_env().state.public_base_url == "https://api.example.com"
    assert "postgresql" in app_from_env().state.items._pool.conninfo
