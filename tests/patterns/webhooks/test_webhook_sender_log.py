"""Proves docs/patterns/webhooks/webhook-sender.md: what is due is sent by one worker, and a dead endpoint ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from patterns.webhooks.webhook_sender_kit import KEY, Guarded
from sender_log import FIVE_DAYS, SCHEMA, PostgresLog
from webhook_sender import Attempt, Endpoint, Message, Outcome, WebhookSender
from webhook_signature import sign

NOW = 1_800_000_000.0
DAY = 86_400.0
FAILED = Attempt(500, Outcome.WAITING, NOW + 60, "no")
DONE = Attempt(204, Outcome.DELIVERED, None, "")


@pytest.fixture(scope="module")
def database(module_database_url: str) -> str:
    """The file's database, with the tables in it; each test finds them empty."""
    with psycopg.connect(module_database_url) as conn:
        conn.execute(SCHEMA)
    return module_database_url


class Endpoints(dict[str, Endpoint]):
    async def find(self, endpoint_id: str) -> Endpoint | None:
        return self.get(endpoint_id)


@pytest.fixture
def endpoints() -> Endpoints:
    made = Endpoints()
    for name in ("ep_1", "ep_2", "dead"):
        made[name] = Endpoint(name, f"https://{name.replace('_', '')}.example/", (KEY,))
    return made


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Any]:
    with psycopg.connect(database) as conn:
        conn.execute("DELETE FROM webhook_delivery; DELETE FROM webhook_attempt; DELETE FROM webhook_health")
    async with AsyncConnectionPool(database, min_size=4, max_size=4, open=False) as made:
        yield made


@pytest.fixture
def log(pool: Any, endpoints: Endpoints) -> PostgresLog:
    return PostgresLog(pool, endpoints.find)


def message(number: object = 1) -> Message:
    return Message(f"msg_{number}", "paid", b"{\x00\xff}")


async def rows(pool: Any, sql: str) -> list[Any]:
    async with pool.connection() as conn:
        found: list[Any] = await (await conn.execute(sql)).fetchall()
        return found


async def test_a_message_is_due_once_comes_out_as_it_went_in_and_not_before_its_time(log: PostgresLog) -> None:
    assert await log.add("ep_1", message(), now=NOW) is True
    assert await log.add("ep_1", message(), now=NOW) is False
    assert await log.add("ep_2", message(), now=NOW + 1) is True  # one event, two customers
    assert await log.claim(10, now=NOW - 0.5, lease=45) == []
    [due] = await log.claim(10, now=NOW, lease=45)
    assert (due.endpoint.id, due.message, due.n) == ("ep_1", message(), 1)


async def test_workers_that_claim_at_once_never_get_the_same_delivery(log: PostgresLog) -> None:
    for number in range(5):
        for endpoint in ("ep_1", "ep_2"):
            await log.add(endpoint, message(number), now=NOW)
    claims = await asyncio.gather(*(log.claim(4, now=NOW, lease=45) for _ in range(4)))
    taken = [(due.endpoint.id, due.message.id) for claim in claims for due in claim]
    assert len(taken) == len(set(taken)) == 10


async def test_a_crash_between_sending_and_recording_sends_again_under_the_same_id(log: PostgresLog) -> None:
    await log.add("ep_1", message(), now=NOW)
    [lost] = await log.claim(1, now=NOW, lease=45)  # sent, and the worker dies
    assert await log.claim(1, now=NOW + 44.9, lease=45) == []
    [again] = await log.claim(1, now=NOW + 45, lease=45)
    assert again == lost


async def test_a_failed_attempt_is_due_again_at_its_time_and_a_final_one_never(log: PostgresLog, pool: Any) -> None:
    await log.add("ep_1", message(), now=NOW)
    [due] = await log.claim(1, now=NOW, lease=45)
    assert await log.record(due, FAILED, now=NOW + 1) is False
    assert await log.claim(1, now=NOW + 59, lease=45) == []
    [due] = await log.claim(1, now=NOW + 60, lease=45)
    assert due.n == 2
    await log.record(due, DONE, now=NOW + 61)
    assert await log.claim(1, now=NOW + DAY, lease=45) == []
    kept = await rows(pool, "SELECT n, at - 1800000000, status, outcome, excerpt FROM webhook_attempt ORDER BY n")
    assert kept == [(1, 1.0, 500, "waiting", "no"), (2, 61.0, 204, "delivered", "")]
    for number, outcome in enumerate((Outcome.EXHAUSTED, Outcome.GONE, Outcome.REFUSED)):
        endpoint = f"ep_{number}"
        log._endpoint = lambda name: _some(name)
        await log.add(endpoint, message("final"), now=NOW)
        [due] = await log.claim(1, now=NOW, lease=45)
        await log.record(due, Attempt(None, outcome, None, ""), now=NOW)
        assert await log.claim(1, now=NOW + DAY, lease=45) == []


async def _some(name: str) -> Endpoint:
    return Endpoint(name, "https://a.example/", (KEY,))


async def test_a_worker_that_comes_back_late_does_not_undo_what_another_recorded(log: PostgresLog, pool: Any) -> None:
    await log.add("ep_1", message(), now=NOW)
    [late] = await log.claim(1, now=NOW, lease=45)
    [second] = await log.claim(1, now=NOW + 45, lease=45)
    await log.record(second, DONE, now=NOW + 46)
    await log.record(late, FAILED, now=NOW + 50)
    assert await rows(pool, "SELECT outcome, n FROM webhook_delivery") == [("delivered", 2)]
    assert len(await rows(pool, "SELECT FROM webhook_attempt")) == 2  # both are told: it was sent twice


