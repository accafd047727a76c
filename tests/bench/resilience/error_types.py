"""Measures docs/patterns/resilience/error-types.md: what it costs to make an error of an answer."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx2

from bench.kit import Table, compare, ratio_table, version
from error_mapping import from_exception, from_response

HEADERS = httpx2.Headers({"content-type": "application/json", "retry-after": "3", "server": "nginx", "date": "now"})
PROBLEM = json.dumps(
    {
        "type": "https://example.com/probs/out-of-credit",
        "title": "You do not have enough credit.",
        "status": 403,
        "detail": "Your current balance is 30, but that costs 50.",
        "instance": "/account/12345/msgs/abc",
    }
).encode()
CODED = b'{"error": {"code": "card_declined", "message": "Your card was declined."}}'


def _answer(body: bytes) -> httpx2.Response:
    request = httpx2.Request("GET", "https://shop:secret@crm.internal/x?api_key=secret")
    return httpx2.Response(403, headers=HEADERS, content=body, request=request)


def _raised(response: httpx2.Response) -> Exception:
    try:
        response.raise_for_status()
    except httpx2.HTTPStatusError as exc:
        return exc
    raise AssertionError(response)


def tables() -> list[Table]:
    answer = _answer(PROBLEM)
    ours, theirs = "this pattern, a problem document", f"{version('httpx2')}, its status error"
    subjects: dict[str, Callable[[], object]] = {
        ours: lambda: from_response(403, HEADERS, PROBLEM, service="crm"),
        "this pattern, code and message": lambda: from_response(403, HEADERS, CODED, service="crm"),
        "this pattern, empty body": lambda: from_response(403, HEADERS, b"", service="crm"),
        theirs: lambda: _raised(answer),
        "httpx2's, and `from_exception` of it": lambda: from_exception(_raised(answer), service="crm"),
    }
    seconds = compare(subjects, calls=200, rounds=101)
    note = "An error made of an answer that is there already, with a status of 403, a Retry-After and four headers."
    return [ratio_table("reading", seconds, base=ours, note=note)]
