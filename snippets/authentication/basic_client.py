"""HTTP Basic authentication (RFC 7617) for a client, and a client for Jira Cloud that uses it."""

from __future__ import annotations

import base64
import ipaddress
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx2

GATEWAY = "https://api.atlassian.com"  # where tokens with scopes are accepted, and only there
_PATH = re.compile(r"/(?!/)[^\s\\?#\x00-\x1f\x7f]*")  # of our host: no scheme, no host, no query
_CLOUD_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


class CredentialError(ValueError):
    """User name, secret or address cannot be used. The message shows none of them."""


class JiraError(Exception):
    """Jira answered, and not with what was asked for; `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class JiraAuthError(JiraError):
    """401: the token has expired, was revoked, or is of the other kind. It is not tried again."""


class JiraForbidden(JiraError):
    """403: the account may not do this, or the token lacks the scope."""


class JiraRateLimited(JiraError):
    """429: wait `retry_after` seconds; None if Jira did not say."""

    def __init__(self, message: str, status: int, retry_after: float | None) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


class SecretText(Protocol):
    """What pydantic's `SecretStr` offers."""

    def get_secret_value(self) -> str:
        """Return the text."""


def basic_header(user: str, secret: str | SecretText) -> str:
    """Return the value of `Authorization`: both in UTF-8, in base64 without line breaks.

    Raises:
        CredentialError: The user name is empty or has a colon in it, or one of them a control
            character or a lone surrogate.
    """
    text = secret if isinstance(secret, str) else secret.get_secret_value()
    if not user or ":" in user:  # the first colon would end it: a:b would log in as a
        raise CredentialError("the user name is empty, or has a colon in it")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in user + text):
        raise CredentialError("user name or secret has a control character or a surrogate in it")
    return "Basic " + base64.b64encode(f"{user}:{text}".encode()).decode()


@dataclass(frozen=True, slots=True)
class _JiraSite:
    """Where requests go, with which credentials, and what answers mean: for both clients."""

    root: str
    scoped: bool
    headers: dict[str, str] = field(repr=False)

    @classmethod
    def from_settings(
        cls,
        base_url: str | None,
        email: str | None,
        api_token: str | SecretText | None,
        cloud_id: str | None,
        gateway: str,
    ) -> _JiraSite:
        if not base_url:
            raise RuntimeError("JIRA_BASE_URL is not set, or is empty")
        if not email:
            raise RuntimeError("JIRA_EMAIL is not set, or is empty")
        if not api_token:
            raise RuntimeError("JIRA_API_TOKEN is not set, or is empty")
        root = _checked_address("JIRA_BASE_URL", base_url)
        if cloud_id is not None:
            if not _CLOUD_ID.fullmatch(cloud_id):
                text = "JIRA_CLOUD_ID must be letters, digits and hyphens"
                raise CredentialError(f"{text}, got {cloud_id!r}")
            root = f"{_checked_address('gateway', gateway)}/ex/jira/{cloud_id}"
        authorization = basic_header(email, api_token)
        headers = {"Authorization": authorization, "Accept": "application/json"}
        return cls(root, cloud_id is not None, headers)

    def url_of(self, path: str) -> str:
        # Only below our root: the credentials go wherever the request goes.
        if not _PATH.fullmatch(path) or ".." in path.split("/"):
            raise ValueError("path must begin with one slash, without host, query or ..")
        return f"{self.root}/rest/api/3{path}"

    def read_answer(self, answer: httpx2.Response) -> Any:
        status = answer.status_code
        if status == 401:
            other = (
                "one without scopes works at the site's own address only: leave out cloud_id"
                if self.scoped
                else "one with scopes works at api.atlassian.com only: pass cloud_id"
            )
            message = "401: the token has expired, was revoked, or is of the wrong kind"
            raise JiraAuthError(f"{message} ({other})", status)
        if status == 403:
            raise JiraForbidden(
                "403: the account may not do this, or the token lacks the scope", status
            )
        if status == 429:
            wait = answer.headers.get("retry-after", "")
            seconds = float(wait) if re.fullmatch(r"[0-9]{1,6}", wait) else None
            raise JiraRateLimited("429: too many requests", status, seconds)
        if not answer.is_success:  # a redirect, too: it is not followed
            raise JiraError(f"{status} {answer.reason_phrase}", status)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise JiraError(f"{status}, and no JSON: a login page?", status) from None


