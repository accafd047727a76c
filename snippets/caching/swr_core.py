"""What both caches share that serve stale values: entries, ages, failed loads, Redis' script."""

from __future__ import annotations

import enum
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

V = TypeVar("V")
log = logging.getLogger(__name__)

# KEYS: entry. ARGV: entry, when its load began, now, life in ms. Who began earlier has the older
# value, also when they end later. A stamp from the future means nothing: the clock was set back.
PUT = """
local old = redis.pcall('GET', KEYS[1])
local began = type(old) == 'string' and tonumber(string.match(old, '^[^\\n]*'))
if began and began > tonumber(ARGV[2]) and began <= tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[4])
return 1
"""


class State(enum.Enum):
    """FRESH: served. STALE: served, and refreshed behind. DEAD: the caller waits for a load."""

    FRESH = "fresh"
    STALE = "stale"
    DEAD = "dead"


@dataclass(frozen=True)
class Entry(Generic[V]):
    """A value, and the time before its load began: a slow load makes nothing fresh for longer."""

    value: V
    stored_at: float


@dataclass(frozen=True)
class Served(Generic[V]):
    """A value, its state, its age in seconds, and the error for which a dead value is served."""

    value: V
    state: State
    age: float
    error: BaseException | None = None


@dataclass(frozen=True)
class Ages:
    """The limits of age, in seconds, as `SWRCache` has them; `ValueError` if one is none."""

    fresh_for: float
    stale_for: float
    error_for: float

    def __post_init__(self) -> None:
        check_seconds("fresh_for", self.fresh_for)
        check_seconds("stale_for", self.stale_for, or_zero=True)
        check_seconds("error_for", self.error_for, or_zero=True)

    @property
    def life(self) -> float:
        """Seconds after which an entry can serve nobody."""
        return self.fresh_for + max(self.stale_for, self.error_for)

    def state(self, entry: Entry[Any] | None, now: float) -> State:
        """Return the state of an entry; one from the future is stale: the clock was set back."""
        if entry is None or now - entry.stored_at >= self.fresh_for + self.stale_for:
            return State.DEAD
        return State.FRESH if 0 <= now - entry.stored_at < self.fresh_for else State.STALE

    def survives_errors(self, entry: Entry[Any] | None, now: float) -> bool:
        """Tell whether an entry is served where its load has failed."""
        return entry is not None and now - entry.stored_at < self.fresh_for + self.error_for


class FailedLoads:
    """What the last load of each key has raised, for `retry_after` seconds; safe for threads."""

    def __init__(self, retry_after: float) -> None:
        check_seconds("retry_after", retry_after, or_zero=True)
        self._retry_after = retry_after
        self._lock = threading.Lock()
        self._errors: dict[str, tuple[float, BaseException]] = {}

    def note(self, key: str, now: float, error: BaseException) -> None:
        """Remember a failure, and forget those whose time is over."""
        with self._lock:
            self._errors = {
                k: e for k, e in self._errors.items() if self.error_of(k, now) is not None
            }
            self._errors[key] = now, error

    def error_of(self, key: str, now: float) -> BaseException | None:
        """Return what the last load raised, while the key is to be left alone for it."""
        at, error = self._errors.get(key, (now, None))
        return error if 0 <= now - at < self._retry_after else None

    def forget(self, key: str) -> None:
        """Forget a failure: a load has succeeded."""
        with self._lock:
            self._errors.pop(key, None)


class EntryTable:
    """The entries of a `MemoryStore`: at most `max_items`. Threads may share it."""

    def __init__(self, max_items: int) -> None:
        check_count("max_items", max_items)
        self._max_items = max_items
        self._entries: OrderedDict[str, tuple[Entry[Any], float]] = OrderedDict()  # and its end
        self._lock = threading.Lock()

    def get(self, key: str) -> Entry[Any] | None:
        """Return the entry, or None."""
        return self._entries.get(key, (None, 0.0))[0]

    def put(self, key: str, entry: Entry[Any], ttl: float, now: float) -> None:
        """Keep it for `ttl` seconds, unless there is one whose load began later."""
        with self._lock:
            old = self.get(key)
            if old is not None and entry.stored_at < old.stored_at <= now:
                return
            self._entries[key] = entry, now + ttl
            self._entries.move_to_end(key)
            while (
                len(self._entries) > self._max_items or next(iter(self._entries.values()))[1] <= now
            ):
                self._entries.popitem(last=False)


def pack(entry: Entry[Any]) -> str:
    """Return the text that Redis keeps: when the load began, a new line, the value as JSON.

    Raises `TypeError` for a value that does not come through JSON unchanged.
    """
    try:
        text = json.dumps(entry.value, allow_nan=False)
        if json.loads(text) == entry.value:
            return f"{entry.stored_at!r}\n{text}"
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{type(entry.value).__qualname__}: {error}") from error
    raise TypeError(f"{type(entry.value).__qualname__} would come back from JSON as something else")


def unpack(data: Any) -> Entry[Any] | None:
    """Return the entry that `pack` has written, or None; raise `ValueError` for what is none."""
    if data is None:
        return None
    stamp, text = data.split(maxsplit=1)
    return Entry(json.loads(text), float(stamp))


def log_error(key: str, error: BaseException) -> None:
    """Log a failed load, or a failed store."""
    log.warning("cache: %s: %r", key, error)


def report(
    on_error: Callable[[str, BaseException], object], key: str, error: BaseException
) -> None:
    """Call `on_error`; what it raises is logged."""
    try:
        on_error(key, error)
    except Exception:
        log.exception("on_error raised")


def check_seconds(name: str, value: float, *, or_zero: bool = False) -> None:
    """Raise `ValueError` for what is no finite number of seconds above 0, or 0 if that is right."""
    if not (_is_number(value) and (value > 0 or (or_zero and value == 0))):
        least = "from 0" if or_zero else "over 0"
        raise ValueError(f"{name} must be a number of seconds {least}, got {value!r}")


def check_count(name: str, value: int) -> None:
    """Raise `ValueError` for what is no whole number of at least 1."""
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
