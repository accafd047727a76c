"""Deliveries a second over TLS on loopback: the sender against a bare POST, and the plot of its schedule."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from bench.kit import SERIES, Plot, Table, compare, version
from patterns.webhooks.webhook_sender_kit import KEY, Customer
from sender_policy import SCHEDULE
from webhook_sender import Attempt, Due, Endpoint, Message, WebhookSender
from webhook_signature import sign

AT_ONCE = 20
MESSAGE = Message("msg_1", "invoice.paid", b'{"type":"invoice.paid","note":"' + b"x" * 2_000 + b'"}')


class NoLog:
    """Has nothing due, and keeps nothing."""

    async def claim(self, limit: int, *, now: float, lease: float) -> Sequence[Due]:
        """Return nothing."""
        return ()

    async def record(self, due: Due, attempt: Attempt, *, now: float) -> bool:
        """Keep nothing."""
        return False


def tables() -> list[Table]:
    """Signed and bounded attempts, against POSTs of the same client that are not."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        customer = Customer(Path(folder))
        http = customer.client()
        sender = WebhookSender(http, NoLog(), sign)
        url = f"{customer.url}/204"
        endpoint = Endpoint("ep_1", url, (KEY,))
        headers = sign(MESSAGE.body, [KEY], msg_id="msg_1", timestamp=int(time.time()))

        async def ours() -> object:
            return await sender.attempt(endpoint, MESSAGE, 1)

        async def bare() -> object:
            return await http.post(url, content=MESSAGE.body, headers=headers)

        def run(one: Callable[[], Awaitable[object]], count: int) -> Callable[[], object]:
            async def many() -> None:
                await asyncio.gather(*(one() for _ in range(count)))

            return lambda: runner.run(many())

        subjects = {"this module, `attempt`": ours, f"{version('httpx2')}, `post`": bare}
        try:
            alone = compare({name: run(one, 1) for name, one in subjects.items()}, calls=50, rounds=7)
            many = compare(
                {name: run(one, AT_ONCE) for name, one in subjects.items()}, calls=5, rounds=7, per_call=AT_ONCE
            )
        finally:
            runner.run(http.aclose())
            customer.stop()
    base = next(iter(subjects))
    rows = [
        [name, *(f"{1 / seconds[name]:,.0f} /s ({seconds[base] / seconds[name]:.2f} ×)" for seconds in (alone, many))]
        for name in subjects
    ]
    return [
        Table(
            name="deliveries",
            columns=("", "one after another", f"{AT_ONCE} at a time"),
            rows=rows,
            note="Deliveries of 2 KB a second to a server on the same machine, over TLS with kept connections; in "
            "brackets, as a multiple of this module's. The bare POST is signed beforehand, reads all of the answer, "
            "and decides nothing. The server, in the same process, takes most of the time of both.",
        )
    ]


def plots() -> list[Plot]:
    """When the ten attempts are made."""
    at = [0.0]
    for delay in SCHEDULE:
        at.append(at[-1] + delay)

    def draw(axes: Any) -> None:
        axes.plot([max(t, 1) for t in at], range(1, 11), marker="o", color=SERIES[0])
        axes.set_xscale("log")
        axes.set_xticks([1, 60, 3_600, 86_400], ["at once", "1 min", "1 h", "1 day"])
        axes.minorticks_off()
        axes.set_yticks(range(1, 11))
        axes.set_xlabel("time after the first attempt")
        axes.set_ylabel("attempt")
        axes.grid(visible=True, axis="x")

    hours = at[-1] / 3_600
    alt = f"Ten attempts on a logarithmic time axis: at once, after 5 s, 5 min, 35 min, and so on to {hours:.0f} hours"
    return [Plot("schedule", alt, draw)]
