"""What the token managers for asyncio and for threads share. It does no I/O.

Refreshing follows RFC 6749 sections 5 and 6, and RFC 9700 section 4.14: a refresh token may be
good for one use, and using it twice may end everything that came from it.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import time
from collections.abc import Callable
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


@dataclasses.dataclass(frozen=True, slots=True)
class TokenSet:
    """What the provider gave. Times are seconds since 1970, `life` is seconds.

    `expires_at` is None when the provider did not tell: then a 401 does. `claimed_until` is set
    while one process refreshes, so that no other does.
    """

    access_token: str = dataclasses.field(repr=False)
    refresh_token: str | None = dataclasses.field(repr=False)
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


class InvalidGrant(Exception):
    """The provider does not take the refresh token."""


def is_secure(url: str) -> bool:
    """Tell whether a token may be sent there: with https, or to this machine."""
    parts = urlsplit(url)
    loopback = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    return bool(parts.hostname) and (parts.scheme == "https" or loopback)


class Core:
    """The settings of a manager, what it knows, and what it sends and reads.

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
        clock: Seconds since 1970, which a machine may set to another time.
        monotonic: Seconds that only go forward. A token's own life is measured with it.

    Raises:
        ValueError: `token_url` is neither https nor loopback, or something is empty.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: SecretStr | None,
        *,
        skew: float = 60,
        timeout: float = 10,
        secret_in_form: bool = False,
        client_credentials: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not is_secure(token_url):
            raise ValueError("token_url must begin with https://")
        empty = client_secret is not None and not client_secret.get_secret_value().strip()
        if not client_id.strip() or empty:
            raise ValueError("client_id and client_secret must not be empty")
        self._url, self._id, self._secret = token_url, client_id, client_secret
        self._skew, self._timeout, self._in_form = skew, timeout, secret_in_form
        self._own, self._clock, self._monotonic = client_credentials, clock, monotonic
        # The set, and its end on the monotonic clock: in one, so that threads see them together.
        self._held: tuple[TokenSet, float] | None = None
        self._rejected: str | None = None  # a token that the API answered with 401
        self._unsaved: tuple[TokenSet, TokenSet] | None = None
        self._mine: TokenSet | None = None  # what we claimed last: a claim of our own is no wait

    def _adopt(self, new: TokenSet, deadline: float | None = None) -> TokenSet:
        if deadline is None:  # from the store: another process measured it
            left = math.inf if new.expires_at is None else new.expires_at - self._clock()
            deadline = self._monotonic() + left
        self._held = new, deadline
        return new

    @property
    def _set(self) -> TokenSet | None:
        return None if self._held is None else self._held[0]

    def _good(self, *, margin: bool) -> str | None:
        """Return the token, unless it has expired, is about to (with `margin`), or was rejected."""
        if (held := self._held) is None:
            return None
        current, deadline = held
        if current.access_token in ("", self._rejected):
            return None
        life = math.inf if current.life is None else current.life
        early = min(self._skew, 0.2 * life) if margin else 0.0
        return current.access_token if self._monotonic() < deadline - early else None

    def _start(self, stored: TokenSet | None) -> TokenSet | None:
        """Return what a refresh begins with, None if the stored set is good as it is."""
        if stored is None:
            self._held = None
            if not self._own:
                raise ReauthRequired("there is no token set: somebody has to sign in")
            return TokenSet("", None, 0)
        # A claim changes no token, and our own measure of its life is the better one.
        if self._set is None or stored.access_token != self._set.access_token:
            self._adopt(stored)
        if self._good(margin=True):
            return None
        if stored.refresh_token is None and not self._own:
            raise ReauthRequired("the token has expired, and there is no refresh token")
        return stored

    def _is_claimed(self, stored: TokenSet) -> bool:
        # One that lies far ahead was made by a clock that has been set back since.
        left = (stored.claimed_until or 0) - self._clock()
        return stored != self._mine and 0 < left <= 2 * LEASE_SECONDS

    def _claim(self, stored: TokenSet) -> TokenSet:
        return dataclasses.replace(stored, claimed_until=self._clock() + LEASE_SECONDS)

    def _request(self, old: TokenSet) -> dict[str, Any]:
        form = {"grant_type": "client_credentials"}
        if old.refresh_token is not None:
            form = {"grant_type": "refresh_token", "refresh_token": old.refresh_token}
        headers = {"accept": "application/json"}
        if self._secret is None:
            form["client_id"] = self._id
        elif self._in_form:
            form |= {"client_id": self._id, "client_secret": self._secret.get_secret_value()}
        else:  # RFC 6749 section 2.3.1: each half is form-encoded
            pair = f"{quote_plus(self._id)}:{quote_plus(self._secret.get_secret_value())}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        return {"data": form, "headers": headers, "follow_redirects": False, "auth": None}

    def _parsed(self, answer: httpx2.Response, old: TokenSet, sent_at: float) -> TokenSet:
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
        life = _seconds(body["expires_in"])
        return TokenSet(access, refresh, sent_at + life, life)


def _seconds(value: Any) -> float:
    # Nonsense means: use it once. As "never expires", it would be used until the API says no.
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        value = int(value)
    usable = type(value) in (int, float) and 0 < value < 1e12
    return float(value) if usable else 0.0
