"""Proves docs/patterns/resilience/distributed-errors.md: a failure keeps its cause, and one layer retries it."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from distributed_errors import (
    HOPS,
    KNOWN,
    SIZE,
    ErrorEnvelope,
    RemoteError,
    from_wire,
    service_name_from_env,
    to_wire,
    unanswered,
)
from error_recovery import Failure
from harness.depth import examples
from integration_errors import IntegrationError, ServiceUnavailable, to_problem
from retry_backoff import RetryPolicy, retry
from retry_scope import RetryScope, current_scope, message_headers, outgoing_headers, redelivery, should_retry
from servers.http import Uvicorn

SNIPPETS = str(Path(__file__).parents[3] / "snippets" / "resilience")
HTML = b"<html><body><h1>503 Service Unavailable</h1>nginx at db-1.internal</body></html>"
http = httpx2.Client(trust_env=False, timeout=30)
Answer = tuple[int, Mapping[str, str], bytes]


# --- four services in a chain, a over b over c over d, each a real server


class Service:
    """A server whose behavior each test sets."""

    def __init__(self, name: str, below: Service | None) -> None:
        self.name = name
        self.below_service = below
        self.server = Uvicorn(self.app, interface="asgi3")
        self.reset()

    def reset(self) -> None:
        self.below = self.below_service.server.url if self.below_service else ""
        self.below_name = self.below_service.name if self.below_service else ""
        self.calls: list[dict[str, str]] = []
        self.clock: Callable[[], float] = time.monotonic
        self.attempts = 3
        self.own_failures = 0
        self.answer: Callable[[dict[str, str]], Answer] = self.layer

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = dict(Request(scope).headers)
        self.calls.append(headers)
        status, sent, body = await run_in_threadpool(self.answer, headers)
        await Response(body, status, dict(sent))(scope, receive, send)

    def layer(self, headers: dict[str, str]) -> Answer:
        """Serve as the page says."""
        try:
            scope = RetryScope.from_headers(
                headers,
                service=self.name,
                seconds=30,
                trusted=self.name != "a",
                attempts=self.attempts,
                minimum=0.05,
                clock=self.clock,
            )
            scope.check()
            if self.own_failures:
                self.own_failures -= 1
                raise ServiceUnavailable("own pool is empty")
            policy = RetryPolicy(attempts=99, base=0, retry_on=lambda error: should_retry(error, scope))
            return 200, {}, retry(policy, self.call, scope)
        except Exception as error:
            return to_wire(error, service=self.name)

    def transparent(self, headers: dict[str, str]) -> Answer:
        """Serve without a retry of its own."""
        scope = RetryScope.from_headers(headers, service=self.name, seconds=30, trusted=True)
        try:
            return 200, {}, self.call(scope)
        except Exception as error:
            return to_wire(error, service=self.name)

    def naive(self, headers: dict[str, str]) -> Answer:
        """Retry whatever failed, knowing nothing of the others."""
        for _ in range(self.attempts):
            response = http.get(self.below)
            if response.is_success:
                return 200, {}, response.content
        return 503, {}, b"failed after 3 retries"

    def call(self, scope: RetryScope) -> bytes:
        headers = outgoing_headers(scope)
        try:
            response = http.get(self.below, headers=headers, timeout=scope.remaining())
        except httpx2.TransportError as error:
            raise unanswered(error, service=self.below_name) from error
        if response.is_error:
            raise from_wire(response.status_code, response.headers, response.content, service=self.below_name)
        return response.content


def down(headers: dict[str, str]) -> Answer:
    return 503, {"content-type": "text/html"}, HTML


Chain = tuple[Service, Service, Service, Service]


@pytest.fixture(scope="module")
def services() -> Iterator[Chain]:
    d = Service("d", None)
    c = Service("c", d)
    b = Service("b", c)
    a = Service("a", b)
    yield a, b, c, d
    http.close()
    for service in (a, b, c, d):
        service.server.stop()


@pytest.fixture
def chain(services: Chain) -> Chain:
    for service in services:
        service.reset()
    services[3].answer = down
    return services


def ask(service: Service, headers: Mapping[str, str] | None = None) -> httpx2.Response:
    return http.get(service.server.url, headers=headers)


def test_layers_that_each_try_three_times_call_the_bottom_27_times_and_here_3(chain: Chain) -> None:
    a, b, c, d = chain
    for service in (a, b, c):
        service.answer = service.naive
    counts = []
    for service in (c, b, a):
        d.calls.clear()
        ask(service)
        counts.append(len(d.calls))
    assert counts == [3, 9, 27]
    for service in (a, b, c):
        service.answer = service.layer
        service.calls.clear()
    d.calls.clear()
    ask(a)
    assert [len(service.calls) for service in chain] == [1, 1, 1, 3]


def test_the_edge_answers_once_with_the_cause_the_attempts_and_the_way_it_came(chain: Chain) -> None:
    a, *_ = chain
    answer = ask(a)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "title": "Service Unavailable",
        "status": 503,
        "code": "service_unavailable",
        "service": "d",
        "retryable": True,
        "exhausted": True,
        "attempts": 3,
        "hops": ["d", "c", "b"],
        "trace_id": None,
        "details": {},
    }


def test_a_fresh_error_of_the_direct_neighbor_is_retried(chain: Chain) -> None:
    a, b, _c, d = chain
    d.answer = lambda headers: (200, {}, b"tea")
    b.own_failures = 2
    assert ask(a).text == "tea"
    assert [len(service.calls) for service in chain] == [1, 3, 1, 1]


def test_a_layer_without_retries_leaves_them_to_the_one_above(chain: Chain) -> None:
    a, _b, c, _d = chain
    c.answer = c.transparent
    answer = ask(a).json()
    assert [len(service.calls) for service in chain] == [1, 1, 3, 3]
    assert (answer["attempts"], answer["hops"]) == (3, ["d", "c", "b"])


def test_the_number_of_the_try_the_depth_and_the_time_left_travel_with_each_call(chain: Chain) -> None:
    a, b, c, d = chain
    ask(a, {"x-timeout-ms": "9000"})
    assert [call["x-attempt"] for call in b.calls + c.calls + d.calls] == ["1", "1", "1", "2", "3"]
    assert [call["x-call-depth"] for call in b.calls + c.calls + d.calls] == ["1", "2", "3", "3", "3"]
    left = [int(call["x-timeout-ms"]) for call in b.calls + c.calls + d.calls]
    assert left == sorted(left, reverse=True)
    assert 0 < left[-1] <= left[0] <= 9000


def test_a_callee_with_too_little_time_answers_504_and_calls_nobody(chain: Chain) -> None:
    _a, b, c, d = chain
    for left in ("0", "50"):
        answer = ask(b, {"X-Timeout-Ms": left})
        assert (answer.status_code, answer.json()["code"]) == (504, "upstream_timeout")
        assert (answer.json()["service"], answer.json()["retryable"]) == ("b", False)
    assert c.calls == d.calls == []


@pytest.mark.parametrize("forged", ["-1", "0", "999999", "many", "1e9", "٣"])
def test_a_client_cannot_forge_the_number_of_tries(chain: Chain, forged: str) -> None:
    a, _b, _c, d = chain
    forgery = {"X-Attempt": forged, "X-Call-Depth": forged}
    http.get(a.server.url, headers={name.encode(): value.encode() for name, value in forgery.items()})
    assert len(d.calls) == 3

    def naive(headers: Mapping[str, str]) -> int:
        return len(range(int(headers["X-Attempt"]), 4))  # tries 1, 2 and 3

    if forged == "999999":
        assert naive(forgery) == 0  # switched off
    if forged == "-1":
        assert naive(forgery) == 5  # or on


def test_a_loop_of_services_ends_at_the_tenth_hop_and_is_not_retried(chain: Chain) -> None:
    a, b, *_ = chain
    b.below, b.below_name = a.server.url, "a"
    a.answer = a.transparent
    answer = ask(b).json()
    assert (answer["status"], answer["code"]) == (508, "loop_detected")
    assert answer["hops"] == ["b", "a"] * 5
    assert len(a.calls) + len(b.calls) == HOPS + 1


def test_the_clocks_of_two_hosts_may_differ_by_two_seconds(chain: Chain) -> None:
    a, _b, c, d = chain
    d.answer = lambda headers: (200, {}, b"tea")
    a.clock, c.clock = lambda: time.monotonic() - 2, lambda: time.monotonic() + 2
    assert ask(a, {"X-Timeout-Ms": "3900"}).text == "tea"
    assert 0 < int(d.calls[0]["x-timeout-ms"]) <= 3900
    deadline = a.clock() + 3.9  # naive: the instant travels
    assert deadline < c.clock()  # and has passed before c begins


def test_a_service_killed_in_the_middle_of_its_answer_is_an_error_of_the_neighbor(chain: Chain) -> None:
    a, _, c, _ = chain
    script = """
        import os, signal, socket
        server = socket.create_server(("127.0.0.1", 0))
        print(server.getsockname()[1], flush=True)
        peer, _ = server.accept()
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 999\\r\\n\\r\\nhalf an ans")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    argv = [sys.executable, "-S", "-c", textwrap.dedent(script)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            c.below = f"http://127.0.0.1:{int(process.stdout.readline())}"
            answer = ask(a)
            assert process.wait(5) == -signal.SIGKILL
        finally:
            process.kill()
    assert (answer.status_code, len(c.calls)) == (503, 1)
    said = answer.json()
    assert (said["code"], said["service"], said["attempts"]) == ("unreachable", "d", 3)
    assert said["hops"] == ["d", "c", "b"]


