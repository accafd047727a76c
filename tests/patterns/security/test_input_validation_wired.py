"""Proves docs/patterns/security/input-validation.md: what a FastAPI application under uvicorn answers and logs."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, Query
from pydantic import BaseModel, SecretStr
from starlette.testclient import TestClient

from list_queries import PageSize, SortSpec, order_by
from problem_handler import install, json_body, max_body_from_env
from servers.http import Uvicorn
from strict_models import StrictModel
from text_rules import Name

CANARY = "hunter" + "2-canary"
STORED: list[dict[str, Any]] = []


class Login(StrictModel):
    user: Name
    password: SecretStr
    age: int = 0


class Naive(BaseModel):
    user: str
    password: SecretStr


def build() -> FastAPI:
    app = FastAPI()
    numbers = iter(range(10**9))
    install(app, max_bytes=1_000, new_id=lambda: f"id-{next(numbers)}")

    @app.post("/logins")
    async def login(login: Annotated[Login, Depends(json_body(Login))]) -> dict[str, str]:
        STORED.append({"user": login.user})
        return {"user": login.user}

    @app.post("/small")
    async def small(login: Annotated[Login, Depends(json_body(Login, max_bytes=20))]) -> None: ...

    @app.get("/users/{number}")
    async def users(number: int, limit: PageSize = 20, sort: Annotated[SortSpec, Query()] = "name") -> dict[str, Any]:
        return {"limit": limit, "order": order_by(sort, {"name": "name", "age": "age"})}

    @app.post("/own")
    async def own(naive: Naive) -> None: ...

    return app


@pytest.fixture(scope="module")
def server() -> Iterator[httpx2.Client]:
    running = Uvicorn(build())
    with httpx2.Client(base_url=running.url, trust_env=False) as client:
        yield client
    running.stop()


def post(client: httpx2.Client, body: object, path: str = "/logins", kind: str = "application/json") -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers={"content-type": kind})


def test_good_input_passes_and_an_unknown_field_stores_nothing(server: httpx2.Client) -> None:
    STORED.clear()
    good = {"user": "Ann", "password": CANARY}
    assert post(server, good).json() == {"user": "Ann"}
    answer = post(server, good | {"is_admin": True})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document.pop("instance").startswith("urn:uuid:id-")
    assert document == {
        "type": "about:blank",
        "title": HTTPStatus(422).phrase,
        "status": 422,
        "errors": [{"pointer": "/is_admin", "code": "extra_forbidden"}],
    }
    assert STORED == [{"user": "Ann"}]


def test_no_submitted_value_is_in_an_answer_or_a_log(server: httpx2.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore2").setLevel(logging.INFO)
    bodies: list[object] = [
        {"password": CANARY},  # the missing sibling: pydantic's input is the whole body
        {"user": "Ann", "password": CANARY, "age": CANARY},
        {"user": CANARY + "\x00", "password": CANARY},
        {"user": CANARY * 99, "password": CANARY},
        [CANARY],
        json.dumps({"password": CANARY}).encode()[:-1],
        f'{{"password":"{CANARY}","password":"{CANARY}"}}'.encode(),
        f'{{"password":"{CANARY}"'.encode() + b"[" * 99,
        CANARY.encode() * 99,
    ]
    answers = [post(server, body) for body in bodies]
    answers += [post(server, f"password={CANARY}".encode(), kind="application/x-www-form-urlencoded")]
    answers += [server.get(f"/users/1?limit={CANARY}&sort={CANARY}"), server.get(f"/users/{CANARY}")]
    answers += [post(server, {"password": CANARY}, "/own"), post(server, f'{{"password":"{CANARY}'.encode(), "/own")]
    assert {answer.status_code for answer in answers} == {413, 415, 422}
    ours = "".join(record.getMessage() for record in caplog.records if record.name == "input")
    for answer in answers:
        assert CANARY not in answer.text + str(answer.headers)
        assert answer.json()["instance"] in ours  # the answer can be found in the log
    assert "/age: int_type" in ours
    assert CANARY not in ours


def test_naive_default_422_sends_the_password_back() -> None:
    app = FastAPI()

    @app.post("/logins")
    async def login(naive: Naive) -> None: ...

    with TestClient(app) as client:
        answer = client.post("/logins", json={"password": CANARY})
    assert answer.status_code == 422
    assert CANARY in answer.text


def test_naive_hide_input_in_errors_hides_it_in_the_text_only() -> None:
    with pytest.raises(ValueError, match="missing") as caught:
        Login.model_validate_json(json.dumps({"password": CANARY}))
    assert CANARY not in str(caught.value)
    assert CANARY in str(caught.value.errors())  # type: ignore[attr-defined]


def test_a_client_key_cannot_break_a_line_of_the_log(server: httpx2.Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    post(server, {"user": "Ann", "password": "x", "a\nroot logged in": 1})
    lines = [record.getMessage() for record in caplog.records if record.name == "input"]
    assert len(lines) == 1
    assert "\n" not in lines[0]


def test_the_size_is_counted_as_it_comes_whatever_was_announced(server: httpx2.Client) -> None:
    body = json.dumps({"user": "Ann", "password": "x"}).encode()

    def chunks(size: int) -> Iterator[bytes]:
        for start in range(0, size, 100):
            yield body.ljust(size)[start : start + 100]

    def sent(size: int) -> int:
        headers = {"content-type": "application/json"}
        return server.post("/logins", content=chunks(size), headers=headers).status_code

    assert [sent(1_000), sent(1_001), sent(20_000)] == [200, 413, 413]
    assert [post(server, body.ljust(size)).status_code for size in (1_000, 1_001)] == [200, 413]
    assert [post(server, b"{}".ljust(size), "/small").status_code for size in (20, 21)] == [422, 413]


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "json"])
def test_another_content_type_is_415(server: httpx2.Client, kind: str) -> None:
    body = {"user": "Ann", "password": "x"}
    answer = post(server, body, kind=kind)
    assert (answer.status_code, answer.json()["errors"]) == (415, [{"pointer": "", "code": "content_type"}])
    for good in ("application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"):
        assert post(server, body, kind=good).status_code == 200


def test_query_and_path_are_refused_in_the_same_form(server: httpx2.Client) -> None:
    assert server.get("/users/1").json() == {"limit": 20, "order": "name ASC"}
    assert server.get("/users/1?limit=100&sort=age:desc").json() == {"limit": 100, "order": "age DESC"}
    for limit in ("0", "101", "-1", "1e2", "%31%30%30%30", ""):
        answer = server.get(f"/users/1?limit={limit}")
        assert answer.status_code == 422
        assert [e["pointer"] for e in answer.json()["errors"]] == ["/query/limit"]
    assert server.get("/users/x").json()["errors"] == [{"pointer": "/path/number", "code": "int_parsing"}]
    assert server.get("/users/1?sort=a;b").json()["errors"] == [{"pointer": "/query/sort", "code": "sort"}]
    assert server.get("/users/1?sort=password").json()["errors"] == [{"pointer": "/sort", "code": "sort_unknown"}]
    assert post(server, {"user": 7}, "/own").json()["errors"] == [
        {"pointer": "/user", "code": "string_type"},
        {"pointer": "/password", "code": "missing"},
    ]


def test_random_bytes_on_the_wire_are_4xx_and_never_500(server: httpx2.Client) -> None:
    rng = random.Random(11)
    statuses = {post(server, rng.randbytes(rng.randrange(60))).status_code for _ in range(150)}
    assert statuses == {422}


@pytest.mark.parametrize("text", ["0", "-1", "1e3", " 5", "¹", "9" * 13, "x"])
def test_a_wrong_limit_stops_the_start_and_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^MAX_BODY_BYTES must be a whole number of bytes over 0, got {text!r}$"):
        max_body_from_env({"MAX_BODY_BYTES": text})
    assert [
        max_body_from_env({}),
        max_body_from_env({"MAX_BODY_BYTES": ""}),
        max_body_from_env({"MAX_BODY_BYTES": "1"}),
    ] == [
        65_536,
        65_536,
        1,
    ]
    assert max_body_from_env({"MAX_BODY_BYTES": "9" * 12}) == 10**12 - 1


def test_the_defaults_are_65536_bytes_and_a_random_uuid() -> None:
    app = FastAPI()
    install(app)

    @app.post("/logins")
    async def login(login: Annotated[Login, Depends(json_body(Login))]) -> None: ...

    with TestClient(app) as client:
        body = b'{"user":"Ann","password":"x"}'
        headers = {"content-type": "application/json"}
        answers = [
            client.post("/logins", content=body.ljust(size), headers=headers) for size in (65_536, 65_537, 65_537)
        ]
    assert [answer.status_code for answer in answers] == [200, 413, 413]
    first, second = (answer.json()["instance"] for answer in answers[1:])
    assert first != second
    assert len(first) == len("urn:uuid:") + 36


@pytest.mark.parametrize("wrong", [0, -1, 1.5, float("nan"), True, "9"])
def test_a_longest_body_that_is_no_number_of_bytes_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^max_bytes must be a whole number over 0, got {wrong!r}$"):
        install(FastAPI(), max_bytes=wrong)
    with pytest.raises(ValueError, match=rf"^max_bytes must be a whole number over 0, got {wrong!r}$"):
        json_body(Login, max_bytes=wrong)
    json_body(Login, max_bytes=1)
