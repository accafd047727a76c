"""Proves docs/patterns/authentication/api-key.md: keys are made, stored as digests, checked and refused alike."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import logging
import re
import time
import traceback
import zlib
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import api_keys
from api_key_guard import require_api_key
from api_keys import InvalidApiKey, KeyRecord, check, issue, load_pepper, parse
from harness.clock import Clock
from harness.depth import examples
from patterns.authentication.api_key_kit import NOW, Store, application

FORM = re.compile(r"acme_live_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}[0-9A-Za-z]{6}")
INVALID = {"detail": "Invalid API key"}
PEPPER = b"p" * 32


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def made(**options: Any) -> api_keys.IssuedKey:
    return issue("ada", {"read"}, brand="acme", clock=lambda: NOW, **options)


def refusal(record: KeyRecord, text: str, now: float = NOW, **options: Any) -> str:
    with pytest.raises(InvalidApiKey) as caught:
        check(record, text, now, **options)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def client(store: Store, clock: Clock) -> TestClient:
    return TestClient(application(store, clock))


# Form.


def test_ten_thousand_keys_are_unique_and_have_the_form() -> None:
    keys = [issue("ada", (), brand="acme").plaintext for _ in range(10_000)]
    assert len(set(keys)) == 10_000
    assert len({key.split("_")[2] for key in keys}) == 10_000
    assert all(FORM.fullmatch(key) for key in keys)
    assert 62**43 > 2**256  # so many secrets there are
    assert {character for key in keys[:500] for character in key.split("_")[3][:43]} == set(api_keys._ALPHABET)


def test_the_last_six_characters_are_the_crc_32_of_the_rest() -> None:
    text = made().plaintext
    number = 0
    for digit in text[-6:]:
        number = number * 62 + api_keys._ALPHABET.index(digit)
    assert number == zlib.crc32(text[:-6].encode())
    assert api_keys._ALPHABET == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def test_the_parts_of_a_key_are_read_back() -> None:
    issued = issue("ada", ["b", "a"], brand="acme2", env="test", expires_at=9.5, clock=lambda: 5.0)
    parsed = parse(issued.plaintext)
    key_id = issued.record.key_id
    assert parsed == api_keys.ParsedKey(f"acme2_test_{key_id}", "acme2", "test", key_id)
    assert str(parsed) == f"acme2_test_{key_id}…"
    record = issued.record
    assert (record.owner, record.scopes, record.created_at) == ("ada", frozenset({"a", "b"}), 5.0)
    assert (record.expires_at, record.revoked_at, record.last_used_at) == (9.5, None, None)
    assert issue("ada", (), brand="acme").record.created_at == pytest.approx(time.time(), abs=5)


@pytest.mark.parametrize("brand", ["a", "Acme", "1acme", "ac_me", "", "a" * 17, "ä" * 3, "acme\n"])
def test_a_brand_that_would_break_the_form_is_refused(brand: str) -> None:
    with pytest.raises(ValueError, match=r"^brand is 2 to 16 of a-z and 0-9"):
        issue("ada", (), brand=brand)
    for good in ("a1", "a" * 16):
        parse(issue("ada", (), brand=good).plaintext)


@pytest.mark.parametrize("env", ["l", "Live", "live1", "", "a" * 9])
def test_an_environment_that_would_break_the_form_is_refused(env: str) -> None:
    with pytest.raises(ValueError, match=r"env is 2 to 8 of a-z$"):
        issue("ada", (), brand="acme", env=env)
    for good in ("qa", "a" * 8):
        assert parse(issue("ada", (), brand="acme", env=good).plaintext).env == good


def test_scopes_given_as_one_text_are_refused_and_not_taken_for_letters() -> None:
    assert frozenset("read") == {"r", "e", "a", "d"}  # what the naive set() makes of it
    with pytest.raises(ValueError, match=r"^scopes is a set or a list of names, not one text$"):
        issue("ada", "read", brand="acme")


def test_what_is_handed_out_cannot_be_changed_and_shows_neither_key_nor_digest() -> None:
    issued = made()
    for item in (issued, issued.record, parse(issued.plaintext)):
        name = dataclasses.fields(item)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(item, name, "x")
        assert not hasattr(item, "__dict__")
        assert "digest" not in repr(item)
        assert "plaintext" not in repr(item)


@given(st.text() | st.from_regex(r"[a-z]{1,17}_[a-z]{1,9}_\w{7,9}_\w{48,50}", fullmatch=True))
@settings(max_examples=examples(100), deadline=None, database=None)
def test_whatever_is_presented_the_answer_is_invalid_api_key_and_repeats_none_of_it(text: str) -> None:
    with pytest.raises(InvalidApiKey, match=r"^(not the form of a key|wrong checksum)$"):
        parse(text)
    assert refusal(made().record, text) == "wrong secret"


def test_any_changed_character_is_a_wrong_checksum_or_another_form() -> None:
    text = made().plaintext
    for place in range(len(text)):
        changed = text[:place] + ("x" if text[place] != "x" else "y") + text[place + 1 :]
        with pytest.raises(InvalidApiKey):
            parse(changed)
    for changed in (text.lower(), text + "\n", " " + text, text[:-1], text + "0", text + "\x00", ""):
        with pytest.raises(InvalidApiKey):
            parse(changed)


# What is stored.


def test_no_stored_value_contains_eight_characters_of_the_secret() -> None:
    store = Store()
    text = store.new()
    stored = "\n".join(map(str, store.db.execute("SELECT * FROM api_keys").fetchone()))
    stored += str(store.db.serialize())
    secret = text.split("_")[3]
    runs = {secret[start : start + 8] for start in range(len(secret) - 7)}
    assert not [run for run in runs if run in stored]
    assert not [field for field in dataclasses.fields(KeyRecord) if "plain" in field.name]


def test_the_stored_digest_is_the_sha_256_of_the_whole_key_or_its_hmac_with_a_pepper() -> None:
    issued = made()
    assert issued.record.digest == hashlib.sha256(issued.plaintext.encode()).digest()
    peppered = made(pepper=PEPPER)
    assert peppered.record.digest == hmac.new(PEPPER, peppered.plaintext.encode(), hashlib.sha256).digest()
    check(peppered.record, peppered.plaintext, NOW, pepper=PEPPER)
    assert refusal(peppered.record, peppered.plaintext) == "wrong secret"  # forgotten: nobody gets in
    assert refusal(peppered.record, peppered.plaintext, pepper=b"q" * 32) == "wrong secret"


def test_a_pepper_that_is_too_short_stops_the_start_without_being_printed() -> None:
    assert load_pepper(None) is None
    for enough in ("é" * 32, "x" * 33):
        assert load_pepper(enough) == enough.encode()
    for short in ("", "hunter2", "h" * 31):
        with pytest.raises(ValueError, match=r"^API_KEY_PEPPER has fewer than 32 characters; unset it") as caught:
            load_pepper(short)
        assert not short or short not in str(caught.value)


def test_naive_plain_text_keys_are_all_customers_in_one_read_and_digests_are_none() -> None:
    naive = {"ada": made().plaintext}  # a table of keys as they are
    stolen = naive["ada"]
    assert parse(stolen)  # and it works
    store = Store()
    store.new()
    (digest,) = store.db.execute("SELECT digest FROM api_keys").fetchone()
    for guess in (digest.hex(), digest.decode("latin-1")):
        with pytest.raises(InvalidApiKey):
            parse(guess)


# Checks.


def test_a_key_is_good_until_the_instant_it_expires_and_never_after() -> None:
    issued = made(expires_at=NOW + 10)
    check(issued.record, issued.plaintext, NOW + 9.999)
    assert refusal(issued.record, issued.plaintext, NOW + 10) == "expired"
    assert refusal(issued.record, issued.plaintext, NOW + 11) == "expired"
    assert refusal(issued.record, issued.plaintext, float("nan")) == "expired"  # a broken clock lets nobody in


def test_a_revoked_key_is_refused_whatever_the_time_of_its_revocation() -> None:
    issued = made()
    check(issued.record, issued.plaintext, NOW)
    for at in (0.0, NOW, NOW + 3600):
        assert refusal(dataclasses.replace(issued.record, revoked_at=at), issued.plaintext) == "revoked"


def test_without_the_secret_nobody_learns_that_a_key_was_revoked_or_has_expired() -> None:
    record = dataclasses.replace(made(expires_at=NOW).record, revoked_at=NOW)
    assert refusal(record, made().plaintext) == "wrong secret"


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), "tomorrow"])
def test_an_expiry_that_is_no_moment_is_refused_when_the_key_is_made(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^expires_at must be a number of seconds or None, got {value!r}$"):
        made(expires_at=value)


def test_naive_comparison_of_texts_crashes_on_a_key_that_is_not_ascii() -> None:
    issued = made()
    with pytest.raises(TypeError):  # a 500
        hmac.compare_digest(issued.plaintext, "é")
    for text in ("é", "\udcff", "\U0001f511"):
        assert refusal(issued.record, text) == "wrong secret"


def test_a_thousand_checks_take_less_than_a_second_of_computing() -> None:
    issued = made()
    begin = time.thread_time()
    for _ in range(1_000):
        parse(issued.plaintext)
        check(issued.record, issued.plaintext, NOW)
    assert time.thread_time() - begin < 1


# The route.


def test_a_valid_key_passes_in_either_header_and_the_scheme_has_no_case(client: TestClient, store: Store) -> None:
    text = store.new()
    for headers in (bearer(text), {"X-API-Key": text}, {"authorization": f"bEARER {text}"}):
        answer = client.get("/reports", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"owner": "ada"})


def test_every_refusal_of_a_key_looks_the_same(
    client: TestClient, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = made()
    store.add(dataclasses.replace(wrong, record=dataclasses.replace(wrong.record, digest=b"x" * 32)))
    revoked, expired = store.new(), store.new(expires_at=NOW)
    store.revoke(revoked)
    unknown = made().plaintext
    sent: dict[str, dict[str, str]] = {
        "no key": {},
        "not the form of a key": bearer("nonsense"),
        "wrong checksum": bearer(unknown[:-1] + ("0" if unknown[-1] != "0" else "1")),
        "unknown id": bearer(unknown),
        "wrong secret": bearer(wrong.plaintext),
        "revoked": bearer(revoked),
        "expired": bearer(expired),
        "more than one key": bearer(unknown) | {"X-API-Key": unknown},
    }
    for reason, headers in sent.items():
        caplog.clear()
        answer = client.get("/reports", headers=headers)
        assert (answer.status_code, answer.json()) == (401, INVALID), reason
        assert answer.headers["www-authenticate"] == "Bearer"
        (logged,) = [record.getMessage() for record in caplog.records if record.name == "api_key_guard"]
        assert logged.endswith(f"refused: {reason}")
        if reason in ("no key", "wrong checksum"):
            assert logged.startswith("API key - ")
    client.get("/reports", headers=bearer(expired))
    assert f"API key acme_live_{expired.split('_')[2]}… refused: expired" in caplog.text


def test_a_key_without_the_scope_is_403_and_one_with_all_scopes_passes(client: TestClient, store: Store) -> None:
    reader, admin = store.new(), store.new(scopes=("admin", "read", "more"))
    answer = client.get("/admin", headers=bearer(reader))
    assert (answer.status_code, answer.json()) == (403, {"detail": "The API key does not allow this"})
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'
    assert client.get("/admin", headers=bearer(admin)).status_code == 200
    assert client.get("/whoami", headers=bearer(store.new(scopes=()))).status_code == 200


def test_a_wrong_checksum_costs_no_look_up(client: TestClient, store: Store) -> None:
    text = store.new()
    typo = text[:30] + ("a" if text[30] != "a" else "b") + text[31:]
    hostile = ["\U0001f511", "\x00", "é", "x" * 8_192, "", "None", typo, text.lower(), f"{text},{text}"]
    for key in hostile:
        headers = [(b"authorization", b"Bearer " + key.encode())]
        assert client.get("/reports", headers=headers).status_code == 401
    assert store.looked_up == []
    assert client.get("/reports", headers=bearer(text)).status_code == 200
    assert len(store.looked_up) == 1


def test_two_keys_of_one_owner_are_good_and_a_revocation_holds_from_the_next_request(
    client: TestClient, store: Store
) -> None:
    old, new = store.new(), store.new()
    for key in (old, new):
        assert client.get("/reports", headers=bearer(key)).json() == {"owner": "ada"}
    store.revoke(old)
    assert client.get("/reports", headers=bearer(old)).status_code == 401
    assert client.get("/reports", headers=bearer(new)).status_code == 200


def test_of_fifty_requests_in_flight_the_one_whose_key_is_revoked_is_refused() -> None:
    class Slow(Store):
        open: asyncio.Event

        async def get(self, key_id: str) -> KeyRecord | None:
            self.looked_up.append(key_id)
            await self.open.wait()
            return await Store.get(self, key_id)

    async def main() -> list[int]:
        slow = Slow()
        slow.open = asyncio.Event()
        keys = [slow.new() for _ in range(50)]
        transport = httpx2.ASGITransport(application(slow))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            flying = [asyncio.create_task(client.get("/reports", headers=bearer(key))) for key in keys]
            while len(slow.looked_up) < 50:
                await asyncio.sleep(0)
            slow.revoke(keys[7])
            slow.open.set()
            return [(await task).status_code for task in flying]

    statuses = asyncio.run(main())
    assert [place for place, status in enumerate(statuses) if status == 401] == [7]
    assert statuses.count(200) == 49


def test_last_used_at_is_written_at_most_once_a_minute_for_each_key(
    client: TestClient, store: Store, clock: Clock
) -> None:
    text, other = store.new(), store.new()
    for _ in range(20):
        client.get("/reports", headers=bearer(text))
        clock.now += 1
    assert (store.written, len(store.touched)) == (1, 1)
    client.get("/reports", headers=bearer(other))
    assert store.written == 2
    for moment in (NOW + 59.9, NOW - 3_600):  # also when the clock is set back
        clock.now = moment
        client.get("/reports", headers=bearer(text))
        assert (store.written, len(store.touched)) == (2, 2)
    clock.now = NOW + 60
    client.get("/admin", headers=bearer(text))  # a 403 is a use of the key, too
    assert store.written == 3
    record = asyncio.run(store.get(text.split("_")[2]))
    assert record is not None
    assert record.last_used_at == NOW + 60
    clock.now = NOW + 1_000
    client.get("/reports", headers=bearer(text))
    assert store.written == 4


def test_parallel_requests_of_one_key_write_last_used_at_once(store: Store) -> None:
    async def main() -> None:
        transport = httpx2.ASGITransport(application(store))
        text = store.new()
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = await asyncio.gather(*(client.get("/reports", headers=bearer(text)) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}

    asyncio.run(main())
    assert store.written == 1


def test_a_store_that_is_down_is_503_and_never_401(
    client: TestClient, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    text = store.new()
    store.fail = OSError("connection refused")
    answer = client.get("/reports", headers=bearer(text))
    assert (answer.status_code, answer.json()) == (503, {"detail": "Try again later"})
    assert answer.headers["retry-after"] == "5"
    assert "connection refused" in caplog.text
    assert "connection refused" not in answer.text


def test_a_note_that_cannot_be_written_refuses_no_good_key(
    client: TestClient, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    text = store.new()
    store.fail_touch = OSError("read-only")
    assert client.get("/reports", headers=bearer(text)).status_code == 200
    assert "last_used_at of an API key was not written" in caplog.text


def test_two_keys_in_one_request_are_refused_even_if_both_are_good(client: TestClient, store: Store) -> None:
    one, two = store.new(), store.new()
    doubled: list[Any] = [
        bearer(one) | {"X-API-Key": two},
        bearer(one) | {"X-API-Key": one},  # RFC 6750: no client sends a token in two ways
        [("X-API-Key", one), ("X-API-Key", two)],
        [("Authorization", f"Bearer {one}"), ("Authorization", f"Bearer {two}")],
        {"Authorization": "Basic dTpw", "X-API-Key": one},
    ]
    for headers in doubled:
        assert client.get("/reports", headers=headers).status_code == 401
    assert store.looked_up == []


def test_a_key_in_the_query_lands_in_access_logs_and_is_ignored(client: TestClient, store: Store) -> None:
    text = store.new()
    for name in ("api_key", "access_token", "key", "X-API-Key"):
        answer = client.get("/reports", params={name: text})
        assert text in str(answer.request.url)  # what an access log writes
        assert answer.status_code == 401
    assert store.looked_up == []


@pytest.mark.parametrize("scheme", ["Basic ", "Token ", "", "Bearer", "Bearer  ", "Bearer\t"])
def test_another_scheme_is_no_key(client: TestClient, store: Store, scheme: str) -> None:
    text = store.new()
    assert client.get("/reports", headers={"Authorization": scheme + text}).status_code == 401


def test_naive_look_up_by_comparing_every_row_costs_a_row_each_and_ours_costs_one() -> None:
    store = Store()
    keys = [store.new() for _ in range(200)]
    rows = store.db.execute("SELECT digest FROM api_keys").fetchall()
    compared = 0
    for (digest,) in rows:  # and the time it takes tells how far down the key was
        compared += 1
        if digest == hashlib.sha256(keys[-1].encode()).digest():
            break
    assert compared == 200
    answer = TestClient(application(store)).get("/reports", headers=bearer(keys[-1]))
    assert (answer.status_code, len(store.looked_up)) == (200, 1)
    plan = store.db.execute("EXPLAIN QUERY PLAN SELECT * FROM api_keys WHERE key_id = 'x'").fetchall()
    assert "SEARCH" in str(plan)


def test_the_pepper_of_the_application_is_used() -> None:
    store = Store()
    text = store.new(pepper=PEPPER)
    assert TestClient(application(store, pepper=PEPPER)).get("/reports", headers=bearer(text)).status_code == 200
    assert TestClient(application(store)).get("/reports", headers=bearer(text)).status_code == 401


def test_no_key_is_in_any_log_answer_text_or_traceback(
    client: TestClient, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    issued = made(expires_at=NOW + 100)
    text = store.add(issued)
    secret = text.split("_")[3]
    seen = [repr(issued), str(issued), repr(issued.record), repr(parse(text)), str(parse(text)), f"{issued}"]
    typo = text[:-1] + ("0" if text[-1] != "0" else "1")
    for breakage in (None, OSError("down")):
        store.fail = breakage
        for headers in (bearer(text), bearer(typo), {"X-API-Key": text}, bearer(text) | {"X-API-Key": text}):
            for path in ("/reports", "/admin"):
                answer = client.get(path, headers=headers)
                seen += [answer.text, str(answer.headers)]
    store.fail, store.fail_touch = None, OSError("down")
    seen.append(client.get("/reports", headers=bearer(text)).text)
    other = dataclasses.replace(issued.record, digest=b"")
    for record, now in ((other, NOW), (issued.record, NOW + 100)):
        try:
            check(record, text, now)
        except InvalidApiKey as refused:
            seen += traceback.format_exception(refused)
    try:
        parse(typo)
    except InvalidApiKey as refused:
        seen += traceback.format_exception(refused)
    output = "\n".join([*seen, caplog.text, *(record.exc_text or "" for record in caplog.records)])
    assert "acme_live_" in output
    for start in range(len(secret) - 7):
        assert secret[start : start + 8] not in output


def test_the_real_clock_is_the_default_of_the_guard() -> None:
    store = Store()
    dependency: Any = require_api_key(store)
    fresh, stale = store.new(expires_at=time.time() + 60), store.new(expires_at=time.time())

    def request(text: str) -> Any:
        from starlette.requests import Request

        return Request({"type": "http", "headers": [(b"x-api-key", text.encode())]})

    assert asyncio.run(dependency(request(fresh))).owner == "ada"
    with pytest.raises(Exception, match="401"):
        asyncio.run(dependency(request(stale)))