# --- a queue: each delivery is handled by an interpreter of its own

WORKER = """
    import json, sys, urllib.error, urllib.request
    sys.path.insert(0, sys.argv[1])
    from distributed_errors import from_wire
    from retry_scope import RetryScope, outgoing_headers, redelivery

    message = json.load(sys.stdin)
    scope = RetryScope.from_headers(message["headers"], service="worker", seconds=30, trusted=True)
    naive_retry_count = 0
    try:
        request = urllib.request.Request(sys.argv[2], headers=outgoing_headers(scope))
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30)
    except urllib.error.HTTPError as answer:
        naive_retry_count += 1
        error = from_wire(answer.code, answer.headers, answer.read(), service="c")
        again, headers = redelivery(error, scope, message["headers"])
        message["headers"] |= headers
        print(json.dumps([again, message, naive_retry_count]))
"""


def test_a_redelivered_message_goes_on_counting_in_another_process_until_it_is_dead(chain: Chain) -> None:
    _a, _b, c, d = chain
    c.answer = c.transparent
    message: dict[str, Any] = {"headers": {"tenant": "acme"}, "body": "order 7"}
    seen = []
    for _ in range(3):
        argv = [sys.executable, "-S", "-c", textwrap.dedent(WORKER), SNIPPETS, c.server.url]
        done = subprocess.run(argv, input=json.dumps(message), capture_output=True, text=True, check=True)
        again, message, naive = json.loads(done.stdout)
        seen.append((again, message["headers"]["X-Attempt"], naive))
    # A count in memory would say 1 forever.
    assert seen == [(True, "2", 1), (True, "3", 1), (False, "3", 1)]
    assert [call["x-attempt"] for call in d.calls] == ["1", "2", "3"]
    headers = message["headers"]
    error = json.loads(headers["X-Error"])
    assert (error["code"], error["service"], error["hops"]) == ("service_unavailable", "d", ["d", "c"])
    assert (error["attempts"], error["exhausted"]) == (3, True)
    assert headers["X-Failures"] == "d/service_unavailable," * 2 + "d/service_unavailable"
    assert (headers["tenant"], headers["X-Call-Depth"]) == ("acme", "0")


