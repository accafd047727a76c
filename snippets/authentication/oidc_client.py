"""Sign people in with an OpenID provider: the authorization code flow with PKCE.

What is sent and what is checked follows OpenID Connect Core 1.0, RFC 7636, RFC 9207 and RFC 9700.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus, urlsplit

import httpx2
from pydantic import SecretStr

from id_token import (
    LEEWAY_SECONDS,
    Identity,
    LoginForged,
    identity,
    key_id,
    published_keys,
    same,
    verify,
)

GOOGLE = "https://accounts.google.com"
ATTEMPT_SECONDS = 600  # from the button to the way back
KEEP_SECONDS = 3_600  # a key that the provider withdrew is believed no longer than this
REFETCH_SECONDS = 30  # an unknown key asks for the provider's keys no more often than this


class LoginRejected(Exception):
    """The person or the provider said no. `code` is OAuth's word for it, such as access_denied."""

    def __init__(self, code: object) -> None:
        known = isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code)
        self.code = str(code) if known else "unknown"  # a stranger's text reaches no log
        super().__init__(self.code)


class ProviderUnavailable(Exception):
    """The provider did not answer, or not as it should. Nothing was decided: try again later."""


@dataclass(frozen=True, slots=True)
class Pending:
    """One attempt to sign in. Seal it into a cookie of the browser that began it."""

    url: str = field(repr=False)  # where to send the browser
    state: str = field(repr=False)
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)
    next_path: str
    created_at: float  # seconds since 1970


def challenge(verifier: str) -> str:
    """Return the S256 code challenge of a verifier, RFC 7636 section 4.2."""
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def safe_path(text: str | None) -> str:
    """Return `text` if it is a path of this site, else `/`. To browsers a backslash is a slash."""
    good = text and text.isprintable() and len(text.encode()) <= 1_024  # it has to fit a cookie
    if not text or not good or text[0] != "/" or text[1:2] == "/" or "\\" in text:
        return "/"
    return text


