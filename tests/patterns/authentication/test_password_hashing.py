"""Proves docs/patterns/authentication/password-hashing.md: hashes, verdicts, upgrades, bounds and peppers."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import argon2
import bcrypt
import pwdlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher

import password_hashing
from harness.depth import examples
from password_hashing import Passwords, Verdict
from password_policy import PasswordPolicyError, check_policy, prepared

PW = "correct horse battery"
CHEAP: dict[str, Any] = {"memory_kib": 8, "time_cost": 1}
PEPPERS = {"k1": b"1" * 32, "k2": b"2" * 32}


def cheap(**options: Any) -> Passwords:
    return Passwords(**(CHEAP | options))


def bcrypt_of(pw: bytes, rounds: int = 4, prefix: bytes = b"2b") -> str:
    return bcrypt.hashpw(pw, bcrypt.gensalt(rounds, prefix=b"2b")).replace(b"2b", prefix, 1).decode()


@contextmanager
def counted(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note which stored hash each Argon2 verification reads."""
    seen: list[str] = []
    real = passwords._argon2.verify

    class Spy:
        def verify(self, stored: str, data: bytes) -> bool:
            seen.append(stored)
            return real(stored, data)

        def __getattr__(self, name: str) -> Any:
            return getattr(argon2.PasswordHasher(1, 8, 1), name)

    with monkeypatch.context() as patch:
        patch.setattr(passwords, "_argon2", Spy())
        yield seen


# Hashes and verdicts.


def test_the_default_is_argon2id_with_19_mib_and_two_passes_and_no_hash_comes_twice() -> None:
    passwords = Passwords()
    one, two = passwords.hash(PW), passwords.hash(PW)
    assert one.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert one != two
    assert passwords.verify(PW, one) == Verdict(ok=True, new_hash=None)
    assert passwords.verify(PW + " ", one) == Verdict(ok=False)
    assert repr(passwords) == "Passwords(m=19456, t=2, p=1)"
    assert (passwords._slots._value, passwords._pool._max_workers) == (4, 4)


def test_a_verdict_cannot_be_changed_and_does_not_show_the_new_hash() -> None:
    verdict = cheap().verify(PW, bcrypt_of(PW.encode()))
    assert verdict.new_hash
    assert repr(verdict) == "Verdict(ok=True)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.ok = False  # type: ignore[misc]
    assert not hasattr(verdict, "__dict__")


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=examples(50), deadline=None, database=None)
def test_a_password_verifies_against_its_own_hash_and_no_other(one: str, two: str) -> None:
    passwords = _SHARED
    stored = passwords.hash(one)
    assert passwords.verify(one, stored) == Verdict(ok=True)
    same = unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", two)
    assert passwords.verify(two, stored).ok is same


_SHARED = Passwords(memory_kib=8, time_cost=1)


def test_composed_and_decomposed_letters_are_one_password() -> None:
    passwords = cheap()
    forms = ["Å" * 15, "A\u030a" * 15, "\u212b" * 15]
    assert len({form.encode() for form in forms}) == 3
    for stored in map(passwords.hash, forms):
        assert all(passwords.verify(form, stored).ok for form in forms)


def test_nothing_is_cut_off_two_passwords_that_differ_at_byte_73_differ() -> None:
    passwords = cheap()
    stored = passwords.hash("x" * 72 + "a")
    assert passwords.verify("x" * 72 + "a", stored).ok
    assert not passwords.verify("x" * 72 + "b", stored).ok
    long = "x" * 1_023
    assert not passwords.verify(long + "b", passwords.hash(long + "a")).ok
    assert not passwords.verify("a\x00b", passwords.hash("a\x00c")).ok


