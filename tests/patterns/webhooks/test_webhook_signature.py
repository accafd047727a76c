"""Proves docs/patterns/webhooks/webhook-signature.md: what is signed passes, and nothing else does."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError
from starlette.datastructures import Headers

from harness.depth import examples
from webhook_signature import (
    BadSignature,
    SecretError,
    Verified,
    secrets_from_env,
    sign,
    verify,
    verify_hex,
)

# The published vector of Standard Webhooks (and of Svix, where the scheme comes from).
VECTOR_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
VECTOR_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
VECTOR_TIME = 1614265330
VECTOR_BODY = b'{"test": 2432232314}'
VECTOR_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
# GitHub's, from "Validating webhook deliveries".
GITHUB_SECRET = b"It's a Secret to Everybody"
GITHUB_BODY = b"Hello, World!"
GITHUB_SIGNATURE = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

KEY, OLD_KEY, FOREIGN_KEY = (bytes([n]) * 32 for n in (1, 2, 3))
ID, NOW, BODY = "msg_1", 1_800_000_000, b'{"type": "invoice.paid"}'
QUICK = settings(max_examples=examples(60), deadline=None, database=None)
NAMES = ("webhook-id", "webhook-timestamp", "webhook-signature")
AWAY = "the timestamp is more than 300 s away from our clock"
BAD_ID = "the id is empty, too long, or has a dot or a space in it"
BAD_TIME = "the timestamp is not whole seconds in ASCII digits"
NO_ENTRY = "no v1 signature among the first 10 entries"
NO_MATCH = "no signature matches"
NO_PREFIX = "the signature does not start with 'sha256='"


def whsec(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def keys_of(text: str | None, *, raw: bool = False, name: str = "WEBHOOK_SECRETS") -> tuple[bytes, ...]:
    return secrets_from_env(name, raw=raw, environ={} if text is None else {name: text})


def by_the_book(content: bytes, key: bytes = KEY) -> str:
    """Sign `content` as the standard says, with nothing of the module."""
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def hex_of(body: bytes, key: bytes = KEY) -> str:
    return hmac.new(key, body, hashlib.sha256).hexdigest()


def headers_for(msg_id: str = ID, stamp: object = NOW, body: bytes = BODY, key: bytes = KEY) -> dict[str, str]:
    """Make genuine headers, also of forms that `sign` refuses to make."""
    signature = by_the_book(f"{msg_id}.{stamp}.".encode() + body, key)
    return dict(zip(NAMES, (msg_id, str(stamp), signature), strict=True))


def refusal(headers: Mapping[str, Any], body: bytes = BODY, keys: Any = (KEY,), **options: Any) -> str:
    """Return the reason why `verify` refuses."""
    with pytest.raises(BadSignature) as caught:
        verify(body, headers, keys, **{"now": NOW, **options})
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


def hex_refusal(header: Any, body: bytes = BODY, keys: Any = (KEY,), **options: Any) -> str:
    """Return the reason why `verify_hex` refuses."""
    with pytest.raises(BadSignature) as caught:
        verify_hex(body, header, keys, **options)
    return caught.value.reason


# Published vectors, and other people's implementations.


def test_the_published_vector_of_standard_webhooks_is_made_and_verified() -> None:
    keys = keys_of(VECTOR_SECRET)
    headers = sign(VECTOR_BODY, keys, msg_id=VECTOR_ID, timestamp=VECTOR_TIME)
    assert headers == dict(zip(NAMES, (VECTOR_ID, "1614265330", VECTOR_SIGNATURE), strict=True))
    assert verify(VECTOR_BODY, headers, keys, now=VECTOR_TIME) == Verified(VECTOR_ID, VECTOR_TIME)


def test_the_published_vector_of_github_is_verified() -> None:
    verify_hex(GITHUB_BODY, GITHUB_SIGNATURE, [GITHUB_SECRET])
    assert hex_refusal(GITHUB_SIGNATURE, GITHUB_BODY + b" ", [GITHUB_SECRET]) == NO_MATCH


ids = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."), min_size=1)


@given(body=st.text(), key=st.binary(min_size=24, max_size=100), msg_id=ids)
@QUICK
def test_standardwebhooks_accepts_whatever_we_sign(body: str, key: bytes, msg_id: str) -> None:
    raw = body.encode("utf-8", "replace")
    headers = sign(raw, [key], msg_id=msg_id[:255], timestamp=int(time.time()))
    Webhook(key).verify(raw, headers, json_parse=False)  # it raises what it refuses
    with pytest.raises(WebhookVerificationError):
        Webhook(key).verify(raw + b"x", headers, json_parse=False)


@given(body=st.text(), key=st.binary(min_size=24, max_size=100), msg_id=ids)
@QUICK
def test_we_accept_whatever_standardwebhooks_signs(body: str, key: bytes, msg_id: str) -> None:
    raw = body.encode("utf-8", "replace")
    msg_id = msg_id[:255]
    signature = Webhook(key).sign(msg_id, datetime.fromtimestamp(NOW, UTC), raw.decode())
    headers = {"webhook-id": msg_id, "webhook-timestamp": str(NOW), "webhook-signature": signature}
    assert verify(raw, headers, [key], now=NOW) == Verified(msg_id, NOW)


NODE = r"""
const { webcrypto, timingSafeEqual } = require("node:crypto");
const bytes = (text) => Buffer.from(text, "base64");
(async () => {
  const out = [];
  for (const c of JSON.parse(require("node:fs").readFileSync(0))) {
    const algorithm = { name: "HMAC", hash: "SHA-256" };
    const key = await webcrypto.subtle.importKey("raw", bytes(c.key), algorithm, false, ["sign"]);
    const hmac = async (data) => Buffer.from(await webcrypto.subtle.sign("HMAC", key, data));
    const content = Buffer.concat([Buffer.from(`${c.id}.${c.timestamp}.`), bytes(c.body)]);
    out.push([`v1,${(await hmac(content)).toString("base64")}`,
              `sha256=${(await hmac(bytes(c.body))).toString("hex")}`]);
  }
  let thrown = "";
  try { timingSafeEqual(Buffer.from("short"), Buffer.from("longer")); } catch (e) { thrown = e.name; }
  console.log(JSON.stringify({ out, thrown }));
})();
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on PATH, so there is no Web Crypto")
def test_our_signatures_equal_those_of_web_crypto_in_node_byte_for_byte() -> None:
    sizes = (0, 1, 63, 64, 65, 2048, 200_000)  # around SHA-256's block, and real bodies
    key_sizes = (24, 32, 64, 65)  # a key longer than a block is hashed first (RFC 2104)
    cases = [(os.urandom(n), os.urandom(k), f"msg_{n}-{k}") for n in sizes for k in key_sizes]
    text = [(base64.b64encode(b).decode(), base64.b64encode(k).decode(), i) for b, k, i in cases]
    sent = json.dumps([{"body": b, "key": k, "id": i, "timestamp": NOW} for b, k, i in text])
    done = subprocess.run(["node", "-e", NODE], input=sent.encode(), capture_output=True, check=True, timeout=20)
    answer = json.loads(done.stdout)
    for (body, key, msg_id), (v1, hex_form) in zip(cases, answer["out"], strict=True):
        ours = sign(body, [key], msg_id=msg_id, timestamp=NOW)
        assert ours["webhook-signature"] == v1
        verify_hex(body, hex_form, [key])
    # Beside it, Node's own trap: its constant-time comparison throws on unequal lengths.
    assert answer["thrown"] == "RangeError"


