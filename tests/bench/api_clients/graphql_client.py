"""Measures docs/patterns/api-clients/graphql-client.md: what a call costs over a bare POST, and beside gql."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from bench.kit import ROOT, Table, compare, ratio_table, version
from graphql_client_async import AsyncGraphQLClient
from graphql_client_sync import GraphQLClient
from servers.http import UvicornProcess

# Only where benchmarks run, not where types are checked.
gql: Any = importlib.import_module("gql")
transports: Any = importlib.import_module("gql.transport.httpx")

CALLS = 50
ROUNDS = 61
DOCUMENT = "query User($id: ID!) { user(id: $id) { id name email team { name } } }"
VARIABLES = {"id": "7"}
USER = {"id": "7", "name": "Ada Lovelace", "email": "ada@example.com", "team": {"name": "Engines"}}
BODY = json.dumps({"data": {"user": USER}}).encode()
HEAD = [(b"content-type", b"application/graphql-response+json"), (b"content-length", str(len(BODY)).encode())]
ACCEPT = {"Accept": "application/graphql-response+json, application/json;q=0.9"}


def factory() -> Any:
    """Return the application that the server process runs: it answers at once, so the clients are what is timed."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": HEAD})
        await send({"type": "http.response.body", "body": BODY})

    return app


def sync(url: str) -> Table:
    def many(call: Callable[[], object]) -> Callable[[], object]:
        def loop() -> None:
            for _ in range(CALLS):
                call()

        return loop

    transport = transports.HTTPXTransport(url=url, headers=ACCEPT)
    parsed = gql.gql(DOCUMENT)
    parsed.variable_values = VARIABLES

    def fresh() -> object:
        request = gql.gql(DOCUMENT)
        request.variable_values = VARIABLES
        return session.execute(request)

    with httpx2.Client() as http, gql.Client(transport=transport) as session:
        ours = GraphQLClient(url, http=http)
        payload = {"query": DOCUMENT, "variables": VARIABLES}
        seconds = compare(
            {
                "this pattern": many(lambda: ours.execute(DOCUMENT, VARIABLES).data),
                f"bare {version('httpx2')} POST": many(lambda: http.post(url, json=payload, headers=ACCEPT).json()),
                f"{version('gql')}, document parsed once": many(lambda: session.execute(parsed)),
                f"{version('gql')}, parsed for each call": many(fresh),
            },
            calls=1,
            rounds=ROUNDS,
            per_call=CALLS,
        )
    return ratio_table("sync", seconds, base="this pattern", note=NOTE, unit="ms")


def asynchronous(url: str) -> Table:
    with asyncio.Runner() as runner:

        def many(call: Callable[[], Awaitable[object]]) -> Callable[[], object]:
            async def loop() -> None:
                for _ in range(CALLS):
                    await call()

            return lambda: runner.run(loop())

        async def bare() -> object:
            return (await http.post(url, json=payload, headers=ACCEPT)).json()

        async def fresh() -> object:
            request = gql.gql(DOCUMENT)
            request.variable_values = VARIABLES
            return await session.execute(request)

        http = httpx2.AsyncClient()
        ours = AsyncGraphQLClient(url, http=http)
        payload = {"query": DOCUMENT, "variables": VARIABLES}
        client = gql.Client(transport=transports.HTTPXAsyncTransport(url=url, headers=ACCEPT))
        session = runner.run(client.connect_async())
        parsed = gql.gql(DOCUMENT)
        parsed.variable_values = VARIABLES
        seconds = compare(
            {
                "this pattern": many(lambda: ours.execute(DOCUMENT, VARIABLES)),
                f"bare {version('httpx2')} POST": many(bare),
                f"{version('gql')}, document parsed once": many(lambda: session.execute(parsed)),
                f"{version('gql')}, parsed for each call": many(fresh),
            },
            calls=1,
            rounds=ROUNDS,
            per_call=CALLS,
        )
        runner.run(client.close_async())
        runner.run(http.aclose())
    return ratio_table("async", seconds, base="this pattern", note=NOTE, unit="ms")


NOTE = (
    "One small query (70 characters, one variable) and its small answer, from uvicorn on the same machine; one caller, "
    f"one kept connection. Median of {ROUNDS} interleaved rounds of {CALLS} calls."
)


def tables() -> list[Table]:
    """Return the tables of the page."""
    paths = os.pathsep.join([str(ROOT / "tests"), *sys.path])
    server = UvicornProcess(
        "bench.api_clients.graphql_client:factory", path=ROOT / "tests", env=os.environ | {"PYTHONPATH": paths}
    )
    try:
        return [asynchronous(f"{server.url}/graphql"), sync(f"{server.url}/graphql")]
    finally:
        server.stop()
