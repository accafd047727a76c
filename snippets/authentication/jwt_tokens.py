"""Issue and verify access tokens as JWTs (RFC 7519) with the profile of RFC 9068.

A token is believed until it expires. Nothing here can take it back earlier: keep its life short.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from jwt_keys import KeyRing

MAX_CHARACTERS = 8_192  # of a token: more is refused before anything is decoded
TYPE = "at+jwt"  # RFC 9068: an ID token of the same issuer is not an access token
REQUIRED = ("exp", "iat", "iss", "aud", "sub", "jti")
REGISTERED = frozenset({*REQUIRED, "nbf", "scope"})
_SCOPE = re.compile(r"[!#-\[\]-~]+")  # RFC 6749 section 3.3
_JWS = jwt.PyJWS(options={"enforce_minimum_key_length": True})


class InvalidToken(Exception):
    """The token is not believed. `reason` is for your log, and repeats nothing of the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. Times are seconds since 1970."""

    subject: str
    scopes: frozenset[str]
    issued_at: float
    expires_at: float
    id: str
    extra: Mapping[str, Any]


class Issuer:
    """Makes tokens.

    Args:
        ring: Its active key signs.
        issuer: Who vouches: an address, the same in the verifier.
        audience: Which API the token is for.
        ttl: Seconds that a token lives. It cannot be taken back earlier.
        clock: Seconds since 1970.
        new_id: Makes a token's `jti`.

    Raises:
        ValueError: The ring cannot sign, something is empty, or `ttl` is no whole number over 0.
    """

    def __init__(
        self,
        ring: KeyRing,
        issuer: str,
        audience: str,
        *,
        ttl: int = 900,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: secrets.token_urlsafe(16),
    ) -> None:
        if ring.active is None:
            raise ValueError("the key ring has no active key, so it cannot sign")
        if not issuer or not audience:
            raise ValueError("issuer and audience must not be empty")
        if not isinstance(ttl, int) or isinstance(ttl, bool) or ttl < 1:
            raise ValueError(f"ttl must be a whole number of seconds over 0, got {ttl!r}")
        self._key = ring.active
        self._ttl = ttl
        self._clock = clock
        self._new_id = new_id
        self._fixed = {"iss": issuer, "aud": audience}

    def issue(
        self, sub: str, *, scopes: Iterable[str] = (), extra: Mapping[str, Any] | None = None
    ) -> str:
        """Return a token for `sub`. Anybody can read it: it is signed, not encrypted.

        Raises:
            ValueError: `sub` is no text, a scope has a space in it, `extra` would overwrite a
                claim or is not JSON, or the token would be longer than a verifier accepts.
        """
        granted = list(scopes)
        if not isinstance(sub, str) or not sub:  # PyJWT signs an int, and then refuses it
            raise ValueError("sub must be a text that is not empty")
        if isinstance(scopes, str) or not all(_SCOPE.fullmatch(scope) for scope in granted):
            raise ValueError("scopes must be a list of words")
        if overwritten := REGISTERED & set(extra or ()):
            raise ValueError(f"extra must not set {', '.join(sorted(overwritten))}")
        now = int(self._clock())
        claims = {**self._fixed, "sub": sub, "iat": now, "exp": now + self._ttl}
        claims |= {"jti": self._new_id(), "scope": " ".join(granted), **(extra or {})}
        try:
            payload = json.dumps(claims, separators=(",", ":"), allow_nan=False).encode()
        except TypeError:
            raise ValueError("extra holds a value that is not JSON") from None
        headers = {"typ": TYPE, "kid": self._key.kid}
        token = _JWS.encode(payload, self._key.private, self._key.algorithm, headers)
        if len(token) > MAX_CHARACTERS:
            raise ValueError(f"the token would have more than {MAX_CHARACTERS} characters")
        return token


class Verifier:
    """Checks tokens, without I/O.

    Args:
        ring: The keys that are believed. None of them needs a private half.
        issuer: What `iss` must be.
        audience: What `aud` must be, or contain.
        leeway: Seconds by which our clock and the issuer's may differ.
        clock: Seconds since 1970.

    Raises:
        ValueError: Something is empty, or `leeway` is no number from 0.
    """

    def __init__(
        self,
        ring: KeyRing,
        issuer: str,
        audience: str,
        *,
        leeway: float = 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not issuer or not audience:
            raise ValueError("issuer and audience must not be empty")
        if not _is_number(leeway) or leeway < 0:
            raise ValueError(f"leeway must be a number of seconds from 0, got {leeway!r}")
        self._ring = ring
        self._leeway = leeway
        self._clock = clock
        self._issuer = issuer
        self._audience = audience

    def verify(self, token: str) -> Claims:
        """Return what the token says, if all of it holds.

        Raises:
            InvalidToken: It does not, whatever the token is. Nothing else is raised.
        """
        if not isinstance(token, str) or len(token) > MAX_CHARACTERS:
            raise InvalidToken("the token is no text, or too long")
        try:
            header = _json_object(base64.urlsafe_b64decode(token.partition(".")[0] + "=="))
            key = self._ring.get(header.get("kid"))
            if key is None:
                raise InvalidToken("the token names no key, or one that is not believed")
            if str(header.get("typ")).lower().removeprefix("application/") != TYPE:
                raise InvalidToken("the token is not an access token")
            # The key says which algorithm. What the token says must merely be the same.
            secret = key.private if key.algorithm == "HS256" else key.public
            claims = _json_object(_JWS.decode(token, secret, [key.algorithm]))
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise InvalidToken(f"the token was refused: {type(error).__name__}") from None
        return self._checked_claims(claims)

    def _checked_claims(self, claims: dict[str, Any]) -> Claims:
        if missing := [name for name in REQUIRED if name not in claims]:
            raise InvalidToken(f"the token has no {missing[0]}")
        if claims["iss"] != self._issuer:
            raise InvalidToken("the token is of another issuer")
        audience = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        if self._audience not in audience:
            raise InvalidToken("the token is for another audience")
        scope = claims.get("scope", "")
        if not all(isinstance(text, str) for text in (claims["sub"], claims["jti"], scope)):
            raise InvalidToken("sub, jti or scope is no text")
        if not claims["sub"] or not claims["jti"]:
            raise InvalidToken("sub or jti is empty")
        times = (claims["exp"], claims["iat"], claims.get("nbf", claims["iat"]))
        if not all(type(moment) in (int, float) for moment in times):  # a text, or True
            raise InvalidToken("exp, iat or nbf is no number")
        now, latest = self._clock(), self._clock() + self._leeway
        if not now < claims["exp"] + self._leeway:  # written so that a NaN is refused too
            raise InvalidToken("the token has expired")
        if not (claims["iat"] <= latest and times[2] <= latest):
            raise InvalidToken("the token is not valid yet")
        extra = {name: value for name, value in claims.items() if name not in REGISTERED}
        scopes = frozenset(scope.split())
        return Claims(claims["sub"], scopes, claims["iat"], claims["exp"], claims["jti"], extra)


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _json_object(text: bytes) -> dict[str, Any]:
    found = json.loads(text, object_pairs_hook=_without_duplicates)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # one kind of error for what is no token
    return found


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # of two, the next reader might take the other one
        raise ValueError("a name occurs twice")
    return found
