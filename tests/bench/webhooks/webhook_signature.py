"""Verifications a second: the module against the reference library of Standard Webhooks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from bench.kit import Table, compare, version
from webhook_signature import BadSignature, sign, verify

# A request carries other headers too, and both have to look past them.
OTHERS = {
    "host": "example.com",
    "user-agent": "Provider-Webhooks/1.0",
    "content-type": "application/json",
    "content-length": "2048",
    "accept": "*/*",
    "accept-encoding": "gzip, deflate",
    "x-forwarded-for": "192.0.2.7",
    "x-forwarded-proto": "https",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


def _body(size: int) -> bytes:
    head, tail = b'{"type":"invoice.paid","note":"', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


def _subjects(body: bytes, *, forged: int = 0) -> dict[str, Callable[[], object]]:
    key = os.urandom(32)
    keys, library = (key,), Webhook(key)
    headers = OTHERS | sign(body, keys, msg_id="msg_1", timestamp=int(time.time()))
    if forged:
        headers["webhook-signature"] = " ".join(
            sign(body, [os.urandom(32)], msg_id="msg_1", timestamp=0)["webhook-signature"] for _ in range(forged)
        )

    def ours() -> bool:
        try:
            verify(body, headers, keys, now=time.time())
        except BadSignature:
            return False
        return True

    def theirs() -> bool:
        try:
            library.verify(body, headers, json_parse=False)
        except WebhookVerificationError:
            return False
        return True

    if (ours(), theirs()) != (not forged, not forged):
        raise RuntimeError("the two do not agree")
    return {"this module": ours, version("standardwebhooks"): theirs}


def tables() -> list[Table]:
    """Measure genuine deliveries of 2 KB and 200 KB, and one that floods the signature header."""
    measured = [
        compare(_subjects(_body(2_048)), calls=2_000, rounds=9),
        compare(_subjects(_body(204_800)), calls=200, rounds=9),
        compare(_subjects(_body(2_048), forged=1_000), calls=300, rounds=15),
    ]
    rows = []
    for name in measured[0]:
        cells = [name]
        for seconds in measured:
            ratio = seconds["this module"] / seconds[name]
            cells.append(f"{1 / seconds[name]:,.0f} /s ({ratio:.2f} ×)")
        rows.append(cells)
    return [
        Table(
            name="verify",
            columns=("", "2 KB body", "200 KB body", "2 KB, 1,000 forged entries"),
            rows=rows,
            note="Verifications a second on one core; in brackets, as a multiple of this module's. A request has "
            "12 headers, keys are decoded beforehand, and the library is told not to parse the JSON. The last "
            "column is an attack: a signature header with 1,000 forged entries, which both refuse.",
        )
    ]
