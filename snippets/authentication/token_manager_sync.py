"""A valid access token for every call (sync): one refresh for many threads and processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from typing import Protocol

import httpx2
from pydantic import SecretStr

from token_manager_core import (
    POLL_SECONDS,
    POLLS,
    HeldTokens,
    InvalidGrant,
    ReauthRequired,
    RefreshFailed,
    RefreshSettings,
    TokenSet,
    credentials_from_env,
    held_after,
    is_secure,
    origin_of,
    read_answer,
)


class TokenStore(Protocol):
    """Where the token set outlives the process. Encrypt it there: it is a login."""

    def load(self) -> TokenSet | None:
        """Return the set, None if there is none."""
        ...

    def save(self, old: TokenSet | None, new: TokenSet | None) -> bool:
        """Replace `old` by `new` in one atomic step; False, and no change, if it is not `old`."""
        ...


class TokenManager:
    """Hands out the access token, and refreshes it in time.

    Make one for each token set of a process. `RefreshSettings` tells what the other arguments mean.

    Args:
        store: Where the token set is kept.
        http: The client to ask with, without a default auth of its own; its owner closes it.
        clock: Seconds since 1970, which a machine may set to another time.
        monotonic: Seconds that only go forward. A token's own life is measured with it.
        sleep: Waits between two looks while another process refreshes.

    Raises:
        ValueError: As for `RefreshSettings`.
    """

    def __init__(
        self,
        store: TokenStore,
        token_url: str,
        client_id: str,
        client_secret: SecretStr | None,
        *,
        http: httpx2.Client,
        skew: float = 60,
        timeout: float = 10,
        secret_in_form: bool = False,
        client_credentials: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._settings = RefreshSettings(
            token_url,
            client_id,
            client_secret,
            skew=skew,
            timeout=timeout,
            secret_in_form=secret_in_form,
            client_credentials=client_credentials,
        )
        self._store = store
        self._http = http
        self._clock = clock
        self._monotonic = monotonic
        self._sleep = sleep
        self._held: HeldTokens | None = None
        self._rejected: str | None = None  # a token that the API answered with 401
        self._claim: TokenSet | None = None  # our last one: a claim of our own is no wait
        self._unsaved: tuple[TokenSet, HeldTokens] | None = None  # a claim, and what to save
        self._flight: Future[TokenSet] | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_env(
        cls,
        store: TokenStore,
        *,
        http: httpx2.Client,
        environ: Mapping[str, str] = os.environ,
        skew: float = 60,
        timeout: float = 10,
        secret_in_form: bool = False,
        client_credentials: bool = False,
    ) -> TokenManager:
        """Read OAUTH_TOKEN_URL, OAUTH_CLIENT_ID and OAUTH_CLIENT_SECRET.

        Raises:
            RuntimeError: One of them is not set. It is named, and no value is shown.
            ValueError: As for `RefreshSettings`.
        """
        return cls(
            store,
            *credentials_from_env(environ),
            http=http,
            skew=skew,
            timeout=timeout,
            secret_in_form=secret_in_form,
            client_credentials=client_credentials,
        )

    def token(self) -> str:
        """Return an access token that is good now, and for the margin that `skew` asks for.

        Raises:
            RefreshFailed: The provider or the store did not answer, and no token is left.
            ReauthRequired: The grant has ended.
        """
        if good := self._good_tokens(self._settings.skew):
            return good.access_token
        with self._lock:
            flight, leads = self._flight, self._flight is None
            if flight is None:
                flight = self._flight = Future()
        if leads:
            self._lead_flight(flight)
        try:
            return flight.result().access_token
        except RefreshFailed as failure:
            if good := self._good_tokens(skew=0):
                return good.access_token
            raise RefreshFailed(*failure.args) from None  # one of its own for each caller
        except ReauthRequired as ended:
            raise ReauthRequired(*ended.args) from None

    def refresh_after_401(self, used: str) -> str:
        """Return another token than `used`, which the API refused. See `token` for the errors.

        It refreshes only if nobody has done so since `used` was handed out.
        """
        if self._held is not None and self._held.tokens.access_token == used:
            self._rejected = used
        return self.token()

    def _good_tokens(self, skew: float) -> TokenSet | None:
        """Return the set that is held, if its token is good and lives `skew` seconds longer."""
        held = self._held
        if held is None or not held.is_good(self._rejected, self._monotonic(), skew):
            return None
        return held.tokens

    def _lead_flight(self, flight: Future[TokenSet]) -> None:
        try:
            # Between our look at the token and the lock, another flight may have landed.
            flight.set_result(self._good_tokens(self._settings.skew) or self._refresh())
        except (RefreshFailed, ReauthRequired) as error:
            flight.set_exception(error)
        finally:
            if not flight.done():  # the leader was interrupted: the others must not wait forever
                flight.set_exception(RefreshFailed("the refresh was interrupted"))
            with self._lock:
                self._flight = None  # a failure is not kept: the next call tries again

    def _refresh(self) -> TokenSet:
        if self._unsaved is not None:  # asking again would use the old refresh token twice
            return self._save_new(*self._unsaved)
        for _ in range(POLLS):
            stored = self._load_set()
            if good := self._good_tokens(self._settings.skew):
                return good  # another process refreshed it
            old = self._settings.renewable(stored)
            if old == self._claim or not old.is_claimed(self._clock()):
                claim = old.claimed(self._clock())
                if self._save_set(stored, claim):
                    self._claim = claim
                    return self._ask_provider(old, claim)
            elif good := self._good_tokens(skew=0):
                return good  # another process is at it, and ours is good until then
            self._sleep(POLL_SECONDS)
        raise RefreshFailed("another process did not finish its refresh")

    def _ask_provider(self, old: TokenSet, claim: TokenSet) -> TokenSet:
        sent_at = self._clock()
        begun = self._monotonic()
        try:
            new = read_answer(self._post_request(old), old, sent_at)
        except InvalidGrant:
            if not self._save_set(claim, None):
                return self._use_changed_set()
            self._held = None
            raise ReauthRequired("the grant has ended: somebody has to sign in again") from None
        except RefreshFailed:
            self._save_set(claim, old)  # the next one need not wait for the lease
            raise
        self._unsaved = (claim, HeldTokens.from_answer(new, begun))
        return self._save_new(*self._unsaved)

    def _save_new(self, claim: TokenSet, new: HeldTokens) -> TokenSet:
        """Save first, hand out second: after a crash the old refresh token is worth nothing."""
        saved = self._save_set(claim, new.tokens)
        self._unsaved = None
        if not saved:
            return self._use_changed_set()
        self._held = new
        return new.tokens

    def _use_changed_set(self) -> TokenSet:
        """Use the set that somebody else stored during our refresh."""
        stored = self._load_set()
        if good := self._good_tokens(self._settings.skew):
            return good
        self._settings.renewable(stored)
        raise RefreshFailed("the stored token set was changed during the refresh")

    def _post_request(self, old: TokenSet) -> httpx2.Response:
        request = self._settings.token_request(old)
        try:
            return self._http.post(
                self._settings.token_url, timeout=self._settings.timeout, **request
            )
        except httpx2.HTTPError as error:  # "from None": the cause has the request
            raise RefreshFailed(f"the token endpoint: {type(error).__name__}") from None

    def _load_set(self) -> TokenSet | None:
        """Return what is stored, and hold it if another process has stored it."""
        try:
            stored = self._store.load()
        except Exception as error:  # whatever kind of store it is
            raise RefreshFailed(f"the token store: {type(error).__name__}") from None
        now, monotonic = self._clock(), self._monotonic()
        self._held = held_after(self._held, stored, now=now, monotonic=monotonic)
        return stored

    def _save_set(self, old: TokenSet | None, new: TokenSet | None) -> bool:
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
        self._manager = manager
        self._origin = origin_of(httpx2.URL(origin))

    def sync_auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Do what httpx2 asks of an `Auth`."""
        if origin_of(request.url) != self._origin:
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
