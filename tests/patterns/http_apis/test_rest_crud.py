"""Proves docs/patterns/http-apis/rest-crud.md: a resource behaves as HTTP says, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from typing import Annotated

import httpx2
import psycopg
import pytest
from fastapi import FastAPI, Header, Request
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from harness.depth import examples
from patterns.http_apis import rest_crud_kit as kit
from patterns.http_apis.rest_crud_kit import ADA, BOB, CHEAP, MERGE, PASSWORD, made, patch, rows, talk_to
from rest_crud import table
from rest_crud.api import create_app
from rest_crud.etags import ANY, Preconditions, etag, parse_etags
from rest_crud.models import ItemIn, ItemPatch, StaleError
from rest_crud.store_async import AsyncItemStore

# Fixtures.
client, items_url, server, url = kit.client, kit.items_url, kit.server, kit.url


# --- create, read, list ---


async def test_post_answers_201_with_location_and_etag_and_the_body_that_get_gives(
    client: httpx2.AsyncClient,
) -> None:
    response = await client.post("/items", json=ADA)
    assert response.status_code == 201
    location = response.headers["Location"]
    assert location == f"/items/{uuid.UUID(response.json()['id'])}"
    assert response.headers["Content-Location"] == location
    again = await client.get(location)
    assert again.status_code == 200
    assert again.content == response.content
    assert again.headers["ETag"] == response.headers["ETag"]
    assert again.headers["ETag"].strip('"').isdigit()
    assert again.headers["ETag"] == f'"{again.headers["ETag"][1:-1]}"'
    assert again.headers["Cache-Control"] == "private, no-cache"
    assert "Location" not in again.headers
    assert set(response.json()) == {"id", "owner_email", "name", "description", "created_at", "updated_at"}
    assert response.json()["description"] is None


async def test_location_is_built_from_the_configured_base_and_never_from_the_host_header(url: str) -> None:
    evil = {"Host": "evil.example"}
    naive = FastAPI()

    @naive.get("/items/{item_id}")
    async def read(request: Request, item_id: str) -> str:
        return str(request.url_for("read", item_id=item_id))

    async with talk_to(naive) as client:
        assert (await client.get("/items/1", headers=evil)).json() == "http://evil.example/items/1"
    async with AsyncItemStore(url, scrypt=CHEAP) as store:
        app = create_app(store, public_base_url="https://api.example.com/v1/")
        async with talk_to(app) as client:
            response = await client.post("/items", json=ADA, headers=evil)
        expected = f"https://api.example.com/v1/items/{response.json()['id']}"
        assert response.headers["Location"] == response.headers["Content-Location"] == expected
        async with talk_to(create_app(store)) as client:
            response = await client.post("/items", json=BOB, headers=evil)
        assert response.headers["Location"] == f"/items/{response.json()['id']}"


async def test_an_unknown_id_is_404_for_every_method_whatever_the_preconditions(
    client: httpx2.AsyncClient,
) -> None:
    path = f"/items/{uuid.uuid4()}"
    for headers in ({}, {"If-Match": "*"}, {"If-Match": '"1"'}):
        answers = [
            await client.get(path, headers=headers),
            await client.head(path, headers=headers),
            await client.put(path, json=ADA, headers=headers),
            await client.patch(path, json={}, headers=MERGE | headers),
            await client.delete(path, headers=headers),
        ]
        assert [answer.status_code for answer in answers] == [404] * 5
        assert answers[0].json() == {"detail": "no such item"}


async def test_an_id_that_is_no_uuid_is_422(client: httpx2.AsyncClient) -> None:
    for answer in (
        await client.get("/items/not-a-uuid"),
        await client.put("/items/not-a-uuid", json=ADA),
        await client.patch("/items/%00", json={}, headers=MERGE),
        await client.delete("/items/1'; drop table items --"),
    ):
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["path", "item_id"]


async def test_a_list_is_bounded_and_ordered(client: httpx2.AsyncClient, url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "insert into items (id, owner_email, name, password_hash) "
            "select gen_random_uuid(), 'a' || n || '@example.com', 'n', 'h' from generate_series(1, 101) n"
        )
    default = (await client.get("/items")).json()
    assert len(default) == 50
    assert [item["id"] for item in default] == sorted(str(row["id"]) for row in rows(url))[:50]
    assert default[0] == (await client.get(f"/items/{default[0]['id']}")).json()
    counts = {n: len((await client.get("/items", params={"limit": n})).json()) for n in (1, 100)}
    assert counts == {1: 1, 100: 100}
    for limit in ("0", "101", "-1", "1e3", "", "9" * 5_000, "1;drop table items"):
        assert (await client.get("/items", params={"limit": limit})).status_code == 422


async def test_head_answers_as_get_without_the_body(server: str) -> None:
    naive = FastAPI()

    @naive.get("/items")
    async def read() -> list[str]:
        return []

    async with talk_to(naive) as client:
        assert (await client.head("/items")).status_code == 405
    async with httpx2.AsyncClient(base_url=server) as client:
        path, tag = await made(client)
        for target in (path, "/items"):
            got, head = await client.get(target), await client.head(target)
            assert (head.status_code, head.content) == (200, b"")
            for name in ("content-length", "content-type", "etag", "cache-control"):
                assert head.headers.get(name) == got.headers.get(name)
        assert (await client.head(path, headers={"If-None-Match": tag})).status_code == 304


async def test_a_wrong_method_is_405_and_allow_names_every_method_of_the_resource(
    client: httpx2.AsyncClient,
) -> None:
    naive = FastAPI()
    naive.get("/items")(list)
    naive.post("/items")(list)
    async with talk_to(naive) as other:
        assert (await other.put("/items")).headers["Allow"] == "GET"  # POST works, and is not named
    answer = await client.put("/items")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, POST")
    answer = await client.post(f"/items/{uuid.uuid4()}")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "DELETE, GET, HEAD, PATCH, PUT")
    assert answer.json() == {"detail": "method not allowed"}
    answer = await client.post("/docs")
    assert (answer.status_code, answer.headers["Allow"]) in {(405, "GET, HEAD"), (405, "HEAD, GET")}  # not ours


# --- replace, change, delete ---


async def test_put_needs_every_required_field(client: httpx2.AsyncClient) -> None:
    path, tag = await made(client)
    for field in ADA:
        body = {name: value for name, value in ADA.items() if name != field}
        for answer in (
            await client.put(path, json=body, headers={"If-Match": tag}),
            await client.post("/items", json=body),
        ):
            assert answer.status_code == 422
            assert [(e["type"], e["loc"]) for e in answer.json()["detail"]] == [("missing", ["body", field])]


async def test_put_resets_what_it_leaves_out_and_patch_keeps_it(client: httpx2.AsyncClient) -> None:
    path, tag = await made(client, ADA | {"description": "analytical"})
    patched = await patch(client, path, {"name": "Machine"}, tag)
    assert (patched.status_code, patched.json()["name"]) == (200, "Machine")
    assert patched.json()["description"] == "analytical"
    assert patched.headers["Content-Location"] == path
    put = await client.put(path, json=ADA, headers={"If-Match": patched.headers["ETag"]})
    assert (put.status_code, put.json()["name"], put.json()["description"]) == (200, "Engine", None)
    assert "Location" not in put.headers


async def test_the_same_put_twice_leaves_the_same_state_and_the_same_etag(client: httpx2.AsyncClient, url: str) -> None:
    path, _ = await made(client)
    body = ADA | {"name": "Machine", "password": "another long password"}
    first = await client.put(path, json=body, headers={"If-Match": "*"})
    state = rows(url)
    second = await client.put(path, json=body, headers={"If-Match": first.headers["ETag"]})
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["ETag"] == first.headers["ETag"]
    assert rows(url) == state  # the password's hash too, though its salt is random


async def test_null_in_a_patch_clears_a_nullable_field_and_is_422_on_a_required_one(
    client: httpx2.AsyncClient,
) -> None:
    path, tag = await made(client, ADA | {"description": "analytical"})
    cleared = await patch(client, path, {"description": None}, tag)
    assert (cleared.status_code, cleared.json()["description"]) == (200, None)
    assert cleared.headers["ETag"] != tag
    for field in ("name", "owner_email", "password"):
        assert (await patch(client, path, {field: None})).status_code == 422
    assert (await client.get(path)).content == cleared.content


def test_dropping_what_is_none_loses_the_clearing_of_a_field() -> None:
    class NaivePatch(BaseModel):
        name: str | None = None
        description: str | None = None

    asked = NaivePatch.model_validate({"description": None})
    naive = {name: value for name, value in asked.model_dump().items() if value is not None}
    assert naive == {}
    assert NaivePatch.model_validate({"name": None}).name is None  # and a required field passes as null
    assert ItemPatch.model_validate({"description": None}).model_dump() == {"description": None}
    assert ItemPatch.model_validate({}).model_dump() == {}
    row = {"owner_email": "a@b", "name": "n", "description": "d", "password_hash": "h"}
    assert table.changed(row, {"description": None}, CHEAP) == row | {"description": None}


async def test_an_empty_patch_is_200_and_changes_nothing(client: httpx2.AsyncClient, url: str) -> None:
    path, tag = await made(client)
    state = rows(url)
    for fields in ({}, {"name": ADA["name"]}, ADA):
        answer = await patch(client, path, fields, tag)
        assert (answer.status_code, answer.headers["ETag"]) == (200, tag)
    assert rows(url) == state


async def test_updated_at_moves_only_on_a_real_change(client: httpx2.AsyncClient) -> None:
    path, _ = await made(client)
    before = (await client.get(path)).json()
    assert before["created_at"] == before["updated_at"]
    assert before["updated_at"].endswith("Z")
    same = (await patch(client, path, {"name": before["name"], "password": PASSWORD})).json()
    assert same == before
    after = (await patch(client, path, {"name": "Machine"})).json()
    assert after["updated_at"] > before["updated_at"]
    assert after["created_at"] == before["created_at"]


async def test_delete_answers_204_with_nothing_in_it_and_the_second_delete_404(
    client: httpx2.AsyncClient,
) -> None:
    naive = FastAPI()

    @naive.delete("/items", status_code=204)
    async def delete() -> None: ...

    async with talk_to(naive) as other:
        assert (await other.delete("/items")).headers["content-type"] == "application/json"
    path, tag = await made(client)
    gone = await client.delete(path, headers={"If-Match": tag})
    assert (gone.status_code, gone.content) == (204, b"")
    assert not {"content-type", "content-length"} & set(gone.headers)
    assert (await client.delete(path, headers={"If-Match": tag})).status_code == 404
    assert (await client.get(path)).status_code == 404


async def test_put_with_if_none_match_star_creates_under_the_clients_id_once(
    client: httpx2.AsyncClient, url: str
) -> None:
    path = f"/items/{uuid.uuid4()}"
    create = {"If-None-Match": "*"}
    first = await client.put(path, json=ADA, headers=create)
    assert (first.status_code, first.headers["Location"]) == (201, path)
    assert (await client.get(path)).content == first.content
    state = rows(url)
    for body in (ADA, BOB):
        again = await client.put(path, json=body, headers=create)
        assert (again.status_code, again.json()) == (412, {"detail": "the item exists already"})
    taken = await client.put(f"/items/{uuid.uuid4()}", json=ADA, headers=create)
    assert taken.status_code == 409
    both = await client.put(path, json=BOB, headers=create | {"If-Match": "*"})
    assert both.status_code == 412
    both = await client.put(f"/items/{uuid.uuid4()}", json=BOB, headers=create | {"If-Match": "*"})
    assert both.status_code == 404
    unknown = await client.put(f"/items/{uuid.uuid4()}", json=BOB, headers={"If-None-Match": '"1"'})
    assert unknown.status_code == 404
    assert rows(url) == state


# --- preconditions ---


async def test_if_match_with_the_current_etag_is_done_and_gives_a_new_one(client: httpx2.AsyncClient) -> None:
    path, first = await made(client)
    second = (await patch(client, path, {"name": "two"}, first)).headers["ETag"]
    put = await client.put(path, json=ADA, headers={"If-Match": f'"other", {second}'})
    third = put.headers["ETag"]
    assert len({first, second, third}) == 3
    assert (await client.get(path)).headers["ETag"] == third
    assert (await client.get(path, headers={"If-Match": third})).status_code == 200


async def test_a_stale_if_match_is_412_and_stores_nothing(client: httpx2.AsyncClient, url: str) -> None:
    path, stale = await made(client)
    current = (await patch(client, path, {"name": "two"}, stale)).headers["ETag"]
    state = rows(url)
    # A weak tag never satisfies If-Match, not even that of the current version; an empty list has no tag.
    for tag in (stale, f"W/{current}", '""', "", f"W/{current}, {stale}"):
        for answer in (
            await client.put(path, json=BOB, headers={"If-Match": tag}),
            await patch(client, path, {"name": "three"}, tag),
            await patch(client, path, {}, tag),
            await client.delete(path, headers={"If-Match": tag}),
            await client.get(path, headers={"If-Match": tag}),
        ):
            assert answer.status_code == 412
            assert answer.json() == {"detail": "the item is not in that version: read it again"}
    refused = await client.delete(path, headers={"If-Match": current, "If-None-Match": current})
    assert refused.status_code == 412
    assert rows(url) == state


async def test_a_change_without_if_match_is_428(client: httpx2.AsyncClient, url: str) -> None:
    path, _tag = await made(client)
    state = rows(url)
    for headers in ({}, {"If-None-Match": '"0"'}):
        for answer in (
            await client.put(path, json=BOB, headers=headers),
            await client.patch(path, json={"name": "x"}, headers=MERGE | headers),
            await client.delete(path, headers=headers),
        ):
            assert answer.status_code == 428
            assert "If-Match" in answer.json()["detail"]
    assert rows(url) == state


async def test_if_none_match_answers_304_without_body_for_lists_and_weak_tags(
    client: httpx2.AsyncClient,
) -> None:
    path, tag = await made(client)
    for field in (tag, f"W/{tag}", f'"x", W/"y,z" ,{tag}', f',, W/{tag} , "x"', "*", " * "):
        answer = await client.get(path, headers={"If-None-Match": field})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
        assert answer.headers["Cache-Control"] == "private, no-cache"
        assert "content-type" not in answer.headers
    for field in ('"x"', 'W/"x"', "", f'"{tag[1:-1]}0"'):
        assert (await client.get(path, headers={"If-None-Match": field})).status_code == 200


async def test_every_line_of_a_repeated_if_match_counts(client: httpx2.AsyncClient) -> None:
    path, tag = await made(client)
    lines = [("If-Match", '"other"'), ("If-Match", tag)]
    naive = FastAPI()

    @naive.get("/")
    async def read(if_match: Annotated[str, Header()]) -> str:
        return if_match

    async with talk_to(naive) as other:
        assert (await other.get("/", headers=lines)).json() == '"other"'  # our tag is not there
    assert (await client.delete(path, headers=lines)).status_code == 204


async def test_a_malformed_precondition_is_400_and_stores_nothing(client: httpx2.AsyncClient, url: str) -> None:
    path, _ = await made(client)
    state = rows(url)
    for field in ("1", '"1', '1"', 'w/"1"', '*, "1"', '"1" "2"', '"a b"', '"1"x', "W/"):
        for name in ("If-Match", "If-None-Match"):
            for answer in (
                await client.delete(path, headers={name: field}),
                await client.put(path, json=BOB, headers={name: field}),
                await client.get(path, headers={name: field}),
            ):
                assert answer.status_code == 400, field
                assert answer.json()["detail"].startswith("not an entity tag")
    assert rows(url) == state


def test_an_etag_list_is_parsed_by_its_grammar_and_in_linear_time() -> None:
    two = 'W/"a,b", "c"'
    assert two.split(",") == ['W/"a', 'b"', ' "c"']  # what split() makes of two tags
    assert parse_etags([two]) == frozenset({'W/"a,b"', '"c"'})
    assert parse_etags(['"a"', '"!#~\x80\xff"']) == frozenset({'"a"', '"!#~\x80\xff"'})
    assert parse_etags([]) == parse_etags([""]) == parse_etags([" ,\t,"]) == frozenset()
    assert parse_etags(["\t* "]) == ANY
    for wrong in ('"\x7f"', '" "', '"\x1f"'):
        with pytest.raises(ValueError, match="not an entity tag"):
            parse_etags([wrong])
    began = time.thread_time()
    with pytest.raises(ValueError, match="not an entity tag"):
        parse_etags([" " * 60_000 + "x"])
    assert time.thread_time() - began < 0.5  # quadratic: seconds


@given(st.lists(st.integers(0, 5), max_size=4), st.booleans(), st.integers(0, 5))
@settings(max_examples=examples(60), deadline=None, database=None)
def test_if_match_compares_strongly_and_if_none_match_weakly(versions: list[int], weak: bool, current: int) -> None:
    tags = parse_etags([("W/" if weak else "") + etag(version) for version in versions])
    assert Preconditions(if_match=tags).allow(current) == (current in versions and not weak)
    assert Preconditions(if_none_match=tags).allow(current) == (current not in versions)
    assert Preconditions(tags, tags).allow(current) is False
    assert Preconditions().allow(current)
    assert Preconditions(if_match=ANY).allow(current)
    assert not Preconditions(if_none_match=ANY).allow(current)


async def test_of_twenty_parallel_patches_with_one_etag_one_is_done(server: str, url: str) -> None:
    async with httpx2.AsyncClient(base_url=server) as client:
        path, tag = await made(client)
        answers = await asyncio.gather(*(patch(client, path, {"name": f"n{n}"}, tag) for n in range(20)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 19}
    winner = next(answer for answer in answers if answer.status_code == 200)
    assert rows(url)[0]["name"] == winner.json()["name"]


async def test_checking_the_version_before_the_update_loses_an_edit(url: str) -> None:
    async with AsyncItemStore(url, scrypt=CHEAP) as store:
        item = await store.create(uuid.uuid4(), ItemIn.model_validate(ADA))
        both_read = asyncio.Barrier(2)

        async def naive(name: str) -> bool:
            if (await store.get(item.id)).version != item.version:
                return False
            await both_read.wait()  # the race, made certain
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                await connection.execute("update items set name = %s where id = %s", (name, item.id))
            return True

        assert [*await asyncio.gather(naive("one"), naive("two"))] == [True, True]  # one of them is lost
        current = await store.get(item.id)
        meet = asyncio.Barrier(2)

        async def ours(name: str) -> bool:
            await meet.wait()
            change = ItemPatch.model_validate({"name": name})
            try:
                await store.change(item.id, change, lambda version: version == current.version)
            except StaleError:
                return False
            return True

        assert sorted([*await asyncio.gather(ours("three"), ours("four"))]) == [False, True]


async def test_of_a_racing_delete_and_patch_exactly_one_is_done(server: str, url: str) -> None:
    async with httpx2.AsyncClient(base_url=server) as client:
        for number in range(5):
            path, tag = await made(client, ADA | {"owner_email": f"a{number}@example.com"})
            changed, deleted = await asyncio.gather(
                patch(client, path, {"name": "two"}, tag), client.delete(path, headers={"If-Match": tag})
            )
            left = (await client.get(path)).status_code
            outcome = (changed.status_code, deleted.status_code, left)
            assert outcome in {(200, 412, 200), (404, 204, 404)}


async def test_parallel_creations_of_one_id_or_one_email_make_one_item(server: str, url: str) -> None:
    path, create = f"/items/{uuid.uuid4()}", {"If-None-Match": "*"}
    async with httpx2.AsyncClient(base_url=server) as client:
        puts = await asyncio.gather(*(client.put(path, json=ADA, headers=create) for _ in range(10)))
        posts = await asyncio.gather(*(client.post("/items", json=BOB) for _ in range(10)))
    assert Counter(answer.status_code for answer in puts) == {201: 1, 412: 9}
    assert Counter(answer.status_code for answer in posts) == {201: 1, 409: 9}
    assert len(rows(url)) == 2


async def test_an_item_made_again_under_its_old_id_never_gets_an_old_etag(client: httpx2.AsyncClient) -> None:
    path = f"/items/{uuid.uuid4()}"
    old = [(await client.put(path, json=ADA, headers={"If-None-Match": "*"})).headers["ETag"]]
    old.append((await patch(client, path, {"name": "two"})).headers["ETag"])
    await client.delete(path, headers={"If-Match": "*"})
    again = await client.put(path, json=BOB, headers={"If-None-Match": "*"})
    assert again.status_code == 201
    # Were versions counted from 1 for each row, the editor of the deleted item would overwrite Bob's.
    for tag in old:
        assert (await patch(client, path, {"name": "late"}, tag)).status_code == 412
