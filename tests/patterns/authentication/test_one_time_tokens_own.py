"""Proves docs/patterns/authentication/one-time-tokens.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import psycopg
import pytest

from one_time_tokens_core import TokenInvalid
from one_time_tokens_sync import OneTimeTokens


def test_my_invitation_works_once(database_url: str) -> None:
    now = 1_800_000_000.0
    with psycopg.connect(database_url) as db:
        tokens = OneTimeTokens(db, clock=lambda: now)
        tokens.create_table()
        token = tokens.issue("invite", "team-7", ttl=3_600, payload={"role": "editor"})

        assert tokens.peek("invite", token).payload == {"role": "editor"}
        with pytest.raises(TokenInvalid):
            tokens.consume("reset-password", token)  # another purpose
        assert tokens.consume("invite", token).subject == "team-7"
        with pytest.raises(TokenInvalid):
            tokens.consume("invite", token)  # used

        late = tokens.issue("invite", "team-7", ttl=3_600)
        now += 3_600
        with pytest.raises(TokenInvalid):
            tokens.consume("invite", late)


# --8<-- [end:own]
