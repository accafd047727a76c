"""Proves docs/patterns/authentication/password-hashing.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import sqlite3

from password_hashing import Passwords


def test_my_login_upgrades_old_hashes() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE users (name TEXT PRIMARY KEY, hash TEXT NOT NULL)")
    weak = Passwords(memory_kib=8, time_cost=1)  # what you had
    strong = Passwords(memory_kib=16, time_cost=1)  # what you have; small, for the test
    db.execute("INSERT INTO users VALUES ('ada', ?)", (weak.hash("correct horse battery"),))

    def login(name: str, pw: str) -> bool:
        row = db.execute("SELECT hash FROM users WHERE name = ?", (name,)).fetchone()
        old = row[0] if row else None
        verdict = strong.verify(pw, old)  # also for a name that does not exist
        if verdict.new_hash:
            db.execute(
                "UPDATE users SET hash = ? WHERE name = ? AND hash = ?",
                (verdict.new_hash, name, old),
            )
        return verdict.ok

    assert not login("ada", "wrong")
    assert not login("eve", "correct horse battery")
    assert login("ada", "correct horse battery")
    (stored,) = db.execute("SELECT hash FROM users").fetchone()
    assert stored.startswith("$argon2id$v=19$m=16,t=1,p=1$")
    assert login("ada", "correct horse battery")
    db.close()


# --8<-- [end:own]
