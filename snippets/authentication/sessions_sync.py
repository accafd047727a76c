"""Login sessions in Redis or Valkey (sync). The browser holds a random token alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from redis import BlockingConnectionPool, Redis, RedisError

import sessions_core as core
from sessions_core import Session, SessionInfo, SessionStoreUnavailable


def connect(url: str, *, timeout: float = 1, max_connections: int = 50) -> Redis:
    """Return a client that gives up after `timeout` seconds, without the default's 10 retries.

    Raises:
        ValueError: `timeout` or `max_connections` is no number over 0.
    """
    core.check_connection(timeout, max_connections)
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=None,
    )
    return Redis.from_pool(pool)


class SessionStore:
    """Sessions that can be ended at once, from any process.

    Redis holds the SHA-256 of a token: whoever reads its memory cannot sign in with that.
    All methods raise `SessionStoreUnavailable` when Redis does not answer.

    Args:
        redis: From `connect`; its owner closes it.
        idle: Seconds without a request after which a session ends.
        absolute: Seconds after which it ends in any case.
        max_bytes: How long its data may be, as JSON.
        clock: Seconds since 1970.
        prefix: What the keys in Redis begin with.

    Raises:
        ValueError: A limit is no such number.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        idle: float = 1_800,
        absolute: float = 43_200,
        max_bytes: int = 4_096,
        clock: Callable[[], float] = time.time,
        prefix: str = "sessions",
    ) -> None:
        self.redis = redis
        self._limits = core.SessionLimits(idle=idle, absolute=absolute, max_bytes=max_bytes)
        self._keys = core.SessionKeys(prefix)
        self._clock = clock
        self._scripts = {
            name: redis.register_script(getattr(core, name))
            for name in ("CREATE", "GET", "UPDATE", "ROTATE", "DESTROY", "DESTROY_ALL", "LIST")
        }

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> SessionStore:
        """Read REDIS_URL, SESSION_IDLE_SECONDS and SESSION_ABSOLUTE_SECONDS.

        Raises:
            RuntimeError: The first is not set.
            ValueError: One of the others is no number.
        """
        if not environ.get("REDIS_URL"):
            raise RuntimeError("REDIS_URL is not set, or is empty")
        limits = core.SessionLimits.from_env(environ)
        return cls(connect(environ["REDIS_URL"]), idle=limits.idle, absolute=limits.absolute)

    def create(self, user_id: str, data: Mapping[str, Any] | None = None) -> Session:
        """Begin a session under a new token. Never reuse one that the browser came with.

        Raises:
            SessionTooLarge: The data is longer than `max_bytes`.
            ValueError: It is not JSON, or `user_id` is empty.
        """
        index = self._keys.of_user(user_id)
        text = self._limits.to_json(data or {})
        created = self._clock()
        token, digest = core.new_token()
        lives = [self._limits.idle_ms, self._limits.absolute_ms]
        keys = [self._keys.of_session(digest), index]
        self._run_script("CREATE", keys, [*lives, digest, user_id, text, repr(created)])
        return Session(token, user_id, dict(data or {}), created, created + self._limits.absolute)

    def get(self, token: str | None) -> Session | None:
        """Return the token's session and begin its idle time anew; None if there is none."""
        digest = core.token_digest(token)
        if token is None or digest is None:
            return None
        keys = [self._keys.of_session(digest)]
        reply = self._run_script("GET", keys, [self._limits.idle_ms, digest])
        return self._limits.read_session(token, reply, self._clock())

    def update(self, token: str, data: Mapping[str, Any]) -> bool:
        """Replace the data of a session that is still there. It lives no longer for that.

        Raises:
            SessionTooLarge: The data is longer than `max_bytes`.
            ValueError: It is not JSON.
        """
        text = self._limits.to_json(data)
        digest = core.token_digest(token)
        if digest is None:
            return False
        return bool(self._run_script("UPDATE", [self._keys.of_session(digest)], [text]))

    def rotate(self, token: str) -> Session | None:
        """Move a session to a new token; the old one is refused at once. Of two, one succeeds."""
        digest = core.token_digest(token)
        if digest is None:
            return None
        new, other = core.new_token()
        keys = [self._keys.of_session(digest), self._keys.of_session(other)]
        reply = self._run_script("ROTATE", keys, [self._limits.idle_ms, digest, other])
        return self._limits.read_session(new, reply, self._clock())

    def destroy(self, token: str | None) -> None:
        """End a session, if there is one."""
        if digest := core.token_digest(token):
            self._run_script("DESTROY", [self._keys.of_session(digest)], [digest])

    def destroy_all(self, user_id: str) -> int:
        """End all sessions of a user, in all processes; return how many there were."""
        keys = [self._keys.of_user(user_id)]
        return int(self._run_script("DESTROY_ALL", keys, [self._keys.of_session("")]))

    def list(self, user_id: str) -> tuple[SessionInfo, ...]:
        """Return a user's sessions that are alive, the one that ends first in front."""
        keys = [self._keys.of_user(user_id)]
        return core.read_infos(self._run_script("LIST", keys, [self._keys.of_session("")]))

    def _run_script(self, name: str, keys: Any, args: Any) -> Any:
        try:
            return self._scripts[name](keys, args)
        except (RedisError, OSError) as error:
            raise SessionStoreUnavailable(type(error).__name__) from None