# What is signed.


def test_the_signed_text_is_id_dot_timestamp_dot_body() -> None:
    made = sign(BODY, [KEY], msg_id=ID, timestamp=NOW)
    assert made["webhook-signature"] == by_the_book(b"msg_1.1800000000." + BODY)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe\x00not UTF-8\x80", bytes(range(256))])
def test_a_body_that_is_not_utf_8_is_signed_and_verified(body: bytes) -> None:
    headers = sign(body, [KEY], msg_id=ID, timestamp=NOW)
    assert verify(body, headers, [KEY], now=NOW) == Verified(ID, NOW)
    verify_hex(body, hex_of(body), [KEY], prefix="")
    if b"\xff" in body:  # the reference implementation decodes first
        with pytest.raises(UnicodeDecodeError):
            Webhook(KEY).verify(body, sign(body, [KEY], msg_id=ID, timestamp=int(time.time())))


def test_one_flipped_bit_anywhere_is_a_refusal() -> None:
    good = headers_for()

    def flipped(data: bytes) -> Iterator[bytes]:
        for bit in range(len(data) * 8):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            yield bytes(changed)

    for body in flipped(BODY):
        assert refusal(good, body) == NO_MATCH
        assert hex_refusal(hex_of(BODY), body, prefix="") == NO_MATCH
    for name, value in good.items():
        for changed in flipped(value.encode()):
            assert refusal({**good, name: changed.decode("latin-1")})
    assert verify(BODY, good, [KEY], now=NOW) == Verified(ID, NOW)