@pytest.mark.parametrize("stored", [None, ""])
def test_an_unknown_user_costs_one_verification_of_a_dummy(stored: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = cheap()
    with counted(passwords, monkeypatch) as seen:
        assert passwords.verify(PW, stored) == Verdict(ok=False)
    assert seen == [passwords._dummy]


def test_an_unknown_user_costs_as_much_computing_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords()
    stored = passwords.hash(PW)
    with counted(passwords, monkeypatch) as seen:
        for hashed in (stored, None):
            assert not passwords.verify("another password", hashed).ok
    known, unknown = (argon2.extract_parameters(hashed) for hashed in seen)
    assert known == unknown  # the same passes over the same memory


def test_naive_early_return_for_an_unknown_user_tells_who_has_an_account() -> None:
    passwords = _SHARED
    users = {"ada": passwords.hash(PW)}

    def naive(name: str, pw: str) -> bool:
        return name in users and passwords.verify(pw, users[name]).ok

    def spent(name: str) -> float:
        begin = time.thread_time()
        for _ in range(50):
            naive(name, "wrong")
        return time.thread_time() - begin

    assert spent("ada") > 5 * spent("eve")


# Old hashes, and the upgrade.


@pytest.mark.parametrize("prefix", [b"2a", b"2b", b"2y"])
def test_a_bcrypt_hash_verifies_and_is_replaced_by_argon2id(prefix: bytes) -> None:
    passwords = cheap()
    stored = bcrypt_of(PW.encode(), prefix=prefix)
    verdict = passwords.verify(PW, stored)
    assert verdict.ok
    assert verdict.new_hash is not None
    assert verdict.new_hash.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert passwords.verify(PW, verdict.new_hash) == Verdict(ok=True)
    assert passwords.verify("wrong", stored) == Verdict(ok=False)


def test_a_bcrypt_hash_is_compared_with_the_bytes_as_they_were_sent() -> None:
    decomposed = "A\u030a" * 8
    verdict = cheap().verify(decomposed, bcrypt_of(decomposed.encode()))
    assert verdict.ok
    assert cheap().verify(unicodedata.normalize("NFC", decomposed), verdict.new_hash).ok


def test_naive_bcrypt_raises_on_a_long_password_that_an_old_hash_must_still_let_in() -> None:
    long = "é" * 40  # 80 bytes; before 5.0, bcrypt took the first 72 without a word
    stored = bcrypt_of(long.encode()[:72])
    with pytest.raises(ValueError, match="longer than 72 bytes"):  # a 500 at login
        bcrypt.checkpw(long.encode(), stored.encode())
    library = pwdlib.PasswordHash((Argon2Hasher(), BcryptHasher()))
    with pytest.raises(ValueError, match="longer than 72 bytes"):
        library.verify(long, stored)
    passwords = cheap()
    verdict = passwords.verify(long, stored)
    assert verdict.ok
    assert verdict.new_hash
    assert not passwords.verify(long + "x", verdict.new_hash).ok  # from now on all of it counts
    assert not passwords.verify("é" * 35 + "xx", stored).ok
    exact = "y" * 72
    assert passwords.verify(exact, bcrypt_of(exact.encode())).ok
    assert not passwords.verify("y" * 71 + "z", bcrypt_of(exact.encode())).ok


@pytest.mark.parametrize(
    "old",
    [
        argon2.PasswordHasher(2, 8, 1),
        argon2.PasswordHasher(1, 16, 1),
        argon2.PasswordHasher(1, 16, 2),
        argon2.PasswordHasher(1, 8, 1, hash_len=16),
        argon2.PasswordHasher(1, 8, 1, salt_len=8),
        argon2.PasswordHasher(1, 8, 1, type=argon2.Type.I),
        argon2.PasswordHasher(1, 8, 1, type=argon2.Type.D),
    ],
    ids=lambda hasher: f"{hasher.type.name}-m{hasher.memory_cost}-t{hasher.time_cost}-p{hasher.parallelism}",
)
def test_other_argon2_parameters_verify_and_give_a_new_hash_and_the_same_give_none(old: Any) -> None:
    passwords = cheap()
    verdict = passwords.verify(PW, old.hash(PW))
    assert verdict.ok
    assert verdict.new_hash is not None
    assert verdict.new_hash.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert passwords.verify(PW, verdict.new_hash) == Verdict(ok=True, new_hash=None)
    assert passwords.verify("wrong", old.hash(PW)) == Verdict(ok=False)


def test_naive_check_needs_rehash_raises_on_bcrypt_and_verify_raises_on_none() -> None:
    hasher = argon2.PasswordHasher(1, 8, 1)
    with pytest.raises(argon2.exceptions.InvalidHashError):
        hasher.check_needs_rehash(bcrypt_of(b"x"))
    with pytest.raises(AttributeError):
        hasher.verify(None, PW)  # type: ignore[arg-type]
    assert cheap().verify(PW, bcrypt_of(b"x")) == Verdict(ok=False)
    assert cheap().verify(PW, None) == Verdict(ok=False)


@pytest.fixture
def users() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, hash TEXT NOT NULL)")
        yield db


