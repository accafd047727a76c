"""A real SMTP server on loopback: STARTTLS or implicit TLS with a throw-away CA, AUTH, refusals on command."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from servers._process import free_port
from servers.versions import VERSIONS

#: What pages call it, and the words of readers.
SERVICE = ("smtp", "an SMTP server")


@dataclass(frozen=True)
class Received:
    """One message as the server took it."""

    mail_from: str
    recipients: tuple[str, ...]
    content: bytes
    over_tls: bool
    authenticated: bool
    options: tuple[str, ...] = ()


@dataclass
class Inbox:
    """What arrived. `reject[address] = "550 5.1.1 no such user"` refuses a recipient."""

    messages: list[Received] = field(default_factory=list)
    reject: dict[str, str] = field(default_factory=dict)
    after_data: str = "250 2.0.0 queued"

    async def handle_RCPT(  # noqa: N802 -- aiosmtpd looks the hook up by this name
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        rcpt_options: list[str],
    ) -> str:
        if address in self.reject:
            return self.reject[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 -- aiosmtpd looks the hook up by this name
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        if self.after_data.startswith("2"):
            self.messages.append(
                Received(
                    envelope.mail_from or "",
                    tuple(envelope.rcpt_tos),
                    content,
                    session.ssl is not None,
                    session.authenticated is True,
                    tuple(envelope.mail_options),
                )
            )
        return self.after_data


class Smtp:
    """`tls="starttls"` (AUTH only after it), `"implicit"` (from the first byte) or `"none"`."""

    def __init__(
        self,
        *,
        tls: Literal["starttls", "implicit", "none"] = "starttls",
        username: str = "app",
        password: str = "correct horse",
        names: tuple[str, ...] = ("localhost", "127.0.0.1"),
        auth_required: bool = True,
        **options: Any,
    ) -> None:
        authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(*names).configure_cert(context)
        self.ca_pem = authority.cert_pem.bytes()
        self.client_context = ssl.create_default_context()
        authority.configure_trust(self.client_context)
        self.username, self.password = username, password
        self.inbox = Inbox()
        self.logins: list[bytes] = []

        def check(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
            assert isinstance(data, LoginPassword)
            self.logins.append(data.login)
            expected = (username.encode(), password.encode())
            # handled=False: aiosmtpd then answers 535 itself.
            return AuthResult(success=(data.login, data.password) == expected, handled=False)

        kinds: dict[str, dict[str, Any]] = {
            "starttls": {"tls_context": context, "require_starttls": True},
            "implicit": {"ssl_context": context, "auth_require_tls": False},
            "none": {"auth_require_tls": False},
        }
        settings = kinds[tls] | {"authenticator": check, "auth_required": auth_required} | options
        for attempt in range(5):  # Controller(port=0) is broken: it connects to port 0 to check itself
            self.port = free_port()
            self._controller = Controller(self.inbox, hostname="127.0.0.1", port=self.port, **settings)
            try:
                self._controller.start()
                break
            except OSError:
                if attempt == 4:
                    raise
                time.sleep(0.01)

    def stop(self) -> None:
        """Wait for open connections to end (2 s at most), stop listening, join the server's thread."""
        loop: Any = self._controller.loop

        async def drained() -> None:
            deadline = loop.time() + 2
            # More than the listener and the loop's own pipe: a loop that stops now would leave sockets open.
            while len(loop._selector.get_map()) > 2 and loop.time() < deadline:
                await asyncio.sleep(0.001)

        if hasattr(loop, "_selector"):  # not on Windows
            asyncio.run_coroutine_threadsafe(drained(), loop).result(5)
        self._controller.stop()


def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the variables that the examples on a page find set."""
    server: Smtp = request.getfixturevalue("smtp")
    folder: Path = request.getfixturevalue("tmp_path")
    (folder / "ca.pem").write_bytes(server.ca_pem)
    return {
        "SMTP_HOST": "localhost",
        "SMTP_PORT": str(server.port),
        "SMTP_USER": server.username,
        "SMTP_PASSWORD": server.password,
        "SMTP_SECURITY": "starttls",
        "SMTP_CA_FILE": str(folder / "ca.pem"),
        "MAIL_FROM": "Shop <shop@example.com>",
        "MAIL_DOMAIN": "example.com",
    }


@pytest.fixture
def smtp() -> Iterator[Smtp]:
    """An SMTP server with STARTTLS and AUTH, and an empty inbox, of this test's own."""
    server = Smtp()
    VERSIONS["smtp"] = f"aiosmtpd {metadata.version('aiosmtpd')}"
    try:
        yield server
    finally:
        server.stop()
