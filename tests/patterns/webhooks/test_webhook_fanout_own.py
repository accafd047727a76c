"""Proves docs/patterns/webhooks/webhook-fanout.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from dataclasses import dataclass

import pytest

from webhook_fanout import Fanout, FanoutIncomplete, MemoryDone


@dataclass(frozen=True)
class Paid:
    source: str = "shop"
    id: str = "evt_1"
    type: str = "order.paid"


async def test_my_handlers_are_called_until_each_has_succeeded() -> None:
    calls: list[str] = []

    async def ledger(event: Paid) -> None:
        calls.append("ledger")
        if calls.count("ledger") == 1:
            raise ConnectionError

    def slack(event: Paid) -> None:
        calls.append("slack")

    fanout = Fanout(MemoryDone())
    fanout.register("ledger", ledger, types=["order.*"])
    fanout.register("slack", slack, required=False)
    with pytest.raises(FanoutIncomplete):
        await fanout.dispatch(Paid())
    report = await fanout.dispatch(Paid())
    assert (report.ok, report.skipped) == (("ledger",), ("slack",))
    assert calls.count("slack") == 1


# --8<-- [end:own]
