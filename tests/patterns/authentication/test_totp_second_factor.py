"""Proves docs/patterns/authentication/totp.md: a code counts once, guesses are limited, recovery works once."""

from __future__ import annotations

import hmac
import logging
import threading
import traceback
import uuid
from typing import Any

import psycopg
import pyotp
import pytest
from cryptography.exceptions import InvalidTag

import second_factor_async
import second_factor_core as core
import second_factor_sync
from harness.color import Color
from harness.waiting import at_once, each_at_once
from patterns.authentication.totp_kit import NOW, Factor, Sealed, core_code
from second_factor_async import AsyncSecondFactor
from second_factor_core import AlreadyEnrolled, NotEnrolled, TooManyAttempts
from second_factor_sync import SecondFactor
from totp_codes import match_step


@pytest.fixture(scope="module")
def url(module_database_url: str) -> str:
    with psycopg.connect(module_database_url) as db:
        db.execute(core.SCHEMA)
    return module_database_url


@pytest.fixture
def factor(color: Color, url: str) -> Factor:
    return Factor(color, url)


def _wrong(secret: str) -> str:
    right = {core_code(secret, NOW + off) for off in (-60, -30, 0, 30, 60)}
    return next(code for code in ("000000", "111111", "222222", "333333", "444444", "555555") if code not in right)


def _retry_after(factor: Factor, call: str, user: str, code: str) -> float:
    with pytest.raises(TooManyAttempts) as refused:
        getattr(factor, call)(user, code)
    return refused.value.retry_after


# Enrollment.


def test_an_enrollment_counts_only_after_a_code_of_the_app(factor: Factor) -> None:
    user = uuid.uuid4().hex
    begun = factor.begin_enrollment(user, "ada@example.com")
    assert begun.uri == (
        f"otpauth://totp/Shop:ada%40example.com?secret={begun.secret}&issuer=Shop&algorithm=SHA1&digits=6&period=30"
    )
    code = core_code(begun.secret, NOW)
    assert factor.verify(user, code) is False
    with pytest.raises(NotEnrolled):
        factor.recovery_codes(user)
    assert factor.confirm(user, _wrong(begun.secret)) is False
    assert factor.confirm(user, code) is True
    factor.clock.now += 30
    assert factor.verify(user, core_code(begun.secret, factor.clock.now)) is True


def test_an_abandoned_enrollment_changes_nothing_and_the_last_one_begun_counts(factor: Factor) -> None:
    user = uuid.uuid4().hex
    first = factor.begin_enrollment(user, "ada").secret
    second = factor.begin_enrollment(user, "ada").secret
    assert factor.confirm(user, core_code(first, NOW)) is False
    assert factor.confirm(user, core_code(second, NOW)) is True
    with pytest.raises(AlreadyEnrolled):
        factor.begin_enrollment(user, "ada")
    with pytest.raises(NotEnrolled):
        factor.confirm(user, core_code(second, NOW))
    factor.clock.now += 30
    assert factor.verify(user, core_code(second, factor.clock.now))


def test_the_code_of_the_enrollment_is_not_the_first_login_code(factor: Factor) -> None:
    user = uuid.uuid4().hex
    secret = factor.begin_enrollment(user, "ada").secret
    code = core_code(secret, NOW)
    assert factor.confirm(user, code)
    assert factor.verify(user, code) is False


def test_to_confirm_what_was_never_begun_is_an_error(factor: Factor) -> None:
    with pytest.raises(NotEnrolled):
        factor.confirm(uuid.uuid4().hex, "000000")


# Each code once.


def test_a_code_is_taken_once_and_none_from_before_it_afterwards(factor: Factor) -> None:
    user, secret = factor.enrolled()
    older, code = core_code(secret, NOW - 30), core_code(secret, NOW)
    assert factor.verify(user, code) is True
    assert factor.verify(user, code) is False
    factor.clock.now += 25
    assert factor.verify(user, code) is False
    assert factor.verify(user, older) is False  # within the window, and before the one that was taken
    factor.clock.now = NOW + 30
    assert factor.verify(user, core_code(secret, factor.clock.now)) is True


