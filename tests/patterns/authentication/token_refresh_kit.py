"""A provider with rotating refresh tokens, the API behind it, a store in SQLite, and both managers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import httpx2
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from harness.clock import Clock
from harness.color import Color
from harness.tls import NOBODY
from harness.waiting import at_once
from servers.http import Uvicorn
from token_manager_async import AsyncRefreshingAuth, AsyncTokenManager
from token_manager_core import TokenSet
from token_manager_sync import RefreshingAuth, TokenManager

CLIENT_ID, CANARY = "our client", "canary+secret/%" + "k" * 20


class Provider:
    """Each refresh token is good once. Sent again, it ends the family: all tokens that came from one sign-in."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset()
        routes = [
            Route("/token", self._token, methods=["POST"]),
            Route("/api", self._api, methods=["GET", "POST"]),
            Route("/moved", self._moved),
        ]
        self._server = Uvicorn(Starlette(routes=routes))
        self.url = self._server.url

    def stop(self) -> None:
        self.reset()
        self._server.stop()

    def reset(self) -> None:
        self.refresh: dict[str, str] = {}  # refresh token: family
        self.used: dict[str, str] = {}
        self.access: dict[str, str] = {}
        self.dead: set[str] = set()
        self.hits: Counter[str] = Counter()
        self.rotates, self.hanging, self.held, self.slow = True, False, False, 0.0
        self.canned: list[tuple[int, str]] = []  # the next answers of the token endpoint
        self.extra: dict[str, Any] = {"expires_in": 3600}
        self.bodies: list[bytes] = []
        self.in_form, self.public = False, False
        self.last: dict[str, str] = {}

    def sign_in(self, *, expires_at: float | None = 0.0, life: float | None = None) -> TokenSet:
        """Return what a person's sign-in gives: by default, already expired."""
        family = secrets.token_hex(4)
        access, refresh = self._issue(family)
        return TokenSet(access, refresh, expires_at, life)

    def alive(self, refresh_token: str | None) -> bool:
        family = self.refresh.get(str(refresh_token))
        return family is not None and family not in self.dead

    def _issue(self, family: str) -> tuple[str, str]:
        access, refresh = f"access-{secrets.token_hex(8)}", f"refresh-{secrets.token_hex(8)}"
        self.access[access], self.refresh[refresh] = family, family
        return access, refresh

    async def _token(self, request: Request) -> Response:
        try:
            body = (await request.body()).decode()
        except ClientDisconnect:
            return Response(status_code=400)
        self.hits["token"] += 1
        if self.hanging:
            while self.hanging:
                await asyncio.sleep(0.005)
            return Response(status_code=503)  # it had not done anything yet
        while self.held:
            await asyncio.sleep(0.005)
        if self.slow:
            await asyncio.sleep(self.slow)
        if self.canned:
            status, text = self.canned.pop(0)
            return Response(text, status, media_type="application/json")
        form = self.last = dict(parse_qsl(body))
        if not self._authenticated(request.headers.get("authorization"), form):
            return JSONResponse({"error": "invalid_client"}, 401)
        with self.lock:
            answer = {"token_type": "Bearer", **self.extra}
            if form.get("grant_type") == "client_credentials":
                answer["access_token"] = self._issue("machine")[0]
                return JSONResponse(answer)
            sent = form.get("refresh_token", "")
            if sent in self.used:
                self.dead.add(self.used[sent])
            family = self.refresh.get(sent)
            if family is None or family in self.dead or sent in self.used:
                return JSONResponse({"error": "invalid_grant"}, 400)
            access, refresh = self._issue(family)
            if self.rotates:
                self.used[sent] = self.refresh.pop(sent)
                answer["refresh_token"] = refresh
            return JSONResponse({"access_token": access} | answer)

    def _authenticated(self, header: str | None, form: dict[str, str]) -> bool:
        if self.public:
            return header is None and form.get("client_id") == CLIENT_ID and "client_secret" not in form
        if self.in_form:
            return header is None and (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, CANARY)
        if "client_secret" in form or not (header or "").startswith("Basic "):
            return False
        name, _, secret = base64.b64decode(str(header)[6:]).decode().partition(":")
        return (unquote_plus(name), unquote_plus(secret)) == (CLIENT_ID, CANARY)

    async def _api(self, request: Request) -> Response:
        self.hits["api"] += 1
        self.bodies.append(await request.body())
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.access.get(token) is None or self.access[token] in self.dead:
            return JSONResponse({"error": "invalid_token"}, 401)
        return JSONResponse({"hello": "you"})

    async def _moved(self, request: Request) -> Response:
        return RedirectResponse(str(request.query_params["to"]), 302)


