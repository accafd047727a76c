"""A SQLAlchemy column type that encrypts text on its way into the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Dialect, Text
from sqlalchemy.sql.operators import is_, is_not
from sqlalchemy.types import TypeDecorator

from field_encryption import DecryptError, FieldCipher


class EncryptedText(TypeDecorator[str]):
    """Text for Python, a token for the database. None stays NULL.

    The type knows its column and not the row: a token that is moved to another row of the same
    column opens there. Where that matters, call FieldCipher yourself with `row_context`.

    Make the engine with `hide_parameters=True`: SQLAlchemy puts the values of a failed statement
    into its error, and if encrypting itself fails, that is the plain text.

    Args:
        cipher: Returns the cipher; called when values pass, not when the model is defined.
        context: Names table and column, such as `users.token`.
    """

    impl = Text
    cache_ok = True

    class Comparator(TypeDecorator.Comparator[str]):
        """Refuses comparisons, which could never be true: no two tokens are equal."""

        def operate(self, op: Any, *other: Any, **kwargs: Any) -> Any:
            """Allow IS NULL and IS NOT NULL only."""
            if op not in (is_, is_not):
                raise TypeError("an encrypted column cannot be compared: use a blind index")
            return super().operate(op, *other, **kwargs)

    comparator_factory = Comparator

    def __init__(self, cipher: Callable[[], FieldCipher], context: str) -> None:
        super().__init__()
        self.cipher = cipher
        self.context = context

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Encrypt."""
        if value is None:
            return None
        return self.cipher().encrypt(value.encode(), context=self.context)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Decrypt. Raises DecryptError."""
        if value is None:
            return None
        plain = self.cipher().decrypt(value, context=self.context)
        try:
            return plain.decode()
        except UnicodeDecodeError:
            pass
        raise DecryptError  # without the cause, which holds the plain bytes
