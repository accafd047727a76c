"""The token of a call, and a hundred calls when it has expired: the module against Authlib."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx2
from authlib.integrations.httpx_client import AsyncOAuth2Client
from pydantic import SecretStr

from bench.kit import Table, compare, version
from harness.tls import NOBODY
from patterns.authentication.token_refresh_kit import CANARY, CLIENT_ID, Provider
from token_manager_async import AsyncTokenManager
from token_manager_core import TokenSet

SIMPLE = "client"  # Authlib does not form-encode what it sends as Basic


class Memory:
    """A token set in memory: no disk in the measurement."""

    def __init__(self, first: TokenSet) -> None:
        self.kept: TokenSet | None = first

    async def load(self) -> TokenSet | None:
        return self.kept

    async def save(self, old: TokenSet | None, new: TokenSet | None) -> bool:
        if old != self.kept:
            return False
        self.kept = new
        return True


def tables() -> list[Table]:
    """Measure the good case, and count what the bad one sends."""
    provider = Provider()
    provider.in_form, provider.slow = True, 0.02
    url = f"{provider.url}/token"
    try:
        with asyncio.Runner() as runner:

            async def ours(http: httpx2.AsyncClient, first: TokenSet) -> AsyncTokenManager:
                return AsyncTokenManager(
                    Memory(first), url, CLIENT_ID, SecretStr(CANARY), http=http, secret_in_form=True
                )

            def theirs(first: TokenSet) -> Any:
                token: dict[str, Any] = {"access_token": first.access_token, "refresh_token": first.refresh_token}
                token |= {"token_type": "Bearer", "expires_at": int(first.expires_at or 0)}
                options = {"token_endpoint": url, "token_endpoint_auth_method": "client_secret_post", "verify": NOBODY}
                return AsyncOAuth2Client(CLIENT_ID, CANARY, token=token, **options)

            async def hot(count: int) -> dict[str, Any]:
                good = provider.sign_in(expires_at=time.time() + 3_600, life=3_600)
                async with httpx2.AsyncClient(verify=NOBODY) as http, theirs(good) as client:
                    manager = await ours(http, good)

                    async def mine() -> None:
                        for _ in range(count):
                            await manager.token()

                    async def other() -> None:
                        for _ in range(count):
                            await client.ensure_active_token(client.token)

                    def measure() -> dict[str, float]:
                        loop = asyncio.new_event_loop()
                        try:
                            calls: dict[str, Callable[[], object]] = {
                                "this module": lambda: loop.run_until_complete(mine()),
                                version("authlib"): lambda: loop.run_until_complete(other()),
                            }
                            return compare(calls, calls=5, rounds=9, per_call=count)
                        finally:
                            loop.close()

                    return await asyncio.to_thread(measure)

            async def crowd(kind: str) -> tuple[int, int]:
                provider.hits.clear()
                old = provider.sign_in(expires_at=time.time() - 1, life=3_600)
                limits = httpx2.Limits(max_connections=200)
                async with httpx2.AsyncClient(verify=NOBODY, limits=limits) as http, theirs(old) as client:
                    manager = await ours(http, old)

                    async def ask() -> str:
                        if kind == "this module":
                            return await manager.token()
                        await client.ensure_active_token(client.token)
                        return str(client.token["access_token"])

                    got = await asyncio.gather(*(ask() for _ in range(100)), return_exceptions=True)
                    return provider.hits["token"], sum(isinstance(result, str) for result in got)

            seconds = runner.run(hot(2_000))
            rows = []
            for name, each in seconds.items():
                posts, served = runner.run(crowd(name))
                cells = [f"{each * 1e6:.2f} µs ({each / seconds['this module']:.2f} ×)", str(posts), f"{served} of 100"]
                rows.append([name, *cells])
    finally:
        provider.stop()
    note = (
        "Asking for a token that is good, on one core; then 100 callers at once whose token has expired, against a "
        "provider on loopback that takes 20 ms and ends the family when a refresh token comes twice."
    )
    columns = ("", "a good token", "requests for 100 callers", "who got one")
    return [Table(name="token", columns=columns, rows=rows, note=note)]