def test_an_exhausted_error_sends_a_message_to_the_dead_letters_at_once(chain: Chain) -> None:
    _, b, _, _ = chain
    answer = ask(b)
    error = from_wire(answer.status_code, answer.headers, answer.content, service="b")
    again, headers = redelivery(error, scope(), {}, trace_id="t-1")
    assert not again
    assert json.loads(headers["X-Error"])["hops"] == ["d", "c", "b"]
    assert json.loads(headers["X-Error"])["trace_id"] == "t-1"


def test_the_failures_of_a_message_are_the_last_ten() -> None:
    headers: dict[str, str] = {"X-Failures": ",".join(f"x/{n}" for n in range(10))}
    error = ServiceUnavailable("down", context={"field": "qty", "dsn": "x"})
    again, made = redelivery(error, scope(depth=4), headers, allow={"field"})
    assert again
    assert made["X-Failures"] == "x/1,x/2,x/3,x/4,x/5,x/6,x/7,x/8,x/9,me/service_unavailable"
    assert json.loads(made["X-Error"])["details"] == {"field": "qty"}
    assert (made["X-Attempt"], made["X-Call-Depth"]) == ("2", "4")
    assert len(made) == 4


# --- the scope


def scope(**changes: Any) -> RetryScope:
    now = changes.pop("now", [100.0])
    default: dict[str, Any] = {"service": "me", "deadline": 110.0, "clock": lambda: now[0]}
    return RetryScope(**(default | changes))


def fresh(**changes: Any) -> RemoteError:
    retry_after = changes.pop("retry_after", None)
    return RemoteError(ErrorEnvelope("unreachable", "db", 503, **({"retryable": True} | changes)), retry_after)


def incoming(headers: Mapping[str, str], **changes: Any) -> RetryScope:
    default: dict[str, Any] = {"service": "me", "seconds": 5.0, "trusted": True, "clock": lambda: 100.0}
    return RetryScope.from_headers(headers, **(default | changes))


