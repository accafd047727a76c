"""Protect FastAPI routes with access tokens. Answers as RFC 6750 asks."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from fastapi import HTTPException
from starlette.requests import Request

from jwt_tokens import Claims, InvalidToken, Verifier

log = logging.getLogger("tokens")


def require_token(verifier: Verifier, *scopes: str) -> Callable[[Request], Awaitable[Claims]]:
    """Return a dependency that gives the route the claims of the request's token.

    No token, or a bad one, is a 401. A token that lacks one of `scopes` is a 403. The answer
    does not tell what was wrong with it; the log does.
    """

    # A coroutine, though it awaits nothing: FastAPI sends others to a thread, which takes longer.
    async def claims_of(request: Request) -> Claims:
        sent = request.headers.getlist("authorization")
        scheme, _, token = sent[0].partition(" ") if sent else ("", "", "")
        if scheme.lower() != "bearer":
            raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"})
        try:
            if len(sent) != 1:  # of two, the proxy in front may have looked at the other one
                raise InvalidToken("the header Authorization was sent twice")
            claims = verifier.verify(token.strip(" "))
        except InvalidToken as refused:
            log.warning("token refused: %s", refused.reason)
            challenge = 'Bearer error="invalid_token"'
            raise HTTPException(401, "Invalid token", {"WWW-Authenticate": challenge}) from None
        if not claims.scopes.issuperset(scopes):
            challenge = f'Bearer error="insufficient_scope", scope="{" ".join(scopes)}"'
            raise HTTPException(403, "Insufficient scope", {"WWW-Authenticate": challenge})
        return claims

    return claims_of
