"""A valid access token for every call, for threads: one refresh for many callers and processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
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

    def load(self) -> TokenSet | None:
        """Return the set, None if there is none."""
        ...

    def save(self, old: TokenSet | None, new: TokenSet | None) -> bool:
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
        http: httpx2.Client,
        sleep: Callable[[float], object] = time.sleep,
        **settings: Any,
    ) -> None:
        super().__init__(token_url, client_id, client_secret, **settings)
        self._store, self._http, self._sleep = store, http, sleep
        self._lock = threading.Lock()
        self._flight: Future[TokenSet] | None = None

    @classmethod
    def from_env(
        cls,
        store: TokenStore,
        *,
        http: httpx2.Client,
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

    def token(self) -> str:
        """Return an access token that is good now, and for the margin that `skew` asks for.

        Raises:
            RefreshFailed: The provider or the store did not answer, and no token is left.
            ReauthRequired: The grant has ended.
        """
        if token := self._good(margin=True):
            return token
        with self._lock:
            flight, leads = self._flight, self._flight is None
            if flight is None:
                flight = self._flight = Future()
        if leads:
            self._fly(flight)
        try:
            return flight.result().access_token
        except RefreshFailed as failure:
            if token := self._good(margin=False):
                return token
            raise RefreshFailed(*failure.args) from None  # one of its own for each caller
        except ReauthRequired as ended:
            raise ReauthRequired(*ended.args) from None

    def _fly(self, flight: Future[TokenSet]) -> None:
        try:
            # Between our look at the token and the lock, another flight may have landed.
            good = self._set if self._good(margin=True) else None
            flight.set_result(good or self._refresh())
        except (RefreshFailed, ReauthRequired) as error:
            flight.set_exception(error)
        finally:
            if not flight.done():  # the leader was interrupted: the others must not wait for ever
                flight.set_exception(RefreshFailed("the refresh was interrupted"))
            with self._lock:
                self._flight = None  # a failure is not kept: the next call tries again

    def refresh_after_401(self, used: str) -> str:
        """Return another token than `used`, which the API refused. See `token` for the errors.

        It refreshes only if nobody has done so since `used` was handed out.
        """
        if self._set is not None and self._set.access_token == used:
            self._rejected = used
        return self.token()

    def _refresh(self) -> TokenSet:
        if self._unsaved is not None:  # asking again would use the old refresh token twice
            return self._keep(*self._unsaved)
        for _ in range(POLLS):
            stored = self._load()
            old = self._start(stored)
            if old is None and self._set is not None:
                return self._set  # another process refreshed it
            if old is not None and not self._is_claimed(old):
                claim = self._claim(old)
                if self._save(stored, claim):
                    self._mine = claim
                    return self._exchange(old, claim)
            elif self._set is not None and self._good(margin=False):
                return self._set  # another process is at it, and ours is good until then
            self._sleep(POLL_SECONDS)
        raise RefreshFailed("another process did not finish its refresh")

    def _exchange(self, old: TokenSet, claim: TokenSet) -> TokenSet:
        sent_at, begun = self._clock(), self._monotonic()
        try:
            new = self._parsed(self._post(old), old, sent_at)
        except InvalidGrant:
            if not self._save(claim, None):
                return self._changed()
            self._held = None
            raise ReauthRequired("the grant has ended: somebody has to sign in again") from None
        except RefreshFailed:
            self._save(claim, old)  # the next one need not wait for the lease
            raise
        self._unsaved = (claim, new)
        kept = self._keep(claim, new)
        if kept is new and new.life is not None:
            self._adopt(new, begun + new.life)
        return kept

    def _keep(self, claim: TokenSet, new: TokenSet) -> TokenSet:
        """Save first, hand out second: after a crash the old refresh token is worth nothing."""
        saved = self._save(claim, new)
        self._unsaved = None
        return self._adopt(new) if saved else self._changed()

    def _changed(self) -> TokenSet:
        """Use the set that somebody else stored during our refresh."""
        if self._start(self._load()) is None and self._set is not None:
            return self._set
        raise RefreshFailed("the stored token set was changed during the refresh")

    def _post(self, old: TokenSet) -> httpx2.Response:
        try:
            return self._http.post(self._url, timeout=self._timeout, **self._request(old))
        except httpx2.HTTPError as error:  # "from None": the cause has the request
            raise RefreshFailed(f"the token endpoint: {type(error).__name__}") from None

    def _load(self) -> TokenSet | None:
        try:
            return self._store.load()
        except Exception as error:  # whatever kind of store it is
            raise RefreshFailed(f"the token store: {type(error).__name__}") from None

    def _save(self, old: TokenSet | None, new: TokenSet | None) -> bool:
        try:
            return self._store.save(old, new)
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

    def sync_auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Do what httpx2 asks of an `Auth`."""
        if (request.url.scheme, request.url.host, request.url.port) != self._origin:
            yield request
            return
        used = self._manager.token()
        request.headers["Authorization"] = f"Bearer {used}"
        response = yield request
        if response.status_code == 401:
            fresh = self._manager.refresh_after_401(used)
            if isinstance(request.stream, httpx2.ByteStream):
                request.headers["Authorization"] = f"Bearer {fresh}"
                yield request
