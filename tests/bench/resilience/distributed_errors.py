"""Measures docs/patterns/resilience/distributed-errors.md: what an envelope costs, once a failure and hop."""

from __future__ import annotations

import json

from bench.kit import Table, compare, ratio_table
from distributed_errors import ErrorEnvelope, RemoteError, from_wire, to_wire

ERROR = RemoteError(
    ErrorEnvelope(
        "unreachable",
        "payments",
        503,
        retryable=True,
        exhausted=True,
        attempts=3,
        hops=("payments", "orders", "basket"),
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        details={"field": "amount", "limit": 100},
    ),
    retry_after=3.0,
)
ALLOW = ("field", "limit")


def tables() -> list[Table]:
    wire = to_wire(ERROR, service="basket", allow=ALLOW)
    page = b"<html><body><h1>503 Service Unavailable</h1></body></html>"
    fields = json.loads(wire[2])
    both = "encode and decode"
    subjects = {
        both: lambda: from_wire(*to_wire(ERROR, service="basket", allow=ALLOW), service="basket"),
        "encode": lambda: to_wire(ERROR, service="basket", allow=ALLOW),
        "decode": lambda: from_wire(*wire, service="basket"),
        "decode a page of a proxy": lambda: from_wire(503, {}, page, service="basket"),
        "json.dumps and json.loads of the same": lambda: json.loads(json.dumps(fields)),
    }
    seconds = compare(subjects, calls=200, rounds=101)
    note = f"An envelope of {len(wire[2])} bytes, with three hops, two details and a Retry-After."
    return [ratio_table("envelope", seconds, base=both, note=note)]
