"""A GraphQL client: typed errors, partial data, persisted queries, a hard deadline (async).

Needs httpx2, and `graphql_client_core.py` and `graphql_result.py` beside it.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx2

from graphql_client_core import (
    ConnectionPages,
    GraphQLCall,
    GraphQLEndpoint,
    HttpReply,
    Outcome,
    settings_from_env,
)
from graphql_result import GraphQLResult, Partial


class AsyncGraphQLClient:
    """Calls one GraphQL endpoint by POST. Redirects are not followed. Times are in seconds.

    Args:
        url: The endpoint.
        http: Sends; make one at the start, share it, close it at the end. Its timeout is for each
            phase of an attempt.
        token: Sent as a bearer token, to this endpoint alone.
        persisted: Send the hash of a document instead of the document (automatic persisted
            queries). Only for a server that speaks it.
        attempts: How often a query is sent at most, misses of persisted queries not counted.
        total: For a whole call, with all its attempts and waits.
        rng: Returns a number from 0 to below 1.
        clock: Returns seconds that never go back.
        sleep: Sleeps between attempts.

    Raises:
        ValueError: A setting that cannot be meant.

    """

    def __init__(
        self,
        url: str,
        *,
        http: httpx2.AsyncClient,
        token: str | None = None,
        persisted: bool = False,
        attempts: int = 3,
        total: float = 30.0,
        rng: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._endpoint = GraphQLEndpoint(url, token, persisted, attempts, total, rng, clock)
        self._http = http
        self._sleep = sleep

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] = os.environ, *, http: httpx2.AsyncClient, **options: Any
    ) -> AsyncGraphQLClient:
        """Read GRAPHQL_URL and GRAPHQL_TOKEN; `RuntimeError` names a missing one."""
        return cls(http=http, **settings_from_env(environ) | options)

    async def execute(
        self,
        document: str,
        variables: Mapping[str, Any] | None = None,
        *,
        operation_name: str | None = None,
        partial: Partial = "raise",
    ) -> GraphQLResult:
        """Send a document and return its data.

        A query is repeated after a failure that may pass. A mutation is repeated only if it was
        never sent.

        Args:
            document: A constant of your program. What varies goes into variables.
            variables: Values that JSON can express.
            operation_name: Which operation of the document to run, if it has several.
            partial: "return" data that has errors beside it, or "raise" it.

        Raises:
            GraphQLRequestError: Nothing was executed.
            GraphQLPartialError: Executed, with errors; what there is of data is in `.data`.
            GraphQLTransportError: There is no GraphQL answer.
            ValueError: A variable is NaN or infinite. (`TypeError`: it is nothing JSON has.)

        """
        call = GraphQLCall(self._endpoint, document, variables, operation_name, partial)
        while True:
            step = call.settle(await self._send_once(call))
            if isinstance(step, GraphQLResult):
                return step
            await self._sleep(step)

    async def paginate(
        self,
        document: str,
        variables: Mapping[str, Any] | None = None,
        *,
        connection: Sequence[str],
        cursor: str = "after",
        operation_name: str | None = None,
    ) -> AsyncIterator[Any]:
        """Yield the nodes of all pages; a page is requested when the one before is used up.

        Args:
            document: Asks for `nodes` or `edges { node }` and `pageInfo { hasNextPage endCursor }`.
            variables: Of the first page.
            connection: Where in data the connection is, as ("repository", "issues").
            cursor: The variable that takes the cursor.
            operation_name: As in `execute`.

        Raises:
            GraphQLPaginationLoop: The next page would be one that was read.
            GraphQLClientError: What `execute` raises; `total` bounds each page.

        """
        pages = ConnectionPages(variables, connection, cursor)
        while pages.more:
            result = await self.execute(document, pages.variables, operation_name=operation_name)
            for node in pages.nodes(result):
                yield node

    async def _send_once(self, call: GraphQLCall) -> Outcome:
        endpoint = self._endpoint
        request = self._http.build_request(
            "POST", endpoint.url, content=call.body(), headers=endpoint.headers
        )
        try:
            return await _read_answer(self._http, request, call)
        except (httpx2.RequestError, TimeoutError) as error:
            return error


async def _read_answer(
    http: httpx2.AsyncClient, request: httpx2.Request, call: GraphQLCall
) -> HttpReply:
    """Send and read to the end; whatever is going on at the deadline is cancelled."""
    async with asyncio.timeout(call.left()):
        response = await http.send(request, follow_redirects=False)
    return HttpReply(response.status_code, response.headers, response.content)
