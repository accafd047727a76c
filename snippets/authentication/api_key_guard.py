"""A FastAPI dependency that lets a request pass with an API key: in the header, and one only."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from fastapi import HTTPException, Request
from starlette.datastructures import Headers

from api_keys import InvalidApiKey, KeyRecord, check, parse

_log = logging.getLogger(__name__)
_TOUCH_EVERY = 60.0  # seconds


class KeyStore(Protocol):
    """Where the records are. It sees ids only, never a key. Give it a timeout of its own."""

    async def get(self, key_id: str) -> KeyRecord | None:
        """Return the record as it is now: whoever caches it delays every revocation."""

    async def touch(self, key_id: str, at: float) -> None:
        """Set `last_used_at` to `at`, in one statement, if it is NULL or a minute before."""


def require_api_key(
    store: KeyStore,
    *scopes: str,
    pepper: bytes | None = None,
    clock: Callable[[], float] = time.time,
) -> Callable[[Request], Awaitable[KeyRecord]]:
    """Make a dependency that returns the record of a valid key with all of `scopes`.

    The key stands in `Authorization: Bearer <key>` (RFC 6750) or in `X-API-Key: <key>`. It is not
    looked for in the query or the body. `pepper` and `clock` are those of `api_keys.issue`.

    Answers: 401 for whatever is wrong with the key, 403 when a scope is missing, 503 when the store
    raises. Three bodies, no reasons: these go to the log, with the public part of the key.
    """
    needed = frozenset(scopes)

    async def api_key(request: Request) -> KeyRecord:
        shown = "-"
        try:
            text = _presented_key(request.headers)
            parsed = parse(text)
            shown = str(parsed)
            record = await _get_record(store, parsed.key_id)
            if record is None:
                raise InvalidApiKey("unknown id")
            now = clock()
            check(record, text, now, pepper=pepper)
        except InvalidApiKey as refused:
            _log.warning("API key %s refused: %s", shown, refused.reason)
            raise HTTPException(401, "Invalid API key", {"WWW-Authenticate": "Bearer"}) from None
        await _touch_record(store, record, now)
        if not needed <= record.scopes:
            _log.warning("API key %s lacks a scope of: %s", shown, " ".join(sorted(needed)))
            challenge = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}
            raise HTTPException(403, "The API key does not allow this", challenge)
        return record

    return api_key


def _presented_key(headers: Headers) -> str:
    # Of two keys, we and the next reader of the headers might each take another one.
    sent = [value.partition(" ") for value in headers.getlist("authorization")]
    keys = [key if scheme.lower() == "bearer" else "" for scheme, _, key in sent]
    keys += headers.getlist("x-api-key")
    if not keys:
        raise InvalidApiKey("no key")
    if len(keys) > 1:
        raise InvalidApiKey("more than one key")
    return keys[0]


async def _get_record(store: KeyStore, key_id: str) -> KeyRecord | None:
    try:
        return await store.get(key_id)
    except Exception:  # whatever it is, it says nothing about the key: no 401
        _log.exception("the store of API keys cannot be read")
        raise HTTPException(503, "Try again later", {"Retry-After": "5"}) from None


async def _touch_record(store: KeyStore, record: KeyRecord, now: float) -> None:
    if record.last_used_at is not None and now - record.last_used_at < _TOUCH_EVERY:
        return
    try:
        await store.touch(record.key_id, now)
    except Exception:  # a note not taken is no reason to refuse a good key
        _log.exception("last_used_at of an API key was not written")
