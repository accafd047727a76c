"""A valid access token for every call, for asyncio: one refresh for many callers and processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import httpx2
from pydantic import SecretStr

from token_core import (
    POLL_SECONDS,
    POLLS,
    Core,
    InvalidGrant,
    ReauthRequired,
    RefreshFailed,
    TokenSet,
    is_secure,
)


class TokenStore(Protocol):
    """Where the token set outlives the process. Encrypt it there: it is a login."""

    async def load(self) -> TokenSet | None:
        """Return the set, None if there is none."""
        ...

    async def save(self, old: TokenSet | None, new: TokenSet | None) -> bool:
        """Replace `old` by `new` in one atomic step; False, and no change, if it is not `old`."""
        ...


class TokenManager(Core):
    """Hands out the access token, and refreshes it in time; see `Core` for the settings.

    Make one for each token set of a process. `http` has no default auth of its own.
    """

    def __init__(
        self,
        store: TokenStore,
        token_url: str,
        client_id: str,
        client_secret: SecretStr | None,
        *,
        http: httpx2.AsyncClient,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        **settings: Any,
    ) -> None:
        super().__init__(token_url, client_id, client_secret, **settings)
        self._store, self._http, self._sleep = store, http, sleep
        self._flight: asyncio.Task[TokenSet] | None = None

    @classmethod
    def from_env(
        cls,
        store: TokenStore,
        *,
        http: httpx2.AsyncClient,
        environ: Mapping[str, str] = os.environ,
        **settings: Any,
    ) -> TokenManager:
        """Read OAUTH_TOKEN_URL, OAUTH_CLIENT_ID and OAUTH_CLIENT_SECRET.

        Raises:
            RuntimeError: One of them is not set. It is named, and no value is shown.
        """
        names = ("OAUTH_TOKEN_URL", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET")
        for name in names:
            if not environ.get(name, "").strip():
                raise RuntimeError(f"{name} is not set, or is empty")
        url, client_id, secret = (environ[name].strip() for name in names)
        return cls(store, url, client_id, SecretStr(secret), http=http, **settings)

    async def token(self) -> str:
        """Return an access token that is good now, and for the margin that `skew` asks for.

        Raises:
            RefreshFailed: The provider or the store did not answer, and no token is left.
            ReauthRequired: The grant has ended.
        """
        if token := self._good(margin=True):
            return token
        if self._flight is None:
            self._flight = asyncio.create_task(self._refresh())
            self._flight.add_done_callback(self._landed)
        try:
            # Shielded: a caller that gives up must not take the refresh from the others.
            return (await asyncio.shield(self._flight)).access_token
        except RefreshFailed as failure:
            if token := self._good(margin=False):
                return token
            raise RefreshFailed(*failure.args) from None  # one of its own for each caller
        except ReauthRequired as ended:
            raise ReauthRequired(*ended.args) from None

    def _landed(self, flight: asyncio.Task[TokenSet]) -> None:
        self._flight = None  # a failure is not kept: the next call tries again
        if not flight.cancelled():
            flight.exception()  # looked at, so that asyncio does not complain when nobody waits

    async def refresh_after_401(self, used: str) -> str:
        """Return another token than `used`, which the API refused. See `token` for the errors.

        It refreshes only if nobody has done so since `used` was handed out.
        """
        if self._set is not None and self._set.access_token == used:
            self._rejected = used
        return await self.token()

    async def _refresh(self) -> TokenSet:
        if self._unsaved is not None:  # asking again would use the old refresh token twice
            return await self._keep(*self._unsaved)
        for _ in range(POLLS):
            stored = await self._load()
            old = self._start(stored)
            if old is None and self._set is not None:
                return self._set  # another process refreshed it
            if old is not None and not self._is_claimed(old):
                claim = self._claim(old)
                if await self._save(stored, claim):
                    self._mine = claim
                    return await self._exchange(old, claim)
            elif self._set is not None and self._good(margin=False):
                return self._set  # another process is at it, and ours is good until then
            await self._sleep(POLL_SECONDS)
        raise RefreshFailed("another process did not finish its refresh")

    async def _exchange(self, old: TokenSet, claim: TokenSet) -> TokenSet:
        sent_at, begun = self._clock(), self._monotonic()
        try:
            new = self._parsed(await self._post(old), old, sent_at)
        except InvalidGrant:
            if not await self._save(claim, None):
                return await self._changed()
            self._held = None
            raise ReauthRequired("the grant has ended: somebody has to sign in again") from None
        except RefreshFailed:
            await self._save(claim, old)  # the next one need not wait for the lease
            raise
        self._unsaved = (claim, new)
        kept = await self._keep(claim, new)
        if kept is new and new.life is not None:
            self._adopt(new, begun + new.life)
        return kept

    async def _keep(self, claim: TokenSet, new: TokenSet) -> TokenSet:
        """Save first, hand out second: after a crash the old refresh token is worth nothing."""
        saved = await self._save(claim, new)
        self._unsaved = None
        return self._adopt(new) if saved else await self._changed()

    async def _changed(self) -> TokenSet:
        """Use the set that somebody else stored during our refresh."""
        if self._start(await self._load()) is None and self._set is not None:
            return self._set
        raise RefreshFailed("the stored token set was changed during the refresh")

    async def _post(self, old: TokenSet) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._http.post(self._url, **self._request(old))
        except (httpx2.HTTPError, TimeoutError) as error:  # "from None": the cause has the request
            raise RefreshFailed(f"the token endpoint: {type(error).__name__}") from None

    async def _load(self) -> TokenSet | None:
        try:
            return await self._store.load()
        except Exception as error:  # whatever kind of store it is
            raise RefreshFailed(f"the token store: {type(error).__name__}") from None

    async def _save(self, old: TokenSet | None, new: TokenSet | None) -> bool:
        try:
            return await self._store.save(old, new)
        except Exception as error:  # whatever kind of store it is
            raise RefreshFailed(f"the token store: {type(error).__name__}") from None


class RefreshingAuth(httpx2.Auth):
    """Sends the token with each request to `origin`, and to no other place.

    After a 401 it tries once more with a new token, unless the body was a stream, which is gone.
    """

    def __init__(self, manager: TokenManager, *, origin: str) -> None:
        if not is_secure(origin):
            raise ValueError("origin must begin with https://")
        url = httpx2.URL(origin)
        self._manager, self._origin = manager, (url.scheme, url.host, url.port)

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Do what httpx2 asks of an `Auth`."""
        if (request.url.scheme, request.url.host, request.url.port) != self._origin:
            yield request
            return
        used = await self._manager.token()
        request.headers["Authorization"] = f"Bearer {used}"
        response = yield request
        if response.status_code == 401:
            fresh = await self._manager.refresh_after_401(used)
            if isinstance(request.stream, httpx2.ByteStream):
                request.headers["Authorization"] = f"Bearer {fresh}"
                yield request
