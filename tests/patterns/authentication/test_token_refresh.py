"""Proves docs/patterns/authentication/token-refresh.md: one refresh for many callers, and no refresh token is lost."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
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

from harness.color import Color
from harness.tls import NOBODY
from harness.waiting import auntil, in_thread, until
from patterns.authentication import token_refresh_kit as kit
from patterns.authentication.token_refresh_kit import CANARY, CLIENT_ID, AsyncStore, Clocks, Managed, Provider, Store
from token_manager_async import AsyncRefreshingAuth, AsyncTokenManager
from token_manager_core import ReauthRequired, RefreshFailed, RefreshSettings, TokenSet
from token_manager_sync import RefreshingAuth, TokenManager


@pytest.fixture(scope="module")
def _provider() -> Iterator[Provider]:
    running = Provider()
    yield running
    running.stop()


@pytest.fixture
def provider(_provider: Provider) -> Provider:
    _provider.reset()
    return _provider


Open = Callable[..., Managed]


def opener(color: Color, provider: Provider, folder: Path) -> Open:
    def open_it(first: TokenSet | None = None, **settings: Any) -> Managed:
        store = settings.pop("store", None) or Store(folder / "tokens.db", first)
        return Managed(color, provider, store, settings.pop("clocks", None) or Clocks(), **settings)

    return open_it


@pytest.fixture
def open_manager(color: Color, provider: Provider, tmp_path: Path) -> Open:
    """Make managers of this color."""
    return opener(color, provider, tmp_path)


@pytest.fixture
def open_threads(provider: Provider, tmp_path: Path) -> Iterator[Open]:
    """Make managers for threads: for what tasks do in another way."""
    color = Color("sync")
    yield opener(color, provider, tmp_path)
    color.close()


# One refresh.


def test_a_hundred_callers_at_once_are_one_refresh_and_get_the_same_token(
    provider: Provider, open_manager: Open
) -> None:
    provider.slow = 0.02
    twin = open_manager(provider.sign_in())
    tokens = twin.many(100)
    assert provider.hits["token"] == 1
    assert len(set(tokens)) == 1
    assert tokens[0] in provider.access
    assert twin.token() == tokens[0]
    assert provider.hits["token"] == 1


def test_a_token_that_is_good_is_handed_out_without_any_request(provider: Provider, open_manager: Open) -> None:
    clocks = Clocks()
    first = provider.sign_in(expires_at=clocks.wall.now + 3_600)
    twin = open_manager(first, clocks=clocks)
    assert {twin.token() for _ in range(10)} == {first.access_token}
    assert provider.hits["token"] == 0


async def test_a_caller_that_is_cancelled_takes_the_token_from_nobody(provider: Provider, tmp_path: Path) -> None:
    provider.held = True
    store = AsyncStore(Store(tmp_path / "t.db", provider.sign_in()))
    async with httpx2.AsyncClient(verify=NOBODY) as http:
        manager = AsyncTokenManager(store, f"{provider.url}/token", CLIENT_ID, SecretStr(CANARY), http=http)
        callers = [asyncio.create_task(manager.token()) for _ in range(3)]
        await auntil(lambda: provider.hits["token"])
        callers[0].cancel()
        await asyncio.wait(callers[:1])
        provider.held = False
        got = await asyncio.gather(*callers, return_exceptions=True)
        assert isinstance(got[0], asyncio.CancelledError)
        assert got[1] == got[2] == await manager.token()
        assert provider.hits["token"] == 1


async def test_naive_await_of_a_shared_task_is_cancelled_for_all_by_one() -> None:
    async def refresh() -> str:
        await asyncio.Event().wait()  # the provider does not answer yet
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
    async with httpx2.AsyncClient(verify=NOBODY) as http:
        manager = AsyncTokenManager(store, f"{provider.url}/token", CLIENT_ID, SecretStr(CANARY), http=http)
        caller = asyncio.create_task(manager.token())
        await auntil(lambda: provider.hits["token"])
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
    async with httpx2.AsyncClient(verify=NOBODY) as http:
        manager = AsyncTokenManager(store, f"{provider.url}/token", CLIENT_ID, SecretStr(CANARY), http=http)
        caller = asyncio.create_task(manager.token())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert manager._flight
        manager._flight.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert manager._flight is None


def test_a_leader_that_is_interrupted_leaves_no_thread_waiting(open_threads: Open, provider: Provider) -> None:
    twin = open_threads(provider.sign_in())
    entered, go = threading.Event(), threading.Event()

    def interrupted() -> None:
        entered.set()
        go.wait(20)
        raise KeyboardInterrupt

    twin.manager._refresh = interrupted
    leader = in_thread(twin.token)
    assert entered.wait(20)
    follower = in_thread(twin.token)
    go.set()
    got = [leader.exception(20), follower.exception(20)]
    assert sorted(type(error).__name__ for error in got) in (
        ["KeyboardInterrupt", "RefreshFailed"],
        ["KeyboardInterrupt", "KeyboardInterrupt"],  # the second came when the first flight had ended
    )
    assert twin.manager._flight is None


def test_a_thread_that_comes_too_late_for_a_flight_does_not_refresh_again(
    open_threads: Open, provider: Provider
) -> None:
    twin = open_threads(provider.sign_in())
    good = twin.manager._good_tokens
    token = twin.token()
    looks: list[float] = []

    def late(skew: float) -> Any:
        looks.append(skew)
        return None if len(looks) == 1 else good(skew)  # its first look was before the flight landed

    twin.manager._good_tokens = late
    assert twin.token() == token
    assert provider.hits["token"] == 1


# When.


@pytest.mark.parametrize(
    ("life", "skew", "good_for"),
    [(3_600, 60, 3_540), (30, 60, 24), (300, 60, 240), (3_600, 0, 3_600), (10_000, 3_000, 8_000)],
)
def test_a_token_is_refreshed_a_margin_or_a_fifth_of_a_short_life_before_it_expires(
    provider: Provider, open_manager: Open, life: int, skew: float, good_for: float
) -> None:
    provider.extra = {"expires_in": life}
    twin = open_manager(provider.sign_in(), skew=skew)
    first = twin.token()
    twin.clocks.passes(good_for - 0.1)
    assert twin.token() == first
    twin.clocks.passes(0.2)
    assert twin.token() != first
    assert provider.hits["token"] == 2


def test_ten_calls_in_a_second_with_a_life_of_thirty_are_one_refresh(provider: Provider, open_manager: Open) -> None:
    provider.extra = {"expires_in": 30}
    twin = open_manager(provider.sign_in())
    for _ in range(10):
        twin.token()
        twin.clocks.passes(0.1)
    assert provider.hits["token"] == 1


def test_naive_expiry_without_a_margin_is_a_401_in_flight() -> None:
    now, expires_at, flight = 99.9, 100.0, 0.2
    assert not now >= expires_at  # "still valid", says the naive client
    assert now + flight >= expires_at  # and the API sees it expired


@pytest.mark.parametrize("value", [0, -5, True, False, None, "soon", "", "-1", "1e3", [], 1e300, "٣٦٠٠"])
def test_a_life_that_is_nonsense_means_used_once_and_no_loop(
    provider: Provider, open_manager: Open, value: Any
) -> None:
    provider.extra = {"expires_in": value}
    twin = open_manager(provider.sign_in())
    tokens = [twin.token() for _ in range(3)]
    assert len(set(tokens)) == 3
    assert provider.hits["token"] == 3


def test_a_life_that_is_nan_means_used_once(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in())
    answer = {"token_type": "bearer", "access_token": "nan", "expires_in": float("nan")}
    provider.canned = [(200, json.dumps(answer))]
    assert twin.token() == "nan"
    assert twin.token() != "nan"


@pytest.mark.parametrize("value", ["3600", 3600, 3600.5])
def test_a_life_may_be_written_as_a_text(provider: Provider, open_manager: Open, value: Any) -> None:
    provider.extra = {"expires_in": value}
    twin = open_manager(provider.sign_in())
    start = twin.clocks.wall.now
    twin.token()
    kept = twin.store.load()
    assert kept
    assert kept.expires_at == pytest.approx(start + 3_600, abs=1)
    assert twin.token() == kept.access_token


def test_a_token_of_unknown_life_is_used_until_the_api_refuses_it(provider: Provider, open_manager: Open) -> None:
    provider.extra = {}
    twin = open_manager(provider.sign_in())
    first = twin.token()
    twin.clocks.passes(10_000_000)
    assert twin.token() == first
    assert twin.refresh_after_401(first) != first
    assert provider.hits["token"] == 2


@pytest.mark.parametrize("jump", [-3_600.0, 3_600.0])
def test_a_wall_clock_that_jumps_an_hour_changes_nothing_for_a_token_of_our_own(
    provider: Provider, open_manager: Open, jump: float
) -> None:
    provider.extra = {"expires_in": 600}
    twin = open_manager(provider.sign_in())
    first = twin.token()
    twin.clocks.wall.now += jump
    twin.clocks.passes(500)
    assert twin.token() == first
    twin.clocks.passes(50)
    assert twin.token() != first
    assert provider.hits["token"] == 2


# Saved first, handed out second.


def test_the_new_refresh_token_is_saved_before_anybody_sees_the_access_token(
    provider: Provider, open_manager: Open
) -> None:
    first = provider.sign_in()
    twin = open_manager(first)
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


def test_a_save_that_fails_hands_out_nothing_and_is_repeated_without_another_refresh(
    provider: Provider, open_manager: Open
) -> None:
    twin = open_manager(provider.sign_in())
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
def test_a_store_that_is_down_is_a_failure_and_nothing_is_asked_of_the_provider(
    provider: Provider, open_manager: Open, broken: str
) -> None:
    twin = open_manager(provider.sign_in())
    twin.store.broken = broken
    with pytest.raises(RefreshFailed, match=r"^the token store: OperationalError$") as caught:
        twin.token()
    assert caught.value.__cause__ is None
    assert provider.hits["token"] == 0


def test_naive_refresh_token_kept_in_memory_locks_out_after_a_restart(provider: Provider) -> None:
    stored = provider.sign_in()  # what the naive client has on disk
    refresh = {"grant_type": "refresh_token", "refresh_token": stored.refresh_token or ""}
    with httpx2.Client(verify=NOBODY, auth=httpx2.BasicAuth("our+client", "canary%2Bsecret%2F%25" + "k" * 20)) as http:
        first = http.post(f"{provider.url}/token", data=refresh)
        assert first.status_code == 200  # the rotated one is kept in memory, and the process restarts
        again = http.post(f"{provider.url}/token", data=refresh)
        assert again.json() == {"error": "invalid_grant"}
        assert not provider.alive(first.json()["refresh_token"])  # and the whole family is dead


def test_an_answer_without_a_refresh_token_keeps_the_old_one(provider: Provider, open_manager: Open) -> None:
    provider.rotates = False
    first = provider.sign_in()
    twin = open_manager(first)
    for _ in range(2):
        twin.token()
        kept = twin.store.load()
        assert kept
        assert kept.refresh_token == first.refresh_token
        twin.clocks.passes(3_600)
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
def test_an_answer_that_is_no_token_is_a_failure_and_the_next_call_tries_again(
    provider: Provider, open_manager: Open, answer: tuple[int, str], message: str
) -> None:
    provider.canned = [answer]
    first = provider.sign_in()
    twin = open_manager(first)
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


def test_a_failure_reaches_all_who_wait_and_each_has_an_error_of_their_own(
    provider: Provider, open_manager: Open
) -> None:
    provider.canned, provider.held = [(503, "{}")], True
    twin = open_manager(provider.sign_in())
    callers = [in_thread(twin.token) for _ in range(20)]
    until(lambda: provider.hits["token"])
    provider.held = False
    failures = [caller.exception(20) for caller in callers if caller.exception(20)]
    assert {type(failure) for failure in failures} == {RefreshFailed}
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


def test_a_token_that_is_still_valid_is_used_while_the_provider_fails(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in())
    first = twin.token()
    twin.clocks.passes(3_550)  # within the margin
    provider.canned = [(503, "{}")] * 3
    assert [twin.token(), twin.token()] == [first, first]
    twin.clocks.passes(50)  # expired
    with pytest.raises(RefreshFailed):
        twin.token()
    assert twin.token() != first


def test_a_provider_that_hangs_is_given_up_in_time(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in(), timeout=0.05)
    provider.hanging = True
    expected = twin.color.pick("TimeoutError", "(Connect|Write|Read)Timeout")
    with pytest.raises(RefreshFailed, match=rf"^the token endpoint: {expected}$") as caught:
        twin.token()
    assert caught.value.__cause__ is None
    provider.hanging = False
    twin.manager._settings = dataclasses.replace(twin.manager._settings, timeout=10)
    assert twin.token() in provider.access


def test_a_provider_that_cannot_be_reached_is_a_failure(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in(), token_url="http://127.0.0.1:1/token")
    with pytest.raises(RefreshFailed, match=r"^the token endpoint: ConnectError$"):
        twin.token()


# The grant has ended.


def test_a_grant_that_has_ended_needs_a_sign_in_and_is_not_asked_for_before_that(
    provider: Provider, open_manager: Open
) -> None:
    first = provider.sign_in()
    provider.dead.add(provider.refresh[str(first.refresh_token)])
    twin = open_manager(first)
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


def test_an_empty_store_and_a_token_that_cannot_be_refreshed_need_a_sign_in(
    provider: Provider, open_manager: Open, tmp_path: Path
) -> None:
    with pytest.raises(ReauthRequired, match=r"^there is no token set: somebody has to sign in$"):
        open_manager().token()
    lonely = Store(tmp_path / "lonely.db", TokenSet("old", None, 0.0))
    with pytest.raises(ReauthRequired, match=r"^the token has expired, and there is no refresh token$"):
        open_manager(store=lonely).token()
    assert provider.hits["token"] == 0


def test_a_grant_that_another_process_had_rotated_is_taken_over_from_the_store(
    provider: Provider, open_manager: Open
) -> None:
    first = provider.sign_in()
    twin = open_manager(first)
    clocks = twin.clocks
    newer = provider.sign_in(expires_at=clocks.wall.now + 3_600, life=3_600)
    provider.dead.add(provider.refresh[str(first.refresh_token)])
    clear = twin.store.save

    def another_was_faster(old: TokenSet | None, new: TokenSet | None) -> bool:
        if new is None:
            twin.store.put(newer)  # written by something that knows no claims
        return clear(old, new)

    twin.store.save = another_was_faster  # type: ignore[method-assign]
    assert twin.token() == newer.access_token
    assert provider.hits["token"] == 1
    stale = provider.sign_in(expires_at=clocks.wall.now - 1)
    clocks.passes(3_600)
    provider.dead.add(provider.refresh[str(newer.refresh_token)])
    newer = stale
    with pytest.raises(RefreshFailed, match=r"^the stored token set was changed during the refresh$"):
        twin.token()
    twin.store.save = clear  # type: ignore[method-assign]
    assert twin.token() in provider.access


def test_a_sign_in_during_the_refresh_wins(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in())
    newer = provider.sign_in(expires_at=twin.clocks.wall.now + 3_600)
    save = twin.store.save

    def signed_in_meanwhile(old: TokenSet | None, new: TokenSet | None) -> bool:
        if new and not new.claimed_until:
            twin.store.put(newer)
        return save(old, new)

    twin.store.save = signed_in_meanwhile  # type: ignore[method-assign]
    assert twin.token() == newer.access_token
    assert twin.store.load() == newer


# Two processes.


def test_another_process_refresh_is_used_and_not_repeated(provider: Provider, open_manager: Open) -> None:
    clocks = Clocks()
    first = open_manager(provider.sign_in(), clocks=clocks)
    second = open_manager(clocks=clocks)
    token = first.token()
    assert second.token() == token
    clocks.passes(3_590)
    renewed = second.token()
    assert renewed != token
    assert first.token() == renewed
    assert provider.hits["token"] == 2


def test_while_another_process_refreshes_the_old_token_is_used_or_the_new_awaited(
    provider: Provider, open_manager: Open
) -> None:
    clocks = Clocks()
    old = provider.sign_in(expires_at=clocks.wall.now + 30, life=3_600)
    twin = open_manager(old, clocks=clocks)
    claimed = TokenSet(old.access_token, old.refresh_token, old.expires_at, old.life, clocks.wall.now + 30)
    twin.store.put(claimed)
    assert twin.token() == old.access_token  # within the margin, and good until then
    assert (provider.hits["token"], twin.slept) == (0, 0)
    clocks.passes(29.5)
    clocks.passes(0.5)
    twin.store.put(TokenSet(old.access_token, old.refresh_token, old.expires_at, old.life, clocks.wall.now + 30))
    done = provider.sign_in(expires_at=clocks.wall.now + 3_600, life=3_600)
    load = twin.store.load

    def finished_after_five_looks() -> TokenSet | None:
        if twin.slept == 5:
            twin.store.put(done)
        return load()

    twin.store.load = finished_after_five_looks  # type: ignore[method-assign]
    assert twin.token() == done.access_token
    assert (provider.hits["token"], twin.slept) == (0, 5)


def test_a_claim_that_a_crash_left_behind_ends_with_its_lease(provider: Provider, open_manager: Open) -> None:
    clocks = Clocks()
    old = provider.sign_in(expires_at=clocks.wall.now)
    for claimed_until, waited in ((clocks.wall.now + 2, 20), (clocks.wall.now + 7_200, 0), (clocks.wall.now - 1, 0)):
        provider.reset()
        old = provider.sign_in(expires_at=0.0)
        twin = open_manager(old, clocks=clocks)
        twin.store.put(TokenSet(old.access_token, old.refresh_token, 0.0, None, claimed_until))
        assert twin.token() in provider.access
        assert twin.slept == pytest.approx(waited, abs=1)
        assert provider.hits["token"] == 1


def test_a_claim_of_our_own_that_could_not_be_released_is_not_waited_for(
    provider: Provider, open_manager: Open
) -> None:
    twin = open_manager(provider.sign_in())
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


def test_a_claim_that_is_renewed_forever_is_not_waited_for_forever(provider: Provider, open_manager: Open) -> None:
    old = provider.sign_in()
    twin = open_manager(old)
    load, monopoly = twin.store.load, twin.store

    def claimed_again() -> TokenSet | None:
        monopoly.put(TokenSet(old.access_token, old.refresh_token, 0.0, None, twin.clocks.wall.now + 30))
        return load()

    twin.store.load = claimed_again  # type: ignore[method-assign]
    twin.manager._sleep = twin.color.quick(lambda seconds: None)
    with pytest.raises(RefreshFailed, match=r"^another process did not finish its refresh$"):
        twin.token()
    assert provider.hits["token"] == 0


def test_of_two_processes_that_claim_at_once_the_second_uses_what_the_first_got(
    provider: Provider, open_manager: Open
) -> None:
    twin = open_manager(provider.sign_in())
    faster = provider.sign_in(expires_at=twin.clocks.wall.now + 3_600, life=3_600)
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
    with httpx2.Client(verify=NOBODY, auth=httpx2.BasicAuth("our+client", "canary%2Bsecret%2F%25" + "k" * 20)) as http:
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


def test_a_401_refreshes_only_if_nobody_has_done_so_meanwhile(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in())
    first = twin.token()
    second = twin.refresh_after_401(first)
    assert second != first
    assert twin.refresh_after_401(first) == second  # another call, which began with the old one
    assert provider.hits["token"] == 2
    provider.canned = [(503, "{}")]
    with pytest.raises(RefreshFailed):  # a token that was refused is not handed out again
        twin.refresh_after_401(second)
    assert twin.token() not in (first, second)


def test_a_manager_that_has_not_begun_takes_a_401_too(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in())
    assert twin.refresh_after_401("what somebody else had") in provider.access


def test_a_call_whose_token_was_revoked_is_tried_once_more_with_a_new_one(
    provider: Provider, open_manager: Open
) -> None:
    twin = open_manager(provider.sign_in())
    provider.access.pop(twin.token())
    answer = twin.call("POST", f"{provider.url}/api", json={"a": 1})
    assert answer.status_code == 200
    assert provider.bodies == [b'{"a":1}'] * 2
    assert (provider.hits["token"], provider.hits["api"]) == (2, 2)


def test_a_second_401_is_returned_and_not_tried_again(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in())
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


def test_a_streamed_body_is_not_sent_twice(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in())
    first = twin.token()
    provider.access.pop(first)

    def chunks() -> Iterator[bytes]:
        yield b"once"

    async def achunks() -> AsyncIterator[bytes]:
        yield b"once"

    answer = twin.call("POST", f"{provider.url}/api", content=twin.color.pick(achunks, chunks)())
    assert answer.status_code == 401
    assert provider.bodies == [b"once"]
    assert twin.token() != first  # the next call has a better one
    assert twin.call("GET", f"{provider.url}/api").status_code == 200


def test_the_token_is_sent_to_its_origin_and_to_no_other_place(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in())
    elsewhere = provider.url.replace("127.0.0.1", "localhost")
    assert twin.call("GET", f"{elsewhere}/api").status_code == 401
    assert provider.hits["token"] == 0  # not even asked for
    moved = twin.call("GET", f"{provider.url}/moved", params={"to": f"{elsewhere}/api"}, follow_redirects=True)
    assert (moved.status_code, str(moved.url)) == (401, f"{elsewhere}/api")
    auth: Any = twin.color.pick(AsyncRefreshingAuth, RefreshingAuth)
    for origin in ("http://api.example", "ftp://x", ""):
        with pytest.raises(ValueError, match=r"^origin must begin with https://$"):
            auth(twin.manager, origin=origin)


# How the client says who it is.


@pytest.mark.parametrize("way", ["basic", "form", "public"])
def test_the_client_says_who_it_is_in_the_way_the_provider_wants(
    provider: Provider, open_manager: Open, way: str
) -> None:
    provider.in_form, provider.public = way == "form", way == "public"
    twin = open_manager(provider.sign_in(), secret_in_form=way == "form", public=way == "public")
    assert twin.token() in provider.access
    assert provider.last["grant_type"] == "refresh_token"


def test_a_client_in_its_own_name_needs_no_person_and_no_refresh_token(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(client_credentials=True)
    provider.canned = [(503, "{}")]
    with pytest.raises(RefreshFailed):
        twin.token()
    first = twin.token()
    assert provider.last == {"grant_type": "client_credentials"}
    assert twin.token() == first
    twin.clocks.passes(3_600)
    assert twin.token() != first
    assert provider.hits["token"] == 3


def test_a_client_that_follows_redirects_does_not_carry_the_secret_away(provider: Provider, open_manager: Open) -> None:
    twin = open_manager(provider.sign_in(), token_url=f"{provider.url}/moved?to={provider.url}/api")
    twin.http.follow_redirects = True
    twin.http.auth = ("somebody", "else")
    with pytest.raises(RefreshFailed, match="answered 405"):
        twin.token()
    assert provider.hits["api"] == 0


# Configuration, and secrets.


@pytest.mark.parametrize("name", ["OAUTH_TOKEN_URL", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET"])
def test_a_missing_setting_stops_the_start_and_is_named(provider: Provider, open_manager: Open, name: str) -> None:
    twin = open_manager()
    environ = {
        "OAUTH_TOKEN_URL": f"{provider.url}/token\n",
        "OAUTH_CLIENT_ID": f" {CLIENT_ID}",
        "OAUTH_CLIENT_SECRET": CANARY,
    }
    kind: Any = twin.color.pick(AsyncTokenManager, TokenManager)
    url = f"{provider.url}/token"
    made = kind.from_env(twin.store_in_color, http=twin.http, environ=environ)
    assert made._settings == RefreshSettings(url, CLIENT_ID, SecretStr(CANARY))
    others: dict[str, Any] = {"skew": 5, "timeout": 3, "secret_in_form": True, "client_credentials": True}
    made = kind.from_env(twin.store_in_color, http=twin.http, environ=environ, **others)
    assert made._settings == RefreshSettings(url, CLIENT_ID, SecretStr(CANARY), **others)
    for value in (None, "", " "):
        lacking = {k: v for k, v in environ.items() if k != name} | ({name: value} if value is not None else {})
        with pytest.raises(RuntimeError, match=rf"^{name} is not set, or is empty$"):
            kind.from_env(twin.store_in_color, http=twin.http, environ=lacking)


@pytest.mark.parametrize("value", [-1, True, float("nan"), float("inf"), "60", None])
def test_a_number_of_seconds_that_is_none_stops_the_start(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^skew must be a number of seconds from 0, got {value!r}$"):
        RefreshSettings("https://provider.example/token", CLIENT_ID, None, skew=value)
    for other in (value, 0):
        with pytest.raises(ValueError, match=rf"^timeout must be a number of seconds over 0, got {other!r}$"):
            RefreshSettings("https://provider.example/token", CLIENT_ID, None, timeout=other)


def test_both_managers_have_the_same_methods_and_arguments() -> None:
    for of_async, of_sync in ((AsyncTokenManager, TokenManager), (AsyncRefreshingAuth, RefreshingAuth)):
        names = {name for name in vars(of_sync) if not name.startswith("_")} - {"sync_auth_flow"}
        assert names == {name for name in vars(of_async) if not name.startswith("_")} - {"async_auth_flow"}
        for name in (*names, "__init__"):
            one, two = (inspect.signature(getattr(kind, name)).parameters.values() for kind in (of_async, of_sync))
            assert [(each.name, each.kind) for each in one] == [(each.name, each.kind) for each in two]


@pytest.mark.parametrize(
    "url",
    ["http://provider.example/token", "wss://provider.example", "provider.example/token", "https://", "", "file:///x"],
)
def test_a_secret_is_sent_with_https_or_to_this_machine_only(url: str) -> None:
    with pytest.raises(ValueError, match=r"^token_url must begin with https://$"):
        RefreshSettings(url, CLIENT_ID, SecretStr(CANARY))
    for fine in ("https://provider.example/token", "http://localhost/token", "http://[::1]/token"):
        assert RefreshSettings(fine, CLIENT_ID, None)
    for client_id, secret in ((" ", SecretStr(CANARY)), (CLIENT_ID, SecretStr(""))):
        with pytest.raises(ValueError, match=r"^client_id and client_secret must not be empty$"):
            RefreshSettings("https://provider.example/token", client_id, secret)


def test_a_token_set_survives_being_written_down() -> None:
    for tokens in (TokenSet("a", "r", 5.5, 3600.0, 7.0), TokenSet("a", None, None)):
        assert TokenSet.from_json(tokens.to_json()) == tokens
        assert TokenSet.from_json(tokens.to_json()).to_json() == tokens.to_json()  # so that texts can be compared


def test_no_token_and_no_secret_is_shown_whatever_happens(
    provider: Provider, open_manager: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = provider.sign_in()
    twin = open_manager(first)
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
    twin.clocks.passes(3_600)
    attempt()
    provider.dead.update(provider.access.values())
    twin.clocks.passes(3_600)
    attempt()
    attempt()
    everything = "\n".join([*shown, caplog.text])
    assert [value for value in hidden if value in everything] == []
    assert "ReauthRequired" in everything
