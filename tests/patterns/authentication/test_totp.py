"""Proves docs/patterns/authentication/totp.md: the codes are those of RFC 6238, and nothing else passes for one."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyotp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.depth import examples
from totp_codes import code_at, match_step, new_secret, provisioning_uri

RFC = base64.b32encode(b"12345678901234567890").decode()  # the SHA-1 secret of RFC 6238, appendix B
NOW = 1_795_000_000.0


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (59, "94287082"),
        (1111111109, "07081804"),
        (1111111111, "14050471"),
        (1234567890, "89005924"),
        (2000000000, "69279037"),
        (20000000000, "65353130"),
    ],
)
def test_codes_are_those_of_the_standards_appendix(seconds: int, expected: str) -> None:
    assert code_at(RFC, seconds // 30, digits=8) == expected
    assert code_at(RFC, seconds // 30) == expected[2:]


@given(st.integers(0, 2**40), st.binary(min_size=16, max_size=40))
@settings(max_examples=examples(50), deadline=None)
def test_codes_are_those_of_pyotp_for_any_secret_and_time(step: int, key: bytes) -> None:
    secret = base64.b32encode(key).decode()
    assert code_at(secret, step) == pyotp.HOTP(secret).at(step)


@pytest.mark.parametrize(
    ("off", "accepted"), [(0, True), (-30, True), (30, True), (-60, False), (60, False), (3600, False)]
)
def test_a_clock_may_be_one_step_off_in_either_direction(off: int, accepted: bool) -> None:
    secret = new_secret()
    code = pyotp.TOTP(secret).at(int(NOW + off))
    assert match_step(secret, code, NOW) == (int((NOW + off) // 30) if accepted else None)


def test_the_window_is_counted_in_steps_and_is_small() -> None:
    secret = new_secret()
    for off, window in ((60, 2), (30, 1), (0, 0)):
        code = pyotp.TOTP(secret).at(int(NOW + off))
        assert match_step(secret, code, NOW, window) is not None
        if window:
            assert match_step(secret, code, NOW, window - 1) is None
    for window in (-1, 3, 1000):
        with pytest.raises(ValueError, match=rf"^window must be 0, 1 or 2 steps, got {window!r}$"):
            match_step(secret, "000000", NOW, window)


@pytest.mark.parametrize("value", [True, 1.0, float("nan"), float("inf"), "1", None])
def test_a_window_or_a_number_of_digits_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^window must be 0, 1 or 2 steps, got {value!r}$"):
        match_step(new_secret(), "000000", NOW, value)
    for digits in (value, 5, 9):
        with pytest.raises(ValueError, match=rf"^digits must be 6, 7 or 8, got {digits!r}$"):
            code_at(new_secret(), 1, digits)


def test_naive_window_of_nothing_fails_a_slow_phone_and_a_wide_one_is_easy_to_guess() -> None:
    secret = new_secret()
    phone = pyotp.TOTP(secret).at(int(NOW // 30 * 30) - 20)
    at = int(NOW // 30 * 30)
    assert not pyotp.TOTP(secret).verify(phone, for_time=_date(at), valid_window=0)
    assert match_step(secret, phone, at) is not None
    allowed = {code for step in range(-60, 61) for code in [pyotp.TOTP(secret).at(at + step * 30)]}
    assert all(pyotp.TOTP(secret).verify(code, for_time=_date(at), valid_window=60) for code in allowed)
    assert len(allowed) > 100  # each guess has a hundred chances; in the module it has three
    assert sum(match_step(secret, code, at) is not None for code in allowed) == 3


def _date(at: float) -> Any:
    import datetime

    return datetime.datetime.fromtimestamp(at, datetime.UTC)


@pytest.mark.parametrize("typed", ["{0}", " {0}", "{1} {2}", "{1}  {2} "])
def test_spaces_between_the_digits_are_taken_out_first(typed: str) -> None:
    secret = new_secret()
    code = pyotp.TOTP(secret).at(int(NOW))
    assert match_step(secret, typed.format(code, code[:3], code[3:]), NOW) == NOW // 30


@pytest.mark.parametrize("window", [0, 1])
def test_whatever_is_not_six_ascii_digits_is_no_code(window: int) -> None:
    secret = new_secret()
    code = pyotp.TOTP(secret).at(int(NOW))
    arabic = "".join(chr(0x0660 + int(digit)) for digit in code)
    others: list[Any] = [code[:5], f"{code}0", arabic, f"{code}\n", f"\t{code}", f"+{code[1:]}", "", " ", "١٢٣٤٥٦"]
    others += [f"{code[:3]}-{code[3:]}", "0x1234", "1e1000", int(code), None, code.encode(), [code]]
    for other in others:
        assert match_step(secret, other, NOW, window) is None


def test_naive_code_as_a_number_loses_its_leading_zeros() -> None:
    secret = next(s for s in iter(new_secret, "") if code_at(s, int(NOW // 30)).startswith("0"))
    code = code_at(secret, int(NOW // 30))
    assert str(int(code)) != code
    assert match_step(secret, str(int(code)), NOW) is None  # what a JSON number would give
    assert match_step(secret, code, NOW) is not None


def test_the_first_minute_of_1970_has_codes_too() -> None:
    assert match_step(RFC, code_at(RFC, 0), 0.0) == 0
    assert match_step(RFC, "999999", 0.0) is None


def test_a_secret_is_160_random_bits() -> None:
    many = {new_secret() for _ in range(1_000)}
    assert len(many) == 1_000
    assert all(len(base64.b32decode(secret)) == 20 for secret in many)


@pytest.mark.parametrize(
    "secret", ["", "not base32!", "ABC", "JBSWY3DPEHPK3PXP", "A" * 24, "abcdefgh", "MZXW6YTB\n1", "é" * 8, None, 7]
)
def test_a_secret_that_is_short_or_not_base32_is_an_error_that_does_not_show_it(secret: Any) -> None:
    attempts: list[Callable[[], str]] = [lambda: code_at(secret, 1), lambda: provisioning_uri(secret, "ada", "Shop")]
    for attempt in attempts:
        with pytest.raises(ValueError, match="not base32 of 128 bits or more") as refused:
            attempt()
        assert str(refused.value) == "the TOTP secret is not base32 of 128 bits or more"
        assert refused.value.__cause__ is None
        assert refused.value.__context__ is None


def test_the_address_for_the_app_names_issuer_and_account_percent_encoded() -> None:
    secret = new_secret()
    uri = provisioning_uri(secret, "ada+1@example.com", "Ärger & Söhne/1")
    parts = urlsplit(uri)
    assert (parts.scheme, parts.netloc) == ("otpauth", "totp")
    assert unquote(parts.path) == "/Ärger & Söhne/1:ada+1@example.com"
    assert re.fullmatch(r"/[A-Za-z0-9%.~_-]+:[A-Za-z0-9%.~_-]+", parts.path)
    assert parse_qs(parts.query) == {
        "secret": [secret],
        "issuer": ["Ärger & Söhne/1"],
        "algorithm": ["SHA1"],
        "digits": ["6"],
        "period": ["30"],
    }
    read = pyotp.parse_uri(uri)
    assert isinstance(read, pyotp.TOTP)
    assert (read.secret, read.issuer, read.name) == (secret, "Ärger & Söhne/1", "ada+1@example.com")


@pytest.mark.parametrize("text", ["", " ", "a:b", "a\nb", "a\x00b"])
def test_a_colon_control_character_or_nothing_in_the_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="account must"):
        provisioning_uri(RFC, text, "Shop")
    with pytest.raises(ValueError, match="issuer must"):
        provisioning_uri(RFC, "ada", text)


def test_naive_address_lets_the_account_name_another_issuer() -> None:
    account = "Bank:ada"  # naive: put together without a look
    assert unquote(urlsplit(f"otpauth://totp/Shop:{account}").path).count(":") == 2
    with pytest.raises(ValueError, match="without a colon"):
        provisioning_uri(RFC, account, "Shop")


def test_every_candidate_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    seen: list[str] = []
    real = hmac.compare_digest

    def spy(a: str, b: str) -> bool:
        seen.append(a)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    secret = new_secret()
    for off in (-30, 0, 30):
        assert match_step(secret, pyotp.TOTP(secret).at(int(NOW) + off), NOW)
        assert len(seen) == 3
        seen.clear()