@pytest.mark.parametrize(("attempt", "taken"), [("1", 1), ("2", 2), ("3", 3), ("4", 3), ("999999", 3), ("0", 1)])
def test_an_attempt_beyond_ours_is_our_last(attempt: str, taken: int) -> None:
    assert incoming({"x-ATTEMPT": attempt}).attempt == taken
    assert incoming({"X-Attempt": attempt}, trusted=False).attempt == 1


@pytest.mark.parametrize("bad", ["-1", "many", "", "1.5", " 1", "1" * 16, "1\n", "٣", "NaN"])
def test_what_cannot_be_read_counts_as_not_sent(bad: str) -> None:
    made = incoming({"X-Attempt": bad, "X-Call-Depth": bad, "X-Timeout-Ms": bad})
    assert (made.attempt, made.depth, made.remaining()) == (1, 0, 5.0)


@pytest.mark.parametrize(("sent", "left"), [("0", 0.0), ("1", 0.001), ("4999", 4.999), ("5001", 5.0), ("9" * 15, 5.0)])
def test_the_time_sent_can_shorten_ours_and_never_lengthen_it(sent: str, left: float) -> None:
    for trusted in (True, False):
        assert incoming({"X-Timeout-Ms": sent}, trusted=trusted).remaining() == pytest.approx(left)


def test_a_request_from_outside_begins_at_the_first_try_and_at_no_depth() -> None:
    made = incoming({"X-Call-Depth": "9", "X-Attempt": "3"}, attempts=4, minimum=0.25, trusted=False)
    assert (made.attempt, made.depth, made.attempts, made.minimum, made.service) == (1, 0, 4, 0.25, "me")
    assert incoming({"X-Call-Depth": "9"}).depth == 9
    default = RetryScope.from_headers({"X-Attempt": "2"}, service="me", seconds=5)
    assert (default.attempt, default.attempts, default.minimum) == (1, 3, 0.0)
    assert 0 < default.remaining() <= 5


def test_nothing_is_begun_without_time_or_beyond_the_tenth_service() -> None:
    now = [100.0]
    made = scope(minimum=1.0, now=now)
    made.check()
    now[0] = 108.75
    assert outgoing_headers(made) == {"X-Attempt": "1", "X-Call-Depth": "1", "X-Timeout-Ms": "1250"}
    now[0] = 109.0
    with pytest.raises(RemoteError, match="504 upstream_timeout") as failure:
        outgoing_headers(made)
    assert (failure.value.service, failure.value.retryable) == ("me", False)
    now[0] = 111.0
    assert made.remaining() == 0
    with pytest.raises(RemoteError, match="504"):
        scope(now=[110.0]).check()
    scope(depth=9).check()
    with pytest.raises(RemoteError, match="508 loop_detected"):
        scope(depth=10).check()


def test_a_new_message_carries_no_time_because_it_may_wait() -> None:
    assert message_headers(scope(attempt=2, depth=3)) == {"X-Attempt": "2", "X-Call-Depth": "4"}


def test_a_scope_is_current_within_its_block() -> None:
    outer, inner = scope(), scope()
    assert current_scope() is None
    with outer.bind() as bound:
        assert bound is outer is current_scope()
        with contextlib.suppress(ValueError), inner.bind():
            assert current_scope() is inner
            raise ValueError
        assert current_scope() is outer
    assert current_scope() is None


# --- whether to try again


def test_it_is_tried_again_until_the_attempts_are_used_up() -> None:
    made, errors = scope(), [fresh(), fresh(), fresh()]
    assert [should_retry(error, made) for error in errors] == [True, True, False]
    assert made.attempt == 3
    assert [(error.exhausted, error.attempts) for error in errors] == [(True, 1), (True, 2), (True, 3)]
    assert str(errors[2]) == "503 unreachable after 3 attempt(s), from db"


def test_an_exhausted_error_is_never_retried_and_keeps_its_count() -> None:
    made, error = scope(), fresh(exhausted=True, attempts=3)
    assert not should_retry(error, made)
    assert (made.attempt, error.attempts) == (1, 3)
    once = fresh()
    assert should_retry(once, made)
    assert not should_retry(once, made)


class _SlottedError(Exception):
    __slots__ = ("attempts", "exhausted", "retryable")

    def __init__(self) -> None:
        self.retryable = True
        self.exhausted = False
        self.attempts = 1


class _SealedError(Exception):
    retryable = True
    attempts = 1

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot assign to field {name!r}")


