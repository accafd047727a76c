"""One mail transaction: what the blocking and the asyncio sender share."""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Literal

import aiosmtplib

from email_message import BadEmail, Email, build_message
from smtp_types import (
    Refusal,
    SendReport,
    SmtpAuthFailed,
    SmtpConfig,
    SmtpError,
    SmtpPermanent,
    SmtpTemporary,
    SmtpTlsFailed,
)

MAX_BYTES = 25 * 1024 * 1024  # of the message as it is sent: base64 makes a file a third larger

# An answer with a code, in either library; both put (code, text) first in `args`.
_ANSWERS = (smtplib.SMTPResponseException, aiosmtplib.SMTPResponseException)


class Transaction:
    """One message on its way to the server."""

    def __init__(self, config: SmtpConfig, email: Email) -> None:
        message = build_message(email, config.sender, domain=config.domain)
        self.sender: str = message["From"].addresses[0].addr_spec
        self.recipients = tuple(dict.fromkeys((*email.to, *email.cc, *email.bcc)))
        self.content = message.as_bytes()
        if len(self.content) > MAX_BYTES:
            raise BadEmail(f"the message has {len(self.content)} bytes, {MAX_BYTES} are allowed")
        self.message_id = str(message["Message-ID"])
        self.refused: dict[str, Refusal] = {}
        self.stage: Literal["connect", "envelope", "content"] = "connect"
        # The content is 7-bit but for addresses, and Bcc is not in it.
        self._utf8 = not (self.content.isascii() and "".join(self.recipients).isascii())

    def options(self, offered: Container[str]) -> list[str]:
        """Return the parameters of MAIL FROM for a server that offers these extensions."""
        size = [f"SIZE={len(self.content)}"] if "size" in offered else []
        if not self._utf8:
            return size
        if "smtputf8" not in offered:
            raise BadEmail("an address needs SMTPUTF8 (RFC 6531), which the server does not offer")
        return [*size, "SMTPUTF8", "BODY=8BITMIME"]

    def refuse(self, address: str, code: int, answer: str | bytes) -> None:
        """Note that one recipient was refused; the others still get the message."""
        if code == 421 or code // 100 not in (4, 5):
            expect_250(code, answer)
        self.refused[address] = Refusal(code, _answer_text(answer))

    def start_content(self) -> None:
        """Go on to DATA, unless there is nobody to send to."""
        if len(self.refused) == len(self.recipients):
            kind = (
                SmtpTemporary if any(r.temporary for r in self.refused.values()) else SmtpPermanent
            )
            code, text = next(iter(self.refused.values()))
            raise kind(f"every recipient was refused, the first with {code} {text}", self.refused)
        self.stage = "content"

    def report(self) -> SendReport:
        """Return what became of each recipient."""
        accepted = tuple(a for a in self.recipients if a not in self.refused)
        return SendReport(accepted, self.refused, self.message_id)

    @contextmanager
    def errors(self, drop: Callable[[], None]) -> Iterator[None]:
        """Turn what either library raises into our errors; `drop` what is out of step."""
        try:
            try:
                yield
            except _ANSWERS as error:
                expect_250(*error.args[:2])
        except (SmtpError, BadEmail):
            raise  # a clear answer: the connection can be used on
        except BaseException as error:  # cancellation too, or the next message reads this answer
            drop()
            reason = f"{type(error).__name__}: {error}"
            if self.stage == "connect" and _is_tls_error(error):
                raise SmtpTlsFailed(reason) from error
            if isinstance(error, OSError):  # so are the errors of both libraries
                maybe_sent = self.stage == "content" and not isinstance(error, _ClosingError)
                raise SmtpTemporary(reason, self.refused, maybe_sent=maybe_sent) from error
            raise


@contextmanager
def login_errors() -> Iterator[None]:
    """Tell a login that is refused from a connection that is lost."""
    try:
        yield
    except (smtplib.SMTPServerDisconnected, ConnectionError, TimeoutError):
        raise
    except (smtplib.SMTPException, aiosmtplib.SMTPException) as error:
        # Only the numbers of the answer: some servers repeat the command, and the password with it.
        code, answer = error.args[:2] if isinstance(error, _ANSWERS) else (0, "")
        detail = " ".join(
            [str(code), *re.findall(r"^[245]\.\d{1,3}\.\d{1,3}", _answer_text(answer))]
        )
        if code // 100 == 4:
            raise SmtpTemporary(f"the server puts the login off: {detail}") from None
        reason = (
            f"the server refuses the login: {detail}" if code else "no way to log in is offered"
        )
        raise SmtpAuthFailed(reason) from None


class _ClosingError(ConnectionError):
    """421: the server did not do what it was asked, and closes the connection."""


def expect_250(code: int, answer: str | bytes) -> None:
    """Raise unless the server is content."""
    if code == 250:
        return
    text = f"{code} {_answer_text(answer)}"
    if code // 100 == 5:
        raise SmtpPermanent(text)
    if code // 100 == 4 and code != 421:
        raise SmtpTemporary(text)
    raise _ClosingError(text) if code == 421 else ConnectionError(text)  # anything else is not SMTP


def _answer_text(answer: str | bytes) -> str:
    raw = answer.encode(errors="surrogateescape") if isinstance(answer, str) else answer
    return " ".join(raw.decode(errors="replace").split())


def _is_tls_error(error: BaseException) -> bool:
    # aiosmtplib wraps the error of a handshake. A handshake cut short is an outage, not a refusal.
    found = [e for e in (error, error.__cause__) if isinstance(e, ssl.SSLError)]
    return bool(found) and not isinstance(found[0], ssl.SSLEOFError)