def test_naive_pyotp_takes_the_same_code_again_and_again() -> None:
    totp = pyotp.TOTP(pyotp.random_base32())
    code = totp.now()
    assert [totp.verify(code, valid_window=1) for _ in range(3)] == [True, True, True]


def test_of_twenty_who_bring_one_code_at_once_one_gets_in(factor: Factor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_FAILURES", 100)  # or most would not even be looked at
    user, secret = factor.enrolled()
    answers = at_once(20, lambda: factor.verify(user, core_code(secret, NOW)))
    assert sorted(answers) == [False] * 19 + [True]


def test_a_clock_set_back_an_hour_makes_no_old_code_valid(factor: Factor) -> None:
    user, secret = factor.enrolled()
    assert factor.verify(user, core_code(secret, NOW))
    factor.clock.now -= 3_600
    assert factor.verify(user, core_code(secret, factor.clock.now)) is False


# Guesses.


def test_five_failures_lock_out_right_codes_too_until_the_window_has_passed(factor: Factor) -> None:
    user, secret = factor.enrolled()
    for _ in range(5):
        assert factor.verify(user, _wrong(secret)) is False
        factor.clock.now += 1
    assert _retry_after(factor, "verify", user, core_code(secret, factor.clock.now)) == 895
    assert _retry_after(factor, "use_recovery", user, "AAAA-AAAA-AAAA-AAAA") == 895
    factor.clock.now = NOW + 899.5
    assert _retry_after(factor, "verify", user, core_code(secret, factor.clock.now)) == 0.5
    factor.clock.now = NOW + 900
    assert factor.verify(user, core_code(secret, factor.clock.now)) is True


def test_the_fifth_attempt_may_be_the_right_one_and_success_starts_the_count_anew(factor: Factor) -> None:
    user, secret = factor.enrolled()
    for step in range(3):
        for _ in range(4):
            assert factor.verify(user, _wrong(secret)) is False
        factor.clock.now = NOW + step * 30
        assert factor.verify(user, core_code(secret, factor.clock.now)) is True
    assert not factor.rows("select * from second_factor_attempts where user_id = %(user)s", user)


def test_failures_of_more_than_15_minutes_ago_do_not_count(factor: Factor) -> None:
    user, secret = factor.enrolled()
    for _ in range(3):
        for _ in range(4):
            assert factor.verify(user, _wrong(secret)) is False
        factor.clock.now += 900
    assert factor.rows("select failures, since from second_factor_attempts where user_id = %(user)s", user) == [
        (4, NOW + 1_800)
    ]


def test_one_users_failures_do_not_lock_another(factor: Factor) -> None:
    (user, secret), (other, others) = factor.enrolled(), factor.enrolled()
    for _ in range(5):
        factor.verify(user, _wrong(secret))
    assert factor.verify(other, core_code(others, NOW)) is True


def test_of_many_guesses_at_once_five_are_looked_at(factor: Factor, monkeypatch: pytest.MonkeyPatch) -> None:
    user, secret = factor.enrolled()
    looked: list[str] = []

    def spy(secret: str, code: str, now: float) -> int | None:
        looked.append(code)
        return match_step(secret, code, now)

    monkeypatch.setattr(second_factor_sync, "match_step", spy)
    monkeypatch.setattr(second_factor_async, "match_step", spy)
    wrong = _wrong(secret)
    answers = at_once(60, lambda: factor.verify(user, wrong))
    assert len(looked) == 5
    assert answers.count(False) == 5
    assert sum(isinstance(answer, TooManyAttempts) for answer in answers) == 55


def test_naive_counting_after_the_look_lets_guesses_at_once_through(url: str) -> None:
    user, looked = uuid.uuid4().hex, []
    with psycopg.connect(url) as db:
        db.execute("insert into second_factor_attempts values (%s, 0, 0)", [user])
    everybody = threading.Barrier(6)

    def naive(guess: int) -> None:
        with psycopg.connect(url, autocommit=True) as db:
            row = db.execute("select failures from second_factor_attempts where user_id = %s", [user]).fetchone()
            everybody.wait(10)  # what a busy moment does by itself
            if row and row[0] < 5:
                looked.append(guess)
                db.execute("update second_factor_attempts set failures = failures + 1 where user_id = %s", [user])

    each_at_once(naive, range(6))
    assert len(looked) == 6


def test_an_attempt_stays_counted_when_the_process_dies_over_it(factor: Factor) -> None:
    user, secret = factor.enrolled()

    class Killed(BaseException):
        pass

    def dies(token: str, *, context: str) -> bytes:
        raise Killed

    factor.cipher.decrypt = dies  # type: ignore[method-assign]
    for _ in range(5):
        with pytest.raises(Killed):
            factor.verify(user, core_code(secret, NOW))
    assert _retry_after(factor, "verify", user, core_code(secret, NOW)) == 900


def test_somebody_without_a_second_factor_gets_the_answers_of_a_wrong_code(factor: Factor) -> None:
    enrolled, secret = factor.enrolled()
    nobody = uuid.uuid4().hex
    wrong = _wrong(secret)
    for user in (enrolled, nobody):
        told = [factor.verify(user, wrong), factor.use_recovery(user, "x" * 19), factor.verify(user, "")]
        told += [factor.verify(user, wrong), factor.use_recovery(user, "")]
        assert told == [False] * 5
        assert _retry_after(factor, "verify", user, wrong) == 900


def test_a_lock_that_is_lifted_meanwhile_says_so(factor: Factor, monkeypatch: pytest.MonkeyPatch) -> None:
    user = uuid.uuid4().hex
    monkeypatch.setattr(core, "LOCKED_SINCE", "select since from second_factor_attempts where false")
    for _ in range(5):
        factor.verify(user, "")
    assert _retry_after(factor, "verify", user, "") == 0


# Recovery.


def test_ten_recovery_codes_work_once_each_however_they_are_typed(factor: Factor) -> None:
    user, _ = factor.enrolled()
    codes = factor.recovery_codes(user)
    assert len(set(codes)) == 10
    assert all(len(code.replace("-", "")) * 5 >= 64 for code in codes)
    typed = [codes[0], codes[1].lower(), codes[2].replace("-", " "), f" {codes[3]}\n", codes[4].replace("-", "")]
    for code in typed:
        assert factor.use_recovery(user, code) is True
        assert factor.use_recovery(user, code) is False
    assert factor.use_recovery(user, codes[5]) is True


def test_new_recovery_codes_end_the_old_ones(factor: Factor) -> None:
    user, _ = factor.enrolled()
    old, new = factor.recovery_codes(user), factor.recovery_codes(user)
    assert factor.use_recovery(user, old[0]) is False
    assert factor.use_recovery(user, new[0]) is True


def test_a_recovery_code_is_its_owners_and_used_by_one_of_ten_at_once(factor: Factor) -> None:
    (user, _), (other, _) = factor.enrolled(), factor.enrolled()
    code = factor.recovery_codes(user)[0]
    factor.recovery_codes(other)
    assert factor.use_recovery(other, code) is False
    answers = at_once(5, lambda: factor.use_recovery(user, code))
    assert sorted(answers) == [False] * 4 + [True]


@pytest.mark.parametrize("code", ["", " ", "-", "é" * 16, "\ud800", "A" * 10_000, None, 7])
def test_whatever_is_typed_for_a_recovery_code_is_an_answer(factor: Factor, code: str) -> None:
    user, _ = factor.enrolled()
    factor.recovery_codes(user)
    assert factor.use_recovery(user, code) is False


def test_the_table_holds_neither_secrets_nor_recovery_codes(factor: Factor) -> None:
    user, secret = factor.enrolled()
    codes = factor.recovery_codes(user)
    stored = repr(factor.rows("select * from second_factor where user_id = %(user)s", user))
    stored += repr(factor.rows("select * from second_factor_recovery where user_id = %(user)s", user))
    for value in (secret, *codes, *(code.replace("-", "") for code in codes)):
        assert value not in stored
        assert value.encode().hex() not in stored


def test_naive_table_in_clear_is_all_second_factors_and_all_recovery_codes() -> None:
    stolen = {"secret": pyotp.random_base32(), "recovery": ["ABCD-EFGH"]}
    victim = pyotp.TOTP(str(stolen["secret"]))
    assert victim.verify(pyotp.TOTP(str(stolen["secret"])).now(), valid_window=1)
    compared = []
    for code in ["WXYZ-ABCD", *stolen["recovery"], "never-read"]:  # a loop that stops: its time tells the place
        compared.append(code)
        if hmac.compare_digest(code, "ABCD-EFGH"):
            break
    assert compared == ["WXYZ-ABCD", "ABCD-EFGH"]


def test_a_secret_moved_to_another_users_row_does_not_decrypt(factor: Factor) -> None:
    (user, _), (thief, own) = factor.enrolled(), factor.enrolled()
    with psycopg.connect(factor.url) as db:
        db.execute(
            "update second_factor set secret = (select secret from second_factor where user_id = %s)"
            " where user_id = %s",
            [thief, user],
        )
    with pytest.raises(InvalidTag):
        factor.verify(user, core_code(own, NOW))


# The end of it.


def test_to_disable_it_takes_a_fresh_code_and_wipes_the_secret(factor: Factor) -> None:
    user, secret = factor.enrolled()
    codes = factor.recovery_codes(user)
    assert factor.disable(user, _wrong(secret)) is False
    assert factor.disable(user, "AAAA-AAAA-AAAA-AAAA") is False
    code = core_code(secret, NOW)
    assert factor.verify(user, code)
    assert factor.disable(user, code) is False  # used already
    factor.clock.now += 30
    later = core_code(secret, factor.clock.now)
    assert factor.disable(user, f"{later[:3]} {later[3:]}") is True
    assert not factor.rows("select * from second_factor where user_id = %(user)s", user)
    assert not factor.rows("select * from second_factor_recovery where user_id = %(user)s", user)
    with pytest.raises(NotEnrolled):
        factor.disable(user, codes[0])
    assert factor.begin_enrollment(user, "ada").secret != secret


def test_a_recovery_code_disables_it_too(factor: Factor) -> None:
    user, _ = factor.enrolled()
    assert factor.disable(user, factor.recovery_codes(user)[3].replace("-", "")) is True
    with pytest.raises(NotEnrolled):
        factor.recovery_codes(user)


def test_without_the_database_nobody_gets_in(color: Color) -> None:
    class Down:
        def connection(self) -> Any:
            raise psycopg.OperationalError("connection refused")

    kind: Any = color.pick(AsyncSecondFactor, SecondFactor)
    factor = color.blocking(kind(Down(), Sealed(), issuer="Shop"))
    for name in ("verify", "use_recovery", "confirm", "disable"):
        with pytest.raises(psycopg.OperationalError):
            getattr(factor, name)("user", "000000")


def test_no_secret_or_code_is_in_a_text_that_leaves_the_module(
    factor: Factor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    user, secret = factor.enrolled()
    begun = factor.begin_enrollment(uuid.uuid4().hex, "ada")
    codes = factor.recovery_codes(user)
    told = [repr(begun), str(begun), repr(factor.made), caplog.text]
    for call, arguments in (
        ("confirm", (user, "424242")),
        ("begin_enrollment", (user, "ada")),
        ("begin_enrollment", (uuid.uuid4().hex, "a:b")),
        *[("verify", (user, _wrong(secret)))] * 5,
        ("verify", (user, core_code(secret, NOW))),
        ("use_recovery", (user, codes[0])),
    ):
        try:
            told.append(repr(getattr(factor, call)(*arguments)))
        except Exception as error:
            told += [*traceback.format_exception(error), repr(error)]
    text = "\n".join(told)
    assert "too many wrong codes" in text
    assert "without a colon" in text
    for canary in (secret, begun.secret, codes[0], core_code(secret, NOW)):
        assert canary not in text
