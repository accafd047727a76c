"""A logging filter that masks registered secrets, also inside base64, URLs and tracebacks."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pydantic import SecretStr

MASK = "[redacted]"
SHORTEST = 8  # masking "dev" would mask half of every line, and so tell what the secret is
_COMMON = """password changeme development production localhost postgres postgresql username
administrator database undefined disabled example 12345678"""
COMMON = frozenset(_COMMON.split())
_KNOWN = frozenset(logging.makeLogRecord({}).__dict__)
log = logging.getLogger("secrets")


class RedactSecrets(logging.Filter):
    """Add it to **handlers**: a logger's filter does not see what its children log.

    It is a net for mistakes, not a license to log secrets: a hash or half of one passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self._formatter = logging.Formatter()

    def register(self, value: str | SecretStr) -> bool:
        """Mask this value from now on; of a URL, its password too.

        Returns:
            False for a value that is too short or a common word: that is logged as a warning.
        """
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        try:
            inside = urlsplit(text).password if "://" in text else None
        except ValueError:
            inside = None
        found = [part for part in (text, inside, unquote(inside or "")) if part]
        usable = [part for part in found if len(part) >= SHORTEST and part.lower() not in COMMON]
        with self._lock:
            for part in usable:
                self._forms |= _forms_of(part)
            longest = sorted(self._forms, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest))) if longest else None
        if len(usable) < len(found):
            log.warning("a secret is too short or too common a word to be masked in logs")
        return len(usable) == len(found)

    def mask(self, text: str) -> str:
        """Return the text with each registered value masked."""
        return self._pattern.sub(MASK, text) if self._pattern else text

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask message, arguments, traceback, stack and extra fields. Lets every record pass."""
        try:
            message = record.getMessage()
        except Exception:  # arguments that do not fit; logging must not raise
            message = f"{record.msg!r} {record.args!r}"
        record.msg, record.args = self.mask(message), ()
        if record.exc_info:
            record.exc_text = self._formatter.formatException(record.exc_info)
        # A handler that makes its own traceback would show local variables again.
        record.exc_info = None
        record.exc_text = self.mask(record.exc_text) if record.exc_text else None
        record.stack_info = self.mask(record.stack_info) if record.stack_info else None
        for name in record.__dict__.keys() - _KNOWN:
            value = record.__dict__[name]
            if not isinstance(value, int | float | None):
                text = value if isinstance(value, str) else repr(value)
                masked = self.mask(text)
                record.__dict__[name] = masked if masked != text else value
        return True

    def __repr__(self) -> str:
        return f"RedactSecrets({len(self._forms)} forms)"


def _forms_of(text: str) -> set[str]:
    forms = {text, quote(text, safe=""), quote(text), quote_plus(text)}
    forms |= {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
    data = text.encode("utf-8", "surrogatepass")
    for shift in range(3):  # base64 of "user:secret" holds the secret at one of three offsets
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\x00" * shift + data).decode().rstrip("=")
            # Without the characters that neighbors have a share in.
            start, end = (0, 2, 3)[shift], -1 if (shift + len(data)) % 3 else None
            forms.add(encoded[start:end])
    return forms
