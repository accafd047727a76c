"""What single use costs: consume on PostgreSQL against itsdangerous' loads of a signed token."""

from __future__ import annotations

import os
from collections.abc import Callable

import psycopg
from itsdangerous import URLSafeTimedSerializer

from bench.kit import Table, compare, version
from one_time_tokens_sync import OneTimeTokens
from servers.postgres import Postgres

CALLS, ROUNDS = 60, 11


def tables() -> list[Table]:
    """Measure a look, a use and an issue, each committed, and the same of a signed token."""
    server = Postgres()
    try:
        with psycopg.connect(server.url, autocommit=True) as db:
            tokens = OneTimeTokens(db)
            tokens.create_table()
            unused = [tokens.issue("reset", f"user-{n}", ttl=3_600) for n in range(CALLS * ROUNDS + 1)]
            looked_at = tokens.issue("look", "ada", ttl=3_600)
            signer = URLSafeTimedSerializer(os.urandom(32))
            signed = signer.dumps("ada")
            subjects: dict[str, Callable[[], object]] = {
                "consume": lambda: tokens.consume("reset", unused.pop()),
                "peek": lambda: tokens.peek("look", looked_at),
                "issue": lambda: tokens.issue("issue", "ada", ttl=3_600),
                "loads": lambda: signer.loads(signed, max_age=3_600),
                "dumps": lambda: signer.dumps("ada"),
            }
            seconds = compare(subjects, calls=CALLS, rounds=ROUNDS)
    finally:
        server.stop()
    names = {
        "issue": ("this module, issue", "yes"),
        "peek": ("this module, peek", "yes"),
        "consume": ("this module, consume", "yes"),
        "dumps": (f"{version('itsdangerous')}, dumps", "no"),
        "loads": (f"{version('itsdangerous')}, loads", "no"),
    }
    rows = [
        [name, f"{seconds[key] * 1e6:,.0f} µs", f"{seconds[key] / seconds['consume']:.2f} ×", single]
        for key, (name, single) in names.items()
    ]
    return [
        Table(
            name="price",
            columns=("", "median", "ratio to consume", "single use"),
            rows=rows,
            note="Sync twin, one connection over loopback to a PostgreSQL of its own that does not wait for the disk; "
            "each statement is a transaction. With a disk, issue and consume wait for it.",
        )
    ]
