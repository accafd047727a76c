"""What travels in bodies, and what can go wrong. No HTTP and no SQL in here."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import Annotated
from uuid import UUID

from pydantic import MISSING, AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

# PostgreSQL cannot store NUL in text: refused here it is a 422, refused there it would be a 500.
_NO_NUL = r"^[^\x00]*$"
# What <input type=email> takes (HTML standard): ASCII, so case is the same thing in every locale.
_EMAIL = r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$"

Email = Annotated[str, Field(max_length=254, pattern=_EMAIL)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=_NO_NUL)]
Description = Annotated[str, Field(max_length=2000, pattern=_NO_NUL)]
Password = Annotated[str, Field(min_length=12, max_length=128, pattern=_NO_NUL)]
# A strong ETag promises the same bytes, and a session's TimeZone setting must not change them.
Moment = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]


class _Body(BaseModel):
    # An unknown name (`id`, `is_admin`, `created_at`) is an error, not a thing to drop in silence.
    model_config = ConfigDict(extra="forbid")


class ItemIn(_Body):
    """The whole item, as POST and PUT send it; a field left out takes its default."""

    owner_email: Email
    name: Name
    description: Description | None = None
    password: Password = Field(repr=False)


class ItemPatch(_Body):
    """A JSON merge patch (RFC 7396): absent means "leave it", `null` means "clear it".

    `MISSING` keeps the two apart, `model_dump()` leaves it out, and no field is nullable
    that is not nullable in `ItemIn`.
    """

    owner_email: Email | MISSING = MISSING
    name: Name | MISSING = MISSING
    description: Description | MISSING | None = MISSING
    password: Password | MISSING = Field(default=MISSING, repr=False)


class ItemOut(_Body):
    """What a client sees. There is no field that the password or its hash would fit in."""

    id: UUID
    owner_email: str
    name: str
    description: str | None
    created_at: Moment
    updated_at: Moment
    version: int = Field(exclude=True, description="Goes out as the ETag, not in the body.")


#: Asked by a store before it changes an item: may it, in this version?
Allows = Callable[[int], bool]


class ItemError(Exception):
    """Anything a store raises on purpose."""


class NotFoundError(ItemError):
    """There is no item with this id."""


class ExistsError(ItemError):
    """There is an item with this id already."""


class StaleError(ItemError):
    """The item is not in a version that the caller's precondition allows."""


class UnavailableError(ItemError):
    """The database does not answer; trying again later may help."""


class TakenError(ItemError):
    """Another item has this value in a field that must be unique.

    Attributes:
        field: The field's name in `ItemIn`.

    """

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} is taken")
        self.field = field
