"""Proves docs/patterns/authentication/one-time-tokens.md: a token works once, for one purpose, until it expires."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import logging
import re
import secrets
import time
import traceback
import uuid
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from itsdangerous import URLSafeTimedSerializer
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from harness.clock import Clock
from harness.color import Color
from harness.depth import examples
from harness.waiting import at_once
from one_time_tokens_async import AsyncOneTimeTokens
from one_time_tokens_core import TokenInfo, TokenInvalid, key_of, new_token
from one_time_tokens_sync import OneTimeTokens
from patterns.authentication.one_time_tokens_kit import NOW

INVALID = r"^this link is not valid, or not any more$"


@pytest.fixture(scope="module")
def url(module_database_url: str) -> str:
    return module_database_url


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


def connected(color: Color, url: str, **options: Any) -> Any:
    """Open a connection of this color, closed with it."""
    connect: Any = color.pick(psycopg.AsyncConnection.connect, psycopg.connect)
    return color.closing(color.call(connect, url, **options))


def tokens_on(color: Color, db: Any, clock: Clock) -> Any:
    """Make the tokens of this color, called as if they were sync."""
    kind: Any = color.pick(AsyncOneTimeTokens, OneTimeTokens)
    return color.blocking(kind(db, clock=clock))


@pytest.fixture
def tokens(color: Color, url: str, clock: Clock) -> Any:
    db = connected(color, url, autocommit=True, row_factory=dict_row)  # as a pool of yours may be set
    made = tokens_on(color, db, clock)
    made.create_table()
    with psycopg.connect(url, autocommit=True) as plain:
        plain.execute("TRUNCATE one_time_tokens")
    return made


def refused(call: Any, *args: Any, **options: Any) -> bool:
    with pytest.raises(TokenInvalid, match=INVALID) as caught:
        call(*args, **options)
    assert caught.value.__cause__ is None
    return True


def stored(url: str) -> Any:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as db:
        return db.execute("SELECT * FROM one_time_tokens").fetchall()


def test_a_token_is_good_once(tokens: Any) -> None:
    token = tokens.issue("reset", "ada", ttl=60, payload={"to": ["x", 1]})
    expected = TokenInfo("reset", "ada", {"to": ["x", 1]}, NOW + 60)
    assert tokens.peek("reset", token) == expected
    assert tokens.peek("reset", token) == expected  # a look changes nothing
    assert tokens.consume("reset", token) == expected
    assert refused(tokens.consume, "reset", token)
    assert refused(tokens.peek, "reset", token)


def test_a_token_has_256_random_bits_and_only_its_sha_256_is_stored(tokens: Any, url: str) -> None:
    token = tokens.issue("reset", "ada", ttl=60)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
    (row,) = stored(url)
    assert row["digest"] == hashlib.sha256(token.encode()).digest()
    assert not [start for start in range(36) if token[start : start + 8] in str(row)]
    assert (row["binding"], row["payload"], row["used_at"]) == (None, None, None)
    assert len({new_token() for _ in range(10_000)}) == 10_000
    assert secrets.token_urlsafe(32) != token


def test_the_instant_of_expiry_is_expired(tokens: Any, clock: Clock) -> None:
    token = tokens.issue("reset", "ada", ttl=60)
    clock.now = NOW + 59.999
    assert tokens.peek("reset", token)
    clock.now = NOW + 60
    assert refused(tokens.peek, "reset", token)
    assert refused(tokens.consume, "reset", token)
    clock.now = NOW + 59.999
    assert tokens.consume("reset", token)


@pytest.mark.parametrize("ttl", [0, -1, True, float("inf"), float("nan"), "60", None])
def test_a_token_that_would_never_expire_is_not_issued(tokens: Any, ttl: Any) -> None:
    with pytest.raises(ValueError, match=rf"^ttl must be a number of seconds over 0, got {ttl!r}$"):
        tokens.issue("reset", "ada", ttl=ttl)
    assert tokens.peek("reset", tokens.issue("reset", "ada", ttl=0.5)).expires_at == NOW + 0.5


def test_a_token_of_one_purpose_is_good_for_no_other(tokens: Any) -> None:
    token = tokens.issue("verify-email", "ada", ttl=60)
    assert refused(tokens.peek, "reset-password", token)
    assert refused(tokens.consume, "reset-password", token)
    assert tokens.consume("verify-email", token).purpose == "verify-email"


def test_a_new_token_ends_the_one_before_of_its_purpose_and_subject_and_no_other(tokens: Any) -> None:
    first = tokens.issue("reset", "ada", ttl=60, binding="a", payload=1)
    others = [(*key, tokens.issue(*key, ttl=60)) for key in (("verify", "ada"), ("reset", "bob"))]
    second = tokens.issue("reset", "ada", ttl=90, payload=2)
    assert refused(tokens.consume, "reset", first, binding="a")
    assert tokens.consume("reset", second) == TokenInfo("reset", "ada", 2, NOW + 90)
    third = tokens.issue("reset", "ada", ttl=60)  # also after one was used
    assert tokens.consume("reset", third).payload is None
    for purpose, subject, token in others:
        assert tokens.consume(purpose, token).subject == subject


def test_what_a_token_is_bound_to_must_be_unchanged_when_it_is_used(tokens: Any) -> None:
    token = tokens.issue("reset", "ada", ttl=60, binding="hash of the old password")
    for changed in ("hash of a new password", "", None):
        assert refused(tokens.consume, "reset", token, binding=changed)
    assert tokens.consume("reset", token, binding="hash of the old password")
    unbound = tokens.issue("reset", "ada", ttl=60)
    assert refused(tokens.consume, "reset", unbound, binding="x")
    assert tokens.consume("reset", unbound)


def test_all_tokens_of_a_purpose_and_subject_can_be_ended(tokens: Any) -> None:
    token, other = tokens.issue("reset", "ada", ttl=60), tokens.issue("reset", "bob", ttl=60)
    kept = tokens.issue("verify", "ada", ttl=60)
    assert tokens.revoke_all("reset", "ada") == 1
    assert tokens.revoke_all("reset", "ada") == 0
    assert refused(tokens.consume, "reset", token)
    assert tokens.consume("reset", other)
    assert tokens.revoke_all("reset", "bob") == 0  # it is used, and not to be counted
    assert tokens.consume("verify", kept)


def test_what_is_used_or_expired_can_be_purged(tokens: Any, clock: Clock, url: str) -> None:
    tokens.consume("a", tokens.issue("a", "used", ttl=60))
    tokens.issue("a", "expired", ttl=10)
    live = tokens.issue("a", "live", ttl=11)
    clock.now = NOW + 10
    assert tokens.purge() == 2
    assert [row["subject"] for row in stored(url)] == ["live"]
    assert tokens.consume("a", live)


def test_what_a_token_stands_for_cannot_be_changed() -> None:
    info = TokenInfo("reset", "ada", None, NOW)
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.subject = "bob"  # type: ignore[misc]
    assert not hasattr(info, "__dict__")


HOSTILE = ["", "x", "a" * 42, "a" * 44, "a" * 43 + "\n", "é" * 43, "\x00" * 43, "\ud800" * 43, "' OR 1=1 --", "%s" * 20]


@pytest.mark.parametrize("token", HOSTILE, ids=lambda token: ascii(token[:12]))
def test_what_cannot_be_a_token_is_invalid_without_a_query(token: str) -> None:
    with pytest.raises(TokenInvalid, match=INVALID):
        key_of("reset", token, NOW)


@given(st.text(max_size=60).filter(lambda text: not re.fullmatch(r"[\w-]{43}", text, re.ASCII)))
@settings(max_examples=examples(100), deadline=None, database=None)
def test_whatever_is_presented_the_answer_is_token_invalid(token: str) -> None:
    with pytest.raises(TokenInvalid, match=INVALID):
        key_of("reset", token, NOW)


def test_a_token_that_was_never_issued_is_invalid(tokens: Any) -> None:
    tokens.issue("reset", "ada", ttl=60)
    assert refused(tokens.peek, "reset", new_token())
    assert refused(tokens.consume, "reset", new_token())


# Several at the same instant.


@pytest.fixture
def pool(color: Color, url: str) -> Any:
    """A pool of ten connections of this color."""
    kind: Any = color.pick(AsyncConnectionPool, ConnectionPool)
    made = color.closing(kind(url, min_size=10, open=False))
    color.call(made.open)
    return made


def test_of_fifty_parallel_calls_one_succeeds(color: Color, pool: Any, tokens: Any, clock: Clock) -> None:
    token = tokens.issue("reset", "ada", ttl=60)

    def once() -> str:
        with color.entered(pool.connection()) as db:
            subject = str(tokens_on(color, db, clock).consume("reset", token).subject)
            time.sleep(0.01)  # the password is changed here, before the commit
            return subject

    outcomes = at_once(50, once)
    assert [outcome for outcome in outcomes if isinstance(outcome, str)] == ["ada"]
    assert sum(isinstance(outcome, TokenInvalid) for outcome in outcomes) == 49


def test_of_tokens_issued_at_the_same_instant_the_last_one_alone_is_good(
    color: Color, pool: Any, tokens: Any, clock: Clock
) -> None:
    def once() -> str:
        with color.entered(pool.connection()) as db:
            return str(tokens_on(color, db, clock).issue("reset", "ada", ttl=60))

    issued = at_once(10, once)
    good = 0
    for token in issued:
        try:
            tokens.consume("reset", token)
            good += 1
        except TokenInvalid:
            pass
    assert good == 1


def test_naive_check_and_then_update_lets_two_requests_both_win(url: str, tokens: Any) -> None:
    token = tokens.issue("reset", "ada", ttl=60)
    digest = hashlib.sha256(token.encode()).digest()
    with psycopg.connect(url) as one, psycopg.connect(url) as two:
        wins = 0
        for db in (one, two):  # both look ...
            row = db.execute("SELECT used_at FROM one_time_tokens WHERE digest = %s", (digest,)).fetchone()
            wins += row == (None,)
        for db in (one, two):  # ... and then both write
            db.execute("UPDATE one_time_tokens SET used_at = 1 WHERE digest = %s", (digest,))
            db.commit()
    assert wins == 2


def test_a_token_is_as_good_as_before_when_its_transaction_is_rolled_back(
    color: Color, pool: Any, tokens: Any, clock: Clock
) -> None:
    token = tokens.issue("reset", "ada", ttl=60)

    def reset() -> None:
        with color.entered(pool.connection()) as db:
            tokens_on(color, db, clock).consume("reset", token)
            _ = 1 / 0  # the password could not be stored

    with pytest.raises(ZeroDivisionError):
        reset()
    assert tokens.consume("reset", token)


# Naive tokens.


def test_naive_signed_token_works_again_after_the_password_was_reset(tokens: Any) -> None:
    signer = URLSafeTimedSerializer(secrets.token_bytes(32))
    signed = signer.dumps("ada")
    for _ in range(2):  # nobody remembers that it was used
        assert signer.loads(signed, max_age=1_800) == "ada"
    token = tokens.issue("reset", "ada", ttl=60)
    assert tokens.consume("reset", token).subject == "ada"
    assert refused(tokens.consume, "reset", token)


def test_naive_uuid1_tokens_are_guessed_from_one_before_and_one_after() -> None:
    mine, victims, mine_again = uuid.uuid1(), uuid.uuid1(), uuid.uuid1()  # I ask, they ask, I ask
    assert (mine.node, mine.clock_seq) == (victims.node, victims.clock_seq)
    assert 0 <= victims.time - mine.time <= mine_again.time - mine.time < 10_000_000  # less than a second of ticks
    assert len({new_token()[:4] for _ in range(1_000)}) > 990


# Names, defaults, secrets.


def test_both_twins_have_the_same_methods_and_arguments() -> None:
    for name in ("create_table", "issue", "peek", "consume", "revoke_all", "purge"):
        one = inspect.signature(getattr(AsyncOneTimeTokens, name))
        two = inspect.signature(getattr(OneTimeTokens, name))
        assert one == two


def test_the_real_clock_is_the_default(color: Color, url: str, tokens: Any) -> None:
    kind: Any = color.pick(AsyncOneTimeTokens, OneTimeTokens)
    real = color.blocking(kind(connected(color, url, autocommit=True)))
    assert real.consume("a", real.issue("a", "b", ttl=60))
    late = real.issue("a", "b", ttl=60)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("UPDATE one_time_tokens SET expires_at = expires_at - 61")
    assert refused(real.consume, "a", late)


def test_no_token_binding_or_payload_is_in_any_text_or_traceback(tokens: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = tokens.issue("reset", "ada", ttl=60, binding="CANARY-binding", payload="CANARY-payload")
    seen = [repr(tokens.peek("reset", token)), str(tokens.peek("reset", token))]
    calls: list[Any] = [
        lambda: tokens.consume("reset", token),
        lambda: tokens.consume("reset", token, binding="CANARY"),
        lambda: tokens.peek("verify", token),
        lambda: tokens.peek("reset", "CANARY"),
        lambda: tokens.issue("reset", "ada", ttl=-1, payload="CANARY"),
    ]
    for call in calls:
        with pytest.raises((TokenInvalid, ValueError)) as caught:
            call()
        seen += [line for line in traceback.format_exception(caught.value) if not line.startswith("  File")]
    seen.append(repr(tokens.consume("reset", token, binding="CANARY-binding")))
    output = "\n".join([*seen, caplog.text])
    assert "subject='ada'" in output
    assert "CANARY" not in output
    assert token not in output
