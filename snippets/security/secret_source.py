"""Secrets from files: read with care, and replaced while the process runs.

The file is what Docker, Kubernetes and Vault's agent write: its content is the secret.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

MAX_BYTES = 65_536
log = logging.getLogger("secrets")


class SecretFileError(Exception):
    """The file holds no usable secret. The message says why, and shows nothing of its content."""


def read_secret_file(path: str | os.PathLike[str]) -> SecretStr:
    """Read a secret: UTF-8, without a byte order mark and the white space around it.

    Symbolic links are followed, because Kubernetes swaps one. Readable by all is normal there;
    writable by all is refused.

    Raises:
        SecretFileError: There is no such file, or it is no plain file, writable by all, longer
            than 64 KiB, empty, or not text.
    """
    try:
        # Non-blocking: were it a pipe, opening it would wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise SecretFileError(error.strerror or "cannot be opened") from None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise SecretFileError("not a plain file")
        if about.st_mode & stat.S_IWOTH and os.name == "posix":
            raise SecretFileError("writable by everybody")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    finally:
        os.close(handle)
    if len(data) > MAX_BYTES:
        raise SecretFileError(f"longer than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:  # and "from None", because the cause holds the content
        text = "\x00"
    if "\x00" in text:
        raise SecretFileError("not UTF-8 text")
    if not text:
        raise SecretFileError("empty")
    return SecretStr(text)


class RotatingSecret:
    """A secret that follows its file. For any number of threads.

    Args:
        path: The file. It must be readable when this is made.
        reload: Seconds after which a new content is seen at the latest.
        grace: Seconds for which the previous value stays in `all()`.
        clock: Seconds from any beginning.

    Raises:
        SecretFileError: The file is unusable now. Later that keeps the old value, and is logged.
        ValueError: A time is no number of seconds from 0.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        reload: float = 30.0,
        grace: float = 86_400.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, seconds in (("reload", reload), ("grace", grace)):
            if not (_is_number(seconds) and seconds >= 0):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {seconds!r}")
        self._path = Path(path)
        self._reload = reload
        self._grace = grace
        self._clock = clock
        self._lock = threading.Lock()
        self._checked = clock()
        self._changed = self._checked
        self._values: tuple[SecretStr, ...] = (read_secret_file(path),)

    def __repr__(self) -> str:
        return f"RotatingSecret({str(self._path)!r})"

    def current(self) -> SecretStr:
        """Return the newest value: what to sign, send or encrypt with."""
        return self.all()[0]

    def all(self) -> tuple[SecretStr, ...]:
        """Return the newest value, and for a while the one before it: what to verify with."""
        now = self._clock()
        # One thread looks, the others go on with what there is.
        if now - self._checked >= self._reload and self._lock.acquire(blocking=False):
            try:
                self._read_again(now)
            finally:
                self._lock.release()
        values = self._values
        return values if self._clock() - self._changed < self._grace else values[:1]

    def _read_again(self, now: float) -> None:
        self._checked = now
        try:
            value = read_secret_file(self._path)
        except SecretFileError as error:
            log.warning("%s: %s; the old value stays", self._path, error)
            return
        if value != self._values[0]:
            # First the time: a reader between the lines still finds the previous value allowed.
            self._changed = now
            self._values = (value, self._values[0])
            log.info("%s: a new value is used", self._path)


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
