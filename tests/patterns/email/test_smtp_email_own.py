"""Proves docs/patterns/email/smtp-email.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import asyncio

from aiosmtpd.smtp import SMTP, Envelope, Session

from email_message import Email
from smtp_email import asend
from smtp_types import SmtpConfig


async def send_receipt(config: SmtpConfig, address: str, order: int) -> None:
    """Stand in for your own code."""
    await asend(config, Email((address,), f"Receipt {order}", "Thank you."))


class Inbox:
    """Takes every message that the server accepts."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_DATA(  # noqa: N802 -- aiosmtpd calls it by this name
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        self.envelopes.append(envelope)
        return "250 OK"


def test_the_receipt_reaches_the_customer() -> None:
    async def scenario() -> list[Envelope]:
        inbox = Inbox()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(inbox), "127.0.0.1", 0)
        async with server:
            config = SmtpConfig(
                host="127.0.0.1",
                port=server.sockets[0].getsockname()[1],
                security="none",  # allowed on loopback only
                sender="shop@example.com",
            )
            await send_receipt(config, "ann@example.com", 4711)
        return inbox.envelopes

    (envelope,) = asyncio.run(scenario())
    assert envelope.rcpt_tos == ["ann@example.com"]
    assert isinstance(envelope.content, bytes)
    assert b"Subject: Receipt 4711\r\n" in envelope.content


# --8<-- [end:own]
