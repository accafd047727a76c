"""Proves docs/patterns/api-clients/graphql-client.md: what is sent, what is sent again, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import math
import random
import ssl
import time
from collections.abc import Callable
from typing import Any

import graphql
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphql_client_core
from graphql_client_async import AsyncGraphQLClient
from graphql_client_sync import GraphQLClient
from graphql_result import GraphQLRequestError, GraphQLTransportError
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.depth import examples
from harness.scripted import Raw, silence
from harness.tls import NOBODY
from harness.waiting import each_at_once
from patterns.api_clients import graphql_client_kit as kit
from patterns.api_clients.graphql_client_kit import (
    CHARGE,
    ECHO,
    HTML,
    JSON,
    PING,
    PLAIN,
    TOKEN,
    Core,
    Losing,
    answering,
    answering_call,
    client_of,
    failure,
    http_of,
    reply,
)

# Fixtures.
core, client = kit.core, kit.client


# --- What is sent ---------------------------------------------------------------------------------


def test_a_variable_arrives_byte_for_byte_and_a_formatted_document_is_rewritten(client: Blocking, core: Core) -> None:
    attack = '") { id } admin { secret } #'
    assert client.execute(ECHO, {"text": attack}).data == {"echo": attack}
    assert core.echoed == [attack]
    assert core.seen[0] == {"query": ECHO, "variables": {"text": attack}}

    wanted = 'x") double(number: 21) #'
    naive = httpx2.post(core.url, json={"query": f'{{ echo(text: "{wanted}")\n}}'}, verify=NOBODY)
    assert naive.json()["data"] == {"echo": "x", "double": 42}
    assert client.execute(ECHO, {"text": wanted}).data == {"echo": wanted}


@settings(max_examples=examples(30), deadline=None)
@given(st.text())
def test_any_text_travels_as_a_variable(text: str) -> None:
    endpoint = graphql_client_core.GraphQLEndpoint("http://a.test", None, False, 1, 1.0, lambda: 0.0, lambda: 0.0)
    body = graphql_client_core.GraphQLCall(endpoint, ECHO, {"text": text}, None, "raise").body()
    assert json.loads(body) == {"query": ECHO, "variables": {"text": text}}


def test_what_json_cannot_say_is_refused_before_anything_is_sent(client: Blocking, core: Core) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        client.execute(ECHO, {"text": math.nan})
    with pytest.raises(TypeError):
        client.execute(ECHO, {"text": b"bytes"})
    assert core.seen == []


def test_the_operation_the_media_types_and_the_token_are_sent(color: Color, core: Core) -> None:
    client = client_of(color, core.url, token=TOKEN)
    assert client.execute(PLAIN + ECHO, {"text": "x"}, operation_name="E").data == {"echo": "x"}
    assert client.execute(PLAIN, {"id": "1"}).data == {"user": {"id": "1"}}
    assert [set(seen) for seen in core.seen] == [{"query", "variables", "operationName"}, {"query", "variables"}]
    sent = core.headers[0]
    assert sent["accept"] == "application/graphql-response+json, application/json;q=0.9"
    assert (sent["content-type"], sent["authorization"]) == ("application/json", f"Bearer {TOKEN}")
    client_of(color, core.url).execute("{ double(number: 1) }", {}, operation_name="")
    assert core.seen[2] == {"query": "{ double(number: 1) }"}
    assert "authorization" not in core.headers[2]


def test_a_redirect_is_not_followed_even_by_a_client_that_follows(color: Color, core: Core) -> None:
    core.script(reply(b"", status=302))
    http = http_of(color, follow_redirects=True)
    error = failure(lambda: client_of(color, core.url, http=http).execute(PING), GraphQLTransportError)
    assert (error.status, len(core.seen)) == (302, 1)


def test_settings_that_cannot_be_meant_are_refused(color: Color) -> None:
    for url in ("", "api.test", "ftp://api.test", "https://user:pw@api.test/", "https://api.test/#x", "https://a b"):
        with pytest.raises(ValueError, match=r"^url must be http\(s\)://"):
            client_of(color, url)
    for token in ("", "a b", "a\n", "ä"):
        with pytest.raises(ValueError, match="the token is empty, or has a space") as caught:
            client_of(color, "https://api.test", token=token)
        assert repr(token) not in str(caught.value)
    for attempts in (0, -1, 1.5, True, math.inf):
        with pytest.raises(ValueError, match=f"^attempts must be a whole number of at least 1, got {attempts!r}$"):
            client_of(color, "https://api.test", attempts=attempts)
    for total in (0.0, -1, math.inf, math.nan, True, "1"):
        with pytest.raises(ValueError, match=f"^total must be a number of seconds over 0, got {total!r}$"):
            client_of(color, "https://api.test", total=total)
    assert client_of(color, "HTTPS://api.test", token="!~", attempts=1, total=0.001)


def test_what_is_not_said_is_three_attempts_thirty_seconds_and_the_real_clock(color: Color) -> None:
    kind: Any = AsyncGraphQLClient if color.name == "async" else GraphQLClient
    defaults = {name: each.default for name, each in inspect.signature(kind).parameters.items()}
    assert (defaults["attempts"], defaults["total"], defaults["token"], defaults["persisted"]) == (3, 30.0, None, False)
    assert (defaults["rng"], defaults["clock"]) == (random.random, time.monotonic)
    assert defaults["sleep"] is (asyncio.sleep if color.name == "async" else time.sleep)


def test_a_missing_variable_of_the_environment_is_named(color: Color, core: Core, monkeypatch: Any) -> None:
    environ = {"GRAPHQL_URL": core.url, "GRAPHQL_TOKEN": TOKEN}
    http = http_of(color)
    kind = AsyncGraphQLClient if color.name == "async" else GraphQLClient
    for name in environ:
        with pytest.raises(RuntimeError, match=f"^{name} is not set, or is empty$"):
            kind.from_env({**environ, name: ""}, http=http)
        monkeypatch.setenv(name, environ[name])
    client = Blocking(color, kind.from_env(http=http, persisted=True))
    assert client.execute("{ double(number: 1) }").data == {"double": 2}
    assert core.headers[1]["authorization"] == f"Bearer {TOKEN}"


# --- Persisted queries ----------------------------------------------------------------------------


def test_a_miss_takes_one_further_request_and_the_next_call_sends_the_hash_alone(color: Color, core: Core) -> None:
    document = ECHO + "  # Grüße"
    client = client_of(color, core.url, persisted=True, attempts=1)
    for text in ("a", "b"):
        assert client.execute(document, {"text": text}).data == {"echo": text}
    digest = hashlib.sha256(document.encode()).hexdigest()
    extensions = {"persistedQuery": {"version": 1, "sha256Hash": digest}}
    assert core.seen == [
        {"variables": {"text": "a"}, "extensions": extensions},
        {"variables": {"text": "a"}, "extensions": extensions, "query": document},
        {"variables": {"text": "b"}, "extensions": extensions},
    ]


def test_a_server_that_never_finds_the_query_gets_two_requests(color: Color, core: Core, clock: Clock) -> None:
    core.apq = "never"
    payload, naive = {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}}, 0
    while naive < 10:
        answer = httpx2.post(core.url, json=payload, verify=NOBODY).json()
        naive += 1
        if answer["errors"][0]["message"] != "PersistedQueryNotFound":
            break
    assert naive == 10
    core.server.seen.clear()
    error = failure(lambda: client_of(color, core.url, persisted=True, clock=clock).execute(PING), GraphQLRequestError)
    assert ["query" in seen for seen in core.seen] == [False, True]
    assert str(error).endswith(": 1 error, PERSISTED_QUERY_NOT_FOUND")
    assert sum(clock.pauses) == 0


@pytest.mark.parametrize("how", ["message", "code"])
@pytest.mark.parametrize(
    ("message", "code", "again"),
    [
        ("PersistedQueryNotFound", "PERSISTED_QUERY_NOT_FOUND", True),
        ("PersistedQueryNotSupported", "PERSISTED_QUERY_NOT_SUPPORTED", False),
    ],
)
def test_either_word_of_the_server_is_understood(
    color: Color, core: Core, how: str, message: str, code: str, again: bool
) -> None:
    error = {"message": message} if how == "message" else {"message": "?", "extensions": {"code": code}}
    core.script(reply({"errors": [error]}, kind=JSON))
    client = client_of(color, core.url, persisted=True)
    assert client.execute("{ double(number: 1) }").data == {"double": 2}
    assert ["extensions" in seen for seen in core.seen] == [True, again]


def test_a_server_without_persisted_queries_is_asked_for_them_once(color: Color, core: Core) -> None:
    core.apq = "unsupported"
    client = client_of(color, core.url, persisted=True)
    for text in ("a", "b"):
        assert client.execute(ECHO, {"text": text}).data == {"echo": text}
    assert [set(seen) - {"variables"} for seen in core.seen] == [{"extensions"}, {"query"}, {"query"}]


def test_another_error_than_a_miss_is_not_answered_with_the_document(color: Color, core: Core) -> None:
    core.script(reply({"errors": [{"message": "sign in", "extensions": {"code": "UNAUTHENTICATED"}}]}))
    client = client_of(color, core.url, persisted=True)
    assert failure(lambda: client.execute(PING), GraphQLRequestError).errors[0].code == "UNAUTHENTICATED"
    assert len(core.seen) == 1


def test_a_persisted_mutation_goes_by_post_and_runs_once_and_the_naive_get_twice(color: Color, core: Core) -> None:
    def naive(transport: httpx2.BaseTransport) -> None:
        extensions = {"persistedQuery": {"version": 1, "sha256Hash": hashlib.sha256(CHARGE.encode()).hexdigest()}}
        params = {"variables": json.dumps({"cents": 5}), "extensions": json.dumps(extensions)}
        with httpx2.Client(transport=transport) as http:
            for _ in range(2):  # GET is idempotent, is it not?
                try:
                    http.get(core.url, params=params)
                    break
                except httpx2.ReadTimeout:
                    continue

    client_of(color, core.url, persisted=True).execute(CHARGE, {"cents": 1})
    naive(Losing(1))
    assert (core.charges, core.methods) == ([1, 5, 5], ["POST", "POST", "GET", "GET"])
    core.charges.clear()
    losing = client_of(color, core.url, persisted=True, http=http_of(color, Losing(1)), clock=Clock())
    failure(lambda: losing.execute(CHARGE, {"cents": 5}), GraphQLTransportError)
    assert (core.charges, core.methods[4:]) == ([5], ["POST"])


# --- What is sent again ---------------------------------------------------------------------------


def test_a_query_is_repeated_after_a_read_timeout(color: Color, core: Core, clock: Clock) -> None:
    client = client_of(color, core.url, http=http_of(color, Losing(2)), clock=clock)
    assert client.execute(ECHO, {"text": "x"}).data == {"echo": "x"}
    assert (len(core.seen), clock.pauses) == (3, [0.5 * 0.2, 0.5 * 0.4])


def test_a_mutation_is_never_repeated_after_a_timeout_and_the_naive_charges_twice(
    color: Color, core: Core, clock: Clock
) -> None:
    with httpx2.Client(transport=Losing(1)) as http:  # naive: whatever timed out is sent again
        for _ in range(2):
            with contextlib.suppress(httpx2.ReadTimeout):
                http.post(core.url, json={"query": CHARGE, "variables": {"cents": 5}})
    assert core.charges == [5, 5]
    core.charges.clear()
    client = client_of(color, core.url, http=http_of(color, Losing(9)), clock=clock)
    error = failure(lambda: client.execute(CHARGE, {"cents": 5}), GraphQLTransportError)
    assert (core.charges, clock.pauses, error.retryable, error.status) == ([5], [], False, None)
    assert str(error) == f"{core.url.removesuffix('/graphql')}: ReadTimeout"
    assert isinstance(error.__cause__, httpx2.ReadTimeout)


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_query_is_repeated_when_the_server_says_later_and_a_mutation_is_not(
    color: Color, core: Core, status: int
) -> None:
    for document, requests in ((PLAIN, 2), (CHARGE, 1)):
        core.reset()
        core.script(reply(b"busy", status=status, kind=HTML))
        client = client_of(color, core.url, clock=Clock(), attempts=2)
        if document == PLAIN:
            assert client.execute(document, {"id": "1"}).data == {"user": {"id": "1"}}
        else:
            error = failure(lambda: client.execute(document, {"cents": 1}), GraphQLTransportError)  # noqa: B023
            assert (error.status, error.retryable, core.charges) == (status, False, [])
        assert len(core.seen) == requests


@pytest.mark.parametrize("status", [401, 403, 404, 500, 501])
def test_an_answer_that_will_not_change_is_not_repeated(client: Blocking, core: Core, status: int) -> None:
    core.script(reply(b"no", status=status, kind=HTML))
    error = failure(lambda: client.execute(PLAIN, {"id": "1"}), GraphQLTransportError)
    assert (error.status, error.retryable, len(core.seen)) == (status, False, 1)


@pytest.mark.parametrize("kind", [httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout])
def test_a_mutation_that_was_never_sent_is_repeated(color: Color, kind: Any, clock: Clock) -> None:
    client = answering(color, kind("no"), {"data": {"charge": 5}}, clock=clock)
    assert client.execute(CHARGE, {"cents": 5}).data == {"charge": 5}
    assert clock.pauses == [0.1]


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        (httpx2.WriteTimeout, True),
        (httpx2.ReadError, True),
        (httpx2.RemoteProtocolError, True),
        (httpx2.DecodingError, False),
        (httpx2.LocalProtocolError, False),
    ],
)
def test_a_query_is_repeated_after_a_failure_that_may_pass(color: Color, kind: Any, again: bool) -> None:
    call = answering_call(color, kind("secret"), kind("secret"), attempts=2 if again else 3)
    error = failure(call, GraphQLTransportError)
    assert (error.retryable, str(error)) == (again, f"https://api.test: {kind.__name__}")
    passing = issubclass(kind, httpx2.TimeoutException | httpx2.NetworkError)
    assert isinstance(error.__cause__, kind) is passing
    assert failure(answering_call(color, kind("x"), document=CHARGE)).retryable is False


def test_the_wait_doubles_up_to_its_cap_and_the_attempts_are_counted(color: Color, clock: Clock) -> None:
    busy = [httpx2.Response(503)] * 20
    failure(answering_call(color, *busy, clock=clock, attempts=8, total=60.0), GraphQLTransportError)
    assert clock.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5]
    many = Clock()
    client = answering(color, *busy[:3], {"data": {"a": 1}}, clock=many)
    assert failure(lambda: client.execute(PING)).status == 503  # three attempts, unless you say more
    assert len(many.pauses) == 2


def test_retry_after_is_kept_and_a_wait_beyond_the_total_is_an_error_at_once(color: Color) -> None:
    def busy(value: str) -> httpx2.Response:
        return httpx2.Response(429, headers={"Retry-After": value})

    clock = Clock()
    assert answering(color, busy("7"), {"data": {"a": 1}}, clock=clock).execute(PING).data == {"a": 1}
    assert clock.pauses == [7.1]
    for value, left in (("120", 120.0), ("30", 30.0)):
        late = Clock()
        error = failure(answering_call(color, busy(value), clock=late), GraphQLTransportError)
        assert (error.retry_after, error.retryable, late.pauses) == (left, True, [])
    for nonsense in ("-5", "1.5", "+5", "1e3", "soon", "Fri, 20 Nov 2026 10:00:00 GMT", "1" * 10):
        clock = Clock()
        client = answering(color, busy(nonsense), {"data": {"a": 1}}, clock=clock)
        assert (client.execute(PING).data, clock.pauses) == ({"a": 1}, [0.1])


def test_a_graphql_answer_that_says_later_is_repeated_too_and_its_error_tells_when(color: Color) -> None:
    def busy() -> httpx2.Response:
        headers = {"Retry-After": "40", "Content-Type": kit.GRAPHQL_JSON}
        return httpx2.Response(429, headers=headers, json={"errors": [{"message": "slowly"}]})

    clock = Clock()
    assert answering(color, busy(), {"data": {"a": 1}}, clock=clock, total=60.0).execute(PING).data == {"a": 1}
    assert clock.pauses == [40.1]
    for document, again in ((PING, True), (CHARGE, False)):
        error = failure(answering_call(color, busy(), document=document), GraphQLRequestError)
        assert (error.status, error.retryable, error.retry_after) == (429, again, 40.0)


def test_a_wait_that_ends_at_the_deadline_is_not_begun(color: Color) -> None:
    for total, sleeps in ((0.125, [0.1]), (0.1, [])):
        clock = Clock(0.0)
        answers = [httpx2.Response(503), httpx2.Response(200, json={"data": {"a": 1}})]
        client = answering(color, *answers, clock=clock, total=total)
        if sleeps:
            assert client.execute(PING).data == {"a": 1}
        else:
            failure(lambda: client.execute(PING), GraphQLTransportError)  # noqa: B023
        assert clock.pauses == sleeps


WORDS = ["mutation", "query", "{", "}", "a", "(x: 1)", "#mutation\n", '"""mutation"""', "$v: Int", "\n", ",", "\ufeff"]


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=8), st.sampled_from([" ", "", ",", "\n", "\ufeff"]))
def test_no_document_with_a_mutation_passes_for_a_query(words: list[str], gap: str) -> None:
    document = gap.join([*words, "mutation{a}"])
    try:
        parsed = graphql.parse(document)
    except graphql.GraphQLError:
        return
    kinds = [getattr(node, "operation", None) for node in parsed.definitions]
    if graphql.OperationType.MUTATION in kinds:
        assert not repeated(document)


def repeated(document: str) -> bool:
    endpoint = graphql_client_core.GraphQLEndpoint("http://a.test", None, False, 2, 9.0, lambda: 0.0, lambda: 0.0)
    call = graphql_client_core.GraphQLCall(endpoint, document, None, None, "raise")
    return call.error(httpx2.ReadTimeout("x")).retryable


def test_a_word_that_only_begins_like_mutation_makes_no_mutation() -> None:
    assert repeated("{ mutations my_mutation mutation2 }")
    assert not repeated("{ mutation }")  # a field: not repeated, which does no harm
    assert not repeated("éмmutation")


# --- Time, and many at once -----------------------------------------------------------------------


def test_a_field_that_is_slower_than_the_total_ends_at_the_total(color: Color, raw: Callable[..., Raw]) -> None:
    never = raw(silence)  # what ends the call is the total, or nothing
    client = client_of(color, never.url, http=http_of(color, timeout=None), total=0.2, attempts=9)
    begin = time.monotonic()
    error = failure(lambda: client.execute(PING), GraphQLTransportError)
    assert time.monotonic() - begin >= 0.2
    assert str(error) == f"{never.url}: no answer within the total of 0.2 s"
    assert (error.status, error.retryable, len(never.heads)) == (None, True, 1)


def test_the_timeout_of_the_client_bounds_a_phase_that_is_shorter_than_the_total(
    color: Color, raw: Callable[..., Raw]
) -> None:
    http = http_of(color, timeout=httpx2.Timeout(None, read=0.05))
    client = client_of(color, raw(silence).url, http=http, attempts=1)
    error = failure(lambda: client.execute(PING), GraphQLTransportError)
    assert str(error).endswith(": ReadTimeout")


def test_a_sync_body_that_drips_ends_at_the_total() -> None:
    clock, closed = Clock(), []

    class Drip(httpx2.SyncByteStream):
        def close(self) -> None:
            closed.append(clock.now)

        def __iter__(self) -> Any:
            yield b'{"data":'
            clock.now += 1
            yield b"{}"
            clock.now += 1
            yield b"}"

    http = httpx2.Client(transport=httpx2.MockTransport(lambda request: httpx2.Response(200, stream=Drip())))
    with http:
        assert GraphQLClient("http://a.test", http=http, total=2.5, clock=clock).execute(PING).data == {}
        client = GraphQLClient("http://a.test", http=http, total=2.0, clock=clock)
        error = failure(lambda: client.execute(PING), GraphQLTransportError)
        assert str(error) == "http://a.test: no answer within the total of 2 s"
    assert closed == [1002.0, 1004.0]  # the connection of the answer that was given up as well


def test_a_phase_that_ends_at_the_total_is_told_as_the_total_and_one_before_is_not(color: Color) -> None:
    for took, text in ((2.0, "no answer within the total of 2 s"), (1.75, "ReadTimeout")):
        clock = Clock()

        def handle(request: httpx2.Request) -> httpx2.Response:
            clock.now += took  # noqa: B023
            raise httpx2.ReadTimeout("The read operation timed out", request=request)

        http = http_of(color, httpx2.MockTransport(handle))
        client = client_of(color, "http://a.test", http=http, total=2.0, clock=clock, attempts=1)
        error = failure(lambda: client.execute(PING), GraphQLTransportError)  # noqa: B023
        assert str(error) == f"http://a.test: {text}"


def test_the_phases_of_a_sync_attempt_get_no_more_than_what_is_left(core: Core) -> None:
    seen: list[Any] = []
    clock = Clock()

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.extensions["timeout"])
        clock.now += 3
        return httpx2.Response(503)

    timeout = httpx2.Timeout(5, connect=1, pool=None)
    with httpx2.Client(transport=httpx2.MockTransport(handle), timeout=timeout) as http:
        client = GraphQLClient("http://a.test", http=http, total=6.5, clock=clock, sleep=clock.sleep, rng=lambda: 0.0)
        failure(lambda: client.execute(PING), GraphQLTransportError)
    assert seen == [
        {"connect": 1, "read": 5, "write": 5, "pool": 6.5},
        {"connect": 1, "read": 3.5, "write": 3.5, "pool": 3.5},
        {"connect": 0.5, "read": 0.5, "write": 0.5, "pool": 0.5},
    ]


def test_an_async_attempt_is_cancelled_after_what_is_left_of_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float | None] = []
    clock, timeout = Clock(), asyncio.timeout

    def spied(seconds: float | None) -> Any:
        given.append(seconds)
        return timeout(seconds)

    async def handle(request: httpx2.Request) -> httpx2.Response:
        clock.advance(3)
        return httpx2.Response(503)

    async def calling() -> None:
        monkeypatch.setattr(asyncio, "timeout", spied)
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handle)) as http:
            options: Any = {"clock": clock, "sleep": clock.asleep, "rng": lambda: 0.0}
            await AsyncGraphQLClient("http://a.test", http=http, total=6.5, **options).execute(PING)

    with pytest.raises(GraphQLTransportError):
        asyncio.run(calling())
    assert given == [6.5, 3.5, 0.5]


async def test_twenty_concurrent_calls_share_one_pool_and_each_gets_its_own_result(core: Core) -> None:
    limits = httpx2.Limits(max_connections=4)
    async with httpx2.AsyncClient(limits=limits, timeout=None, verify=NOBODY) as http:
        api = AsyncGraphQLClient(core.url, http=http, persisted=True)
        results = await asyncio.gather(*(api.execute(ECHO, {"text": str(n)}) for n in range(20)))
    assert [result.data for result in results] == [{"echo": str(n)} for n in range(20)]
    assert len(core.connections) <= 4


def test_twenty_threads_share_one_pool_and_each_gets_its_own_result(core: Core) -> None:
    limits = httpx2.Limits(max_connections=4)
    with httpx2.Client(limits=limits, timeout=None, verify=NOBODY) as http:
        api = GraphQLClient(core.url, http=http, persisted=True)
        results = each_at_once(lambda n: api.execute(ECHO, {"text": str(n)}), range(20))
    assert [result.data for result in results] == [{"echo": str(n)} for n in range(20)]
    assert len(core.connections) <= 4


def test_a_client_per_call_pays_a_connection_and_a_tls_context_each_time(core: Core, monkeypatch: Any) -> None:
    made: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(kwargs)
        return NOBODY

    monkeypatch.setattr(ssl, "create_default_context", counted)

    def naive() -> None:
        with httpx2.Client() as http:
            GraphQLClient(core.url, http=http).execute("{ double(number: 1) }")

    for _ in range(3):
        naive()
    assert (len(core.connections), len(made)) == (3, 3)
    core.connections.clear()
    with httpx2.Client() as http:
        for _ in range(3):
            GraphQLClient(core.url, http=http).execute("{ double(number: 1) }")
    assert (len(core.connections), len(made)) == (1, 4)