async def test_a_dead_endpoint_with_many_messages_leaves_room_for_the_others(log: PostgresLog) -> None:
    for number in range(50):
        await log.add("dead", message(number), now=NOW)
    await log.add("ep_1", message(), now=NOW + 1)
    first = await log.claim(10, now=NOW + 2, lease=45)
    first = sorted(first, key=lambda due: due.endpoint.id)
    assert [due.endpoint.id for due in first] == ["dead"] * 5 + ["ep_1"]
    assert len({due.message.id for due in first[:5]}) == 5
    assert await log.claim(10, now=NOW + 3, lease=45) == []  # five of it are under way
    await log.record(first[0], FAILED, now=NOW + 4)
    assert len(await log.claim(10, now=NOW + 4, lease=45)) == 1


async def test_five_days_of_only_failures_disable_an_endpoint_and_say_so_once(log: PostgresLog) -> None:
    for number in range(4):
        await log.add("dead", message(number), now=NOW)
    one, two, three, four = await log.claim(10, now=NOW, lease=FIVE_DAYS * 3)
    assert await log.record(one, FAILED, now=NOW) is False
    assert await log.record(two, FAILED, now=NOW + FIVE_DAYS - 1) is False
    assert await log.record(three, FAILED, now=NOW + FIVE_DAYS) is True
    assert await log.record(four, FAILED, now=NOW + FIVE_DAYS + 1) is False  # told already
    later = NOW + FIVE_DAYS + 100
    assert await log.claim(10, now=later, lease=45) == []
    await log.enable("dead")
    assert len(await log.claim(10, now=later, lease=45)) == 4


async def test_one_success_in_between_begins_the_five_days_anew(log: PostgresLog) -> None:
    for number in range(3):
        await log.add("ep_1", message(number), now=NOW)
    one, two, three = await log.claim(10, now=NOW, lease=FIVE_DAYS * 3)
    assert await log.record(one, FAILED, now=NOW) is False
    assert await log.record(two, DONE, now=NOW + DAY) is False
    assert await log.record(three, FAILED, now=NOW + FIVE_DAYS + DAY) is False


async def test_410_disables_at_once(log: PostgresLog) -> None:
    for number in range(2):
        await log.add("ep_1", message(number), now=NOW)
    one, two = await log.claim(10, now=NOW, lease=1)
    gone = Attempt(410, Outcome.GONE, None, "")
    assert [await log.record(due, gone, now=NOW) for due in (one, two)] == [True, False]
    assert await log.claim(10, now=NOW + DAY, lease=45) == []


async def test_deliveries_of_an_endpoint_that_is_gone_end_and_those_of_a_paused_one_wait(
    log: PostgresLog, endpoints: Endpoints, pool: Any
) -> None:
    await log.add("ep_1", message(), now=NOW)
    await log.add("ep_2", message(), now=NOW)
    removed = endpoints.pop("ep_1")
    endpoints["ep_2"] = Endpoint("ep_2", "https://ep2.example/", (KEY,), enabled=False)
    assert await log.claim(10, now=NOW, lease=45) == []
    states = "SELECT endpoint_id, outcome FROM webhook_delivery ORDER BY 1"
    assert await rows(pool, states) == [("ep_1", "gone"), ("ep_2", "waiting")]
    endpoints["ep_1"], endpoints["ep_2"] = removed, Endpoint("ep_2", "https://ep2.example/", (KEY,))
    assert [due.endpoint.id for due in await log.claim(10, now=NOW + 45, lease=45)] == ["ep_2"]


async def test_sender_and_log_together_deliver_retry_and_tell_the_owner_once(log: PostgresLog) -> None:
    now, calls, told = NOW, list[str](), list[str]()

    async def answer(request: httpx2.Request) -> httpx2.Response:
        calls.append(request.headers["webhook-id"] + " " + request.headers["webhook-timestamp"])
        return httpx2.Response(204 if request.url.host == "ep1.example" and len(calls) > 2 else 500)

    async def tell(endpoint: Endpoint) -> None:
        told.append(endpoint.id)

    await log.add("ep_1", message(), now=NOW)
    async with Guarded(transport=httpx2.MockTransport(answer), trust_env=False) as http:
        sender = WebhookSender(
            http, log, sign, disabled=tell, clock=lambda: now, rng=lambda low, high: (low + high) / 2
        )
        for seconds in (0, 4, 1, 299, 1, 9_999):
            now += seconds
            await sender.run_due()
        assert calls == [f"msg_1 {int(NOW) + seconds}" for seconds in (0, 5, 305)]
        for number in range(12):
            await log.add("dead", message(number), now=now)
        for _ in range(25):
            now += DAY / 2
            await sender.run_due()
    assert told == ["dead"]
    assert len(calls) > 20


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_number_of_the_log_that_is_none_stops_the_start(wrong: Any) -> None:
    pool: Any = None
    endpoint: Any = None
    with pytest.raises(ValueError, match=rf"^each must be a whole number over 0, got {wrong!r}$"):
        PostgresLog(pool, endpoint, each=wrong)
    with pytest.raises(ValueError, match=rf"^patience must be a number of seconds over 0, got {wrong!r}$"):
        PostgresLog(pool, endpoint, patience=wrong)
