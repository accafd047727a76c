"""What goes into sending and what comes out: settings, results, errors."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self, cast, get_args

from email_message import BadEmail, parse_address

Security = Literal["starttls", "tls", "none"]
_PORT = "SMTP_PORT must be a whole number from 1 to 65535, got {}"


@dataclass(frozen=True, kw_only=True)
class SmtpConfig:
    """A mail server, an account and a sender.

    Attributes:
        host: Name of the server, as its certificate has it.
        sender: The From address, `"Shop <shop@example.com>"` or without a name.
        port: Usually 587 for `"starttls"`, 465 for `"tls"`.
        username: Empty: no login.
        password: For the login. Not in the object's `repr`.
        security: `"starttls"`, `"tls"` (from the first byte) or `"none"` (to a loopback host only).
        domain: Stands in Message-IDs and in EHLO; the domain of `sender` if empty.
        timeout: Seconds to wait for the server at each step.
        data_timeout: Seconds for the content and its answer. Giving up early here makes duplicates:
            RFC 5321, section 4.5.3.2.6, asks for ten minutes.

    Raises:
        ValueError: A setting is malformed; the text names it and its environment variable.
    """

    host: str
    sender: str
    port: int = 587
    username: str = ""
    password: str = field(default="", repr=False)
    security: Security = "starttls"
    domain: str = ""
    timeout: float = 10.0
    data_timeout: float = 120.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read `SMTP_*` and `MAIL_*`; call it when the application starts, not when it is imported.

        Raises:
            RuntimeError: Variables are missing or empty; all are named.
            ValueError: One is malformed; it is named.
        """
        required = ["SMTP_HOST", "MAIL_FROM"]
        if environ.get("SMTP_USER"):
            required.append("SMTP_PASSWORD")
        if missing := [name for name in required if not environ.get(name)]:
            raise RuntimeError("; ".join(f"{name} is not set, or is empty" for name in missing))
        port = environ.get("SMTP_PORT") or "587"
        if not port.isdecimal() or len(port) > 5:
            raise ValueError(_PORT.format(repr(port[:20])))
        return cls(
            host=environ["SMTP_HOST"],
            sender=environ["MAIL_FROM"],
            port=int(port),
            username=environ.get("SMTP_USER", ""),
            password=environ.get("SMTP_PASSWORD", ""),
            security=cast(Security, environ.get("SMTP_SECURITY") or "starttls"),
            domain=environ.get("MAIL_DOMAIN", ""),
        )

    def __post_init__(self) -> None:
        variable = "MAIL_FROM"
        try:
            domain = parse_address(self.sender, with_name=True).domain
            if self.domain:
                variable = "MAIL_DOMAIN"
                domain = parse_address(f"postmaster@{self.domain}").domain
        except BadEmail as error:
            raise ValueError(f"{variable}: {error}") from None
        object.__setattr__(self, "domain", domain)
        port = self.port
        if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65_535:
            raise ValueError(_PORT.format(repr(port)))
        if self.security not in get_args(Security):
            raise ValueError(f"SMTP_SECURITY must be starttls, tls or none, got {self.security!r}")
        if self.port == 465 and self.security != "tls":
            raise ValueError(
                "SMTP_SECURITY: port 465 speaks TLS from the first byte, so it must be tls"
            )
        if self.security == "none" and not _is_loopback(self.host):
            raise ValueError("SMTP_SECURITY: none would send mail and password readable by others")
        if self.username and not self.password:
            raise ValueError("SMTP_PASSWORD: a user name needs a password")
        if not (self.username + self.password).isascii():
            raise ValueError("SMTP_USER, SMTP_PASSWORD: smtplib can log in with ASCII only")
        for name, value in (("timeout", self.timeout), ("data_timeout", self.data_timeout)):
            if not _is_number(value) or value <= 0:
                raise ValueError(f"{name} must be a number of seconds over 0, got {value!r}")


class Refusal(NamedTuple):
    """A server's answer to one recipient (RFC 5321, section 4.2)."""

    code: int
    text: str

    @property
    def temporary(self) -> bool:
        """Whether the recipient may be accepted later (4xx)."""
        return self.code < 500


@dataclass(frozen=True)
class SendReport:
    """What the server took. Accepted is not delivered: a bounce may still come, as a mail."""

    accepted: tuple[str, ...]
    refused: Mapping[str, Refusal]
    message_id: str


class SmtpError(Exception):
    """The message was not accepted. The subclass says what to do about it.

    Attributes:
        refused: The answer to each refused recipient, if it came that far.
        maybe_sent: The connection broke after the content was sent: the server may have the
            message, and sending it again may deliver it twice.
    """

    def __init__(
        self,
        message: str,
        refused: Mapping[str, Refusal] | None = None,
        *,
        maybe_sent: bool = False,
    ) -> None:
        super().__init__(message)
        self.refused = dict(refused or {})
        self.maybe_sent = maybe_sent


class SmtpTlsFailed(SmtpError):
    """No verified TLS: wrong certificate or name, or no STARTTLS. No password, no mail was sent."""


class SmtpAuthFailed(SmtpError):
    """The server does not take this user name and password. Repeating it may lock the account."""


class SmtpPermanent(SmtpError):
    """Refused with 5xx: the same message would be refused again."""


class SmtpTemporary(SmtpError):
    """Refused with 4xx, or the server was not there, or went away: send it again later."""


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
