"""Send e-mail over SMTP and verified TLS: one call, or many messages over one connection."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import socket
import ssl
import threading
from typing import Self, cast

import aiosmtplib

from email_message import Email
from smtp_transaction import Transaction, expect_250, login_errors
from smtp_types import SendReport, SmtpConfig, SmtpTlsFailed


def send(config: SmtpConfig, email: Email, *, context: ssl.SSLContext | None = None) -> SendReport:
    """Send one message over a connection of its own.

    Args:
        config: Server, account and sender.
        email: The message.
        context: Trust for TLS, such as `ssl.create_default_context(cafile=...)` for a private CA.
            Default: `ssl.create_default_context()`.

    Returns:
        Who was accepted and who refused. At least one recipient was accepted.

    Raises:
        BadEmail: Larger than 25 MiB, or an address needs SMTPUTF8 and the server lacks it.
        SmtpTlsFailed: The server could not prove who it is; nothing was sent.
        SmtpAuthFailed: The user name or the password is wrong, or another login is demanded.
        SmtpPermanent: Refused with 5xx. All recipients, or the message.
        SmtpTemporary: Refused with 4xx, or no connection. See `maybe_sent` before sending again.
        ValueError: `context` verifies nothing.
    """
    with Mailer(config, context=context) as mailer:
        return mailer.send(email)


async def asend(
    config: SmtpConfig, email: Email, *, context: ssl.SSLContext | None = None
) -> SendReport:
    """Do what `send` does, without blocking the event loop."""
    async with AsyncMailer(config, context=context) as mailer:
        return await mailer.send(email)


class Mailer:
    """Sends many messages over one connection: `with Mailer(config) as mailer: mailer.send(email)`.

    The first message opens the connection; after a loss, the next message opens another. It is for
    a batch: servers close idle connections. Threads may share it; they take turns.
    """

    def __init__(self, config: SmtpConfig, *, context: ssl.SSLContext | None = None) -> None:
        self._config = config
        self._context = _checked_context(context)
        self._client: smtplib.SMTP | None = None
        self._lock = threading.Lock()
        self._clean = True  # False: a message was refused half way, which the server must forget

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client:
            # The mail is accepted: an unfriendly answer to QUIT must not look like a failure.
            with contextlib.suppress(OSError):
                self._client.quit()
        self._drop_connection()

    def send(self, email: Email) -> SendReport:
        """Send one message; returns and raises what the function `send` does."""
        mail = Transaction(self._config, email)
        with self._lock, mail.errors(self._drop_connection):
            client = self._client = self._client or self._open_connection()
            mail.stage = "envelope"
            if not self._clean:
                expect_250(*client.rset())
            self._clean = False
            expect_250(*client.mail(mail.sender, mail.options(client.esmtp_features)))
            for address in mail.recipients:
                code, answer = client.rcpt(address)
                if code not in (250, 251):
                    mail.refuse(address, code, answer)
            mail.start_content()
            connection = cast(socket.socket, client.sock)
            connection.settimeout(self._config.data_timeout)
            try:
                expect_250(*client.data(mail.content))
            finally:
                with contextlib.suppress(OSError):  # the connection is lost
                    connection.settimeout(self._config.timeout)
            self._clean = True
        return mail.report()

    def _open_connection(self) -> smtplib.SMTP:
        config, context = self._config, _context_for(self._config, self._context)
        # Without the domain, EHLO would tell the name of this machine, after asking DNS for it.
        where = (config.host, config.port, config.domain)
        client = (
            smtplib.SMTP_SSL(*where, timeout=config.timeout, context=context)
            if config.security == "tls"
            else smtplib.SMTP(*where, timeout=config.timeout)
        )
        try:
            client.set_debuglevel(0)  # if it is set on the class, the password would be printed
            expect_250(*client.ehlo())
            if config.security == "starttls":
                if not client.has_extn("starttls"):
                    raise SmtpTlsFailed(f"{config.host} does not offer STARTTLS")
                client.starttls(context=context)
                expect_250(*client.ehlo())
            if config.username:
                with login_errors():
                    client.login(config.username, config.password)
        except BaseException:
            client.close()
            raise
        self._clean = True
        return client

    def _drop_connection(self) -> None:
        client, self._client = self._client, None
        if client:
            client.close()


class AsyncMailer:
    """The same for asyncio. Tasks may share it; one that is cancelled ends the connection."""

    def __init__(self, config: SmtpConfig, *, context: ssl.SSLContext | None = None) -> None:
        self._config = config
        self._context = _checked_context(context)
        self._client: aiosmtplib.SMTP | None = None
        self._lock = asyncio.Lock()
        self._clean = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._client:
                with contextlib.suppress(aiosmtplib.SMTPException):
                    await self._client.execute_command(b"QUIT")
        finally:
            self._drop_connection()
            await asyncio.sleep(0)  # the event loop closes the socket on its next round

    async def send(self, email: Email) -> SendReport:
        """Send one message; returns and raises what the function `send` does."""
        mail = await asyncio.to_thread(Transaction, self._config, email)  # large files take a while
        async with self._lock:
            with mail.errors(self._drop_connection):
                client = self._client = self._client or await self._open_connection()
                mail.stage = "envelope"
                if not self._clean:
                    await client.rset()
                self._clean = False
                options = mail.options(client.esmtp_extensions)
                await client.mail(mail.sender, options=options, encoding="utf-8")
                for address in mail.recipients:
                    try:
                        await client.rcpt(address, encoding="utf-8")
                    except aiosmtplib.SMTPRecipientRefused as error:
                        mail.refuse(address, error.code, error.message)
                mail.start_content()
                await client.data(mail.content, timeout=self._config.data_timeout)
                self._clean = True
        return mail.report()

    async def _open_connection(self) -> aiosmtplib.SMTP:
        config = self._config
        context = await asyncio.to_thread(
            _context_for, config, self._context
        )  # may read hundreds of CAs
        client = aiosmtplib.SMTP(
            hostname=config.host,
            port=config.port,
            local_hostname=config.domain,
            timeout=config.timeout,
            use_tls=config.security == "tls",
            start_tls=False,  # the default takes STARTTLS if it is offered, and plain text if not
            tls_context=context,
        )
        try:
            await client.connect()
            await client.ehlo()
            if config.security == "starttls":
                if not client.supports_extension("starttls"):
                    raise SmtpTlsFailed(f"{config.host} does not offer STARTTLS")
                await client.starttls()
                await client.ehlo()
            if config.username:
                with login_errors():
                    await client.login(config.username, config.password)
        except BaseException:
            _abort_connection(client)
            raise
        self._clean = True
        return client

    def _drop_connection(self) -> None:
        client, self._client = self._client, None
        if client:
            _abort_connection(client)


def _abort_connection(client: aiosmtplib.SMTP) -> None:
    # close() alone would still send what is buffered, and leave TLS to say goodbye to a dead peer.
    if client.transport:
        cast(asyncio.WriteTransport, client.transport).abort()
    client.close()


def _checked_context(context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    if context and not (context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED):
        raise ValueError("this TLS context verifies nothing: trust a private CA with cafile")
    return context


def _context_for(config: SmtpConfig, context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    return None if config.security == "none" else context or ssl.create_default_context()
