"""Proves docs/patterns/authentication/token-refresh.md: one refresh for many callers, and no refresh token is lost."""
# ruff: noqa: E402, F811 -- the section a reader copies, at the end, brings its own imports

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

import token_manager
import token_manager_sync
from patterns.authentication import token_refresh_kit as kit
from patterns.authentication.token_refresh_kit import (
    BOTH,
    CANARY,
    CLIENT_ID,
    NO_TLS,
    AsyncStore,
    Clock,
    Provider,
    Store,
    Twin,
)
from token_core import Core, ReauthRequired, RefreshFailed, TokenSet

both = pytest.mark.parametrize("module", BOTH, ids=["async", "sync"])


@pytest.fixture(scope="module")
def _provider() -> Iterator[Provider]:
    running = Provider()
    yield running
    running.stop()


@pytest.fixture
def provider(_provider: Provider) -> Provider:
    _provider.reset()
    return _provider


Open = Callable[..., Twin]


@pytest.fixture
def open_twin(provider: Provider, tmp_path: Path) -> Iterator[Open]:
    made: list[Twin] = []

    def open_it(module: Any, first: TokenSet | None = None, **settings: Any) -> Twin:
        store = settings.pop("store", None) or Store(tmp_path / "tokens.db", first)
        made.append(Twin(module, provider, store, settings.pop("clock", None) or Clock(), **settings))
        return made[-1]

    yield open_it
    for twin in made:
        twin.close()


# One refresh.