def test_naive_upgrade_overwrites_a_newer_password_and_compare_and_set_does_not(
    users: sqlite3.Connection,
) -> None:
    passwords, db = cheap(), users
    old = bcrypt_of(PW.encode())
    for number, statement in enumerate(
        ["UPDATE users SET hash = :new WHERE id = :id", "UPDATE users SET hash = :new WHERE id = :id AND hash = :old"]
    ):
        db.execute("INSERT INTO users VALUES (?, ?)", (number, old))
        verdict = passwords.verify(PW, old)  # the login has read the old hash ...
        changed = passwords.hash("a new password, because the old one leaked")
        db.execute("UPDATE users SET hash = ? WHERE id = ?", (changed, number))  # ... and the owner changes it
        db.execute(statement, {"new": verdict.new_hash, "id": number, "old": old})
    naive, guarded = (row[0] for row in db.execute("SELECT hash FROM users ORDER BY id"))
    assert passwords.verify(PW, naive).ok  # the leaked password is back
    assert not passwords.verify(PW, guarded).ok
    assert passwords.verify("a new password, because the old one leaked", guarded).ok


def test_naive_verification_alone_upgrades_nothing_the_caller_stores_the_new_hash(users: sqlite3.Connection) -> None:
    passwords, db = cheap(), users
    db.execute("INSERT INTO users VALUES (1, ?)", (bcrypt_of(PW.encode()),))

    def stored() -> str:
        return str(db.execute("SELECT hash FROM users").fetchone()[0])

    library = pwdlib.PasswordHash((Argon2Hasher(1, 8, 1), BcryptHasher()))
    assert library.verify(PW, stored())  # "the deprecated scheme is upgraded automatically": it is not
    assert stored().startswith("$2b$")
    verdict = passwords.verify(PW, stored())
    done = db.execute("UPDATE users SET hash = ? WHERE id = 1 AND hash = ?", (verdict.new_hash, stored()))
    assert done.rowcount == 1
    assert stored().startswith("$argon2id$")


# Broken and hostile stored values.

TAIL = "c29tZXNhbHRzb21lc2FsdA$iHSDPHzUhPzK7rCcJgOFfgiHSDPHzUhPzK7rCcJgOFg"
HOSTILE = [
    f"$argon2id$v=19$m=4194304,t=2,p=1${TAIL}",  # 4 GiB
    f"$argon2id$v=19$m=262145,t=1,p=1${TAIL}",
    f"$argon2id$v=19$m=8,t=11,p=1${TAIL}",
    f"$argon2id$v=19$m=999999999,t=999999999,p=999999999${TAIL}",
    f"$argon2id$v=19$m={'9' * 5000},t=1,p=1${TAIL}",
    f"$argon2id$v=19$m=256,t=1,p=17${TAIL}",
    f"k9$argon2id$v=19$m=8,t=1,p=1${TAIL}",  # a pepper that is not there
    f"$argon2id$v=19$m=٨,t=1,p=1${TAIL}",
    f"$argon2id$v=19$m=8,t=1,p=1${TAIL}\n",
    f"$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ${'A' * 173}",
    "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$",
    "$argon2id$",
    "plain text",
    "\x00",
    "\udcff",
    "5f4dcc3b5aa765d61d8327deb882cf99",
]


