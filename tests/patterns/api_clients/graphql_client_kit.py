"""What the proofs of graphql-client share: clients of either color, and two real GraphQL servers.

`Core` is graphql-core behind the scripted application: 400 and 294 in the newer media type, persisted queries, and
answers that a test scripts. `strawberry_app()` is Strawberry in FastAPI, which answers 200 for every error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import graphql
import httpx2
import pytest
import strawberry
from fastapi import FastAPI
from strawberry.fastapi import GraphQLRouter

from graphql_client_async import AsyncGraphQLClient
from graphql_client_sync import GraphQLClient
from graphql_result import GraphQLClientError
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.scripted import Answer, Script, Seen
from harness.tls import NOBODY
from servers.http import Uvicorn

TOKEN = "t0ken-of-this-test"
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
  issues(after: String): Issues!
}
type Mutation { charge(cents: Int!): Int! }
"""

USER = "query U($id: ID!) { user(id: $id) { id email } }"
PLAIN = "query P($id: ID!) { user(id: $id) { id } }"
ECHO = "query E($text: String!) { echo(text: $text) }"
DOUBLE = "query D($number: Int!) { double(number: $number) }"
CHARGE = "mutation C($cents: Int!) { charge(cents: $cents) }"
ISSUES = "query I($after: String) { issues(after: $after) { nodes { number } pageInfo { hasNextPage endCursor } } }"
PING = "{ ping }"


class Core:
    """A GraphQL server that keeps what it was asked; a test may put answers of its own before the server's."""

    def __init__(self, server: Script) -> None:
        self.server = server
        self.url = f"{server.url}/graphql"
        self._schema = graphql.build_schema(SDL)
        self.reset()

    def reset(self) -> None:
        self.server.reset()
        self.script()
        self.documents: dict[str, str] = {}
        self.apq = "yes"
        self.charges: list[int] = []
        self.echoed: list[str] = []
        self.cursors: list[str | None] = ["c1", "c2", None]

    def script(self, *answers: Answer) -> None:
        """Give these answers, one after the other, and the server's own from then on."""
        self.server.answer(*answers, self.answer)

    @property
    def seen(self) -> list[dict[str, Any]]:
        """The payloads, in order."""
        return [payload_of(seen) for seen in self.server.seen]

    @property
    def headers(self) -> list[dict[str, str]]:
        return [seen.headers for seen in self.server.seen]

    @property
    def methods(self) -> list[str]:
        return [seen.method for seen in self.server.seen]

    @property
    def connections(self) -> set[tuple[str, int]]:
        return self.server.connections

    def resolvers(self) -> dict[str, Any]:
        def broken(_: Any) -> str:
            raise ValueError("no mailbox for ada@example.com")

        def echo(_: Any, text: str) -> str:
            self.echoed.append(text)
            return text

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
            "issues": issues,
            "charge": charge,
        }

    def answer(self, seen: Seen) -> Answer:
        payload = payload_of(seen)
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
        result = graphql.graphql_sync(
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


def payload_of(seen: Seen) -> dict[str, Any]:
    """What a request asks; by GET too, as careless servers read it, for mutations as well."""
    if seen.method == "GET":
        query = dict(parse_qsl(seen.target.partition("?")[2]))
        return {k: json.loads(v) if k != "query" else v for k, v in query.items()}
    payload: dict[str, Any] = json.loads(seen.body)
    return payload


def reply(answer: Any, *, status: int = 200, kind: str = GRAPHQL_JSON) -> Answer:
    """An answer with JSON, or with the bytes as they are."""
    return Answer(status, answer, {"content-type": kind})


def refusal(message: str, code: str) -> Answer:
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
        self._sync, self._async = httpx2.HTTPTransport(verify=NOBODY), httpx2.AsyncHTTPTransport(verify=NOBODY)

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


def http_of(color: Color, transport: Any = None, **options: Any) -> Any:
    """Make an HTTP client of a color, closed when the test is over."""
    kind: Any = color.pick(httpx2.AsyncClient, httpx2.Client)
    return color.closing(kind(transport=transport, verify=NOBODY, **options))


def client_of(color: Color, url: str, *, http: Any = None, clock: Clock | None = None, **options: Any) -> Blocking:
    """Make a GraphQL client of a color; with a clock it does not really sleep, and its jitter is always half."""
    if clock:
        options = {"clock": clock, "sleep": color.pick(clock.asleep, clock.sleep), "rng": lambda: 0.5} | options
    kind: Any = color.pick(AsyncGraphQLClient, GraphQLClient)
    return Blocking(color, kind(url, http=http or http_of(color), **options))


@pytest.fixture
def core(scripted: Script) -> Core:
    """The server over graphql-core, with nothing seen yet."""
    return Core(scripted)


@pytest.fixture(scope="module")
def strawberry_url() -> Iterator[str]:
    server = Uvicorn(strawberry_app(), log_level="critical")
    yield f"{server.url}/graphql"
    server.stop()


@pytest.fixture(params=["graphql-core", "strawberry"])
def url(request: pytest.FixtureRequest, core: Core) -> str:
    """The address of each of the two servers."""
    return core.url if request.param == "graphql-core" else str(request.getfixturevalue("strawberry_url"))


@pytest.fixture
def client(color: Color, core: Core, clock: Clock) -> Blocking:
    """A client of the server over graphql-core that does not really sleep, and whose jitter is always half."""
    return client_of(color, core.url, clock=clock)


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

    http = http_of(color, httpx2.MockTransport(handle))
    return client_of(color, "https://api.test/graphql", http=http, clock=clock or Clock(), **options)


def answering_call(color: Color, *answers: Any, document: str = PING, **options: Any) -> Any:
    client = answering(color, *answers, **options)
    return lambda: client.execute(document)