class JiraClient:
    """Calls the REST API of Jira Cloud, version 3, with an e-mail address and an API token.

    Args:
        base_url: `https://your-site.atlassian.net`.
        email: The account the token belongs to.
        api_token: Such as `os.environ.get("JIRA_API_TOKEN")`.
        cloud_id: For a token with scopes; `/_edge/tenant_info` of your site tells it.
        timeout: Seconds, for connecting and for each read.
        transport: Of httpx2, for a proxy or for tests.
        gateway: Where requests with a cloud_id go.

    Raises:
        RuntimeError: A setting is None or empty.
        CredentialError: A setting is malformed, or an address is not https (or loopback).
        ValueError: `timeout` is no number over 0.
    """

    def __init__(
        self,
        base_url: str | None,
        email: str | None,
        api_token: str | SecretText | None,
        *,
        cloud_id: str | None = None,
        timeout: float = 10.0,
        transport: httpx2.BaseTransport | None = None,
        gateway: str = GATEWAY,
    ) -> None:
        _check_timeout(timeout)
        self._site = _JiraSite.from_settings(base_url, email, api_token, cloud_id, gateway)
        self._http = httpx2.Client(timeout=timeout, transport=transport)

    def __repr__(self) -> str:
        return f"JiraClient({self._site.root})"

    def __enter__(self) -> JiraClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def myself(self) -> Any:
        """Return the account that the token belongs to: a good first call."""
        return self.get("/myself")

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a path below `/rest/api/3`.

        Raises:
            JiraError: 401, 403 and 429 as the classes above, and any other answer but 2xx and JSON.
            ValueError: `path` would lead elsewhere.
            httpx2.HTTPError: There was no answer.
        """
        url = self._site.url_of(path)
        answer = self._http.get(url, params=params, headers=self._site.headers)
        return self._site.read_answer(answer)

    def post(self, path: str, json: Any) -> Any:
        """Send JSON and return what comes back, None if that is empty; raises as `get`."""
        url = self._site.url_of(path)
        answer = self._http.post(url, json=json, headers=self._site.headers)
        return self._site.read_answer(answer)


class AsyncJiraClient:
    """The client for asyncio; see `JiraClient`."""

    def __init__(
        self,
        base_url: str | None,
        email: str | None,
        api_token: str | SecretText | None,
        *,
        cloud_id: str | None = None,
        timeout: float = 10.0,
        transport: httpx2.AsyncBaseTransport | None = None,
        gateway: str = GATEWAY,
    ) -> None:
        _check_timeout(timeout)
        self._site = _JiraSite.from_settings(base_url, email, api_token, cloud_id, gateway)
        self._http = httpx2.AsyncClient(timeout=timeout, transport=transport)

    def __repr__(self) -> str:
        return f"AsyncJiraClient({self._site.root})"

    async def __aenter__(self) -> AsyncJiraClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def myself(self) -> Any:
        """Return the account that the token belongs to: a good first call."""
        return await self.get("/myself")

    async def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a path below `/rest/api/3`; raises as `JiraClient.get`."""
        url = self._site.url_of(path)
        answer = await self._http.get(url, params=params, headers=self._site.headers)
        return self._site.read_answer(answer)

    async def post(self, path: str, json: Any) -> Any:
        """Send JSON and return what comes back, None if that is empty; raises as `get`."""
        url = self._site.url_of(path)
        answer = await self._http.post(url, json=json, headers=self._site.headers)
        return self._site.read_answer(answer)


def _check_timeout(timeout: float) -> None:
    if not _is_number(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be a number of seconds over 0, got {timeout!r}")


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _checked_address(name: str, text: str) -> str:
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:  # and "from None", because the address may hold a password
        raise CredentialError(f"{name} is not an address") from None
    secure = url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.host))
    if not secure or not url.host or url.userinfo or url.query or url.fragment:
        raise CredentialError(
            f"{name} must be https:// and a host (http:// on loopback), without a user"
        )
    return str(url).rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