@pytest.mark.parametrize(
    "msg_id", ["", "a.b", ".", " ", "a b", "a\r\nset-cookie: x", "a\x00", "a\x7f", "ä", "a\n", "x" * 256]
)
def test_an_id_that_moves_the_boundary_or_breaks_a_header_is_not_signed_nor_believed(
    msg_id: str,
) -> None:
    with pytest.raises(ValueError, match=r"^msg_id must be 1 to 255 visible ASCII characters without a dot$"):
        sign(BODY, [KEY], msg_id=msg_id, timestamp=NOW)
    reason = BAD_ID if msg_id.isascii() else "webhook-id is missing, repeated or not ASCII"
    assert refusal(headers_for(msg_id=msg_id)) == reason  # nor believed when somebody else signed it


@pytest.mark.parametrize("msg_id", ["!", "~", "-", "/", "x" * 255, "evt_1:2/3,4"])
def test_any_other_id_is_signed_and_verified(msg_id: str) -> None:
    headers = sign(BODY, [KEY], msg_id=msg_id, timestamp=NOW)
    assert verify(BODY, headers, [KEY], now=NOW).id == msg_id


@pytest.mark.parametrize("timestamp", [-1, 1.5, 1e9, True, 10**12, "now", "١", None, float("nan")])
def test_only_whole_seconds_are_signed(timestamp: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^timestamp must be whole seconds since 1970, got {re.escape(repr(timestamp))}$"
    ):
        sign(BODY, [KEY], msg_id=ID, timestamp=timestamp)


def test_moving_the_boundary_with_a_dot_in_the_id_forges_no_fresh_timestamp() -> None:
    # The body is text that a customer chose. Signed long ago, it begins with the seconds of today.
    today, long_ago = int(time.time()), 1_600_000_000
    captured = headers_for(stamp=long_ago, body=f"{today}.pay me again".encode())
    moved = captured | {"webhook-id": f"{ID}.{long_ago}", "webhook-timestamp": str(today)}
    Webhook(KEY).verify(b"pay me again", moved, json_parse=False)  # standardwebhooks is taken in
    reason = refusal(moved, b"pay me again", now=today)
    assert reason == BAD_ID


# Time.


@pytest.mark.parametrize("apart", [-300, -299.5, 0, 299.5, 300])
def test_a_timestamp_up_to_300_seconds_away_is_accepted_in_both_directions(apart: float) -> None:
    assert verify(BODY, headers_for(), [KEY], now=NOW + apart) == Verified(ID, NOW)


@pytest.mark.parametrize("apart", [-301, -300.001, 300.001, 301, 86_400, float("inf"), float("nan")])
def test_a_timestamp_further_away_is_refused_and_so_is_a_broken_clock(apart: float) -> None:
    reason = refusal(headers_for(), now=NOW + apart)
    assert reason == AWAY