@pytest.mark.parametrize("kind", [_SlottedError, _SealedError])
def test_an_error_is_marked_whether_its_class_has_slots_or_is_sealed(kind: type[Any]) -> None:
    made, error = scope(), kind()
    assert should_retry(error, made)
    assert (error.exhausted, error.attempts) == (True, 1)
    assert not should_retry(error, made)
    assert made.attempt == 2


def test_what_is_not_retryable_or_is_a_bug_is_not_retried_nor_marked() -> None:
    for error in (fresh(retryable=False), ValueError("a bug"), IntegrationError("no")):
        made = scope()
        assert not should_retry(error, made)
        assert (made.attempt, getattr(error, "exhausted", False)) == (1, False)


@pytest.mark.parametrize(
    ("retry_after", "minimum", "again"),
    [
        (None, 9.9, True),
        (None, 10.0, False),
        (9.0, 0.5, True),
        (9.0, 1.0, False),
        (10.0, 0.0, False),
        (1e9, 0.0, False),
    ],
)
def test_a_wait_that_leaves_too_little_time_is_not_begun(retry_after: float, minimum: float, again: bool) -> None:
    error = fresh(retry_after=retry_after)
    assert should_retry(error, scope(minimum=minimum)) is again
    assert error.exhausted


def test_a_retry_that_gives_up_for_a_reason_of_its_own_still_ends_it_for_all_above() -> None:
    made = scope()
    policy = RetryPolicy(attempts=2, base=0, retry_on=lambda error: should_retry(error, made))

    def fail() -> None:
        raise fresh()

    with pytest.raises(RemoteError) as failure:
        retry(policy, fail)
    status, headers, body = to_wire(failure.value, service="me")
    assert not should_retry(from_wire(status, headers, body, service="me"), scope())
    assert json.loads(body)["attempts"] == 2


def test_the_worst_mix_of_fresh_errors_over_three_layers_makes_10_calls_not_27() -> None:
    calls = 0

    def serve(depth: int, headers: Mapping[str, str], naive: bool) -> None:
        """Call on, and fail for a new reason of its own, which nobody has retried."""
        nonlocal calls
        if depth == 3:
            calls += 1
        else:
            here = incoming({} if naive else headers)
            while True:
                error = fresh()
                try:
                    serve(depth + 1, outgoing_headers(here), naive)
                except RemoteError as answered:
                    error = answered
                if not should_retry(error, here):
                    break
        raise fresh()

    for naive, expected in ((True, 27), (False, 10)):
        calls = 0
        with pytest.raises(RemoteError):
            serve(0, {}, naive)
        assert calls == expected


def test_fixed_delays_of_all_layers_outlast_the_client_and_here_nothing_is_begun() -> None:
    def run(*, naive: bool) -> list[float]:
        """Three layers, each with waits of 0.5 and 1 s; a client who waits 2 s. Return when the bottom was called."""
        now, called = [0.0], []

        def serve(depth: int, headers: Mapping[str, str]) -> None:
            if depth == 3:
                called.append(now[0])
                raise fresh()
            here = incoming(headers, seconds=60 if naive else 2, clock=lambda: now[0])
            for wait in (0.5, 1.0, 0.0):
                try:
                    return serve(depth + 1, outgoing_headers(here))
                except RemoteError as error:
                    # naive: everybody retries; here: even if nobody above knew that it was tried
                    again = bool(wait) if naive else should_retry(fresh(retry_after=wait), here)
                    if not again:
                        raise error from None
                    now[0] += wait
            return None

        with pytest.raises(RemoteError):
            serve(0, {"X-Timeout-Ms": "60000"})
        return called

    assert run(naive=True)[-1] == 9 * 1.5 + 3 * 1.5 + 1.5  # for a client who left after 2 s
    assert run(naive=False) == [0.0, 0.5, 1.5]


# --- the envelope


def over(error: BaseException, via: str = "c", **options: Any) -> RemoteError:
    """Answer with an error and read it, as one hop does."""
    known = options.pop("known", ())
    return from_wire(*to_wire(error, service=via, **options), service=via, known=known)


def test_a_failure_keeps_its_type_status_code_and_cause_where_a_wrapper_loses_them() -> None:
    first = from_wire(429, {"Retry-After": "7"}, b"slow down", service="d")
    third = over(over(first, "c"), "b")
    assert (third.status, third.code, third.retryable, third.retry_after) == (429, "rate_limited", True, 7.0)
    assert (third.service, third.envelope.hops) == ("d", ("d", "c", "b"))
    assert isinstance(third, Failure)  # what error-recovery asks for
    wrapped = Exception("failed after 3 retries")  # naive
    assert not isinstance(wrapped, Failure)
    assert (over(wrapped).status, over(wrapped).service) == (500, "c")


