"""Login sessions in Redis or Valkey, for asyncio. The browser holds a random token alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from redis import RedisError
from redis.asyncio import BlockingConnectionPool, Redis

import session_core as core
from session_core import Core, Session, SessionInfo, SessionStoreUnavailable


def connect(url: str, *, timeout: float = 1, max_connections: int = 50) -> Redis:
    """Return a client that gives up after `timeout` seconds, without the default's 10 retries."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=None,
    )
    return Redis.from_pool(pool)


class SessionStore(Core):
    """Sessions that can be ended at once, from any process; see `Core` for the limits.

    Redis holds the SHA-256 of a token: whoever reads its memory cannot sign in with that.
    All methods raise `SessionStoreUnavailable` when Redis does not answer.
    """

    def __init__(self, redis: Redis, **limits: Any) -> None:
        super().__init__(**limits)
        self.redis = redis
        self._run = {
            name: redis.register_script(getattr(core, name))
            for name in ("CREATE", "GET", "UPDATE", "ROTATE", "DESTROY", "DESTROY_ALL", "LIST")
        }

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> SessionStore:
        """Read REDIS_URL, SESSION_IDLE_SECONDS and SESSION_ABSOLUTE_SECONDS.

        Raises:
            RuntimeError: The first is not set, or one of the others is no number.
        """
        if not environ.get("REDIS_URL"):
            raise RuntimeError("REDIS_URL is not set, or is empty")
        return cls(connect(environ["REDIS_URL"]), **core.limits_from(environ))

    async def create(self, user_id: str, data: Mapping[str, Any] | None = None) -> Session:
        """Begin a session under a new token. Never reuse one that the browser came with.

        Raises:
            SessionTooLarge: The data is longer than `max_bytes`.
            ValueError: It is not JSON, or `user_id` is empty.
        """
        index, text, created = self._index(user_id), self._encode(data or {}), self._clock()
        token, digest = self._new()
        rest = [digest, user_id, text, repr(created)]
        await self._ask("CREATE", [self._key(digest), index], [*self._limits(), *rest])
        return Session(token, user_id, dict(data or {}), created, created + self._absolute)

    async def get(self, token: str | None) -> Session | None:
        """Return the token's session and begin its idle time anew; None if there is none."""
        digest = self._known(token)
        if token is None or digest is None:
            return None
        reply = await self._ask("GET", [self._key(digest)], [self._limits()[0], digest])
        return self._session(token, reply)

    async def update(self, token: str, data: Mapping[str, Any]) -> bool:
        """Replace the data of a session that is still there. It lives no longer for that.

        Raises:
            SessionTooLarge: The data is longer than `max_bytes`.
            ValueError: It is not JSON.
        """
        text, digest = self._encode(data), self._known(token)
        return bool(digest and await self._ask("UPDATE", [self._key(digest)], [text]))

    async def rotate(self, token: str) -> Session | None:
        """Move a session to a new token; the old one is refused at once. Of two, one succeeds."""
        digest = self._known(token)
        if digest is None:
            return None
        new, other = self._new()
        keys = [self._key(digest), self._key(other)]
        reply = await self._ask("ROTATE", keys, [self._limits()[0], digest, other])
        return self._session(new, reply)

    async def destroy(self, token: str | None) -> None:
        """End a session, if there is one."""
        if digest := self._known(token):
            await self._ask("DESTROY", [self._key(digest)], [digest])

    async def destroy_all(self, user_id: str) -> int:
        """End all sessions of a user, in all processes; return how many there were."""
        return int(await self._ask("DESTROY_ALL", [self._index(user_id)], [self._key("")]))

    async def list(self, user_id: str) -> tuple[SessionInfo, ...]:
        """Return a user's sessions that are alive, the one that ends first in front."""
        return self._infos(await self._ask("LIST", [self._index(user_id)], [self._key("")]))

    async def _ask(self, name: str, keys: Any, args: Any) -> Any:
        try:
            return await self._run[name](keys, args)
        # AttributeError: what asyncio raises for a reset connection on some Pythons.
        except (RedisError, OSError, AttributeError) as error:
            raise SessionStoreUnavailable(type(error).__name__) from None
