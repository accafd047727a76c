"""What the proofs of graphql-client share: both colors of the client, called alike, and two real GraphQL servers.

`Core` is a small ASGI application over graphql-core: 400 and 294 in the newer media type, persisted queries, and
answers that a test scripts. `strawberry_app()` is Strawberry in FastAPI, which answers 200 for every error.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import graphql
import httpx2
import pytest
import strawberry
from fastapi import FastAPI
from strawberry.fastapi import GraphQLRouter

from graphql_client import AsyncGraphQLClient
from graphql_client_sync import GraphQLClient
from graphql_result import GraphQLClientError
from servers.http import Uvicorn

TOKEN = "t0ken-of-this-test"
_TLS = ssl.create_default_context()  # made once: it takes longer than most tests
JSON, GRAPHQL_JSON, HTML = "application/json", "application/graphql-response+json", "text/html"

SDL = """
type User { id: ID!  email: String }
type Issue { number: Int! }
type Edge { node: Issue! }
type PageInfo { hasNextPage: Boolean!  endCursor: String }
type Issues { edges: [Edge!]!  nodes: [Issue!]!  pageInfo: PageInfo! }
type Query {
  user(id: ID!): User
  must: User!
  echo(text: String!): String!
  double(number: Int!): Int!
  slow(seconds: Float!): Int!
  issues(after: String): Issues!
}
type Mutation { charge(cents: Int!): Int! }
"""
Respond = tuple[int, str, bytes]

USER = "query U($id: ID!) { user(id: $id) { id email } }"
PLAIN = "query P($id: ID!) { user(id: $id) { id } }"
ECHO = "query E($text: String!) { echo(text: $text) }"
DOUBLE = "query D($number: Int!) { double(number: $number) }"
CHARGE = "mutation C($cents: Int!) { charge(cents: $cents) }"
ISSUES = "query I($after: String) { issues(after: $after) { nodes { number } pageInfo { hasNextPage endCursor } } }"
PING = "{ ping }"


class Clock:
    """A clock that only sleeping moves; `sleeps` are the seconds slept."""

    def __init__(self) -> None:
        self.time = 1024.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


class Core:
    """A GraphQL server. `seen` are the payloads, `script` answers that come instead of its own, first to last."""

    def __init__(self) -> None:
        self.url = ""
        self._schema = graphql.build_schema(SDL)
        self.reset()

    def reset(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.methods: list[str] = []
        self.connections: set[Any] = set()
        self.script: list[Respond] = []
        self.retry_after = ""
        self.documents: dict[str, str] = {}
        self.apq = "yes"
        self.charges: list[int] = []
        self.echoed: list[str] = []
        self.cursors: list[str | None] = ["c1", "c2", None]

    def resolvers(self) -> dict[str, Any]:
        def broken(_: Any) -> str:
            raise ValueError("no mailbox for ada@example.com")

        def echo(_: Any, text: str) -> str:
            self.echoed.append(text)
            return text

        async def slow(_: Any, seconds: float) -> int:
            await asyncio.sleep(seconds)
            return 1

        def issues(_: Any, after: str | None = None) -> dict[str, Any]:
            place = 0 if after is None else int(after[1:])
            cursor = self.cursors[place]
            nodes = [{"number": place * 2 + 1}, {"number": place * 2 + 2}]
            info = {"hasNextPage": cursor is not None, "endCursor": cursor}
            return {"nodes": nodes, "edges": [{"node": node} for node in nodes], "pageInfo": info}

        def charge(_: Any, cents: int) -> int:
            self.charges.append(cents)
            return cents

        return {
            "user": lambda _, **arguments: arguments | {"email": broken},
            "must": lambda _: {"id": None},
            "echo": echo,
            "double": lambda _, number: number * 2,
            "slow": slow,
            "issues": issues,
            "charge": charge,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["method"] == "GET":  # as careless servers do, for mutations too
            query = dict(parse_qsl(scope["query_string"].decode()))
            payload = {k: json.loads(v) if k != "query" else v for k, v in query.items()}
        else:
            payload = json.loads(body)
        self.methods.append(scope["method"])
        self.seen.append(payload)
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        self.connections.add(tuple(scope["client"]))
        status, kind, content = self.script.pop(0) if self.script else await self.answer(payload)
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(content)).encode())]
        if self.retry_after:
            headers.append((b"retry-after", self.retry_after.encode()))
        if status == 302:
            headers.append((b"location", b"/elsewhere"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def answer(self, payload: dict[str, Any]) -> Respond:
        document = payload.get("query")
        persisted = payload.get("extensions", {}).get("persistedQuery")
        if persisted:
            if self.apq == "unsupported":
                return refusal("PersistedQueryNotSupported", "PERSISTED_QUERY_NOT_SUPPORTED")
            key = persisted["sha256Hash"]
            if document is None:
                document = self.documents.get(key)
            elif hashlib.sha256(document.encode()).hexdigest() == key:
                self.documents[key] = document
            if document is None or self.apq == "never":
                return refusal("PersistedQueryNotFound", "PERSISTED_QUERY_NOT_FOUND")
        result = await graphql.graphql(
            self._schema,
            document or "",
            self.resolvers(),
            variable_values=payload.get("variables"),
            operation_name=payload.get("operationName"),
        )
        formatted: dict[str, Any] = dict(result.formatted)
        if result.data is None and not any(error.path for error in result.errors or ()):
            formatted.pop("data")
            return reply(formatted, status=400)
        return reply(formatted, status=294 if result.errors and result.data else 200)


def reply(answer: Any, *, status: int = 200, kind: str = GRAPHQL_JSON) -> Respond:
    """An answer with JSON, or with the bytes as they are."""
    return status, kind, answer if isinstance(answer, bytes) else json.dumps(answer).encode()


def refusal(message: str, code: str) -> Respond:
    return reply({"errors": [{"message": message, "extensions": {"code": code}}]}, kind=JSON)


@strawberry.type
class User:
    id: strawberry.ID

    @strawberry.field
    def email(self) -> str | None:
        raise ValueError("no mailbox for ada@example.com")


@strawberry.type
class Query:
    """The part of the schema that both servers have."""

    @strawberry.field
    def user(self, id: strawberry.ID) -> User | None:  # noqa: A002 -- the argument's name in the schema
        return User(id=id)

    @strawberry.field
    def must(self) -> User:
        return None  # type: ignore[return-value]

    @strawberry.field
    def echo(self, text: str) -> str:
        return text

    @strawberry.field
    def double(self, number: int) -> int:
        return number * 2


def strawberry_app() -> FastAPI:
    """Strawberry in FastAPI."""
    app = FastAPI()
    app.include_router(GraphQLRouter(strawberry.Schema(Query)), prefix="/graphql")
    return app


class Losing(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """Lets each request reach the server, and loses the first answers: their read times out."""

    def __init__(self, times: int) -> None:
        self.times = times
        self._sync, self._async = httpx2.HTTPTransport(verify=_TLS), httpx2.AsyncHTTPTransport(verify=_TLS)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._sync.handle_request(request)
        response.read()
        return self._lose(request, response)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._async.handle_async_request(request)
        await response.aread()
        return self._lose(request, response)

    def _lose(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        self.times -= 1
        if self.times >= 0:
            raise httpx2.ReadTimeout("The read operation timed out", request=request)
        return response

    def close(self) -> None:
        self._sync.close()

    async def aclose(self) -> None:
        self._sync.close()
        await self._async.aclose()


class Blocking:
    """A client of either color that is called as if it were sync."""

    def __init__(self, color: Color, target: Any) -> None:
        self._color, self._target = color, target

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self._color.wait_for(self._target.execute(*args, **kwargs))

    def paginate(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        pages = self._target.paginate(*args, **kwargs)
        if self._color.name == "sync":
            yield from pages
            return
        while (item := self._color.wait_for(anext(pages, self))) is not self:
            yield item


class Color:
    """Makes clients of one color."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._runner = asyncio.Runner()
        self._made: list[Any] = []

    def http(self, transport: Any = None, **options: Any) -> Any:
        kind: Any = httpx2.AsyncClient if self.name == "async" else httpx2.Client
        self._made.append(kind(transport=transport, verify=_TLS, **options))
        return self._made[-1]

    def client(self, url: str, *, http: Any = None, clock: Clock | None = None, **options: Any) -> Blocking:
        if clock:
            sleep = clock.asleep if self.name == "async" else clock.sleep
            options = {"clock": clock, "sleep": sleep, "rng": lambda: 0.5} | options
        kind: Any = AsyncGraphQLClient if self.name == "async" else GraphQLClient
        return Blocking(self, kind(url, http=http or self.http(), **options))

    def wait_for(self, result: Any) -> Any:
        if not inspect.isawaitable(result):
            return result

        async def awaited() -> Any:
            return await result

        return self._runner.run(awaited())

    def close(self) -> None:
        for each in self._made:
            self.wait_for(each.aclose() if self.name == "async" else each.close())
        self._runner.close()