def test_an_error_of_the_sibling_pattern_is_understood_by_its_attributes() -> None:
    made = over(ServiceUnavailable("db-1.internal is down", retry_after=1.2))
    assert (made.status, made.code, made.service, made.retryable) == (503, "service_unavailable", "c", True)
    assert (made.retry_after, made.exhausted, made.attempts, made.envelope.hops) == (2.0, False, 1, ("c",))
    assert over(IntegrationError("no", status=None)).status == 502
    assert over(IntegrationError("no", status=302)).status == 502
    assert over(IntegrationError("no", status=400)).status == 400
    assert over(IntegrationError("no", status=599)).status == 599
    assert over(IntegrationError("no", status=600)).status == 502
    assert over(IntegrationError("no", code="two words")).code == "internal"
    problem = to_problem(fresh())  # type: ignore[arg-type]
    assert (problem["status"], problem["code"]) == (503, "unreachable")


def test_a_neighbors_word_about_our_credentials_is_no_word_about_those_of_our_caller() -> None:
    for status in (401, 403):
        at_c = from_wire(status, {}, b"", service="d")
        assert at_c.status == status
        at_b = over(at_c)
        assert (at_b.status, at_b.code, at_b.retryable) == (502, at_c.code, False)
        assert over(IntegrationError("log in first", status=status)).status == status


def test_no_message_trace_host_or_secret_leaves_the_service() -> None:
    secret = "postgresql://app:hunter2@db-1.internal/orders"
    try:
        try:
            raise OSError(f"cannot connect to {secret}")
        except OSError as cause:
            raise ServiceUnavailable(
                secret, service="db-1.internal", context={"dsn": secret, "host": "db-1"}
            ) from cause
    except ServiceUnavailable as error:
        error.add_note(secret)
        answers = [to_wire(error, service="c"), to_wire(error, service="c", allow={"table"})]
        answers.append(to_wire(ValueError(secret), service="c"))
        answers.append(to_wire(unanswered(error, service="d"), service="c"))
    for status, headers, body in answers:
        for word in (b"hunter2", b"db-1", b"postgresql", b"Traceback", b"OSError", b".py"):
            assert word not in body
        assert set(headers) == {"content-type"}
        assert status in (500, 503)
    assert json.loads(answers[2][2])["code"] == "internal"
    assert json.loads(answers[2][2])["retryable"] is False


def test_details_are_sent_by_an_allow_list_and_only_plain_values() -> None:
    context = {"field": "qty", "limit": 7, "none": None, "rate": 0.5, "yes": True, "long": "x" * 300}
    error = ServiceUnavailable("x", context=context | {"nan": float("nan"), "list": [1], "dsn": "secret"})
    allow = {*context, "nan", "list", "missing"}
    assert over(error, allow=allow).envelope.details == context | {"long": "x" * 200}
    assert over(error).envelope.details == {}
    assert over(over(error, allow=allow), allow={"limit"}).envelope.details == {"limit": 7}
    error.context = "no mapping"  # type: ignore[assignment]
    assert over(error, allow=allow).envelope.details == {}


def test_an_unknown_field_survives_one_hop_and_no_more() -> None:
    body = {**json.loads(to_wire(fresh(), service="d")[2]), "region": "eu", "detail": "at db-1", "stack": ["x"]}
    at_c = from_wire(503, {}, json.dumps(body).encode(), service="d")
    at_b = over(at_c, "c")
    assert at_c.envelope.unknown == at_b.envelope.unknown == {"region": "eu"}
    assert over(at_b, "b").envelope.unknown == {}


def test_an_unknown_code_is_read_as_unknown_and_passed_on_as_it_was() -> None:
    declined = IntegrationError("x", code="card_declined")
    at_b = over(declined)
    assert (at_b.code, at_b.envelope.original) == ("unknown", "card_declined")
    at_a = over(at_b, "b", known={"card_declined"})
    assert (at_a.code, at_a.envelope.original) == ("card_declined", None)
    assert all(over(IntegrationError("x", code=code)).code == code for code in KNOWN)


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, "validation_failed", False),
        (401, "authentication_failed", False),
        (403, "permission_denied", False),
        (404, "not_found", False),
        (408, "request_rejected", True),
        (409, "conflict", False),
        (418, "request_rejected", False),
        (422, "validation_failed", False),
        (425, "request_rejected", True),
        (429, "rate_limited", True),
        (499, "request_rejected", False),
        (500, "upstream_failed", False),
        (502, "upstream_failed", True),
        (503, "service_unavailable", True),
        (504, "upstream_timeout", True),
        (599, "upstream_failed", False),
    ],
)
def test_an_answer_that_is_no_envelope_is_judged_by_its_status(status: int, code: str, retryable: bool) -> None:
    made = from_wire(status, {}, HTML, service="d")
    assert (made.status, made.code, made.retryable) == (status, code, retryable)
    assert (made.service, made.envelope.hops, made.exhausted, made.attempts) == ("d", ("d",), False, 1)
    assert made.envelope.original is None


