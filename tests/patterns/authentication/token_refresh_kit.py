"""A provider with rotating refresh tokens, the API behind it, a store in SQLite, and both managers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import secrets
import sqlite3
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import httpx2
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

import token_manager
import token_manager_sync
from servers.http import Uvicorn
from token_core import TokenSet

CLIENT_ID, CANARY = "our client", "canary+secret/%" + "k" * 20
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading the system's authorities takes longer than a proof


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


class Clock:
    """Both clocks: `wall` can be set, `mono` only goes forward."""

    def __init__(self) -> None:
        self.wall, self.mono = 1_800_000_000.0, 1_000.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds


class Twin:
    """A manager of either kind, called the same way: what returns a coroutine is run."""

    def __init__(self, module: Any, provider: Provider, store: Store, clock: Clock, **settings: Any) -> None:
        self.module, self.store, self.clock = module, store, clock
        self.runner = asyncio.Runner()
        self.is_async = module is token_manager
        kind: Any = httpx2.AsyncClient if self.is_async else httpx2.Client
        self.http = kind(verify=NO_TLS, limits=httpx2.Limits(max_connections=200))
        secret = None if settings.pop("public", False) else SecretStr(CANARY)
        self.manager = module.TokenManager(
            AsyncStore(store) if self.is_async else store,
            settings.pop("token_url", f"{provider.url}/token"),
            CLIENT_ID,
            secret,
            http=self.http,
            clock=lambda: clock.wall,
            monotonic=lambda: clock.mono,
            sleep=self._asleep if self.is_async else self._sleep,
            **settings,
        )
        self.auth = module.RefreshingAuth(self.manager, origin=provider.url)
        self.slept = 0

    def _sleep(self, seconds: float) -> None:
        self.slept += 1
        self.clock.passes(seconds)
        time.sleep(0.002)

    async def _asleep(self, seconds: float) -> None:
        self.slept += 1
        self.clock.passes(seconds)
        await asyncio.sleep(0.002)

    def run(self, result: Any) -> Any:
        return self.runner.run(_of(result)) if inspect.isawaitable(result) else result

    def token(self) -> str:
        return str(self.run(self.manager.token()))

    def refresh_after_401(self, used: str) -> str:
        return str(self.run(self.manager.refresh_after_401(used)))

    def call(self, method: str, url: str, **request: Any) -> httpx2.Response:
        answer: httpx2.Response = self.run(self.http.request(method, url, auth=self.auth, **request))
        return answer

    def many(self, count: int) -> list[Any]:
        """Ask for the token `count` times at once; failures are returned too."""
        if not self.is_async:
            barrier = threading.Barrier(count)

            def ask(_: int) -> Any:
                barrier.wait()
                try:
                    return self.manager.token()
                except Exception as error:
                    return error

            with ThreadPoolExecutor(count) as pool:
                return list(pool.map(ask, range(count)))

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self.manager.token() for _ in range(count)), return_exceptions=True)

        return self.runner.run(all_of_them())

    def close(self) -> None:
        self.run(self.http.aclose() if self.is_async else self.http.close())
        self.runner.close()


async def _of(awaitable: Any) -> Any:
    return await awaitable


BOTH = [token_manager, token_manager_sync]


def main() -> None:
    """Refresh in a process of its own: told the address and the file, print the token."""
    url, path = sys.argv[1:]
    store = Store(path)
    with httpx2.Client(verify=NO_TLS) as http:
        manager = token_manager_sync.TokenManager(store, url, CLIENT_ID, SecretStr(CANARY), http=http)
        print("ready", flush=True)
        sys.stdin.readline()  # both begin at once
        print(json.dumps({"token": manager.token()}), flush=True)


if __name__ == "__main__":
    main()