def test_the_tolerance_is_yours_to_choose() -> None:
    assert verify(BODY, headers_for(), [KEY], now=NOW + 10, tolerance=10)
    assert "more than 10 s" in refusal(headers_for(), now=NOW + 11, tolerance=10)
    for wrong in (float("nan"), float("inf"), -1, True):
        with pytest.raises(ValueError, match=rf"^tolerance must be a number of seconds, 0 or more, got {wrong!r}$"):
            verify(BODY, headers_for(), [KEY], now=NOW, tolerance=wrong)


STAMPS = ["nan", "inf", "-inf", "-1", f"-{NOW}", f"+{NOW}", f" {NOW}", f"{NOW} ", f"{NOW}\n", f"{NOW}.0"]
STAMPS += [f"{NOW}e0", "1_800_000_000", "0x6b49d200", "", f"{NOW}000", "²", "١٨٠٠٠٠٠٠٠٠", "9" * 5000]


@pytest.mark.parametrize("stamp", STAMPS, ids=lambda stamp: ascii(stamp[:20]))
def test_a_timestamp_that_is_not_ascii_digits_is_refused_though_genuinely_signed(stamp: str) -> None:
    reason = BAD_TIME if stamp.isascii() else "webhook-timestamp is missing, repeated or not ASCII"
    assert refusal(headers_for(stamp=stamp)) == reason


def test_a_timestamp_of_twelve_digits_is_read_and_one_of_thirteen_is_not() -> None:
    far = 999_999_999_999
    assert verify(BODY, headers_for(stamp=far), [KEY], now=far).timestamp == far
    assert refusal(headers_for(stamp=far + 1), now=far + 1) == BAD_TIME


def test_naive_int_of_a_timestamp_reads_arabic_digits_and_throws_on_others() -> None:
    assert int("١٨٠٠٠٠٠٠٠٠") == NOW
    for text, raised in [("²", "invalid literal"), ("9" * 5000, "Exceeds the limit")]:
        assert text.isdigit()
        with pytest.raises(ValueError, match=raised):  # a 500
            int(text)
        assert refusal(headers_for(stamp=text))


# Signature entries, and rotation.


def test_while_secrets_rotate_any_one_match_with_any_one_secret_passes() -> None:
    both = sign(BODY, [KEY, OLD_KEY], msg_id=ID, timestamp=NOW)
    assert both["webhook-signature"].split(" ") == [
        by_the_book(b"msg_1.1800000000." + BODY, KEY),
        by_the_book(b"msg_1.1800000000." + BODY, OLD_KEY),
    ]
    for keys in ([KEY], [OLD_KEY], [FOREIGN_KEY, KEY], [OLD_KEY, FOREIGN_KEY]):
        assert verify(BODY, both, keys, now=NOW) == Verified(ID, NOW)
    old = sign(BODY, [OLD_KEY], msg_id=ID, timestamp=NOW)
    assert verify(BODY, old, [KEY, OLD_KEY], now=NOW) == Verified(ID, NOW)
    assert refusal(old, keys=[KEY, FOREIGN_KEY]) == NO_MATCH
    old_hex = hex_of(BODY, OLD_KEY)
    verify_hex(BODY, f"sha256={old_hex}", [KEY, OLD_KEY])
    assert hex_refusal(f"sha256={old_hex}", keys=[KEY, FOREIGN_KEY]) == NO_MATCH


@pytest.mark.parametrize("beside", ["v1a,AAAA", "v2,{}", "v1", "garbage", ",", "", "v1,", "v1,AAAA", "v1,!"])
def test_unknown_and_broken_entries_are_skipped_beside_a_good_one(beside: str) -> None:
    headers = headers_for()
    good = headers["webhook-signature"]
    for value in (f"{beside} {good}", f"{good} {beside}"):
        assert verify(BODY, headers | {"webhook-signature": value}, [KEY], now=NOW) == Verified(ID, NOW)


@pytest.mark.parametrize("version", ["v1a", "v2", "V1", "", "v1 "])
def test_the_right_digits_under_another_version_are_no_signature(version: str) -> None:
    headers = headers_for()
    headers["webhook-signature"] = headers["webhook-signature"].replace("v1", version)
    assert refusal(headers) == NO_ENTRY


