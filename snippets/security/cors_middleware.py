"""CORS for an ASGI application (Fetch standard): exact origins, from outside the error handler."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

from security_headers import (
    App,
    Message,
    Policy,
    PolicyError,
    Receive,
    Scope,
    SecurityHeaders,
    Send,
)

METHODS = frozenset({"GET", "HEAD", "POST"})
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ASKED = b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


def origins_from_env(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Read ALLOWED_ORIGINS, separated by spaces. Empty means that no other origin may read."""
    return frozenset(environ.get("ALLOWED_ORIGINS", "").split())


class Cors:
    """ASGI middleware that answers preflights, and marks what an allowed origin may read.

    It does not keep requests out: a foreign page can still send them. And WebSockets know no CORS:
    compare their Origin yourself.

    Args:
        app: What is wrapped.
        origins: As browsers write them, `https://app.example`, without a slash at the end.
            Or `*` alone, for what is public.
        credentials: Whether cookies may be sent along.
        methods: Allowed in a preflight.
        headers: Request headers allowed in a preflight.
        expose: Response headers that a script may read.
        max_age: Seconds for which a browser may remember a preflight.

    Raises:
        PolicyError: An origin is not one, `*` stands with others or with credentials, a name
            cannot be sent.
    """

    def __init__(
        self,
        app: App,
        *,
        origins: Collection[str],
        credentials: bool = False,
        methods: Collection[str] = METHODS,
        headers: Collection[str] = (),
        expose: Collection[str] = (),
        max_age: int = 600,
    ) -> None:
        if "*" in origins and (credentials or len(origins) > 1):
            raise PolicyError("* as an origin stands alone, and never with credentials")
        for origin in origins:
            default = {"http://": ":80", "https://": ":443"}.get(origin[: origin.find("//") + 2])
            wrong = not _ORIGIN.fullmatch(origin) or origin.endswith(default or "?")
            if origin != "*" and wrong:
                raise PolicyError(
                    "an origin looks like https://app.example or http://localhost:3000"
                )
        if not all(_TOKEN.fullmatch(n) for n in (*methods, *headers, *expose)):
            raise PolicyError("a method or header cannot be sent as it is")
        if not isinstance(max_age, int) or isinstance(max_age, bool) or max_age < 0:
            raise PolicyError(f"max_age must be a whole number of seconds, got {max_age!r}")
        self._app = app
        self._origins = frozenset(o.encode() for o in origins)
        self._methods = frozenset(m.encode() for m in methods)
        self._headers = frozenset(h.lower().encode() for h in headers)
        self._mark: list[tuple[bytes, bytes]] = []
        if credentials:
            self._mark.append((b"access-control-allow-credentials", b"true"))
        self._expose = [(b"access-control-expose-headers", _joined_names(expose))] if expose else []
        self._preflight = [
            (b"access-control-allow-methods", _joined_names(methods)),
            (b"access-control-max-age", str(max_age).encode()),
        ]
        if headers:
            self._preflight.append((b"access-control-allow-headers", _joined_names(headers)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        allow = self._allowing_headers(_header_values(scope, b"origin"))
        asked = _header_values(scope, b"access-control-request-method")
        if scope["method"] == "OPTIONS" and asked and _header_values(scope, b"origin"):
            wanted = (
                b",".join(_header_values(scope, b"access-control-request-headers"))
                .lower()
                .split(b",")
            )
            names = {name.strip() for name in wanted} - {b""}
            fine = bool(allow) and set(asked) <= self._methods and names <= self._headers
            marks = [*allow, *self._preflight] if fine else [(b"content-length", b"0")]
            headers = [*marks, (b"vary", _ASKED)]
            status = 204 if fine else 403
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [
                    pair
                    for pair in message.get("headers", [])
                    if not pair[0].lower().startswith(b"access-control-")  # one place decides
                ]
                kept += [*allow, *(self._expose if allow else []), (b"vary", b"Origin")]
                message = {**message, "headers": kept}
            await send(message)

        await self._app(scope, receive, marked)

    def _allowing_headers(self, sent: list[bytes]) -> list[tuple[bytes, bytes]]:
        if len(sent) == 1 and b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        if len(sent) == 1 and sent[0] in self._origins:  # exact: no prefix, no pattern, no case
            return [(b"access-control-allow-origin", sent[0]), *self._mark]
        return []


def wrap(
    app: App,
    policy: Policy | None = None,
    *,
    origins: Collection[str] = (),
    credentials: bool = False,
    methods: Collection[str] = METHODS,
    headers: Collection[str] = (),
    expose: Collection[str] = (),
    max_age: int = 600,
) -> App:
    """Put SecurityHeaders and Cors around a whole application, error handler included.

    Serve what this returns: `asgi = wrap(app)`, `uvicorn main:asgi --no-server-header`.
    """
    cors = Cors(
        app,
        origins=origins,
        credentials=credentials,
        methods=methods,
        headers=headers,
        expose=expose,
        max_age=max_age,
    )
    return SecurityHeaders(cors, policy)


def _header_values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _joined_names(names: Collection[str]) -> bytes:
    return ", ".join(sorted(names)).encode()