SOUND: dict[str, Any] = {"code": "internal", "service": "x", "retryable": False, "exhausted": True}


@pytest.mark.parametrize(
    "body",
    [b"", HTML, b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b"[" * 4000, b'{"a":' * 800, b'{"error": {"code": 7}}']
    + [json.dumps(SOUND | wrong).encode() for wrong in (
        {"code": 7}, {"code": ""}, {"code": "a b"}, {"code": "x" * 129}, {"service": "a.b"}, {"service": None},
        {"retryable": "yes"}, {"exhausted": 1}, {"big": "x" * SIZE},
    )],
)  # fmt: skip
def test_what_is_no_sound_envelope_becomes_one_of_the_neighbor(body: bytes) -> None:
    made = from_wire(503, {}, body, service="d")
    assert (made.code, made.service, made.retryable, made.exhausted) == ("service_unavailable", "d", True, False)


@pytest.mark.parametrize("status", [0, 200, 302, 399, 600, -1, 10**9])
def test_an_answer_that_is_no_error_is_a_bad_response(status: int) -> None:
    made = from_wire(status, {}, HTML, service="d")
    assert (made.status, made.code, made.retryable) == (502, "bad_response", False)


def test_a_megabyte_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = json.dumps(SOUND | {"pad": ""})
    body = json.dumps(SOUND | {"pad": "x" * (SIZE - len(exact))}).encode()
    assert len(body) == SIZE
    assert from_wire(503, {}, body, service="d").service == "x"
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("parsed"))
    big = json.dumps(SOUND | {"pad": "x" * 1_000_000}).encode()
    assert from_wire(503, {}, big, service="d").service == "d"


def test_an_envelope_is_at_most_four_kibibytes_and_ten_hops_long() -> None:
    assert (SIZE, HOPS) == (4096, 10)
    context = {f"field_{n}": "ü" * 200 for n in range(50)}
    error: BaseException = ServiceUnavailable("x", code="c" * 128, context=context)
    _, _, body = to_wire(error, service="s" * 64, trace_id="t" * 128, allow=context)
    assert len(body) <= SIZE
    assert json.loads(body)["code"] == "c" * 128
    assert "details" not in json.loads(body)
    names = [f"service-{n}" + "x" * 50 for n in range(15)]
    for name in names:
        error = over(error, name)
        assert len(to_wire(error, service="me")[2]) <= SIZE
    assert isinstance(error, RemoteError)
    assert error.envelope.hops == tuple(names[:HOPS])


def test_details_that_just_fit_are_sent() -> None:
    def body(size: int) -> bytes:
        context = {f"f{n}": "x" * 200 for n in range(18)} | {"last": "x" * size}
        return to_wire(ServiceUnavailable("x", context=context), service="c", allow=context)[2]

    room = SIZE - len(body(0))
    assert 0 < room < 200
    assert len(body(room)) == SIZE
    assert "details" not in json.loads(body(room + 1))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0", 0.0), ("9" * 9, 999_999_999.0), ("9" * 10, None), ("-1", None), ("soon", None), ("", None)],
)
def test_retry_after_is_read_in_seconds(value: str, seconds: float | None) -> None:
    assert from_wire(503, {"rEtRy-AfTeR": value}, b"", service="d").retry_after == seconds
    assert from_wire(503, {}, b"", service="d").retry_after is None


@pytest.mark.parametrize(
    ("sent", "read"), [(1, 1), (999, 999), (1000, 1), (0, 1), (-1, 1), (True, 1), ("3", 1), (2.0, 1), (None, 1)]
)
def test_a_forged_count_in_an_envelope_counts_as_one(sent: object, read: int) -> None:
    body = json.dumps(SOUND | {"attempts": sent, "trace_id": "a b", "hops": ["ok", 7, "a.b", "", "x\n"]}).encode()
    made = from_wire(503, {}, body, service="d")
    assert made.attempts == read
    assert (made.envelope.hops, made.envelope.trace_id) == (("ok", "d"), None)
    error = ServiceUnavailable("x")
    error.attempts, error.exhausted = sent, "yes"  # type: ignore[attr-defined]
    assert (over(error).attempts, over(error).exhausted) == (read, False)
    for odd in ("d", {"d": 1}, None):
        assert from_wire(
            503, {}, json.dumps(SOUND | {"hops": odd, "details": 7}).encode(), service="d"
        ).envelope.hops == ("d",)


