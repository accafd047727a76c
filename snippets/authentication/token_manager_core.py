"""What both token managers share: token sets, when one is due, what an answer means, errors.

Refreshing follows RFC 6749 sections 5 and 6, and RFC 9700 section 4.14: a refresh token may be
good for one use, and using it twice may end everything that came from it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus, urlsplit

import httpx2
from pydantic import SecretStr

LEASE_SECONDS = 30.0  # how long one process may take to refresh before another tries
POLL_SECONDS = 0.1
POLLS = 350  # a little longer than the lease
_TOKEN = re.compile(r"[!-~]+")  # it becomes a header


class RefreshFailed(Exception):
    """There is no token at the moment. Try again later: nothing is lost."""


class ReauthRequired(Exception):
    """The grant has ended. Somebody has to sign in again, and store a new token set."""


class InvalidGrant(Exception):
    """The provider does not take the refresh token."""


@dataclass(frozen=True, slots=True)
class TokenSet:
    """What the provider gave. Times are seconds since 1970, `life` is seconds.

    `expires_at` is None when the provider did not tell: then a 401 does. `claimed_until` is set
    while one process refreshes, so that no other does.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: float | None
    life: float | None = None
    claimed_until: float | None = None

    def to_json(self) -> str:
        """Return one text for one set, which a store can compare. It holds the secrets."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TokenSet:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def claimed(self, now: float) -> TokenSet:
        """Return this set as it is stored while one process refreshes it."""
        return dataclasses.replace(self, claimed_until=now + LEASE_SECONDS)

    def is_claimed(self, now: float) -> bool:
        """Tell whether some process refreshes this set."""
        # A claim that lies far ahead was made by a clock that has been set back since.
        return 0 < (self.claimed_until or 0) - now <= 2 * LEASE_SECONDS


@dataclass(frozen=True, slots=True)
class HeldTokens:
    """A set in the memory of a process, and when it ends on the clock that only goes forward."""

    tokens: TokenSet
    deadline: float

    @classmethod
    def from_answer(cls, tokens: TokenSet, begun: float) -> HeldTokens:
        """Hold what the provider answered to a request that was `begun` then."""
        return cls(tokens, math.inf if tokens.life is None else begun + tokens.life)

    def is_good(self, rejected: str | None, monotonic: float, skew: float) -> bool:
        """Tell whether the token is not `rejected`, and lives `skew` seconds longer.

        Of a token with a short life a fifth has to be left.
        """
        life = math.inf if self.tokens.life is None else self.tokens.life
        usable = self.tokens.access_token not in ("", rejected)
        return usable and monotonic < self.deadline - min(skew, 0.2 * life)


def held_after(
    held: HeldTokens | None, stored: TokenSet | None, *, now: float, monotonic: float
) -> HeldTokens | None:
    """Return what a process holds after it has seen what is stored."""
    if stored is None:
        return None
    # A claim changes no token, and our own measure of its life is the better one.
    if held is not None and held.tokens.access_token == stored.access_token:
        return held
    left = math.inf if stored.expires_at is None else stored.expires_at - now
    return HeldTokens(stored, monotonic + left)


@dataclass(frozen=True, slots=True)
class RefreshSettings:
    """The provider, this application as the provider knows it, and when to refresh.

    Args:
        token_url: The provider's token endpoint, https or loopback.
        client_id: What the provider calls this application.
        client_secret: What it proves that with; None if it is a public client.
        skew: Seconds before the expiry at which a token is refreshed, or a fifth of its life if
            that is less.
        timeout: Seconds to wait for the provider.
        secret_in_form: True if the provider wants the secret in the form and not as Basic.
        client_credentials: True if there is no person and no refresh token: the client asks
            for a token in its own name.

    Raises:
        ValueError: `token_url` is neither https nor loopback, something is empty, or a number of
            seconds is none.
    """

    token_url: str
    client_id: str
    client_secret: SecretStr | None
    skew: float = 60
    timeout: float = 10
    secret_in_form: bool = False
    client_credentials: bool = False

    def __post_init__(self) -> None:
        if not is_secure(self.token_url):
            raise ValueError("token_url must begin with https://")
        secret = self.client_secret
        empty = secret is not None and not secret.get_secret_value().strip()
        if not self.client_id.strip() or empty:
            raise ValueError("client_id and client_secret must not be empty")
        if not _is_number(self.skew) or self.skew < 0:
            raise ValueError(f"skew must be a number of seconds from 0, got {self.skew!r}")
        if not _is_number(self.timeout) or self.timeout <= 0:
            raise ValueError(f"timeout must be a number of seconds over 0, got {self.timeout!r}")

    def renewable(self, stored: TokenSet | None) -> TokenSet:
        """Return the set that a refresh begins with.

        Raises:
            ReauthRequired: There is nothing to refresh it with.
        """
        if self.client_credentials:
            return stored or TokenSet("", None, 0)
        if stored is None:
            raise ReauthRequired("there is no token set: somebody has to sign in")
        if stored.refresh_token is None:
            raise ReauthRequired("the token has expired, and there is no refresh token")
        return stored

    def token_request(self, old: TokenSet) -> dict[str, Any]:
        """Return the arguments of the POST that asks the provider for a new set."""
        form = {"grant_type": "client_credentials"}
        if old.refresh_token is not None:
            form = {"grant_type": "refresh_token", "refresh_token": old.refresh_token}
        headers = {"accept": "application/json"}
        if self.client_secret is None:
            form["client_id"] = self.client_id
        elif self.secret_in_form:
            secret = self.client_secret.get_secret_value()
            form |= {"client_id": self.client_id, "client_secret": secret}
        else:  # RFC 6749 section 2.3.1: each half is form-encoded
            secret = quote_plus(self.client_secret.get_secret_value())
            pair = f"{quote_plus(self.client_id)}:{secret}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        return {"data": form, "headers": headers, "follow_redirects": False, "auth": None}


def credentials_from_env(environ: Mapping[str, str] = os.environ) -> tuple[str, str, SecretStr]:
    """Read OAUTH_TOKEN_URL, OAUTH_CLIENT_ID and OAUTH_CLIENT_SECRET.

    Raises:
        RuntimeError: One of them is not set. It is named, and no value is shown.
    """
    names = ("OAUTH_TOKEN_URL", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET")
    for name in names:
        if not environ.get(name, "").strip():
            raise RuntimeError(f"{name} is not set, or is empty")
    token_url, client_id, secret = (environ[name].strip() for name in names)
    return token_url, client_id, SecretStr(secret)


def read_answer(answer: httpx2.Response, old: TokenSet, sent_at: float) -> TokenSet:
    """Return the set that the token endpoint answered with (RFC 6749 section 5).

    Raises:
        InvalidGrant: It does not take the refresh token of `old`.
        RefreshFailed: It answered anything else.
    """
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise RefreshFailed(f"the token endpoint answered {answer.status_code} and no JSON")
    if body.get("error") == "invalid_grant":
        raise InvalidGrant
    if answer.status_code != 200 or "error" in body:  # a status of 200 makes no token
        known = re.fullmatch(r"[a-z_]{1,40}", str(body.get("error")))
        name = known[0] if known else "no known error"
        raise RefreshFailed(f"the token endpoint answered {answer.status_code}, {name}")
    access, refresh = body.get("access_token"), body.get("refresh_token")
    kind = body.get("token_type")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise RefreshFailed("the token endpoint gave no bearer token")
    if not isinstance(access, str) or not _TOKEN.fullmatch(access):
        raise RefreshFailed("the token endpoint gave no usable access token")
    if not isinstance(refresh, str) or not refresh:
        refresh = old.refresh_token
    if "expires_in" not in body:
        return TokenSet(access, refresh, None)
    life = _read_seconds(body["expires_in"])
    return TokenSet(access, refresh, sent_at + life, life)


def is_secure(url: str) -> bool:
    """Tell whether a token may be sent there: with https, or to this machine."""
    parts = urlsplit(url)
    loopback = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    return bool(parts.hostname) and (parts.scheme == "https" or loopback)


def origin_of(url: httpx2.URL) -> tuple[str, str, int | None]:
    """Return what has to be the same for a token to be sent: scheme, host and port."""
    return url.scheme, url.host, url.port


def _read_seconds(value: Any) -> float:
    # Nonsense means: use it once. As "never expires", it would be used until the API says no.
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        value = int(value)
    usable = type(value) in (int, float) and 0 < value < 1e12
    return float(value) if usable else 0.0


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