@pytest.mark.parametrize("stored", HOSTILE, ids=lambda stored: ascii(stored[:34]))
def test_a_stored_value_that_is_broken_or_too_dear_is_refused_and_logged_without_it(
    stored: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    passwords = cheap()
    with counted(passwords, monkeypatch) as seen:
        assert passwords.verify(PW, stored) == Verdict(ok=False)
    assert seen == [passwords._dummy]  # as long as for anybody, and never the hostile one
    assert caplog.messages == ["a stored password hash cannot be used: its form, its cost or its pepper"]


@pytest.mark.parametrize("costs", ["m=7,t=1,p=1", "m=0,t=0,p=0", "m=8,t=0,p=1", "m=8,t=1,p=0", "m=8,t=1,p=2"])
def test_a_stored_value_that_argon2_itself_refuses_is_a_wrong_password(
    costs: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert cheap().verify(PW, f"$argon2id$v=19${costs}${TAIL}") == Verdict(ok=False)
    assert caplog.text.count("a stored password hash cannot be used") == 1


def test_the_limits_themselves_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_MEMORY_KIB": 64, "MAX_TIME_COST": 3, "MAX_LANES": 2}.items():
        monkeypatch.setattr(password_hashing, name, value)
    passwords = cheap()
    assert passwords.verify(PW, argon2.PasswordHasher(3, 64, 2).hash(PW)).ok
    for dearer in (argon2.PasswordHasher(4, 64, 2), argon2.PasswordHasher(3, 65, 2), argon2.PasswordHasher(3, 64, 3)):
        assert not passwords.verify(PW, dearer.hash(PW)).ok


@pytest.mark.parametrize("rounds", ["03", "16", "31", "99", "00"])
def test_a_bcrypt_hash_that_asks_for_hours_is_refused_unread(
    rounds: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def never(*_: object) -> bool:
        raise AssertionError("bcrypt was asked")

    monkeypatch.setattr(bcrypt, "checkpw", never)
    stored = f"$2b${rounds}$" + bcrypt_of(PW.encode())[7:]
    assert cheap().verify(PW, stored) == Verdict(ok=False)
    assert caplog.messages == ["a stored password hash cannot be used: its form or its cost"]


def test_bcrypt_with_4_to_15_rounds_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def asks(_: bytes, stored: bytes) -> bool:
        asked.append(stored)
        return True

    monkeypatch.setattr(bcrypt, "checkpw", asks)
    for rounds in ("04", "15"):
        assert cheap().verify(PW, f"$2b${rounds}$" + "." * 53).ok
    assert len(asked) == 2


def test_a_bcrypt_hash_of_another_form_is_a_wrong_password(caplog: pytest.LogCaptureFixture) -> None:
    for stored in ("$2x$04$" + "." * 53, "$2b$04$" + "." * 52, "$2b$04$" + "." * 54, "$2b$4$" + "." * 53):
        assert cheap().verify(PW, stored) == Verdict(ok=False)
    assert len(caplog.messages) == 4


# Length and form of a password.


def test_15_to_1024_characters_are_accepted_and_others_refused_before_any_hashing() -> None:
    check_policy("ä" * 15, username="ada")
    check_policy("\U0001f511" * 1_024, username="ada")
    with pytest.raises(PasswordPolicyError, match=r"^a password has at least 15 characters$"):
        check_policy("ä" * 14, username="ada")
    check_policy("x" * 8, username="ada", min_length=8)
    with pytest.raises(PasswordPolicyError, match=r"^a password has at least 8 characters$"):
        check_policy("x" * 7, username="ada", min_length=8)
    passwords = cheap()
    assert passwords.verify("x" * 1_024, passwords.hash("x" * 1_024)).ok
    passwords._argon2 = None  # type: ignore[assignment]  # it would raise if it were asked
    for call in (passwords.hash, lambda pw: check_policy(pw, username="ada")):
        with pytest.raises(PasswordPolicyError, match=r"^a password has at most 1024 characters$"):
            call("x" * 1_025)
    assert passwords.verify("x" * 1_025, "$argon2id$") == Verdict(ok=False)


def test_a_password_of_a_megabyte_is_refused_at_once() -> None:
    passwords = cheap()
    begin = time.thread_time()
    for _ in range(100):
        assert not passwords.verify("x" * 1_000_000, None).ok
        with pytest.raises(PasswordPolicyError):
            passwords.hash("x" * 1_000_000)
    assert time.thread_time() - begin < 0.1


def test_a_lone_surrogate_is_a_policy_error_and_not_an_encode_error() -> None:
    with pytest.raises(UnicodeEncodeError):
        "\ud800".encode()
    text = r"^a password is text, without lone surrogates$"
    for call in (cheap().hash, prepared, lambda pw: check_policy(pw, username="ada")):
        with pytest.raises(PasswordPolicyError, match=text) as caught:
            call("\ud800" + "x" * 20)
        assert caught.value.__suppress_context__
        assert caught.value.__cause__ is None
    assert cheap().verify("\ud800", None) == Verdict(ok=False)
    assert issubclass(PasswordPolicyError, ValueError)


@pytest.mark.parametrize(
    "pw", ["ada.lovelace@example.com", "ADA.lovelace@example.COM1", "ada.lovelace@example.com" * 3]
)
def test_a_password_that_is_the_user_name_is_refused(pw: str) -> None:
    with pytest.raises(PasswordPolicyError, match=r"^a password is not the user name$"):
        check_policy(pw, username="Ada.Lovelace@Example.com")
    check_policy(pw, username="")
    check_policy("my name is ada and no more", username="ada")


def test_around_the_user_name_seven_characters_of_fifteen_must_be_left() -> None:
    with pytest.raises(PasswordPolicyError, match="user name"):
        check_policy("lovelace-lovelace12345", username="lovelace")
    check_policy("lovelace-lovelace123456", username="lovelace")


def test_a_listed_password_is_refused_in_any_case_and_form() -> None:
    listed = {"passwordpassword", "ångströmångström"}
    for pw in ("PasswordPassword", "A\u030angströmÅngström"):
        with pytest.raises(PasswordPolicyError, match=r"^this password is on the list of common ones$"):
            check_policy(pw, username="ada", blocklist=listed)
    check_policy("passwordpassword1", username="ada", blocklist=listed)


# At most so many at a time, and never on the event loop.


class Gate:
    """Stands in for Argon2: counts who is inside, and holds them until it is opened."""

    def __init__(self) -> None:
        self.inside = self.most = self.calls = 0
        self.lock, self.open = threading.Lock(), threading.Event()

    def verify(self, stored: str, data: bytes) -> bool:
        with self.lock:
            self.inside += 1
            self.calls += 1
            self.most = max(self.most, self.inside)
        self.open.wait(10)
        with self.lock:
            self.inside -= 1
        return True

    hash = verify

    def check_needs_rehash(self, stored: str) -> bool:
        return False


def test_of_200_parallel_logins_two_are_hashed_at_a_time_and_the_loop_goes_on() -> None:
    passwords, gate = cheap(max_parallel=2), Gate()
    stored = passwords.hash(PW)
    passwords._argon2 = gate  # type: ignore[assignment]

    async def main() -> list[Verdict]:
        logins = [asyncio.create_task(passwords.averify(PW, stored)) for _ in range(200)]
        blocking = [threading.Thread(target=passwords.verify, args=(PW, stored)) for _ in range(5)]
        for thread in blocking:
            thread.start()
        while gate.inside < 2:
            await asyncio.sleep(0.001)  # that this goes on is the point: everybody is held
        assert gate.inside == 2
        gate.open.set()
        return await asyncio.gather(*logins)

    assert all(verdict.ok for verdict in asyncio.run(main()))
    assert gate.most == 2  # times 19 MiB: that is the memory
    assert gate.calls >= 200


class Observed:
    """Argon2 itself, and whether the event loop had a turn while it computed."""

    def __init__(self, real: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.real, self.loop = real, loop
        self.turns: list[bool] = []

    def verify(self, stored: str, data: bytes) -> bool:
        turn = threading.Event()
        self.loop.call_soon_threadsafe(turn.set)
        try:
            return bool(self.real.verify(stored, data))
        finally:
            self.turns.append(turn.is_set())

    def check_needs_rehash(self, stored: str) -> bool:
        return False


def test_naive_hashing_in_a_coroutine_stops_the_loop_and_averify_does_not() -> None:
    passwords = Passwords(max_parallel=2)
    stored = passwords.hash(PW)
    real = passwords._argon2

    async def main() -> tuple[list[bool], list[bool]]:
        naive, ours = (Observed(real, asyncio.get_running_loop()) for _ in range(2))
        passwords._argon2 = naive  # type: ignore[assignment]
        for _ in range(6):
            passwords.verify(PW, stored)
        passwords._argon2 = ours  # type: ignore[assignment]
        for _ in range(20):
            await passwords.averify(PW, stored)
        return naive.turns, ours.turns

    naive, ours = asyncio.run(main())
    assert naive == [False] * 6
    assert any(ours)


MEMORY = """
import asyncio, resource, sys
from password_hashing import Passwords
passwords = Passwords(memory_kib=19_456, time_cost=1, max_parallel=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
async def main():
    return await asyncio.gather(*(passwords.averify("x" * 15, None) for _ in range(30)))
asyncio.run(main())
unit = 1024 if sys.platform == "darwin" else 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // unit)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_the_memory_of_parallel_logins_is_max_parallel_times_that_of_one() -> None:
    folder = str(Path(password_hashing.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], env={"PYTHONPATH": folder}, capture_output=True, check=True, timeout=60
    )
    assert int(done.stdout) < 2 * 19_456 + 8_192  # of 30 at once it would be 570 MiB


def test_a_new_hash_is_made_in_a_thread_as_well() -> None:
    passwords = cheap()
    where: list[str] = []
    real = passwords.hash

    def spy(pw: str) -> str:
        where.append(threading.current_thread().name)
        return real(pw)

    passwords.hash = spy  # type: ignore[method-assign]
    assert passwords.verify(PW, asyncio.run(passwords.ahash(PW))).ok
    assert where[0].startswith("passwords")


# Peppers.


def test_the_id_of_the_pepper_is_stored_beside_the_hash_and_the_pepper_is_not() -> None:
    passwords = cheap(peppers=PEPPERS, active_pepper="k1")
    stored = passwords.hash(PW)
    assert stored.startswith("k1$argon2id$v=19$m=8,t=1,p=1$")
    assert passwords.verify(PW, stored) == Verdict(ok=True)
    assert passwords.verify("wrong", stored) == Verdict(ok=False)
    assert not cheap().verify(PW, stored.removeprefix("k1")).ok  # the table alone tests no guess
    assert not cheap(peppers={"k1": b"x" * 32}, active_pepper="k1").verify(PW, stored).ok


def test_a_new_pepper_is_added_and_old_hashes_still_verify_and_upgrade() -> None:
    plain, one = cheap(), cheap(peppers={"k1": PEPPERS["k1"]}, active_pepper="k1")
    both = cheap(peppers=PEPPERS, active_pepper="k2")
    for stored in (plain.hash(PW), one.hash(PW), bcrypt_of(PW.encode())):
        verdict = both.verify(PW, stored)
        assert verdict.ok
        assert verdict.new_hash is not None
        assert verdict.new_hash.startswith("k2$argon2id$")
        assert both.verify(PW, verdict.new_hash) == Verdict(ok=True)
        assert both.verify("wrong", stored) == Verdict(ok=False)


def test_an_unknown_user_costs_the_same_with_a_pepper(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = cheap(peppers=PEPPERS, active_pepper="k1")
    with counted(passwords, monkeypatch) as seen:
        assert not passwords.verify(PW, None).ok
    assert seen == [passwords._dummy]


def test_a_pepper_must_be_chosen_when_there_are_some_and_only_then() -> None:
    for options in ({"peppers": PEPPERS}, {"active_pepper": "k1"}, {"peppers": PEPPERS, "active_pepper": "k3"}):
        with pytest.raises(ValueError, match=r"^active_pepper must be one of peppers$"):
            cheap(**options)
    assert cheap(peppers={}).hash(PW).startswith("$argon2id$")


@pytest.mark.parametrize(
    ("name", "pepper"),
    [("K1", b"x" * 32), ("", b"x" * 32), ("a" * 17, b"x" * 32), ("k$", b"x" * 32), ("k1", b"x" * 31)],
)
def test_a_pepper_whose_hashes_could_not_be_read_back_or_that_is_short_is_refused(name: str, pepper: bytes) -> None:
    with pytest.raises(ValueError, match=r"^a pepper has 32 bytes or more; its id is 1 to 16 of a-z and 0-9$"):
        cheap(peppers={name: pepper}, active_pepper=name)
    longest = cheap(peppers={"a" * 16: b"x" * 32}, active_pepper="a" * 16)
    assert longest.verify(PW, longest.hash(PW)) == Verdict(ok=True)


@pytest.mark.parametrize("name", ["memory_kib", "time_cost", "parallelism", "max_parallel"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, float("nan"), float("inf"), None])
def test_a_setting_that_is_no_whole_number_stops_the_start(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number over 0, got {value!r}$"):
        cheap(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 15.5, True, float("nan"), float("inf"), None])
def test_a_least_length_that_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^min_length must be a whole number over 0, got {value!r}$") as caught:
        check_policy(PW, username="ada", min_length=value)
    assert not isinstance(caught.value, PasswordPolicyError)  # it is not for the user


def test_parameters_that_would_be_refused_later_are_refused_at_the_start() -> None:
    message = r"^these hashes would be refused: they cost more than the limits$"
    for options in ({"memory_kib": 262_145}, {"time_cost": 11}, {"parallelism": 17, "memory_kib": 1_024}):
        with pytest.raises(ValueError, match=message):
            cheap(**options)
    for options in ({"time_cost": 10}, {"parallelism": 16, "memory_kib": 128}):
        dear = cheap(**options)
        assert dear.verify(PW, dear.hash(PW)) == Verdict(ok=True)
    assert (password_hashing.MAX_MEMORY_KIB, password_hashing.MAX_BCRYPT_ROUNDS) == (262_144, 15)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_peppers_come_from_variables_named_by_their_id() -> None:
    environ = {"PASSWORD_PEPPER_K1": b64(b"1" * 32), "PASSWORD_PEPPER_2027": b64(b"2" * 40), "HOME": "/"}
    passwords = Passwords.from_env(environ | {"PASSWORD_PEPPER_ACTIVE": "K1"}, **CHEAP)
    stored = passwords.hash(PW)
    assert stored.startswith("k1$argon2id$v=19$m=8,t=1")
    assert cheap(peppers=PEPPERS, active_pepper="k1").verify(PW, stored).ok
    assert Passwords.from_env(environ | {"PASSWORD_PEPPER_ACTIVE": "2027"}, **CHEAP).hash(PW).startswith("2027$")
    for none in ({}, {"PASSWORD_PEPPER_ACTIVE": ""}):
        assert Passwords.from_env(none, **CHEAP).hash(PW).startswith("$argon2id$")


@pytest.mark.parametrize("value", ["", "hunter2", b64(b"k" * 31), b64(b"k" * 32) + "!", "é" * 44])
def test_a_malformed_pepper_stops_the_start_and_is_not_printed(value: str) -> None:
    environ = {"PASSWORD_PEPPER_K1": value, "PASSWORD_PEPPER_ACTIVE": "K1"}
    with pytest.raises(ValueError, match=r"^PASSWORD_PEPPER_K1 is not the base64 of 32 bytes or more$") as caught:
        Passwords.from_env(environ)
    assert not value or value not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("active", [None, "", "K2"])
def test_a_missing_or_unknown_active_pepper_stops_the_start_and_names_the_variable(active: str | None) -> None:
    environ = {"PASSWORD_PEPPER_K1": b64(b"1" * 32)} | ({} if active is None else {"PASSWORD_PEPPER_ACTIVE": active})
    kind: type[Exception] = ValueError if active else RuntimeError
    message = "must be the ID of a PASSWORD_PEPPER_<ID>" if active else "is not set, or is empty"
    with pytest.raises(kind, match=rf"^PASSWORD_PEPPER_ACTIVE {message}$"):
        Passwords.from_env(environ)
    with pytest.raises(ValueError, match=r"^PASSWORD_PEPPER_ACTIVE must be"):
        Passwords.from_env({"PASSWORD_PEPPER_ACTIVE": "K1"})


def test_no_password_pepper_or_hash_is_in_any_log_text_or_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    pepper, pw = b"CANARY-pepper-0123456789-abcdefgh", "CANARY-password-0123"
    passwords = cheap(peppers={"k1": pepper}, active_pepper="k1")
    stored = passwords.hash(pw)
    old = bcrypt_of(pw.encode())
    broken = [f"k9{stored[2:]}", "CANARY", f"$2b$31${old[7:]}", f"$argon2id$v=19$m=7,t=1,p=1${TAIL}"]
    seen = [repr(passwords), str(passwords)]
    for hashed in (stored, old, None, "", *broken):
        seen += [repr(passwords.verify(attempt, hashed)) for attempt in (pw, pw + "!", pw * 60, pw + "\ud800")]
    calls: list[Any] = [
        lambda: passwords.hash(pw * 60),
        lambda: passwords.hash(pw + "\ud800"),
        lambda: check_policy("CANARY", username="ada"),
        lambda: check_policy(pw, username=pw),
        lambda: check_policy(pw, username="ada", blocklist={pw.casefold()}),
        lambda: cheap(peppers={"k1": pepper}, active_pepper="CANARY"),
        lambda: Passwords.from_env({"PASSWORD_PEPPER_K1": "CANARY"}),
        lambda: Passwords.from_env({"PASSWORD_PEPPER_K1": b64(pepper), "PASSWORD_PEPPER_ACTIVE": "CANARY"}),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"password|pepper|PEPPER") as caught:
            call()
        seen += [repr(caught.value), str(caught.value), str(caught.value.__cause__)]
        seen += [line for line in traceback.format_exception(caught.value) if not line.startswith("  File")]
    output = "\n".join([*seen, caplog.text])
    assert "a password has at most" in output
    assert "a stored password hash cannot be used" in output
    assert "CANARY" not in output
    assert stored[-20:] not in output
    assert old[-20:] not in output
