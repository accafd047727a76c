"""The cookie of a login session, and two dependencies of FastAPI: who is it, and who sent them."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from fastapi import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sessions_async import AsyncSessionStore
from sessions_core import Session, SessionStoreUnavailable

log = logging.getLogger("sessions")

COOKIE = "__Host-session"  # with __Host-, no other host of the domain can plant it
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def set_cookie(
    response: Response, session: Session, *, clock: Callable[[], float] = time.time
) -> None:
    """Give the browser the session's token, until the session's absolute end.

    `response` has to be the one that is returned: FastAPI forgets the cookies of an injected
    one when the route returns its own, or raises.
    """
    response.set_cookie(
        COOKIE,
        session.token,
        max_age=max(0, int(session.ends_at - clock())),
        path="/",
        secure=True,
        httponly=True,
        samesite="lax",
    )


def clear_cookie(response: Response) -> None:
    """Take the cookie from the browser. It ignores that without the attributes it was set with."""
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="lax")


def token_of(request: Request) -> str | None:
    """Return what the browser sent as its token; None if nothing, or more than one."""
    pairs = [
        pair.strip(" ").partition("=")
        for header in request.headers.getlist("cookie")
        for pair in header.split(";")
    ]
    found = [value for name, _, value in pairs if name == COOKIE]
    return found[0] if len(found) == 1 else None


def current_session(store: AsyncSessionStore) -> Callable[[Request], Awaitable[Session]]:
    """Return a dependency that gives a route the session of its request.

    Nobody signed in is a 401. A store that does not answer is a 503, and never nobody.
    """

    async def session_of(request: Request) -> Session:
        try:
            session = await store.get(token_of(request))
        except SessionStoreUnavailable as failure:
            log.error("sessions are not available: %s", failure)  # no stack needed
            raise HTTPException(503, "Please try again later", {"Retry-After": "5"}) from None
        if session is None:
            raise HTTPException(401, "Not signed in")
        return session

    return session_of


async def csrf_guard(request: Request) -> None:
    """Refuse, with a 403, what another site made the browser send. For all routes.

    Browsers tell where a request comes from (Fetch Metadata, or `Origin` of older ones), and a
    page cannot change it. A client that is no browser sends neither, and passes.
    """
    if request.method in SAFE:
        return
    told = request.headers.getlist("sec-fetch-site")
    if told:
        fine = all(site in ("same-origin", "none") for site in told)
    else:
        here = f"{request.scope['scheme']}://{request.headers.get('host', '')}"
        fine = all(origin == here for origin in request.headers.getlist("origin"))
    if not fine:
        log.warning("a request of another site was refused: %s", request.method)
        raise HTTPException(403, "Cross-site request")
