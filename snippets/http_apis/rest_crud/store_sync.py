"""Items in PostgreSQL (sync). Knows versions and domain errors, and nothing of HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self
from uuid import UUID

from psycopg import InterfaceError, OperationalError
from psycopg.abc import Query
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from . import table
from .models import (
    Allows,
    ExistsError,
    ItemIn,
    ItemOut,
    ItemPatch,
    NotFoundError,
    StaleError,
    TakenError,
    UnavailableError,
)
from .passwords import Scrypt


class ItemStore:
    """Items in the table `items`; a context manager that opens and closes its connections.

    Args:
        conninfo: Address of the database, a URL or libpq's `name=value` pairs.
        scrypt: Cost of a password hash; `Scrypt()` when it is not given.
        max_size: Connections at most.
        timeout: Seconds to wait for a connection before `UnavailableError`.

    Raises:
        ValueError: `max_size` or `timeout` is out of its range.
        UnavailableError: From every method, when the database does not answer.

    """

    def __init__(
        self,
        conninfo: str,
        *,
        scrypt: Scrypt | None = None,
        max_size: int = 10,
        timeout: float = 5.0,
    ) -> None:
        self._scrypt = scrypt or Scrypt()
        options = table.pool_options(max_size, timeout)
        self._pool = ConnectionPool(conninfo, open=False, **options)

    def __enter__(self) -> Self:
        self._pool.open()  # does not wait: an app may start before its database
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def create_table(self) -> None:
        """Create the table when it does not exist; several processes may do so at once."""
        self._run_statement(table.SCHEMA, None)

    def create(self, item_id: UUID, item: ItemIn) -> ItemOut:
        """Store a new item. Raises `ExistsError` (the id) or `TakenError` (a unique field)."""
        row = table.new_row(item, self._scrypt)
        made = self._run_statement(table.CREATE, row | {"id": item_id})
        if not made:
            raise ExistsError(item_id)
        return table.to_item(made[0])

    def get(self, item_id: UUID) -> ItemOut:
        """Return one item, or raise `NotFoundError`."""
        found = self._run_statement(table.GET, {"id": item_id})
        if not found:
            raise NotFoundError(item_id)
        return table.to_item(found[0])

    def first(self, limit: int) -> list[ItemOut]:
        """Return the first `limit` items in the order of their ids."""
        return [table.to_item(row) for row in self._run_statement(table.LIST, {"limit": limit})]

    def replace(self, item_id: UUID, item: ItemIn, allows: Allows) -> ItemOut:
        """Give the item these values and no others.

        Raises `NotFoundError`, `StaleError` or `TakenError`.
        """
        return self._write_item(item_id, item.model_dump(), allows)

    def change(self, item_id: UUID, patch: ItemPatch, allows: Allows) -> ItemOut:
        """Change the fields that the patch has.

        Raises `NotFoundError`, `StaleError` or `TakenError`.
        """
        return self._write_item(item_id, patch.model_dump(), allows)

    def delete(self, item_id: UUID, allows: Allows) -> None:
        """Remove the item. Raises `NotFoundError` or `StaleError`."""
        while not self._run_statement(table.DELETE, self._read_allowed(item_id, allows)):
            pass  # somebody changed the item since we read it: look again

    def _write_item(self, item_id: UUID, wanted: Mapping[str, Any], allows: Allows) -> ItemOut:
        while True:
            row = self._read_allowed(item_id, allows)
            after = table.changed(row, wanted, self._scrypt)  # holds no connection while it hashes
            if after == row:
                return table.to_item(row)
            if done := self._run_statement(table.UPDATE, after):
                return table.to_item(done[0])
            # Somebody changed the item since we read it. Look again: a caller who named a version
            # gets `StaleError`, one who allows any version has the change made to the new one.

    def _read_allowed(self, item_id: UUID, allows: Allows) -> dict[str, Any]:
        found = self._run_statement(table.GET_WHOLE, {"id": item_id})
        if not found:
            raise NotFoundError(item_id)
        if not allows(found[0]["version"]):
            raise StaleError(item_id)
        return found[0]

    def _run_statement(
        self, statement: Query, values: Mapping[str, Any] | None
    ) -> list[dict[str, Any]]:
        try:
            with (
                self._pool.connection() as connection,
                connection.cursor(row_factory=dict_row) as cursor,
            ):
                cursor.execute(statement, values)
                return cursor.fetchall() if cursor.description else []
        except UniqueViolation as error:
            raise TakenError(table.UNIQUE[str(error.diag.constraint_name)]) from error
        except (OperationalError, InterfaceError) as error:
            raise UnavailableError("the database does not answer") from error