@pytest.fixture(scope="module")
def _core() -> Iterator[Core]:
    app = Core()
    server = Uvicorn(app, lifespan="off")
    app.url = f"{server.url}/graphql"
    yield app
    server.stop()


@pytest.fixture
def core(_core: Core) -> Core:
    """The server over graphql-core, with nothing seen yet."""
    _core.reset()
    return _core


@pytest.fixture(scope="module")
def strawberry_url() -> Iterator[str]:
    server = Uvicorn(strawberry_app(), log_level="critical")
    yield f"{server.url}/graphql"
    server.stop()


@pytest.fixture(params=["graphql-core", "strawberry"])
def url(request: pytest.FixtureRequest, core: Core) -> str:
    """The address of each of the two servers."""
    return core.url if request.param == "graphql-core" else str(request.getfixturevalue("strawberry_url"))


@pytest.fixture(params=["async", "sync"])
def color(request: pytest.FixtureRequest) -> Iterator[Color]:
    made = Color(request.param)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(color: Color, core: Core, clock: Clock) -> Blocking:
    """A client of the server over graphql-core that does not really sleep, and whose jitter is always half."""
    return color.client(core.url, clock=clock)


def failure(call: Any, kind: type[GraphQLClientError] = GraphQLClientError) -> GraphQLClientError:
    """Return the error that a call raises; it is of this kind and no other."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind or kind is GraphQLClientError
    return caught.value


def answering(color: Color, *answers: Any, clock: Clock | None = None, **options: Any) -> Blocking:
    """Return a client that gets these answers, or fails with them, in turn."""
    left = list(answers)

    def handle(request: httpx2.Request) -> httpx2.Response:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(200, json=answer)

    http = color.http(httpx2.MockTransport(handle))
    return color.client("https://api.test/graphql", http=http, clock=clock or Clock(), **options)


def answering_call(color: Color, *answers: Any, document: str = PING, **options: Any) -> Any:
    client = answering(color, *answers, **options)
    return lambda: client.execute(document)
