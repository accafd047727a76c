"""The two routes of a sign-in with an OpenID provider: `/login`, and `/callback` on the way back.

Each attempt lives in one sealed cookie of the browser that began it, so that two tabs do not
disturb each other and nobody can finish an attempt in another person's browser.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable

from cryptography.fernet import Fernet, InvalidToken
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from id_token import Identity, LoginForged
from oidc_client import ATTEMPT_SECONDS, LoginRejected, OidcClient, Pending, ProviderUnavailable

log = logging.getLogger("login")

PREFIX = "__Host-login-"  # with __Host-, no other host of the domain can plant the cookie
MAX_ATTEMPTS = 4  # open at once in one browser: a request's headers have a limit
FAILED = "You could not be signed in. Please start again."
LATER = "You cannot be signed in at the moment. Please try again later."

StartSession = Callable[[Request, Response, Identity], Awaitable[None]]


def login_router(
    oidc: OidcClient,
    start_session: StartSession,
    *,
    cookie_key: str | None,
    clock: Callable[[], float] = time.time,
) -> APIRouter:
    """Return a router with `/login?next=/path` and `/callback`.

    Args:
        oidc: The provider. Its redirect_uri has to lead to this router's `/callback`.
        start_session: Ends the session that the browser came with, starts a new one under a new
            id, and sets its cookie on the given response. Never keep the old id: whoever planted
            it would be signed in as well.
        cookie_key: What OAUTH_COOKIE_KEY holds, a key of `Fernet.generate_key()`.
        clock: Seconds since 1970.

    Raises:
        RuntimeError: `cookie_key` is None or empty.
        ValueError: It is no Fernet key. Its value is not shown.
    """
    if not cookie_key:
        raise RuntimeError("OAUTH_COOKIE_KEY is not set, or is empty")
    try:
        fernet = Fernet(cookie_key)
    except ValueError:
        raise ValueError("OAUTH_COOKIE_KEY is not a Fernet key") from None
    router = APIRouter()

    @router.get("/login")
    async def login(request: Request) -> Response:
        """Begin an attempt, and send the browser to the provider."""
        try:
            pending = await oidc.begin(request.query_params.get("next"))
        except ProviderUnavailable as failure:
            log.error("sign-in is not available: %s", failure)  # no stack needed
            return _forbid_caching(PlainTextResponse(LATER, 503))
        response = _forbid_caching(RedirectResponse(pending.url, 303))
        attempts = [name for name in request.cookies if name.startswith(PREFIX)]
        for name in attempts[: -MAX_ATTEMPTS + 1]:  # a browser sends the oldest first
            _forget_cookie(response, name)
        response.set_cookie(
            _cookie_name(pending.state),
            _seal_attempt(fernet, pending),
            max_age=ATTEMPT_SECONDS,
            path="/",
            secure=True,
            httponly=True,
            samesite="lax",  # a strict cookie does not come back from the provider
        )
        return response

    @router.get("/callback")
    async def callback(request: Request) -> Response:
        """Finish the attempt that the answer belongs to, and forget it in any case."""
        query = request.query_params
        name = _cookie_name(query.get("state", ""))
        try:
            if len(query.multi_items()) != len(query):
                raise LoginForged("a parameter was sent twice")
            pending = _unseal_attempt(fernet, request.cookies.get(name), clock())
            identity = await oidc.finish(query, pending)
            response: Response = RedirectResponse(pending.next_path if pending else "/", 303)
            await start_session(request, response, identity)
        except (LoginRejected, LoginForged) as refused:
            log.warning("sign-in refused: %s: %s", type(refused).__name__, refused)
            response = PlainTextResponse(FAILED, 400)
        except ProviderUnavailable as failure:
            log.error("sign-in is not available: %s", failure)  # no stack needed
            response = PlainTextResponse(LATER, 503)
        except Exception:  # start_session: the attempt is over all the same
            log.exception("signed in, and no session could be started")
            response = PlainTextResponse(LATER, 500)
        _forget_cookie(response, name)
        return _forbid_caching(response)

    return router


def _cookie_name(state: str) -> str:
    return PREFIX + hashlib.sha256(state.encode(errors="replace")).hexdigest()[:16]


def _seal_attempt(fernet: Fernet, pending: Pending) -> str:
    kept = dataclasses.asdict(pending) | {"url": ""}
    text = json.dumps(kept, ensure_ascii=False).encode()
    return fernet.encrypt_at_time(text, int(pending.created_at)).decode().rstrip("=")


def _unseal_attempt(fernet: Fernet, cookie: str | None, now: float) -> Pending | None:
    sealed = (cookie or "").encode()  # bytes: a text that is not ASCII is a ValueError in there
    try:
        text = fernet.decrypt_at_time(sealed + b"=" * (-len(sealed) % 4), ATTEMPT_SECONDS, int(now))
    except InvalidToken:  # missing, too old, changed, or sealed with another key
        return None
    return Pending(**json.loads(text))


def _forget_cookie(response: Response, name: str) -> None:
    # Without the same attributes a browser keeps the cookie.
    response.delete_cookie(name, path="/", secure=True, httponly=True, samesite="lax")


def _forbid_caching(response: Response) -> Response:
    response.headers["cache-control"] = "no-store"
    response.headers["referrer-policy"] = "no-referrer"  # the callback's address holds the code
    return response
