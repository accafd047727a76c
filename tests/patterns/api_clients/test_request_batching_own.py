"""Proves docs/patterns/api-clients/request-batching.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import asyncio

import pytest

from request_batcher import Batcher, KeyMissing


async def test_your_look_ups_go_out_together_and_come_back_to_their_callers() -> None:
    calls: list[list[int]] = []

    async def fetch_users(ids: list[int]) -> dict[int, str]:  # yours, with its client replaced
        calls.append(ids)
        return {id_: f"user {id_}" for id_ in ids if id_ != 404}

    users = Batcher(fetch_users, max_wait=0.001)
    found = await asyncio.gather(*(users.load(id_) for id_ in (3, 1, 3, 2)))
    assert found == ["user 3", "user 1", "user 3", "user 2"]
    assert calls == [[3, 1, 2]]

    with pytest.raises(KeyMissing):
        await users.load(404)


# --8<-- [end:own]
