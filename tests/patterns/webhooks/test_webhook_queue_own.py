"""Proves docs/patterns/webhooks/webhook-queue.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import asyncio

from webhook_queue import Delivery, WebhookQueue, connect
from webhook_worker import Drop, Worker


async def ship(delivery: Delivery) -> None:  # your handler
    if b"nowhere" in delivery.body:
        raise Drop("no address")


async def test_my_handler_finishes_its_jobs_or_says_why_not(valkey_url: str) -> None:
    async with connect(valkey_url) as client:
        queue = WebhookQueue(client, "test")
        for number, body in enumerate([b'{"to": "Ada"}', b'{"to": "nowhere"}']):
            await queue.enqueue(Delivery("shop", f"evt_{number}", 0, "order.paid", body))
        stop = asyncio.Event()
        worker = asyncio.create_task(Worker(queue, {"order.paid": ship}, poll=0.05).run(stop))
        async with asyncio.timeout(5):
            while (stats := await queue.stats()).waiting or stats.running or not stats.dead:
                await asyncio.sleep(0.01)
        stop.set()
        await worker
        [dead] = await queue.dead()
        assert (dead.delivery.id, dead.error) == ("evt_1", "no address")


# --8<-- [end:own]