def test_a_call_without_an_answer_is_an_error_of_the_neighbor_with_its_cause() -> None:
    cause = ConnectionRefusedError("db-1.internal:5432")
    made = unanswered(cause, service="d")
    assert made.__cause__ is cause
    assert (made.service, made.envelope.hops, made.exhausted, made.retry_after) == ("d", ("d",), False, None)
    assert str(made) == "503 unreachable after 1 attempt(s), from d"


def test_the_id_of_the_request_is_kept_from_the_first_service_on() -> None:
    first = over(fresh(), "d", trace_id="req-1.a_B")
    assert first.envelope.trace_id == "req-1.a_B"
    assert over(first, "c", trace_id="other").envelope.trace_id == "req-1.a_B"


names = st.from_regex("[A-Za-z0-9_-]{1,64}", fullmatch=True)
envelopes = st.builds(
    ErrorEnvelope,
    code=st.sampled_from(sorted(KNOWN)),
    service=names,
    status=st.integers(400, 599).filter(lambda status: status not in (401, 403)),  # these become a 502
    retryable=st.booleans(),
    exhausted=st.booleans(),
    attempts=st.integers(1, 999),
    hops=st.lists(names, max_size=9).map(tuple),
    trace_id=st.none() | names,
)


@given(envelopes, st.none() | st.integers(0, 10**8), names)
@settings(max_examples=examples(25), deadline=None)
def test_what_is_written_is_read_as_it_was(envelope: ErrorEnvelope, wait: int | None, via: str) -> None:
    made = over(RemoteError(envelope, wait), via)
    assert made.envelope.hops == (*envelope.hops, via)
    assert {**vars(made.envelope), "hops": ()} == {**vars(envelope), "hops": ()}
    assert made.retry_after == wait
    copy = pickle.loads(pickle.dumps(made))
    assert (vars(copy), str(copy)) == (vars(made), str(made))


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3)
FIELDS = ["code", "service", "retryable", "exhausted", "hops", "attempts", "trace_id", "details", "x"]


@given(st.binary() | st.dictionaries(st.sampled_from(FIELDS), values).map(lambda odd: json.dumps(SOUND | odd).encode()))
@settings(max_examples=examples(40), deadline=None)
def test_no_body_makes_reading_or_passing_on_fail(body: bytes) -> None:
    made = from_wire(503, {}, body, service="d")
    status, _, data = to_wire(made, service="c")
    assert len(data) <= SIZE
    assert json.loads(data, parse_constant=lambda name: pytest.fail(name))["status"] == status == 503


@pytest.mark.parametrize("name", [None, "", "db-1.internal", "two words", "x" * 65, "x\n"])
def test_a_missing_or_bad_service_name_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    environ = {} if name is None else {"SERVICE_NAME": name}
    if name:
        message = f"SERVICE_NAME must be 1 to 64 letters, digits, '_' or '-', got {name!r}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            service_name_from_env(environ)
    else:
        with pytest.raises(RuntimeError, match=r"^SERVICE_NAME is not set, or is empty$"):
            service_name_from_env(environ)
    monkeypatch.setenv("SERVICE_NAME", "x" * 60 + "-_0Z")
    assert service_name_from_env() == "x" * 60 + "-_0Z"


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, True, "1"])
def test_a_scope_with_a_number_that_is_none_is_refused(wrong: Any) -> None:
    for name, least in (("attempts", 1), ("attempt", 1), ("depth", 0)):
        with pytest.raises(ValueError, match=rf"^{name} must be a whole number, {least} or more, got {wrong!r}$"):
            scope(**{name: wrong})
    with pytest.raises(ValueError, match=rf"^minimum must be a number of seconds, 0 or more, got {wrong!r}$"):
        scope(minimum=wrong)
    with pytest.raises(ValueError, match=rf"^seconds must be a number over 0, got {wrong!r}$"):
        RetryScope.from_headers({}, service="me", seconds=wrong)
    if wrong not in (-1, math.inf):
        with pytest.raises(ValueError, match=rf"^deadline must be an instant on the clock, got {wrong!r}$"):
            scope(deadline=wrong)