def test_entries_are_separated_by_spaces_and_nothing_else() -> None:
    good = headers_for()["webhook-signature"]
    for separator in ("\t", "\n", ",", ";", "\x00"):
        assert refusal(headers_for() | {"webhook-signature": f"v2,x{separator}{good}"}) == NO_ENTRY


@pytest.mark.parametrize("value", ["v1,", "v1", "", " ", "v1,=", "v1,\x00", "v1,AAAA====", "v1,v1,"])
def test_a_signature_header_with_nothing_in_it_is_refused(value: str) -> None:
    assert refusal(headers_for() | {"webhook-signature": value})


def test_the_signature_of_another_secret_is_refused() -> None:
    assert refusal(headers_for(key=FOREIGN_KEY)) == NO_MATCH
    assert refusal(headers_for(key=b"")) == NO_MATCH


def test_ten_entries_are_read_and_the_eleventh_is_not() -> None:
    headers = headers_for()
    good, forged = headers["webhook-signature"], by_the_book(b"", FOREIGN_KEY)
    tenth = headers | {"webhook-signature": " ".join([forged] * 9 + [good])}
    assert verify(BODY, tenth, [KEY], now=NOW) == Verified(ID, NOW)
    eleventh = headers | {"webhook-signature": " ".join([forged] * 10 + [good])}
    assert refusal(eleventh) == NO_MATCH
    unknown = headers | {"webhook-signature": " ".join(["v2,x"] * 10 + [good])}
    assert refusal(unknown) == NO_ENTRY


