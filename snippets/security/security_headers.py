"""Security headers on every response of an ASGI application, with a CSP nonce for each page.

Wrap the application from outside (`wrap` in cors_middleware.py): what `add_middleware` adds sits
inside the framework's error handler, and misses the unhandled 500.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("security_headers")
NONCE = "'nonce-{nonce}'"
CSP = f"default-src 'self'; script-src {NONCE} 'strict-dynamic'; object-src 'none'; base-uri 'none'"
_KEY = "security_headers.nonce"
_FIXED = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "strict-origin-when-cross-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~]*")
_NO_NONCE = re.compile(r" ?'nonce-\{nonce\}'")
_BAD = re.compile(rb"[\r\n\x00]")


class PolicyError(ValueError):
    """The configuration is unsafe or malformed: do not start with it."""


@dataclass(frozen=True)
class Policy:
    """What the headers say. Checked when it is made.

    Attributes:
        csp: Content-Security-Policy, with `'nonce-{nonce}'` where the page's nonce belongs.
        hsts_max_age: Seconds for which browsers use https only; 0 sends no such header.
        frame_ancestors: Who may show the pages in a frame.
        report_to: URL that browsers report violations to, or "".
        overrides: By path prefix, other values for single headers, or None for no such header.
            The longest prefix wins; `/docs` covers `/docs/x` and not `/docs2`.
    """

    csp: str = CSP
    hsts_max_age: int = 63_072_000
    frame_ancestors: str = "'none'"
    report_to: str = ""
    overrides: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        age = self.hsts_max_age
        if not isinstance(age, int) or isinstance(age, bool) or age < 0:
            raise PolicyError(f"hsts_max_age must be a whole number of seconds, got {age!r}")
        if not re.fullmatch(r'(https://[^\s"]+)?', self.report_to):
            raise PolicyError("report_to is not an https URL")
        if ";" in self.frame_ancestors:
            raise PolicyError("frame_ancestors holds more than one directive")
        for prefix in ("", *self.overrides):
            for name, value in self.headers(prefix).items():
                if not (_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
                    raise PolicyError(f"a header for {prefix or '/'!r} cannot be sent as it is")
                rest = value.replace(NONCE, "")
                if name == "content-security-policy" and ("'nonce-" in rest or "{nonce}" in rest):
                    raise PolicyError(f"a nonce is written {NONCE}: a fixed one protects nothing")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **more: Any) -> Policy:
        """Read HSTS_MAX_AGE, in seconds; `more` as for Policy.

        Raises:
            PolicyError: It is not a number.
        """
        text = environ.get("HSTS_MAX_AGE") or "63072000"
        if not re.fullmatch("[0-9]{1,10}", text):
            raise PolicyError(f"HSTS_MAX_AGE must be a whole number of seconds, got {text!r}")
        return cls(hsts_max_age=int(text), **more)

    def headers(self, path: str) -> dict[str, str]:
        """Return the headers for a path, names in lower case, with `{nonce}` still in them."""
        csp = f"{self.csp}; frame-ancestors {self.frame_ancestors}"
        found: dict[str, str | None] = {"content-security-policy": csp, **_FIXED}
        if self.report_to:
            found["content-security-policy"] = f"{csp}; report-to csp"
            found["reporting-endpoints"] = f'csp="{self.report_to}"'
        prefixes = [p for p in self.overrides if f"{path}/".startswith(f"{p.rstrip('/')}/")]
        if prefixes:
            longest = self.overrides[max(prefixes, key=len)]
            found |= {name.lower(): value for name, value in longest.items()}
        return {name: value for name, value in found.items() if value is not None}


def csp_nonce(scope: Scope) -> str:
    """Return this response's nonce, for `<script nonce="...">`. Ask before the response begins.

    Raises:
        PolicyError: No SecurityHeaders is around the application, or the response has begun.
    """
    state = scope.get(_KEY)
    if state is None or (state["sent"] and state["nonce"] is None):
        raise PolicyError("no SecurityHeaders around this, or asked after the response began")
    if state["nonce"] is None:
        state["nonce"] = base64.b64encode(secrets.token_bytes(16)).decode()
    return str(state["nonce"])


class SecurityHeaders:
    """ASGI middleware that adds what a response lacks. WebSocket and lifespan pass untouched."""

    def __init__(self, app: App, policy: Policy | None = None) -> None:
        self._app = app
        self._policy = policy or Policy()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = {"nonce": None, "sent": False}

        async def decorated(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["sent"] = True
                kept = [pair for pair in message.get("headers", []) if _may_be_sent(*pair)]
                message = {
                    **message,
                    "headers": self._complete_headers(kept, scope, state["nonce"]),
                }
            await send(message)

        await self._app({**scope, _KEY: state}, receive, decorated)

    def _complete_headers(
        self, kept: list[tuple[bytes, bytes]], scope: Scope, nonce: str | None
    ) -> list[tuple[bytes, bytes]]:
        wanted = self._policy.headers(scope["path"])
        if scope.get("scheme") == "https" and self._policy.hsts_max_age:
            age = self._policy.hsts_max_age
            wanted["strict-transport-security"] = f"max-age={age}; includeSubDomains"
        if nonce is not None:  # a cache would hand the nonce to everybody
            kept = [pair for pair in kept if pair[0].lower() != b"cache-control"]
            wanted["cache-control"] = "no-store"
        there = {name.lower() for name, _ in kept}
        for name, text in wanted.items():
            value = text
            # Without a nonce in the page there is none in the header, and no script may run.
            if NONCE in value:
                value = value.replace("{nonce}", nonce) if nonce else _NO_NONCE.sub("", value)
            if name.encode() not in there:
                kept.append((name.encode(), value.encode()))
        return kept


def _may_be_sent(name: bytes, value: bytes) -> bool:
    """Drop what tells of the server, the harmful old filter, and headers with a line break."""
    if _BAD.search(name) or _BAD.search(value):
        log.error("a header with a line break was dropped: %r", name)
        return False
    lower = name.lower()
    return lower not in (b"server", b"x-powered-by") and (
        lower != b"x-xss-protection" or value.strip() == b"0"
    )
