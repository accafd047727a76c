"""The table, its statements and its pool, for both stores. No column is named by a client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.sql import SQL

from .models import ItemIn, ItemOut
from .passwords import Scrypt

# Versions come from one sequence: an item that is deleted and made again under its old id never
# gets a version, hence an ETag, that it had before. COLLATE "C" lower-cases alike in every locale.
SCHEMA = """
SELECT pg_advisory_xact_lock(hashtext('items'));
CREATE SEQUENCE IF NOT EXISTS item_version;
CREATE TABLE IF NOT EXISTS items (
    id            uuid PRIMARY KEY,
    owner_email   text NOT NULL,
    name          text NOT NULL,
    description   text,
    password_hash text NOT NULL,
    version       bigint NOT NULL DEFAULT nextval('item_version'),
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS items_owner_email ON items (lower(owner_email COLLATE "C"));
"""

#: Which field a client is told about when a unique index refuses a row. Add each index of yours.
UNIQUE = {"items_owner_email": "owner_email"}

_SHOWN = SQL("id, owner_email, name, description, version, created_at, updated_at")

GET = SQL("SELECT {} FROM items WHERE id = %(id)s").format(_SHOWN)
GET_WHOLE = SQL("SELECT {}, password_hash FROM items WHERE id = %(id)s").format(_SHOWN)
LIST = SQL("SELECT {} FROM items ORDER BY id LIMIT %(limit)s").format(_SHOWN)
CREATE = SQL("""
INSERT INTO items (id, owner_email, name, description, password_hash)
VALUES (%(id)s, %(owner_email)s, %(name)s, %(description)s, %(password_hash)s)
ON CONFLICT (id) DO NOTHING RETURNING {}
""").format(_SHOWN)
# The version in the WHERE decides: when the row has changed since we read it, this finds nothing.
UPDATE = SQL("""
UPDATE items SET owner_email = %(owner_email)s, name = %(name)s, description = %(description)s,
    password_hash = %(password_hash)s, version = nextval('item_version'), updated_at = now()
WHERE id = %(id)s AND version = %(version)s RETURNING {}
""").format(_SHOWN)
DELETE = "DELETE FROM items WHERE id = %(id)s AND version = %(version)s RETURNING id"


def new_row(item: ItemIn, scrypt: Scrypt) -> dict[str, Any]:
    """Return the columns of a new item. Slow: it hashes the password."""
    row = item.model_dump(include={"owner_email", "name", "description"})
    return row | {"password_hash": scrypt.hash(item.password)}


def changed(row: Mapping[str, Any], wanted: Mapping[str, Any], scrypt: Scrypt) -> dict[str, Any]:
    """Return `row` with the `wanted` fields put in; equal to `row` when they change nothing.

    Slow when `wanted` has a password. One that the item has already keeps its hash: a new salt
    would make every repeated PUT a change.
    """
    after = dict(row)
    for field in ("owner_email", "name", "description"):
        if field in wanted:  # and not `if wanted.get(field) is not None`: null is a value
            after[field] = wanted[field]
    if "password" in wanted and not scrypt.verify(wanted["password"], row["password_hash"]):
        after["password_hash"] = scrypt.hash(wanted["password"])
    return after


def to_item(row: Mapping[str, Any]) -> ItemOut:
    """Return what a client may see of `row`."""
    return ItemOut(**{column: row[column] for column in row if column != "password_hash"})


def pool_options(max_size: int, timeout: float) -> dict[str, Any]:
    """Return how both stores pool connections; `ValueError` for a number that cannot be meant."""
    if not isinstance(max_size, int) or isinstance(max_size, bool) or max_size < 1:
        raise ValueError(f"max_size must be a whole number of at least 1, got {max_size!r}")
    if not _is_number(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be a number of seconds over 0, got {timeout!r}")
    # autocommit: one statement decides each method's work, and needs no BEGIN and COMMIT.
    kwargs = {"autocommit": True}
    return {"min_size": 1, "max_size": max_size, "timeout": timeout, "kwargs": kwargs}


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