@both
def test_a_hundred_callers_at_once_are_one_refresh_and_get_the_same_token(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    provider.slow = 0.02
    twin = open_twin(module, provider.sign_in())
    tokens = twin.many(100)
    assert provider.hits["token"] == 1
    assert len(set(tokens)) == 1
    assert tokens[0] in provider.access
    assert twin.token() == tokens[0]
    assert provider.hits["token"] == 1


@both
def test_a_token_that_is_good_is_handed_out_without_any_request(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    clock = Clock()
    first = provider.sign_in(expires_at=clock.wall + 3_600)
    twin = open_twin(module, first, clock=clock)
    assert {twin.token() for _ in range(10)} == {first.access_token}
    assert provider.hits["token"] == 0


async def test_a_caller_that_is_cancelled_takes_the_token_from_nobody(provider: Provider, tmp_path: Path) -> None:
    provider.held = True
    store = AsyncStore(Store(tmp_path / "t.db", provider.sign_in()))
    async with httpx2.AsyncClient(verify=NO_TLS) as http:
        manager = token_manager.TokenManager(store, f"{provider.url}/token", CLIENT_ID, SecretStr(CANARY), http=http)
        callers = [asyncio.create_task(manager.token()) for _ in range(3)]
        await asyncio.sleep(0.01)
        callers[0].cancel()
        await asyncio.wait(callers[:1])
        provider.held = False
        got = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(got[0], asyncio.CancelledError)
        assert got[1] == got[2] == await manager.token()
        assert provider.hits["token"] == 1


async def test_naive_await_of_a_shared_task_is_cancelled_for_all_by_one() -> None:
    async def refresh() -> str:
        await asyncio.sleep(0.05)
        return "token"

    shared = asyncio.create_task(refresh())

    async def naive() -> str:
        return await shared

    callers = [asyncio.create_task(naive()) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    got = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in got] == [asyncio.CancelledError] * 3


async def test_nobody_is_left_to_wait_and_a_failure_is_still_no_complaint_of_asyncio(
    provider: Provider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider.canned, provider.held = [(503, "{}")], True
    store = AsyncStore(Store(tmp_path / "t.db", provider.sign_in()))
    async with httpx2.AsyncClient(verify=NO_TLS) as http:
        manager = token_manager.TokenManager(store, f"{provider.url}/token", CLIENT_ID, SecretStr(CANARY), http=http)
        caller = asyncio.create_task(manager.token())
        await asyncio.sleep(0.01)
        flight = manager._flight
        assert flight
        caller.cancel()
        await asyncio.wait([caller])
        provider.held = False
        await asyncio.wait([flight])
        assert manager._flight is None
        del flight
        assert await manager.token() in provider.access
    assert "never retrieved" not in caplog.text


async def test_a_flight_that_is_cancelled_with_its_loop_leaves_none_behind(provider: Provider, tmp_path: Path) -> None:
    store = AsyncStore(Store(tmp_path / "t.db", provider.sign_in()))
    async with httpx2.AsyncClient(verify=NO_TLS) as http:
        manager = token_manager.TokenManager(store, f"{provider.url}/token", CLIENT_ID, SecretStr(CANARY), http=http)
        caller = asyncio.create_task(manager.token())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert manager._flight
        manager._flight.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert manager._flight is None


def test_a_leader_that_is_interrupted_leaves_no_thread_waiting(open_twin: Open, provider: Provider) -> None:
    twin = open_twin(token_manager_sync, provider.sign_in())
    entered, go = threading.Event(), threading.Event()

    def interrupted() -> None:
        entered.set()
        go.wait(5)
        raise KeyboardInterrupt

    twin.manager._refresh = interrupted
    got: list[BaseException] = []

    def ask() -> None:
        try:
            twin.manager.token()
        except BaseException as error:
            got.append(error)

    leader = threading.Thread(target=ask)
    leader.start()
    entered.wait(5)
    follower = threading.Thread(target=ask)
    follower.start()
    go.set()
    leader.join(5)
    follower.join(5)
    assert sorted(type(error).__name__ for error in got) in (
        ["KeyboardInterrupt", "RefreshFailed"],
        ["KeyboardInterrupt", "KeyboardInterrupt"],  # the second came when the first flight had ended
    )
    assert twin.manager._flight is None


def test_a_thread_that_comes_too_late_for_a_flight_does_not_refresh_again(open_twin: Open, provider: Provider) -> None:
    twin = open_twin(token_manager_sync, provider.sign_in())
    good = twin.manager._good
    token = twin.token()
    looks: list[bool] = []

    def late(*, margin: bool) -> Any:
        looks.append(margin)
        return None if len(looks) == 1 else good(margin=margin)  # its first look was before the flight landed

    twin.manager._good = late
    assert twin.token() == token
    assert provider.hits["token"] == 1


# When.


@pytest.mark.parametrize(
    ("life", "skew", "good_for"),
    [(3_600, 60, 3_540), (30, 60, 24), (300, 60, 240), (3_600, 0, 3_600), (10_000, 3_000, 8_000)],
)
@both
def test_a_token_is_refreshed_a_margin_before_it_expires_and_a_short_one_a_fifth_of_its_life(
    module: Any, provider: Provider, open_twin: Open, life: int, skew: float, good_for: float
) -> None:
    provider.extra = {"expires_in": life}
    twin = open_twin(module, provider.sign_in(), skew=skew)
    first = twin.token()
    twin.clock.passes(good_for - 0.1)
    assert twin.token() == first
    twin.clock.passes(0.2)
    assert twin.token() != first
    assert provider.hits["token"] == 2


@both
def test_ten_calls_in_a_second_with_a_life_of_thirty_are_one_refresh(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    provider.extra = {"expires_in": 30}
    twin = open_twin(module, provider.sign_in())
    for _ in range(10):
        twin.token()
        twin.clock.passes(0.1)
    assert provider.hits["token"] == 1


def test_naive_expiry_without_a_margin_is_a_401_in_flight() -> None:
    now, expires_at, flight = 99.9, 100.0, 0.2
    assert not now >= expires_at  # "still valid", says the naive client
    assert now + flight >= expires_at  # and the API sees it expired


@pytest.mark.parametrize("value", [0, -5, True, False, None, "soon", "", "-1", "1e3", [], 1e300, "٣٦٠٠"])
@both
def test_a_life_that_is_nonsense_means_used_once_and_no_loop(
    module: Any, provider: Provider, open_twin: Open, value: Any
) -> None:
    provider.extra = {"expires_in": value}
    twin = open_twin(module, provider.sign_in())
    tokens = [twin.token() for _ in range(3)]
    assert len(set(tokens)) == 3
    assert provider.hits["token"] == 3


@both
def test_a_life_that_is_nan_means_used_once(module: Any, provider: Provider, open_twin: Open) -> None:
    twin = open_twin(module, provider.sign_in())
    answer = {"token_type": "bearer", "access_token": "nan", "expires_in": float("nan")}
    provider.canned = [(200, json.dumps(answer))]
    assert twin.token() == "nan"
    assert twin.token() != "nan"


@pytest.mark.parametrize("value", ["3600", 3600, 3600.5])
@both
def test_a_life_may_be_written_as_a_text(module: Any, provider: Provider, open_twin: Open, value: Any) -> None:
    provider.extra = {"expires_in": value}
    twin = open_twin(module, provider.sign_in())
    start = twin.clock.wall
    twin.token()
    kept = twin.store.load()
    assert kept
    assert kept.expires_at == pytest.approx(start + 3_600, abs=1)
    assert twin.token() == kept.access_token


@both
def test_a_token_of_unknown_life_is_used_until_the_api_refuses_it(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    provider.extra = {}
    twin = open_twin(module, provider.sign_in())
    first = twin.token()
    twin.clock.passes(10_000_000)
    assert twin.token() == first
    assert twin.refresh_after_401(first) != first
    assert provider.hits["token"] == 2


@pytest.mark.parametrize("jump", [-3_600.0, 3_600.0])
@both
def test_a_wall_clock_that_jumps_an_hour_changes_nothing_for_a_token_of_our_own(
    module: Any, provider: Provider, open_twin: Open, jump: float
) -> None:
    provider.extra = {"expires_in": 600}
    twin = open_twin(module, provider.sign_in())
    first = twin.token()
    twin.clock.wall += jump
    twin.clock.passes(500)
    assert twin.token() == first
    twin.clock.passes(50)
    assert twin.token() != first
    assert provider.hits["token"] == 2


# Saved first, handed out second.


@both
def test_the_new_refresh_token_is_saved_before_anybody_sees_the_access_token(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    first = provider.sign_in()
    twin = open_twin(module, first)
    token = twin.token()
    kept = twin.store.load()
    assert kept
    assert kept.access_token == token
    assert kept.refresh_token != first.refresh_token
    assert provider.alive(kept.refresh_token)
    (_, claim), (claimed, saved) = twin.store.saved
    assert claim == claimed
    assert saved == kept
    assert kept.claimed_until is None


@both
def test_a_save_that_fails_hands_out_nothing_and_is_tried_again_without_another_refresh(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    twin = open_twin(module, provider.sign_in())
    twin.store.broken = "keep"
    for _ in range(2):
        with pytest.raises(RefreshFailed, match=r"^the token store: OperationalError$"):
            twin.token()
    assert provider.hits["token"] == 1  # the old refresh token is not used twice
    twin.store.broken = ""
    token = twin.token()
    assert provider.hits["token"] == 1
    kept = twin.store.load()
    assert kept
    assert kept.access_token == token
    assert provider.alive(kept.refresh_token)


@pytest.mark.parametrize("broken", ["load", "save"])
@both
def test_a_store_that_is_down_is_a_failure_and_nothing_is_asked_of_the_provider(
    module: Any, provider: Provider, open_twin: Open, broken: str
) -> None:
    twin = open_twin(module, provider.sign_in())
    twin.store.broken = broken
    with pytest.raises(RefreshFailed, match=r"^the token store: OperationalError$") as caught:
        twin.token()
    assert caught.value.__cause__ is None
    assert provider.hits["token"] == 0


def test_naive_refresh_token_kept_in_memory_locks_out_after_a_restart(provider: Provider, open_twin: Open) -> None:
    stored = provider.sign_in()  # what the naive client has on disk
    refresh = {"grant_type": "refresh_token", "refresh_token": stored.refresh_token or ""}
    with httpx2.Client(verify=NO_TLS, auth=httpx2.BasicAuth("our+client", "canary%2Bsecret%2F%25" + "k" * 20)) as http:
        first = http.post(f"{provider.url}/token", data=refresh)
        assert first.status_code == 200  # the rotated one is kept in memory, and the process restarts
        again = http.post(f"{provider.url}/token", data=refresh)
        assert again.json() == {"error": "invalid_grant"}
        assert not provider.alive(first.json()["refresh_token"])  # and the whole family is dead


@both
def test_an_answer_without_a_refresh_token_keeps_the_old_one(module: Any, provider: Provider, open_twin: Open) -> None:
    provider.rotates = False
    first = provider.sign_in()
    twin = open_twin(module, first)
    for _ in range(2):
        twin.token()
        kept = twin.store.load()
        assert kept
        assert kept.refresh_token == first.refresh_token
        twin.clock.passes(3_600)
    assert provider.hits["token"] == 2


# Failures.


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((503, "{}"), "the token endpoint answered 503, no known error"),
        ((429, '{"error": "slow_down"}'), "the token endpoint answered 429, slow_down"),
        ((401, '{"error": "invalid_client"}'), "the token endpoint answered 401, invalid_client"),
        ((200, '{"error": "server_error", "access_token": "a"}'), "the token endpoint answered 200, server_error"),
        ((200, '{"error": null}'), "the token endpoint answered 200, no known error"),
        ((400, '{"error": "<script>"}'), "the token endpoint answered 400, no known error"),
        ((200, "<html>"), "the token endpoint answered 200 and no JSON"),
        ((200, "[1]"), "the token endpoint answered 200 and no JSON"),
        ((200, "[" * 50_000), "the token endpoint answered 200 and no JSON"),
        ((302, "{}"), "the token endpoint answered 302, no known error"),
        ((201, '{"access_token": "a", "token_type": "bearer"}'), "the token endpoint answered 201, no known error"),
        ((200, "{}"), "the token endpoint gave no bearer token"),
        ((200, '{"access_token": "a", "token_type": "mac"}'), "the token endpoint gave no bearer token"),
        ((200, '{"access_token": "a", "token_type": 5}'), "the token endpoint gave no bearer token"),
        ((200, '{"access_token": "", "token_type": "bearer"}'), "the token endpoint gave no usable access token"),
        ((200, '{"access_token": 5, "token_type": "bearer"}'), "the token endpoint gave no usable access token"),
        (
            (200, '{"access_token": "a\\r\\nx", "token_type": "bearer"}'),
            "the token endpoint gave no usable access token",
        ),
    ],
)
@both
def test_an_answer_that_is_no_token_is_a_failure_and_the_next_call_tries_again(
    module: Any, provider: Provider, open_twin: Open, answer: tuple[int, str], message: str
) -> None:
    provider.canned = [answer]
    first = provider.sign_in()
    twin = open_twin(module, first)
    with pytest.raises(RefreshFailed) as caught:
        twin.token()
    assert str(caught.value) == message
    assert twin.store.load() == first  # and nobody has to wait for a lease
    assert twin.token() in provider.access
    assert provider.hits["token"] == 2
    assert twin.slept == 0


def test_naive_use_of_an_error_answer_stores_a_token_that_never_expires() -> None:
    answer = {"error": "server_error"}
    stored = {"access_token": answer.get("access_token"), "expires_at": answer.get("expires_in")}
    expired = stored["expires_at"] is not None and time.time() >= float(stored["expires_at"])
    assert not expired  # so nobody refreshes, and each call sends "Bearer None"


@both
def test_a_failure_reaches_all_who_wait_and_each_has_an_error_of_their_own(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    provider.canned, provider.slow = [(503, "{}")], 0.2
    twin = open_twin(module, provider.sign_in())
    got = twin.many(20)
    failures = [result for result in got if isinstance(result, RefreshFailed)]
    assert len(failures) == len({id(failure) for failure in failures}) >= 2  # a late thread begins another
    assert provider.hits["token"] <= 2


def test_naive_cache_of_the_failed_task_makes_one_blip_permanent() -> None:
    async def main() -> None:
        calls = 0

        async def refresh() -> str:
            nonlocal calls
            calls += 1
            raise RefreshFailed("a blip")

        task = asyncio.create_task(refresh())  # kept, since "somebody refreshes already"
        for _ in range(3):
            with pytest.raises(RefreshFailed):
                await task
        assert calls == 1

    asyncio.run(main())


@both
def test_a_token_that_is_still_valid_is_used_while_the_provider_fails(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    twin = open_twin(module, provider.sign_in())
    first = twin.token()
    twin.clock.passes(3_550)  # within the margin
    provider.canned = [(503, "{}")] * 3
    assert [twin.token(), twin.token()] == [first, first]
    twin.clock.passes(50)  # expired
    with pytest.raises(RefreshFailed):
        twin.token()
    assert twin.token() != first


@both
def test_a_provider_that_hangs_is_given_up_in_time(module: Any, provider: Provider, open_twin: Open) -> None:
    twin = open_twin(module, provider.sign_in(), timeout=0.05)
    provider.hanging = True
    expected = "TimeoutError" if module is token_manager else "(Connect|Write|Read)Timeout"
    with pytest.raises(RefreshFailed, match=rf"^the token endpoint: {expected}$") as caught:
        twin.token()
    assert caught.value.__cause__ is None
    provider.hanging = False
    twin.manager._timeout = 10
    assert twin.token() in provider.access


@both
def test_a_provider_that_cannot_be_reached_is_a_failure(module: Any, provider: Provider, open_twin: Open) -> None:
    twin = open_twin(module, provider.sign_in(), token_url="http://127.0.0.1:1/token")
    with pytest.raises(RefreshFailed, match=r"^the token endpoint: ConnectError$"):
        twin.token()


# The grant has ended.


@both
def test_a_grant_that_has_ended_needs_a_sign_in_and_is_not_asked_for_again_until_then(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    first = provider.sign_in()
    provider.dead.add(provider.refresh[str(first.refresh_token)])
    twin = open_twin(module, first)
    with pytest.raises(ReauthRequired, match=r"^the grant has ended: somebody has to sign in again$"):
        twin.token()
    for result in [*twin.many(3), *twin.many(1)]:
        assert isinstance(result, ReauthRequired)
        assert str(result) == "there is no token set: somebody has to sign in"
    assert twin.store.load() is None
    assert provider.hits["token"] == 1
    twin.store.put(provider.sign_in())
    assert twin.token() in provider.access
    assert provider.hits["token"] == 2


@both
def test_an_empty_store_and_a_token_that_cannot_be_refreshed_need_a_sign_in(
    module: Any, provider: Provider, open_twin: Open, tmp_path: Path
) -> None:
    with pytest.raises(ReauthRequired, match=r"^there is no token set: somebody has to sign in$"):
        open_twin(module).token()
    lonely = Store(tmp_path / "lonely.db", TokenSet("old", None, 0.0))
    with pytest.raises(ReauthRequired, match=r"^the token has expired, and there is no refresh token$"):
        open_twin(module, store=lonely).token()
    assert provider.hits["token"] == 0


@both
def test_a_grant_that_another_process_had_rotated_is_taken_over_from_the_store(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    first = provider.sign_in()
    twin = open_twin(module, first)
    clock = twin.clock
    newer = provider.sign_in(expires_at=clock.wall + 3_600, life=3_600)
    provider.dead.add(provider.refresh[str(first.refresh_token)])
    clear = twin.store.save

    def another_was_faster(old: TokenSet | None, new: TokenSet | None) -> bool:
        if new is None:
            twin.store.put(newer)  # written by something that knows no claims
        return clear(old, new)

    twin.store.save = another_was_faster  # type: ignore[method-assign]
    assert twin.token() == newer.access_token
    assert provider.hits["token"] == 1
    stale = provider.sign_in(expires_at=clock.wall - 1)
    clock.passes(3_600)
    provider.dead.add(provider.refresh[str(newer.refresh_token)])
    newer = stale
    with pytest.raises(RefreshFailed, match=r"^the stored token set was changed during the refresh$"):
        twin.token()
    twin.store.save = clear  # type: ignore[method-assign]
    assert twin.token() in provider.access


@both
def test_a_sign_in_during_the_refresh_wins(module: Any, provider: Provider, open_twin: Open) -> None:
    twin = open_twin(module, provider.sign_in())
    newer = provider.sign_in(expires_at=twin.clock.wall + 3_600)
    save = twin.store.save

    def signed_in_meanwhile(old: TokenSet | None, new: TokenSet | None) -> bool:
        if new and not new.claimed_until:
            twin.store.put(newer)
        return save(old, new)

    twin.store.save = signed_in_meanwhile  # type: ignore[method-assign]
    assert twin.token() == newer.access_token
    assert twin.store.load() == newer


# Two processes.


@both
def test_another_process_refresh_is_used_and_not_repeated(module: Any, provider: Provider, open_twin: Open) -> None:
    clock = Clock()
    first = open_twin(module, provider.sign_in(), clock=clock)
    second = open_twin(module, clock=clock)
    token = first.token()
    assert second.token() == token
    clock.passes(3_590)
    renewed = second.token()
    assert renewed != token
    assert first.token() == renewed
    assert provider.hits["token"] == 2


@both
def test_while_another_process_refreshes_the_old_token_is_used_or_the_new_one_awaited(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    clock = Clock()
    old = provider.sign_in(expires_at=clock.wall + 30, life=3_600)
    twin = open_twin(module, old, clock=clock)
    claimed = TokenSet(old.access_token, old.refresh_token, old.expires_at, old.life, clock.wall + 30)
    twin.store.put(claimed)
    assert twin.token() == old.access_token  # within the margin, and good until then
    assert (provider.hits["token"], twin.slept) == (0, 0)
    clock.passes(29.5)
    clock.passes(0.5)
    twin.store.put(TokenSet(old.access_token, old.refresh_token, old.expires_at, old.life, clock.wall + 30))
    done = provider.sign_in(expires_at=clock.wall + 3_600, life=3_600)
    load = twin.store.load

    def finished_after_five_looks() -> TokenSet | None:
        if twin.slept == 5:
            twin.store.put(done)
        return load()

    twin.store.load = finished_after_five_looks  # type: ignore[method-assign]
    assert twin.token() == done.access_token
    assert (provider.hits["token"], twin.slept) == (0, 5)


@both
def test_a_claim_that_a_crash_left_behind_ends_with_its_lease(module: Any, provider: Provider, open_twin: Open) -> None:
    clock = Clock()
    old = provider.sign_in(expires_at=clock.wall)
    for until, waited in ((clock.wall + 2, 20), (clock.wall + 7_200, 0), (clock.wall - 1, 0)):
        provider.reset()
        old = provider.sign_in(expires_at=0.0)
        twin = open_twin(module, old, clock=clock)
        twin.store.put(TokenSet(old.access_token, old.refresh_token, 0.0, None, until))
        assert twin.token() in provider.access
        assert twin.slept == pytest.approx(waited, abs=1)
        assert provider.hits["token"] == 1


@both
def test_a_claim_of_our_own_that_could_not_be_released_is_not_waited_for(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    twin = open_twin(module, provider.sign_in())
    provider.canned = [(503, "{}")]
    save = twin.store.save

    def down_after_the_claim(old: TokenSet | None, new: TokenSet | None) -> bool:
        if new and new.claimed_until:
            return save(old, new)
        raise OSError("the disk is full")

    twin.store.save = down_after_the_claim  # type: ignore[method-assign]
    with pytest.raises(RefreshFailed, match=r"^the token store: OSError$"):
        twin.token()
    twin.store.save = save  # type: ignore[method-assign]
    left = twin.store.load()
    assert left
    assert left.claimed_until
    assert twin.token() in provider.access
    assert twin.slept == 0


@both
def test_a_claim_that_is_renewed_for_ever_is_not_waited_for_for_ever(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    old = provider.sign_in()
    twin = open_twin(module, old)
    load, monopoly = twin.store.load, twin.store

    def claimed_again() -> TokenSet | None:
        monopoly.put(TokenSet(old.access_token, old.refresh_token, 0.0, None, twin.clock.wall + 30))
        return load()

    twin.store.load = claimed_again  # type: ignore[method-assign]

    async def at_once(seconds: float) -> None: ...

    twin.manager._sleep = at_once if twin.is_async else lambda seconds: None
    with pytest.raises(RefreshFailed, match=r"^another process did not finish its refresh$"):
        twin.token()
    assert provider.hits["token"] == 0


@both
def test_of_two_processes_that_claim_at_once_the_second_uses_what_the_first_got(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    twin = open_twin(module, provider.sign_in())
    faster = provider.sign_in(expires_at=twin.clock.wall + 3_600, life=3_600)
    save = twin.store.save

    def too_late(old: TokenSet | None, new: TokenSet | None) -> bool:
        twin.store.put(faster)  # between our look and our claim
        return save(old, new)

    twin.store.save = too_late  # type: ignore[method-assign]
    assert twin.token() == faster.access_token
    assert (provider.hits["token"], twin.slept) == (0, 1)


def test_naive_lock_of_one_process_lets_two_workers_end_the_family(provider: Provider) -> None:
    first = provider.sign_in()
    lock_of_a, lock_of_b = threading.Lock(), threading.Lock()
    answers: list[dict[str, Any]] = []
    with httpx2.Client(verify=NO_TLS, auth=httpx2.BasicAuth("our+client", "canary%2Bsecret%2F%25" + "k" * 20)) as http:
        for lock in (lock_of_a, lock_of_b):  # each worker has read the same refresh token
            with lock:
                data = {"grant_type": "refresh_token", "refresh_token": str(first.refresh_token)}
                answers.append(http.post(f"{provider.url}/token", data=data).json())
    assert answers[1] == {"error": "invalid_grant"}
    assert not provider.alive(answers[0]["refresh_token"])


def test_two_processes_that_refresh_together_ask_once_and_the_family_stays_alive(
    provider: Provider, tmp_path: Path
) -> None:
    provider.slow = 0.05
    store = Store(tmp_path / "tokens.db", provider.sign_in())
    root = Path(kit.__file__).resolve().parents[3]
    path = os.pathsep.join([str(root / "tests"), str(root / "snippets" / "authentication")])
    command = [sys.executable, kit.__file__, f"{provider.url}/token", store.path]
    pipe = subprocess.PIPE
    workers = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, "PYTHONPATH": path})
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    tokens = [json.loads(worker.communicate(timeout=20)[0])["token"] for worker in workers]
    assert len(set(tokens)) == 1
    assert provider.hits["token"] == 1
    kept = store.load()
    assert kept
    assert provider.alive(kept.refresh_token)


# A 401 of the API.


@both
def test_a_401_refreshes_only_if_nobody_has_done_so_meanwhile(module: Any, provider: Provider, open_twin: Open) -> None:
    twin = open_twin(module, provider.sign_in())
    first = twin.token()
    second = twin.refresh_after_401(first)
    assert second != first
    assert twin.refresh_after_401(first) == second  # another call, which began with the old one
    assert provider.hits["token"] == 2
    provider.canned = [(503, "{}")]
    with pytest.raises(RefreshFailed):  # a token that was refused is not handed out again
        twin.refresh_after_401(second)
    assert twin.token() not in (first, second)


@both
def test_a_manager_that_has_not_begun_takes_a_401_too(module: Any, provider: Provider, open_twin: Open) -> None:
    twin = open_twin(module, provider.sign_in())
    assert twin.refresh_after_401("what somebody else had") in provider.access


@both
def test_a_call_whose_token_was_revoked_is_tried_once_more_with_a_new_one(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    twin = open_twin(module, provider.sign_in())
    provider.access.pop(twin.token())
    answer = twin.call("POST", f"{provider.url}/api", json={"a": 1})
    assert answer.status_code == 200
    assert provider.bodies == [b'{"a":1}'] * 2
    assert (provider.hits["token"], provider.hits["api"]) == (2, 2)


@both
def test_a_second_401_is_returned_and_not_tried_again(module: Any, provider: Provider, open_twin: Open) -> None:
    twin = open_twin(module, provider.sign_in())
    twin.token()
    provider.access = {}
    issue = provider._issue

    def worthless(family: str) -> tuple[str, str]:
        access, refresh = issue(family)
        provider.access.pop(access)
        return access, refresh

    provider._issue = worthless  # type: ignore[method-assign]
    try:
        answer = twin.call("GET", f"{provider.url}/api")
    finally:
        provider._issue = issue  # type: ignore[method-assign]
    assert answer.status_code == 401
    assert provider.hits["api"] == 2


@both
def test_a_streamed_body_is_not_sent_twice(module: Any, provider: Provider, open_twin: Open) -> None:
    twin = open_twin(module, provider.sign_in())
    first = twin.token()
    provider.access.pop(first)

    def chunks() -> Iterator[bytes]:
        yield b"once"

    async def achunks() -> AsyncIterator[bytes]:
        yield b"once"

    answer = twin.call("POST", f"{provider.url}/api", content=achunks() if twin.is_async else chunks())
    assert answer.status_code == 401
    assert provider.bodies == [b"once"]
    assert twin.token() != first  # the next call has a better one
    assert twin.call("GET", f"{provider.url}/api").status_code == 200


@both
def test_the_token_is_sent_to_its_origin_and_to_no_other_place(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    twin = open_twin(module, provider.sign_in())
    elsewhere = provider.url.replace("127.0.0.1", "localhost")
    assert twin.call("GET", f"{elsewhere}/api").status_code == 401
    assert provider.hits["token"] == 0  # not even asked for
    moved = twin.call("GET", f"{provider.url}/moved", params={"to": f"{elsewhere}/api"}, follow_redirects=True)
    assert (moved.status_code, str(moved.url)) == (401, f"{elsewhere}/api")
    for origin in ("http://api.example", "ftp://x", ""):
        with pytest.raises(ValueError, match=r"^origin must begin with https://$"):
            module.RefreshingAuth(twin.manager, origin=origin)


# How the client says who it is.


@pytest.mark.parametrize("way", ["basic", "form", "public"])
@both
def test_the_client_says_who_it_is_in_the_way_the_provider_wants(
    module: Any, provider: Provider, open_twin: Open, way: str
) -> None:
    provider.in_form, provider.public = way == "form", way == "public"
    twin = open_twin(module, provider.sign_in(), secret_in_form=way == "form", public=way == "public")
    assert twin.token() in provider.access
    assert provider.last["grant_type"] == "refresh_token"


@both
def test_a_client_in_its_own_name_needs_no_person_and_no_refresh_token(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    twin = open_twin(module, client_credentials=True)
    provider.canned = [(503, "{}")]
    with pytest.raises(RefreshFailed):
        twin.token()
    first = twin.token()
    assert provider.last == {"grant_type": "client_credentials"}
    assert twin.token() == first
    twin.clock.passes(3_600)
    assert twin.token() != first
    assert provider.hits["token"] == 3


@both
def test_a_client_that_follows_redirects_does_not_carry_the_secret_away(
    module: Any, provider: Provider, open_twin: Open
) -> None:
    twin = open_twin(module, provider.sign_in(), token_url=f"{provider.url}/moved?to={provider.url}/api")
    twin.http.follow_redirects = True
    twin.http.auth = ("somebody", "else")
    with pytest.raises(RefreshFailed, match="answered 405"):
        twin.token()
    assert provider.hits["api"] == 0


# Configuration, and secrets.


@pytest.mark.parametrize("name", ["OAUTH_TOKEN_URL", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET"])
@both
def test_a_missing_setting_stops_the_start_and_is_named(
    module: Any, provider: Provider, open_twin: Open, name: str
) -> None:
    twin = open_twin(module)
    environ = {
        "OAUTH_TOKEN_URL": f"{provider.url}/token\n",
        "OAUTH_CLIENT_ID": f" {CLIENT_ID}",
        "OAUTH_CLIENT_SECRET": CANARY,
    }
    made = module.TokenManager.from_env(twin.manager._store, http=twin.http, environ=environ, skew=5)
    assert (made._url, made._id, made._secret.get_secret_value(), made._skew) == (
        f"{provider.url}/token",
        CLIENT_ID,
        CANARY,
        5,
    )
    for value in (None, "", " "):
        lacking = {k: v for k, v in environ.items() if k != name} | ({name: value} if value is not None else {})
        with pytest.raises(RuntimeError, match=rf"^{name} is not set, or is empty$"):
            module.TokenManager.from_env(twin.manager._store, http=twin.http, environ=lacking)


@pytest.mark.parametrize(
    "url",
    ["http://provider.example/token", "wss://provider.example", "provider.example/token", "https://", "", "file:///x"],
)
def test_a_secret_is_sent_with_https_or_to_this_machine_only(url: str) -> None:
    with pytest.raises(ValueError, match=r"^token_url must begin with https://$"):
        Core(url, CLIENT_ID, SecretStr(CANARY))
    for fine in ("https://provider.example/token", "http://localhost/token", "http://[::1]/token"):
        assert Core(fine, CLIENT_ID, None)
    for client_id, secret in ((" ", SecretStr(CANARY)), (CLIENT_ID, SecretStr(""))):
        with pytest.raises(ValueError, match=r"^client_id and client_secret must not be empty$"):
            Core("https://provider.example/token", client_id, secret)


def test_a_token_set_survives_being_written_down() -> None:
    for tokens in (TokenSet("a", "r", 5.5, 3600.0, 7.0), TokenSet("a", None, None)):
        assert TokenSet.from_json(tokens.to_json()) == tokens
        assert TokenSet.from_json(tokens.to_json()).to_json() == tokens.to_json()  # so that texts can be compared


@both
def test_no_token_and_no_secret_is_shown_whatever_happens(
    module: Any, provider: Provider, open_twin: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = provider.sign_in()
    twin = open_twin(module, first)
    shown: list[str] = []
    hidden: list[str] = [CANARY, str(first.refresh_token), first.access_token]

    def attempt() -> None:
        try:
            hidden.append(twin.token())
        except (RefreshFailed, ReauthRequired) as error:
            chain: BaseException | None = error
            shown.extend(traceback.format_exception(error))
            while chain:
                shown.append(repr(chain))
                chain = chain.__context__
        kept = twin.store.load() if not twin.store.broken else None
        hidden.extend(str(kept.refresh_token) for kept in [kept] if kept)
        shown.append(f"{kept!r} {kept} {twin.manager!r} {twin.auth!r} {vars(twin.manager)!r}")

    for answer in ((503, CANARY), (200, CANARY), (400, json.dumps({"error": CANARY})), (200, '{"access_token": "é"}')):
        provider.canned = [answer]
        attempt()
    for broken in ("load", "save", "keep", ""):
        twin.store.broken = broken
        attempt()
    twin.clock.passes(3_600)
    attempt()
    provider.dead.update(provider.access.values())
    twin.clock.passes(3_600)
    attempt()
    attempt()
    everything = "\n".join([*shown, caplog.text])
    assert [value for value in hidden if value in everything] == []
    assert "ReauthRequired" in everything


# The test a reader copies, for their own store.


def my_store() -> Store:
    return Store(Path(os.environ["MY_STORE"]), TokenSet("first", "r", None))


@pytest.fixture(autouse=True)
def _my_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_STORE", str(tmp_path / "mine.db"))


# --8<-- [start:own]
from concurrent.futures import ThreadPoolExecutor

from token_core import TokenSet


def test_my_store_lets_one_of_many_replace_a_token_set() -> None:
    store = my_store()  # yours, for threads; it holds one set
    old = store.load()
    news = [TokenSet(f"access-{number}", "r", 1_800_000_000.5, 3600.0) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda new: store.save(old, new), news))
    assert done.count(True) == 1
    assert store.load() == news[done.index(True)]  # nothing was rounded, nothing lost
    assert store.save(old, None) is False
    assert store.save(store.load(), None) is True
    assert store.load() is None
    assert store.save(None, news[0]) is True


# --8<-- [end:own]