class Store:
    """A token set in an SQLite file: compare-and-set is one UPDATE. `broken` names what fails."""

    def __init__(self, path: Path | str, first: TokenSet | None = None) -> None:
        self.path, self.broken = str(path), ""
        self.saved: list[tuple[TokenSet | None, TokenSet | None]] = []
        with self._open() as db:
            db.execute("create table if not exists tokens (name text primary key, value text)")
            db.execute("insert or ignore into tokens values ('google', ?)", [_text(first)])

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as db:
            yield db

    def load(self) -> TokenSet | None:
        if self.broken == "load":
            raise sqlite3.OperationalError("disk I/O error")
        with self._open() as db:
            (value,) = db.execute("select value from tokens where name = 'google'").fetchone()
        return TokenSet.from_json(value) if value else None

    def save(self, old: TokenSet | None, new: TokenSet | None) -> bool:
        if self.broken == "save" or (self.broken == "keep" and new and not new.claimed_until):
            raise sqlite3.OperationalError("disk I/O error")
        with self._open() as db:
            changed = db.execute("update tokens set value = ? where value = ?", [_text(new), _text(old)])
            done = changed.rowcount == 1
        if done:
            self.saved.append((old, new))
        return done

    def put(self, new: TokenSet | None) -> None:
        """Store what a new sign-in gave."""
        with self._open() as db:
            db.execute("update tokens set value = ?", [_text(new)])


def _text(tokens: TokenSet | None) -> str:
    return tokens.to_json() if tokens else ""


class AsyncStore:
    def __init__(self, store: Store) -> None:
        self.store = store

    async def load(self) -> TokenSet | None:
        return self.store.load()

    async def save(self, old: TokenSet | None, new: TokenSet | None) -> bool:
        return self.store.save(old, new)


class Clocks:
    """Both clocks: `wall` may be set, `mono` only goes forward."""

    def __init__(self) -> None:
        self.wall, self.mono = Clock(1_800_000_000.0), Clock(1_000.0)

    def passes(self, seconds: float) -> None:
        self.wall.advance(seconds)
        self.mono.advance(seconds)


class Managed:
    """A manager in one color, and what it works with. `slept` counts the pauses it made."""

    def __init__(self, color: Color, provider: Provider, store: Store, clocks: Clocks, **settings: Any) -> None:
        self.color, self.store, self.clocks = color, store, clocks
        self.slept = 0
        kind: Any = color.pick(httpx2.AsyncClient, httpx2.Client)
        self.http = color.closing(kind(verify=NOBODY, limits=httpx2.Limits(max_connections=200)))
        manager: Any = color.pick(AsyncTokenManager, TokenManager)
        self.manager = manager(
            self.store_in_color,
            settings.pop("token_url", f"{provider.url}/token"),
            CLIENT_ID,
            None if settings.pop("public", False) else SecretStr(CANARY),
            http=self.http,
            clock=clocks.wall,
            monotonic=clocks.mono,
            sleep=color.function(self._sleep),
            **settings,
        )
        auth: Any = color.pick(AsyncRefreshingAuth, RefreshingAuth)
        self.auth = auth(self.manager, origin=provider.url)

    @property
    def store_in_color(self) -> Any:
        return AsyncStore(self.store) if self.color.is_async else self.store

    def token(self) -> str:
        return str(self.color.call(self.manager.token))

    def refresh_after_401(self, used: str) -> str:
        return str(self.color.call(self.manager.refresh_after_401, used))

    def call(self, method: str, url: str, **request: Any) -> httpx2.Response:
        answer: httpx2.Response = self.color.call(self.http.request, method, url, auth=self.auth, **request)
        return answer

    def many(self, count: int) -> list[Any]:
        """Ask for the token `count` times at once; failures are returned too."""
        return at_once(count, self.token)

    def _sleep(self, seconds: float) -> None:
        self.slept += 1
        self.clocks.passes(seconds)
        time.sleep(0.002)


def main() -> None:
    """Refresh in a process of its own: told the address and the file, print the token."""
    url, path = sys.argv[1:]
    store = Store(path)
    with httpx2.Client(verify=NOBODY) as http:
        manager = TokenManager(store, url, CLIENT_ID, SecretStr(CANARY), http=http)
        print("ready", flush=True)
        sys.stdin.readline()  # both begin at once
        print(json.dumps({"token": manager.token()}), flush=True)


if __name__ == "__main__":
    main()
