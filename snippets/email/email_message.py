"""An e-mail as data, checked when it is made, and the MIME message built from it."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.headerregistry import Address, BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage
from email.policy import SMTP, Policy

from email_validator import EmailNotValidError, validate_email

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Python decodes what it is given: `=?utf-8?q?a=0ABcc:=20b?=` would become two headers.
_ENCODED_WORD = re.compile(r"=\?.*\?=")
_HEADER_NAME = re.compile(r"[A-Za-z0-9_-]{1,70}")
_OUR_HEADERS = re.compile(
    r"(?i)from|to|cc|bcc|reply-to|sender|return-path|subject|date|message-id|mime-version"
    r"|content-.*|resent-.*"
)
_CONTENT_TYPE = re.compile(
    r"(application|audio|font|image|model|text|video)/([A-Za-z0-9][A-Za-z0-9.+_-]*)"
)


class BadEmail(ValueError):
    """The message cannot be sent as it is; sending it again will not help."""


@dataclass(frozen=True)
class Attachment:
    """A file. `content_type` is `"type/subtype"` without parameters."""

    filename: str
    content: bytes = field(repr=False)
    content_type: str = "application/octet-stream"

    def __post_init__(self) -> None:
        if not self.filename.strip():
            raise BadEmail("an attachment has no name")
        _header_text("the attachment's name", self.filename)
        if not _CONTENT_TYPE.fullmatch(self.content_type):
            raise BadEmail(f"{self.content_type!r} is not a content type that can be attached")


@dataclass(frozen=True)
class Email:
    """One message, checked when it is made: in the request, not later in the worker.

    `to`, `cc` and `bcc` are tuples of single addresses, without names. Afterwards they hold the
    form that is sent (domains in ASCII), which reports use too.
    `text` is always sent, `html` beside it. The same `idempotency_key` gives the same Message-ID,
    so that a repeated message can be recognized.

    Raises:
        BadEmail: An address, a header or a name is not what it must be; the text says which.
    """

    to: tuple[str, ...]
    subject: str
    text: str = field(repr=False)  # bodies carry log-in links: not for logs
    html: str | None = field(default=None, repr=False)
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    reply_to: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()
    idempotency_key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        for name in ("to", "cc", "bcc"):
            addresses = getattr(self, name)
            if isinstance(addresses, str):  # a str is a sequence too, of letters
                raise BadEmail(f"{name} must be a tuple of addresses, not one string")
            object.__setattr__(self, name, tuple(parse_address(a).addr_spec for a in addresses))
        if not (self.to or self.cc or self.bcc):
            raise BadEmail("there is no recipient")
        if self.reply_to is not None:
            object.__setattr__(self, "reply_to", parse_address(self.reply_to).addr_spec)
        object.__setattr__(self, "headers", dict(self.headers))  # the caller's may change
        object.__setattr__(self, "attachments", tuple(self.attachments))
        _header_text("the subject", self.subject)
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or _OUR_HEADERS.fullmatch(name):
                raise BadEmail(f"{name!r} cannot be given as an extra header")
            _header_text(f"header {name}", value)
        if self.html is not None and not self.text.strip():
            raise BadEmail("an HTML message needs its text as well")
        if _SURROGATE.search(self.text) or _SURROGATE.search(self.html or ""):
            raise BadEmail("the body contains half a character (a lone surrogate)")
        if not self.idempotency_key:
            raise BadEmail("the idempotency key is empty")


def parse_address(text: str, *, with_name: bool = False) -> Address:
    """Return the one address in `text`, its domain in ASCII (IDNA). DNS is not asked.

    Args:
        text: `"ann@example.com"`, or with `with_name` also `"Ann <ann@example.com>"`.
        with_name: Whether a display name is allowed.

    Raises:
        BadEmail: It is not exactly one address.
    """
    try:
        found = validate_email(
            _header_text("it", text), check_deliverability=False, allow_display_name=with_name
        )
    except (EmailNotValidError, BadEmail, TypeError) as error:
        raise BadEmail(f"{text!r} is not one e-mail address: {error}") from None
    return Address(found.display_name or "", found.local_part, found.ascii_domain)


def build_message(
    email: Email,
    sender: str,
    *,
    domain: str,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> EmailMessage:
    """Build the MIME message. It has no Bcc: blind recipients belong to the envelope alone.

    Args:
        email: What to send.
        sender: The From address, `"Shop <shop@example.com>"` or without a name.
        domain: The right side of the Message-ID; a domain of yours, not the name of this machine.
        now: Gives the Date header.

    Raises:
        BadEmail: `sender` or `domain` is malformed.
    """
    author = parse_address(sender, with_name=True)
    host = parse_address(f"postmaster@{domain}").domain
    shown = (author.addr_spec, *email.to, *email.cc, email.reply_to or "")
    message = EmailMessage(policy=_POLICY.clone(utf8=not "".join(shown).isascii()))
    message["Date"] = now()
    message["Message-ID"] = f"<{_digest(email.idempotency_key)}@{host}>"
    message["From"] = author
    for name, addresses in (("To", email.to), ("Cc", email.cc), ("Reply-To", (email.reply_to,))):
        if present := [Address("", *a.split("@")) for a in addresses if a]:
            message[name] = present
    message["Subject"] = email.subject
    for name, value in email.headers.items():
        message[name] = value
    message.set_content(email.text)
    if email.html is not None:  # plain text first: the last alternative is the preferred one
        message.add_alternative(email.html, subtype="html")
    for attachment in email.attachments:
        kind, subtype = attachment.content_type.split("/")
        message.add_attachment(
            attachment.content, maintype=kind, subtype=subtype, filename=attachment.filename
        )
    return message


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()[:32]


def _header_text(what: str, value: str) -> str:
    if _UNSAFE.search(value):
        raise BadEmail(f"{what} contains a line break or another control character")
    if _ENCODED_WORD.search(value):
        raise BadEmail(f"{what} contains an encoded word (=?...?=)")
    return value


class _ExtraHeader(UnstructuredHeader, BaseHeader):
    """An extra header, on one line: folded, a long List-Unsubscribe becomes encoded words."""

    def fold(self, *, policy: Policy) -> str:
        if self.isascii() and len(self) < 900:  # RFC 5322 allows 998 characters a line
            return f"{self.name}: {self}{policy.linesep}"
        return super().fold(policy=policy)


# 7-bit and short lines (but for the headers of an SMTPUTF8 message): nothing a server may alter.
_POLICY = SMTP.clone(cte_type="7bit", header_factory=HeaderRegistry(default_class=_ExtraHeader))
