"""A store of API keys in SQLite, and an application behind it, for the proofs of api-key."""

import sqlite3
import weakref
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI

from api_key_guard import require_api_key
from api_keys import IssuedKey, KeyRecord, issue

COLUMNS = "key_id, owner, scopes, digest, created_at, expires_at, revoked_at, last_used_at"
SCHEMA = """CREATE TABLE api_keys (key_id TEXT PRIMARY KEY, owner TEXT NOT NULL, scopes TEXT NOT NULL,
    digest BLOB NOT NULL, created_at REAL NOT NULL, expires_at REAL, revoked_at REAL, last_used_at REAL)"""
NOW = 1_800_000_000.0


class Store:
    """Keeps records in SQLite and counts what it is asked."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        weakref.finalize(self, self.db.close)
        self.db.execute(SCHEMA)
        self.looked_up: list[str] = []
        self.touched: list[tuple[str, float]] = []
        self.written = 0
        self.fail: Exception | None = None
        self.fail_touch: Exception | None = None

    def add(self, issued: IssuedKey) -> str:
        r = issued.record
        row = (r.key_id, r.owner, " ".join(sorted(r.scopes)), r.digest, r.created_at, r.expires_at, r.revoked_at, None)
        self.db.execute(f"INSERT INTO api_keys ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        return issued.plaintext

    def new(self, owner: str = "ada", scopes: tuple[str, ...] = ("read",), **options: Any) -> str:
        return self.add(issue(owner, scopes, brand="acme", clock=lambda: NOW, **options))

    def revoke(self, text: str, at: float = NOW) -> None:
        self.db.execute("UPDATE api_keys SET revoked_at = ? WHERE key_id = ?", (at, text.split("_")[2]))

    async def get(self, key_id: str) -> KeyRecord | None:
        self.looked_up.append(key_id)
        if self.fail:
            raise self.fail
        row = self.db.execute(f"SELECT {COLUMNS} FROM api_keys WHERE key_id = ?", (key_id,)).fetchone()
        return row and KeyRecord(row[0], row[1], frozenset(row[2].split()), *row[3:])

    async def touch(self, key_id: str, at: float) -> None:
        self.touched.append((key_id, at))
        if self.fail_touch:
            raise self.fail_touch
        done = self.db.execute(
            "UPDATE api_keys SET last_used_at = ?"
            " WHERE key_id = ? AND (last_used_at IS NULL OR last_used_at <= ? - 60)",
            (at, key_id, at),
        )
        self.written += done.rowcount


def application(store: Any, clock: Callable[[], float] = lambda: NOW, pepper: bytes | None = None) -> FastAPI:
    """Make an application with an open and a scoped route."""
    app = FastAPI()
    reader = require_api_key(store, "read", clock=clock, pepper=pepper)
    admin = require_api_key(store, "read", "admin", clock=clock, pepper=pepper)

    @app.get("/reports")
    async def reports(key: Annotated[KeyRecord, Depends(reader)]) -> dict[str, str]:
        return {"owner": key.owner}

    @app.get("/admin")
    async def administer(key: Annotated[KeyRecord, Depends(admin)]) -> dict[str, str]:
        return {"owner": key.owner}

    @app.get("/whoami")
    async def whoami(key: Annotated[KeyRecord, Depends(require_api_key(store, clock=clock))]) -> dict[str, str]:
        return {"owner": key.owner}

    return app