class OidcClient:
    """One OpenID provider, as this application sees it. Make one when the application starts.

    Args:
        issuer: The provider's address, without `/.well-known`. It is part of every account's key.
        client_id: What the provider calls this application.
        client_secret: What it proves that with, to the token endpoint alone.
        redirect_uri: The callback's full address, character by character as registered.
        accepted_issuers: What a token's `iss` may be, when that is not only `issuer`.
        http: The client that is used; its owner closes it.
        clock: Seconds since 1970.
        timeout: Seconds for one whole answer of the provider.

    Raises:
        ValueError: Something is empty, an address is neither https nor loopback, or `timeout` is no
            number over 0.
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        client_secret: SecretStr,
        redirect_uri: str,
        *,
        accepted_issuers: Collection[str] | None = None,
        http: httpx2.AsyncClient,
        clock: Callable[[], float] = time.time,
        timeout: float = 10,
    ) -> None:
        if not client_id.strip() or not client_secret.get_secret_value().strip():
            raise ValueError("client_id and client_secret must not be empty")
        if not _is_trustworthy(issuer) or not _is_trustworthy(redirect_uri):
            raise ValueError("issuer and redirect_uri must begin with https://")
        if not _is_number(timeout) or timeout <= 0:
            raise ValueError(f"timeout must be a number of seconds over 0, got {timeout!r}")
        self.issuer = issuer
        self._redirect_uri = redirect_uri
        self._id = client_id
        self._secret = client_secret
        self._accepted = frozenset(accepted_issuers or (issuer,))
        self._http = http
        self._clock = clock
        self._timeout = timeout
        self._metadata: dict[str, Any] = {}
        self._keys: dict[str, Any] = {}
        self._metadata_at = -math.inf
        self._keys_at = -math.inf
        self._fetching = asyncio.Lock()

    @classmethod
    def google_from_env(
        cls, http: httpx2.AsyncClient, environ: Mapping[str, str] = os.environ
    ) -> OidcClient:
        """Read GOOGLE_CLIENT_ID, GOOGLE_CLIENT_SECRET and OAUTH_REDIRECT_URI.

        Raises:
            RuntimeError: One of them is not set. It is named, and no value is shown.
        """
        names = ("GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET", "OAUTH_REDIRECT_URI")
        for name in names:
            if not environ.get(name, "").strip():
                raise RuntimeError(f"{name} is not set, or is empty")
        client_id, secret, uri = (environ[name].strip() for name in names)
        accepted = (GOOGLE, GOOGLE.removeprefix("https://"))  # Google writes it in both ways
        return cls(GOOGLE, client_id, SecretStr(secret), uri, accepted_issuers=accepted, http=http)

    async def discover(self) -> Mapping[str, Any]:
        """Return the provider's metadata (OpenID Connect Discovery 1.0), kept for an hour.

        Raises:
            ProviderUnavailable: It cannot be had, or is not this provider's.
        """
        if not 0 <= self._clock() - self._metadata_at < KEEP_SECONDS:
            address = self.issuer.rstrip("/") + "/.well-known/openid-configuration"
            status, found = await self._ask_provider("GET", address)
            wanted = ("authorization_endpoint", "token_endpoint", "jwks_uri")
            if status != 200 or found.get("issuer") != self.issuer:
                raise ProviderUnavailable(f"discovery answered {status}, or for another issuer")
            if not all(_is_trustworthy(found.get(name)) for name in wanted):
                raise ProviderUnavailable("discovery lacks an endpoint with https://")
            self._metadata = found
            self._metadata_at = self._clock()
        return self._metadata

    async def begin(self, next_path: str | None = None) -> Pending:
        """Start an attempt: keep the result for this browser, and send it to `url`.

        Raises:
            ProviderUnavailable: The provider's metadata cannot be had.
        """
        metadata = await self.discover()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        query = {
            "response_type": "code",
            "client_id": self._id,
            "redirect_uri": self._redirect_uri,
            "scope": "openid email profile",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge(verifier),
            "code_challenge_method": "S256",
        }
        url = str(httpx2.URL(metadata["authorization_endpoint"]).copy_merge_params(query))
        return Pending(url, state, nonce, verifier, safe_path(next_path), self._clock())

    async def finish(self, params: Mapping[str, str], pending: Pending | None) -> Identity:
        """Check what came back, trade the code for a token, and check that.

        Args:
            params: The callback's query, each name once.
            pending: What this browser kept, or None if it kept nothing.

        Raises:
            LoginRejected: The person or the provider said no.
            LoginForged: The answer is not for this browser's attempt, or the token not for us.
            ProviderUnavailable: The provider did not answer as it should.
        """
        sent = params.get("state")
        if pending is None or not sent or not pending.state:  # two that are missing are equal, too
            raise LoginForged("the answer has no state, or this browser began nothing")
        if not same(sent, pending.state):
            raise LoginForged("the state belongs to another attempt")
        if not -LEEWAY_SECONDS <= self._clock() - pending.created_at < ATTEMPT_SECONDS:
            raise LoginForged("the attempt is too old")
        metadata = await self.discover()
        named = params.get("iss")
        if named is None and metadata.get("authorization_response_iss_parameter_supported"):
            raise LoginForged("the answer names no issuer, and this provider always does")
        if named is not None and named not in self._accepted:
            raise LoginForged("the answer comes from another issuer")
        if "error" in params:
            raise LoginRejected(params["error"])
        if not params.get("code"):
            raise LoginForged("the answer has neither code nor error")
        token = await self._redeem_code(metadata, params["code"], pending.verifier)
        key = await self._find_key(metadata, key_id(token))
        claims = verify(
            token,
            key,
            client_id=self._id,
            issuers=self._accepted,
            nonce=pending.nonce,
            now=self._clock(),
        )
        return identity(claims, self.issuer)

    async def _redeem_code(self, metadata: Mapping[str, Any], code: str, verifier: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
        }
        headers, secret = {"accept": "application/json"}, self._secret.get_secret_value()
        methods = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if "client_secret_basic" in methods:  # RFC 6749 section 2.3.1: each half is form-encoded
            pair = f"{quote_plus(self._id)}:{quote_plus(secret)}"
            headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form |= {"client_id": self._id, "client_secret": secret}
        endpoint = metadata["token_endpoint"]
        status, answer = await self._ask_provider("POST", endpoint, data=form, headers=headers)
        if (error := LoginRejected(answer.get("error"))).code == "invalid_grant":
            raise error  # the code was used before, is too old, or is somebody else's
        if status != 200 or "error" in answer:  # a status of 200 does not make it a token
            raise ProviderUnavailable(f"the token endpoint answered {status} {error.code}")
        token = answer.get("id_token")
        if not isinstance(token, str) or not token:
            raise LoginRejected("no_id_token")  # the scope openid was not granted
        return token

    async def _find_key(self, metadata: Mapping[str, Any], kid: str | None) -> Any:
        async with self._fetching:
            await self._refresh_keys(metadata["jwks_uri"], kid)
        if kid not in self._keys:
            raise LoginForged("the ID token names a key that the provider does not publish")
        return self._keys[kid]

    async def _refresh_keys(self, address: str, kid: str | None) -> None:
        age = self._clock() - self._keys_at
        if 0 <= age < (KEEP_SECONDS if kid in self._keys else REFETCH_SECONDS):
            return
        status, found = await self._ask_provider("GET", address)
        if status != 200 or not isinstance(found.get("keys"), list):
            raise ProviderUnavailable(f"the keys answered {status}, or are no list")
        self._keys = published_keys(found["keys"])
        self._keys_at = self._clock()

    async def _ask_provider(
        self, method: str, url: str, **request: Any
    ) -> tuple[int, dict[str, Any]]:
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._http.request(method, url, follow_redirects=False, **request)
            body = answer.json()
        except (httpx2.HTTPError, TimeoutError, ValueError, RecursionError) as error:
            problem = f"{urlsplit(url).path}: {type(error).__name__}"
            raise ProviderUnavailable(problem) from None  # the cause holds the request
        if not isinstance(body, dict):
            raise ProviderUnavailable(f"{urlsplit(url).path}: not a JSON object")
        return answer.status_code, body


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_trustworthy(url: object) -> bool:
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    loopback = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    return bool(parts.hostname) and (parts.scheme == "https" or loopback)