def test_a_thousand_forged_entries_cost_ten_comparisons_and_one_hmac(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    compare, digest = hmac.compare_digest, hmac.digest

    def counted_compare(a: Any, b: Any) -> bool:
        calls.append("compare")
        return compare(a, b)

    def counted_digest(key: Any, content: Any, name: Any) -> bytes:
        calls.append("hmac")
        return digest(key, content, name)

    monkeypatch.setattr(hmac, "compare_digest", counted_compare)
    monkeypatch.setattr(hmac, "digest", counted_digest)
    flood = " ".join([by_the_book(b"", FOREIGN_KEY)] * 1000)
    assert refusal(headers_for() | {"webhook-signature": flood}) == NO_MATCH
    assert (calls.count("compare"), calls.count("hmac")) == (10, 1)
    calls.clear()
    assert refusal(headers_for() | {"webhook-signature": "v2,x " * 1000})
    assert refusal(headers_for(stamp=NOW - 301))
    assert calls == []  # what is not worth an HMAC gets none


@pytest.mark.parametrize("name", NAMES)
def test_a_header_of_a_megabyte_is_refused(name: str) -> None:
    assert refusal(headers_for() | {name: "9" * 1_000_000})
    assert refusal(headers_for() | {name: "v1," + "A" * 1_000_000})
    assert hex_refusal("sha256=" + "a" * 1_000_000) == NO_MATCH


# Header names and values.


@pytest.mark.parametrize("rename", [str.upper, str.title, str.swapcase])
def test_header_names_match_without_case(rename: Any) -> None:
    headers = {rename(name): value for name, value in headers_for().items()}
    assert verify(BODY, headers, [KEY], now=NOW) == Verified(ID, NOW)
    assert verify(BODY, Headers(headers), [KEY], now=NOW) == Verified(ID, NOW)


@pytest.mark.parametrize("prefix", ["svix-", "Svix-"])
def test_the_same_scheme_under_svix_header_names_is_verified(prefix: str) -> None:
    headers = {name.replace("webhook-", "svix-"): value for name, value in headers_for().items()}
    assert verify(BODY, headers, [KEY], now=NOW, header_prefix=prefix) == Verified(ID, NOW)
    assert refusal(headers) == "webhook-id is missing, repeated or not ASCII"


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_header_is_named_and_refused(name: str) -> None:
    headers = headers_for()
    del headers[name]
    assert refusal(headers) == f"{name} is missing, repeated or not ASCII"
    assert refusal({}) == "webhook-id is missing, repeated or not ASCII"


@pytest.mark.parametrize("name", NAMES)
def test_a_header_sent_twice_is_refused_because_readers_would_disagree(name: str) -> None:
    genuine = [(key.encode(), value.encode()) for key, value in headers_for().items()]
    twice = Headers(raw=[(name.encode(), b"msg_another"), *genuine])
    assert twice[name] == "msg_another"  # what the application would read ...
    assert dict(twice.items())[name] == headers_for()[name]  # ... and what a naive check verifies
    for headers in (twice, headers_for() | {name.upper(): headers_for()[name]}):
        assert refusal(headers) == f"{name} is missing, repeated or not ASCII"


def broken_values() -> st.SearchStrategy[Any]:
    likely = ("v1,", ",", " ", "=", "\x00\r\n", "\udcff", "é", "\u0661", "9", "sha256=", VECTOR_SIGNATURE)
    pieces = st.lists(st.sampled_from(likely) | st.characters(), max_size=8).map("".join)
    return pieces | st.sampled_from([None, 0, 1.5, b"v1,", [], {}, ID, str(NOW)])


@given(st.dictionaries(st.sampled_from([*NAMES, "Webhook-Id"]), broken_values()), broken_values())
@settings(max_examples=examples(300), deadline=None, database=None)
def test_whatever_the_headers_hold_the_answer_is_bad_signature_and_repeats_nothing(
    headers: dict[str, Any], header: Any
) -> None:
    missing = {f"{name} is missing, repeated or not ASCII" for name in NAMES}
    assert refusal(headers) in {BAD_ID, BAD_TIME, AWAY, NO_ENTRY, NO_MATCH} | missing
    known = {"the signature header is missing or not ASCII", NO_PREFIX, NO_MATCH}
    assert hex_refusal(header) in known
    assert hex_refusal(header, prefix="") in known


# The hex form of GitHub and others.


def test_hex_digits_of_either_case_match_and_the_prefix_is_yours_to_set() -> None:
    digits = hex_of(BODY)
    verify_hex(BODY, f"sha256={digits}", [KEY])
    verify_hex(BODY, f"sha256={digits.upper()}", [KEY])
    verify_hex(BODY, digits, [KEY], prefix="")
    verify_hex(BODY, f"t={digits}", [KEY], prefix="t=")
    assert hex_refusal(f"SHA256={digits}") == NO_PREFIX


@pytest.mark.parametrize("header", [None, "", "sha256=", "sha256=é", "é", 7, b"sha256=", "sha1=" + "a" * 40])
def test_a_hex_header_that_is_missing_empty_or_of_another_kind_is_refused(header: Any) -> None:
    assert hex_refusal(header)
    assert hex_refusal(header, prefix="")


def test_a_shortened_or_lengthened_hex_signature_is_refused() -> None:
    genuine = "sha256=" + hex_of(BODY)
    for changed in (genuine[:-1], genuine[:-2], genuine + "0", " " + genuine, genuine + " ", genuine * 2):
        assert hex_refusal(changed)


# Secrets.


def test_secrets_are_read_newest_first_separated_by_any_white_space() -> None:
    assert keys_of(f"{whsec(KEY)} {whsec(OLD_KEY)}") == (KEY, OLD_KEY)
    assert keys_of(f"\n{whsec(KEY)}\n\t{whsec(OLD_KEY)}\r\n") == (KEY, OLD_KEY)
    assert keys_of(whsec(b"k" * 32).rstrip("=")) == (b"k" * 32,)  # some providers drop the padding
    assert keys_of(f"{'a' * 24} {'ü' * 12}", raw=True) == (b"a" * 24, "ü".encode() * 12)


@pytest.mark.parametrize("text", [None, "", " ", "\n\t"])
def test_a_missing_secret_stops_the_start_and_names_the_variable(text: str | None) -> None:
    with pytest.raises(RuntimeError, match=r"^WEBHOOK_SECRETS is not set, or is empty$"):
        keys_of(text)
    with pytest.raises(RuntimeError, match=r"^GITHUB_SECRET is not set, or is empty$"):
        keys_of(text, raw=True, name="GITHUB_SECRET")


@pytest.mark.parametrize(
    "bad",
    [
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",  # no prefix: text or base64? nothing is guessed
        "0123456789abcdef" * 4,  # the hex digits of a key, which are base64 as well
        "whsec_" + "*" * 40,
        "whsec_" + "A" * 41,  # a length that base64 never has
        "whsec_" + "-_" * 20,  # base64url
        "whsec_" + "é" * 40,
        "whsec_" + "=" * 40,
        f"{whsec(KEY)},{whsec(KEY)}",  # a comma in place of a space
        f'"{whsec(KEY)}"',
        "WHSEC_" + "A" * 40,
    ],
)
def test_a_secret_that_is_not_whsec_and_base64_stops_the_start_without_being_printed(bad: str) -> None:
    message = r"^WEBHOOK_SECRETS: secret 2 is not whsec_ followed by base64$"
    with pytest.raises(SecretError, match=message) as caught:
        keys_of(f"{whsec(KEY)} {bad}")
    assert caught.value.__suppress_context__  # a traceback would show the cause, which holds the secret
    assert caught.value.__cause__ is None
    assert bad not in str(caught.value)


def test_a_raw_secret_that_is_no_text_stops_the_start_without_being_printed() -> None:
    with pytest.raises(SecretError, match=r"^WEBHOOK_SECRETS: secret 1 is not UTF-8 text$") as caught:
        keys_of("\udcff" * 24, raw=True)  # what os.environ makes of stray bytes
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("size", [0, 1, 23])
def test_a_key_of_fewer_than_24_bytes_stops_the_start(size: int) -> None:
    with pytest.raises(SecretError, match=r"^WEBHOOK_SECRETS: secret 1 has fewer than 24 bytes$"):
        keys_of(whsec(b"k" * size))
    if size:
        with pytest.raises(SecretError, match=r"^X: secret 2 has fewer than 24 bytes$"):
            keys_of(f"{'r' * 24} {'r' * size}", raw=True, name="X")
    assert keys_of(whsec(b"k" * 24)) == (b"k" * 24,)
    assert issubclass(SecretError, ValueError)


@pytest.mark.parametrize("keys", [(), [], None, (b"",), (KEY, b""), (b"k" * 23,), ("k" * 32,), "k" * 32, KEY])
def test_without_a_usable_secret_everything_is_refused_and_nothing_is_signed(keys: Any) -> None:
    reason = "no usable secret: make them with secrets_from_env()"
    for guess in (b"", b"k" * 23, KEY):  # what an attacker would sign with
        assert refusal(headers_for(key=guess), keys=keys) == reason
        assert hex_refusal(hex_of(BODY, guess), keys=keys, prefix="") == reason
    with pytest.raises(SecretError, match=rf"^{re.escape(reason)}$"):
        sign(BODY, keys, msg_id=ID, timestamp=NOW)


def test_keys_that_can_be_read_only_once_still_sign_and_verify() -> None:
    once: Any = iter([OLD_KEY, KEY])
    headers = sign(BODY, once, msg_id=ID, timestamp=NOW)
    assert headers["webhook-signature"].count("v1,") == 2
    once = iter([FOREIGN_KEY, KEY])
    assert verify(BODY, headers, once, now=NOW) == Verified(ID, NOW)


# The naive versions, seen to fail, and the module beside them.


def test_naive_comparison_of_text_throws_on_a_header_that_is_not_ascii() -> None:
    expected = hex_of(BODY)
    with pytest.raises(TypeError):  # a 500, and a stack trace for everybody who asks
        hmac.compare_digest(expected, "é")
    assert hex_refusal("sha256=é") == "the signature header is missing or not ASCII"
    assert refusal(headers_for() | {"webhook-signature": "v1,é"})


def test_naive_verification_of_reserialized_json_refuses_a_genuine_delivery() -> None:
    body = b'{"amount":1e2}'
    headers = headers_for(body=body)
    again = json.dumps(json.loads(body)).encode()
    assert again == b'{"amount": 100.0}'
    assert refusal(headers, again) == NO_MATCH
    assert verify(body, headers, [KEY], now=NOW) == Verified(ID, NOW)


def test_naive_comparison_without_the_prefix_refuses_everything() -> None:
    naive = hex_of(GITHUB_BODY, GITHUB_SECRET)
    assert not hmac.compare_digest(naive, GITHUB_SIGNATURE)
    verify_hex(GITHUB_BODY, GITHUB_SIGNATURE, [GITHUB_SECRET])
    assert hex_refusal(naive) == NO_PREFIX  # and the reason says so


def test_naive_signature_without_a_time_lets_yesterdays_delivery_in_again() -> None:
    captured = "sha256=" + hex_of(BODY)
    seen = set()
    for delivery_id in ("the-first", "a-new-one"):  # X-GitHub-Delivery is not signed: anybody sets it
        verify_hex(BODY, captured, [KEY])  # the scheme signs no time either: this cannot be told apart
        seen.add(delivery_id)
    assert len(seen) == 2  # so that dropping duplicates by that header processes the copy too
    headers = headers_for(stamp=NOW - 86_400)
    assert refusal(headers) == AWAY
    assert refusal(headers | {"webhook-timestamp": str(NOW)}) == NO_MATCH


def test_a_copy_within_the_tolerance_verifies_again_so_the_id_must_be_stored() -> None:
    first = verify(BODY, headers_for(), [KEY], now=NOW)
    copy = verify(BODY, headers_for(), [KEY], now=NOW + 200)
    retry = verify(BODY, headers_for(stamp=NOW + 90), [KEY], now=NOW + 90)
    assert first == copy
    assert hash(first) == hash(copy)
    assert (retry.id, retry.timestamp) == (first.id, NOW + 90)  # a retry too keeps the id


@pytest.mark.parametrize(
    ("entry", "raised"),
    [("garbage", ValueError), ("v1,a,b", ValueError), ("v1,é", ValueError), ("v1,a", binascii.Error)],
)
def test_standardwebhooks_raises_plain_errors_on_hostile_entries(entry: str, raised: type[Exception]) -> None:
    now = int(time.time())
    headers = headers_for(stamp=now) | {"webhook-signature": entry}
    with pytest.raises(raised) as caught:
        Webhook(KEY).verify(BODY, headers)
    assert not isinstance(caught.value, WebhookVerificationError)  # so that catching this one is not enough
    assert refusal(headers, now=now)


@pytest.mark.parametrize("form", ["{}.9", "+{}", " {} ", "{}e0"])
def test_standardwebhooks_accepts_timestamps_that_are_not_digits(form: str) -> None:
    now = int(time.time())
    headers = headers_for(stamp=now) | {"webhook-timestamp": form.format(now)}
    Webhook(KEY).verify(BODY, headers)
    assert refusal(headers, now=now) == BAD_TIME


def test_naive_default_for_a_missing_header_equals_the_default_for_a_missing_secret() -> None:
    def naive(body: bytes, headers: dict[str, str], secret: str) -> bool:
        expected = "sha256=" + hex_of(body, secret.encode()) if secret else ""
        return hmac.compare_digest(expected, headers.get("x-hub-signature-256", ""))

    assert naive(b"anything", {}, "")  # two things missing make a match
    assert hex_refusal(None, b"anything")
    assert hex_refusal("", b"anything", prefix="")
    assert hex_refusal(None, b"anything", keys=())


def test_naive_empty_secret_is_a_key_that_everybody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEBHOOK_SECRETS", raising=False)
    naive_key = os.environ.get("WEBHOOK_SECRETS", "").encode()
    forged = headers_for(body=b"attack", key=b"")
    ours = by_the_book(f"{ID}.{NOW}.attack".encode(), naive_key)
    assert hmac.compare_digest(ours, forged["webhook-signature"])  # the naive receiver believes it
    with pytest.raises(RuntimeError, match="WEBHOOK_SECRETS is not set"):
        secrets_from_env()
    assert "no usable secret" in refusal(forged, b"attack", keys=[naive_key])
