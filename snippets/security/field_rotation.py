"""Re-encrypt a column under the active key, while others read and write it (SQLAlchemy Core)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Engine, Table, func, select, update

from field_encryption import DecryptError, FieldCipher


@dataclass
class Rotation:
    """What was done. `lost` are the ids of rows that no key opens: look at them by hand."""

    rotated: int = 0
    overtaken: int = 0
    lost: list[Any] = field(default_factory=list)


def rotate_column(
    engine: Engine,
    table: Table,
    column: str,
    cipher: FieldCipher,
    *,
    context: Callable[[Any], str],
    id_column: str = "id",
    batch: int = 500,
) -> Rotation:
    """Re-encrypt all tokens of a column that are not of the active key.

    It can be killed at any moment and started again, and it can run twice at the same time: each
    row changes only from the token that was read.

    Args:
        engine: The database.
        table: The table, with `id_column` as its primary key.
        column: The encrypted column.
        cipher: With the old key, and the new one active.
        context: From a row's id, as it was encrypted with.
        id_column: Name of the key column.
        batch: Rows of one transaction.

    Raises:
        ValueError: `batch` is no whole number over 0.
    """
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch must be a whole number over 0, got {batch!r}")
    done = Rotation()
    row_id, token = table.c[id_column], table.c[column]
    last: Any = None
    while True:
        wanted = select(row_id, token).where(_is_old(token, cipher)).order_by(row_id).limit(batch)
        with engine.begin() as connection:
            rows = connection.execute(wanted if last is None else wanted.where(row_id > last)).all()
            for key, old in rows:
                try:
                    new = cipher.rotate(old, context=context(key))
                except DecryptError:
                    done.lost.append(key)
                    continue
                change = update(table).where(row_id == key, token == old).values({column: new})
                if connection.execute(change).rowcount:
                    done.rotated += 1
                else:  # somebody wrote it meanwhile: with the new key
                    done.overtaken += 1
        if not rows:
            return done
        last = rows[-1][0]


def old_tokens(engine: Engine, table: Table, column: str, cipher: FieldCipher) -> int:
    """Count the tokens of other keys. An old key may go when this is 0, also in your backups."""
    with engine.connect() as connection:
        count = select(func.count()).select_from(table).where(_is_old(table.c[column], cipher))
        return int(connection.execute(count).scalar_one())


def _is_old(token: ColumnElement[Any], cipher: FieldCipher) -> ColumnElement[bool]:
    prefix = f"v1.{cipher.active}."  # not LIKE: an id may hold "_"
    return func.substr(token, 1, len(prefix)) != prefix
