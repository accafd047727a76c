"""Forgotten passwords for FastAPI: ask for a link, see a form, set a new password."""

from __future__ import annotations

import html
import ipaddress
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import psycopg
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from psycopg import AsyncConnection

from one_time_tokens_async import AsyncOneTimeTokens
from one_time_tokens_core import TokenInvalid

PURPOSE = "reset-password"
_log = logging.getLogger(__name__)
Connect = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the token is in the address: no other site may see it
    "Content-Security-Policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_FORM = """<form method="post"><input type="hidden" name="token" value="{token}">
<label>New password <input type="password" name="password" autocomplete="new-password" required>
</label> <button>Set the new password</button></form>"""


@dataclass(frozen=True, slots=True)
class ResetSettings:
    """`base_url` is where people reach you, as in `https://example.com`; `ttl` is in seconds.

    Raises:
        ValueError: One of them cannot be that; the text names it.
    """

    base_url: str
    ttl: float = 1_800.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> ResetSettings:
        """Read PUBLIC_BASE_URL and RESET_TTL_SECONDS.

        Raises:
            RuntimeError: The first is not set.
            ValueError: One of them is malformed; the text names it.
        """
        if not environ.get("PUBLIC_BASE_URL"):
            raise RuntimeError("PUBLIC_BASE_URL is not set, or is empty")
        ttl = environ.get("RESET_TTL_SECONDS", "1800")
        if not re.fullmatch(r"[0-9]{2,5}", ttl) or not 60 <= int(ttl) <= 86_400:
            text = "RESET_TTL_SECONDS must be a whole number of seconds from 60 to 86400"
            raise ValueError(f"{text}, got {ttl!r}")
        return cls(environ["PUBLIC_BASE_URL"], float(ttl))

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        secure = url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.hostname))
        if not secure or not url.hostname or "@" in url.netloc or url.query or url.fragment:
            raise ValueError("PUBLIC_BASE_URL must be https:// and a host (http:// on loopback)")
        if not _is_number(self.ttl) or self.ttl <= 0:
            raise ValueError(f"ttl must be a number of seconds over 0, got {self.ttl!r}")

    def link(self, token: str) -> str:
        """Return the address for the mail. It never depends on a request and its Host header."""
        return f"{self.base_url.rstrip('/')}/reset?token={token}"


@dataclass(frozen=True, slots=True)
class Account:
    """Who has an address. `address` is the stored one, `password_hash` the current one."""

    subject: str
    address: str
    password_hash: str


class Accounts(Protocol):
    """Your users. All three work on the connection that is given, in its transaction."""

    async def find(self, db: AsyncConnection[Any], address: str) -> Account | None:
        """Return the account with this address."""

    async def lock(self, db: AsyncConnection[Any], subject: str) -> Account | None:
        """Return the account, its row locked: SELECT ... FOR UPDATE."""

    async def set_password(self, db: AsyncConnection[Any], subject: str, password: str) -> None:
        """Check, hash and store it, and end all sessions; `ValueError` says what is wrong."""


async def send_reset(
    connect: Connect,
    accounts: Accounts,
    address: str,
    *,
    settings: ResetSettings,
    send: Callable[[str, str], Awaitable[None]],
    clock: Callable[[], float] = time.time,
) -> bool:
    """Do what the worker does with an address: `send(stored address, link)`, if somebody has it."""
    async with connect() as db:
        account = await accounts.find(db, address)
        if account is None:
            return False
        token = await AsyncOneTimeTokens(db, clock=clock).issue(
            PURPOSE, account.subject, ttl=settings.ttl, binding=account.password_hash
        )
    # To the address on record: the one typed in may differ by a letter that looks the same.
    await send(account.address, settings.link(token))
    return True


def reset_routes(
    connect: Connect,
    accounts: Accounts,
    *,
    allow: Callable[[str], Awaitable[bool]],
    enqueue: Callable[[str], Awaitable[None]],
    clock: Callable[[], float] = time.time,
) -> APIRouter:
    """Make the routes `POST /forgot`, `GET /reset` and `POST /reset`, for forms.

    Args:
        connect: Such as `pool.connection`: lends a connection, commits, and rolls back on errors.
        accounts: Your users.
        allow: Your rate limit: whether this address (and in your hook, this caller) may ask again.
        enqueue: Hands an address to the worker, which calls `send_reset`.
        clock: Seconds since 1970.
    """
    router = APIRouter(route_class=_PageRoute, include_in_schema=False)

    @router.post("/forgot", max_body_size=4_096)
    async def forgot(request: Request) -> HTMLResponse:
        # Nothing here knows who has an account, so neither answer nor time can tell.
        address = (await _form_field(request, "address")).strip()
        plausible = 3 <= len(address) <= 254 and "@" in address and address.isprintable()
        if plausible and await allow(address.casefold()):
            await enqueue(address)
        return _page(202, "If this address has an account, a link is on its way.")

    @router.api_route("/reset", methods=["GET", "HEAD"])
    async def form(token: str = "") -> HTMLResponse:
        # A look and no more: mail scanners fetch every link before its reader does.
        async with connect() as db:
            await AsyncOneTimeTokens(db, clock=clock).peek(PURPOSE, token)
        return _page(200, "Choose a new password.", _FORM.format(token=html.escape(token)))

    @router.post("/reset", max_body_size=16_384)
    async def reset(request: Request) -> HTMLResponse:
        token, password = (
            await _form_field(request, "token"),
            await _form_field(request, "password"),
        )
        async with connect() as db:
            tokens = AsyncOneTimeTokens(db, clock=clock)
            subject = (await tokens.peek(PURPOSE, token)).subject
            account = await accounts.lock(db, subject)
            if account is None:
                raise TokenInvalid
            await tokens.consume(PURPOSE, token, binding=account.password_hash)
            try:
                await accounts.set_password(db, subject, password)
            except ValueError as refused:  # and the token is as good as before: all is rolled back
                raise _PasswordRefused(str(refused), token) from None
        return _page(200, "Your password is changed. You are logged out everywhere.")

    return router


class _PasswordRefused(Exception):
    pass


class _PageRoute(APIRoute):
    """Makes a page of whatever happens, with the same headers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except TokenInvalid:
                return _page(400, "This link is not valid, or not any more. Ask for a new one.")
            except _PasswordRefused as refused:
                message, token = refused.args
                return _page(422, message, _FORM.format(token=html.escape(token)))
            except psycopg.OperationalError:  # also a pool that has no connection to lend
                _log.exception("the database cannot be reached")
                return _page(503, "This does not work at the moment. Try again later.")

        return answer


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _page(status: int, message: str, form: str = "") -> HTMLResponse:
    text = (
        f'<!doctype html><html lang="en"><title>Password</title><p>{html.escape(message)}</p>{form}'
    )
    return HTMLResponse(text, status, _HEADERS)


async def _form_field(request: Request, name: str) -> str:
    try:
        fields = parse_qs((await request.body()).decode("ascii", "replace"), max_num_fields=10)
    except ValueError:  # more fields than that
        return ""
    return fields.get(name, [""])[0]


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
