"""Proves docs/patterns/email/smtp-email.md: what is sent, to whom, over which connection, and what a failure means."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import logging
import pickle
import re
import smtplib
import socket
import ssl
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, BinaryIO

import aiosmtplib
import pytest

import smtp_transaction
from email_message import Attachment, BadEmail, Email, build_message
from servers.faults import FaultProxy
from servers.smtp import Smtp
from smtp_email import AsyncMailer, Mailer, asend, send
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

# aiosmtpd warns of a server without STARTTLS; some of these have none on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")

SENDER = "Shop <shop@example.com>"
HELLO = Email(to=("ann@example.com",), subject="Hello", text="Hi Ann")
HANG, CLOSE = None, ""  # instead of an answer of the scripted server


# --- what the proofs stand on ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twin:
    """`send` and `Mailer`, or their asyncio twins, under one asyncio face."""

    name: str

    async def send(self, config: SmtpConfig, email: Email, context: ssl.SSLContext | None = None) -> SendReport:
        if self.name == "async":
            return await asend(config, email, context=context)
        return await asyncio.to_thread(send, config, email, context=context)

    @contextlib.asynccontextmanager
    async def mailer(
        self, config: SmtpConfig, context: ssl.SSLContext | None = None
    ) -> AsyncIterator[Callable[[Email], Awaitable[SendReport]]]:
        if self.name == "async":
            async with AsyncMailer(config, context=context) as mailer:
                yield mailer.send
        else:
            with Mailer(config, context=context) as blocking:
                yield lambda email: asyncio.to_thread(blocking.send, email)


@pytest.fixture(params=["async", "sync"])
def twin(request: pytest.FixtureRequest) -> Twin:
    return Twin(request.param)


@contextlib.asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Smtp]:
    server = Smtp(**options)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@pytest.fixture(scope="module")
def _server() -> Iterator[Smtp]:
    server = Smtp()
    yield server
    server.stop()


@pytest.fixture
def server(_server: Smtp) -> Smtp:
    """A server with STARTTLS and AUTH, its inbox empty."""
    _server.inbox.messages.clear()
    _server.inbox.reject.clear()
    _server.inbox.after_data = "250 2.0.0 queued"
    _server.logins.clear()
    return _server


def config_of(server: Smtp, **changes: Any) -> SmtpConfig:
    settings: dict[str, Any] = {
        "host": "localhost",
        "port": server.port,
        "username": server.username,
        "password": server.password,
        "sender": SENDER,
        "timeout": 5.0,
    }
    return SmtpConfig(**(settings | changes))


class Scripted:
    """A server on loopback that answers each command from a table: a line, `HANG`, `CLOSE`, or a list of them."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "BANNER": "220 ready",
            "EHLO": "250 scripted",
            "MAIL": "250 ok",
            "RCPT": "250 ok",
            "RSET": "250 ok",
            "DATA": "354 go on",
            "CONTENT": "250 queued",
            "QUIT": "221 bye",
            "HANDSHAKE": "this is no TLS record",
        } | answers
        self.heard: list[str] = []
        self.left = threading.Event()  # a client is gone
        self.reads_content = threading.Event()
        self.reads_content.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # wakes accept()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(2)

    def config(self, **changes: Any) -> SmtpConfig:
        settings: dict[str, Any] = {"host": "127.0.0.1", "port": self.port, "sender": SENDER, "security": "none"}
        return SmtpConfig(**(settings | changes))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._converse(connection)
        finally:
            self.left.set()

    def _converse(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
            if not self._answer(connection, "BANNER"):
                return
            for line in lines:
                command = line.decode(errors="replace").rstrip("\r\n")
                self.heard.append(command)
                verb = command.split(" ")[0].upper()
                if not self._answer(connection, verb):
                    return
                if verb == "DATA" and self.answers["DATA"] == "354 go on":
                    self.reads_content.wait(5)
                    content = b"".join(iter(lambda: self._line(lines), b".\r\n"))
                    self.heard.append(content.decode(errors="replace"))
                    if not self._answer(connection, "CONTENT"):
                        return
                if verb == "STARTTLS":
                    connection.recv(65_536)
                    self._answer(connection, "HANDSHAKE")
                    return
                if verb == "QUIT" and self.answers["QUIT"] is not HANG:
                    return

    @staticmethod
    def _line(lines: BinaryIO) -> bytes:
        if line := lines.readline():
            return line
        raise ConnectionError("the content was cut off")

    def _answer(self, connection: socket.socket, key: str) -> bool:
        answer = self.answers.get(key, "502 what?")
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer is HANG:
            return True
        if answer == CLOSE:
            return False
        connection.sendall(answer.encode("utf-8", "surrogateescape") + b"\r\n")
        return True


def parse(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


# --- TLS ---------------------------------------------------------------------------------------------------------


async def test_a_message_is_sent_over_verified_tls_after_login(twin: Twin, server: Smtp) -> None:
    report = await twin.send(config_of(server), HELLO, server.client_context)
    (received,) = server.inbox.messages
    assert (received.over_tls, received.authenticated) == (True, True)
    assert (received.mail_from, received.recipients) == ("shop@example.com", ("ann@example.com",))
    assert parse(received.content)["Message-ID"] == report.message_id
    assert parse(received.content).get_content() == "Hi Ann\r\n"
    assert (report.accepted, report.refused) == (("ann@example.com",), {})


@pytest.mark.parametrize("kind", ["starttls", "implicit"])
@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_a_server_that_cannot_prove_its_name_gets_no_password(twin: Twin, kind: str, wrong: str) -> None:
    names = ("mail.example.net",) if wrong == "name" else ("localhost",)
    async with running(tls=kind, names=names) as server:
        context = server.client_context if wrong == "name" else None
        config = config_of(server, security="tls" if kind == "implicit" else "starttls")
        with pytest.raises(SmtpTlsFailed, match="certificate verify failed") as caught:
            await twin.send(config, HELLO, context)
        assert not caught.value.maybe_sent
        assert server.logins == []
        assert server.inbox.messages == []


def test_plain_starttls_logs_in_to_any_server(server: Smtp) -> None:
    with smtplib.SMTP("localhost", server.port) as naive:
        naive.starttls()  # no context: nothing is verified
        naive.login(server.username, server.password)
        naive.sendmail("shop@example.com", ["ann@example.com"], b"Subject: Hello\r\n\r\nHi")
    assert (len(server.logins), len(server.inbox.messages)) == (1, 1)
    with pytest.raises(SmtpTlsFailed):
        send(config_of(server), HELLO)


async def test_by_default_the_trust_store_of_the_system_decides(
    twin: Twin, server: Smtp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_bytes(server.ca_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))  # OpenSSL's own variable
    assert (await twin.send(config_of(server), HELLO)).accepted


@pytest.mark.parametrize("loose", ["name", "certificate"])
def test_a_context_that_verifies_nothing_is_refused(server: Smtp, loose: str) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    if loose == "certificate":
        context.verify_mode = ssl.CERT_NONE
    for mailer in (Mailer, AsyncMailer):
        with pytest.raises(ValueError, match="verifies nothing"):
            mailer(config_of(server), context=context)


async def test_a_server_that_does_not_offer_starttls_gets_neither_password_nor_mail(twin: Twin) -> None:
    async with running(tls="none") as server:
        with pytest.raises(SmtpTlsFailed, match="localhost does not offer STARTTLS"):
            await twin.send(config_of(server), HELLO, server.client_context)
        assert server.logins == []
        assert server.inbox.messages == []


async def test_aiosmtplib_by_itself_sends_the_password_in_the_clear() -> None:
    async with running(tls="none") as server:
        await aiosmtplib.send(
            b"Subject: Hello\r\n\r\nHi",
            sender="shop@example.com",
            recipients=["ann@example.com"],
            hostname="localhost",
            port=server.port,
            username=server.username,
            password=server.password,
        )
        (received,) = server.inbox.messages
        assert (received.over_tls, received.authenticated) == (False, True)


async def test_security_tls_speaks_tls_from_the_first_byte(twin: Twin) -> None:
    async with running(tls="implicit") as server:
        config = config_of(server, security="tls")
        assert (await twin.send(config, HELLO, server.client_context)).accepted
        assert server.inbox.messages[0].authenticated


async def test_starttls_followed_by_garbage_is_no_tls(twin: Twin) -> None:
    with Scripted(EHLO="250-scripted\r\n250-AUTH PLAIN\r\n250 STARTTLS", STARTTLS="220 go on") as server:
        with pytest.raises(SmtpTlsFailed):
            await twin.send(server.config(security="starttls", username="app", password="pw"), HELLO)
        assert [line.split()[0].upper() for line in server.heard] == ["EHLO", "STARTTLS"]


@pytest.mark.parametrize(
    ("answer", "kind"), [("454 not now", SmtpTemporary), ("500 what?", SmtpPermanent), (CLOSE, SmtpTemporary)]
)
async def test_a_refused_starttls_ends_the_conversation(twin: Twin, answer: str, kind: type[SmtpError]) -> None:
    with Scripted(EHLO="250-scripted\r\n250-AUTH PLAIN\r\n250 STARTTLS", STARTTLS=answer) as server:
        with pytest.raises(kind):
            await twin.send(server.config(security="starttls", username="app", password="pw"), HELLO)
        assert not any(line.startswith(("AUTH", "MAIL")) for line in server.heard)


async def test_a_handshake_that_never_comes_is_timed_out(twin: Twin) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        config = SmtpConfig(host="127.0.0.1", port=silent.getsockname()[1], sender=SENDER, security="tls", timeout=0.05)
        with pytest.raises(SmtpTemporary):
            await twin.send(config, HELLO)


async def test_a_greeting_that_is_refused_inside_tls_is_a_refusal(twin: Twin) -> None:
    async def greet(smtp: Any, session: Any, envelope: Any, name: str, answers: list[str]) -> list[str]:
        return ["451 4.3.0 later"] if session.ssl else answers

    async with running() as server:
        server.inbox.handle_EHLO = greet  # type: ignore[attr-defined]
        with pytest.raises(SmtpTemporary, match=r"451 4\.3\.0 later"):
            await twin.send(config_of(server), HELLO, server.client_context)
        assert server.logins == []


async def test_a_handshake_that_is_cut_short_is_an_outage_and_not_a_bad_certificate(
    twin: Twin, server: Smtp, fault_proxy: type[FaultProxy]
) -> None:
    offer = "250-scripted\r\n250 STARTTLS"
    with (
        Scripted(EHLO=offer, STARTTLS="220 go on", HANDSHAKE=CLOSE) as leaving,
        pytest.raises(SmtpTemporary),
    ):
        await twin.send(leaving.config(security="starttls"), HELLO)
    proxy = fault_proxy("127.0.0.1", server.port)
    proxy.cut_after = 400  # in the middle of the server's certificate
    with pytest.raises(SmtpTemporary) as caught:
        await twin.send(config_of(server, port=proxy.port), HELLO, server.client_context)
    assert not caught.value.maybe_sent


async def test_ehlo_tells_the_domain_where_both_libraries_tell_the_name_of_the_machine(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getfqdn(name: str = "") -> str:  # in the worst case this waits on DNS
        return "build-7.internal.example"

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    with Scripted() as server:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=server.port) as naive:
            await naive.ehlo()
        with smtplib.SMTP("127.0.0.1", server.port) as blocking:
            blocking.ehlo()
        assert {h for h in server.heard if "build-7" in h} == {
            "EHLO build-7.internal.example",
            "ehlo build-7.internal.example",
        }
        server.heard.clear()
        await twin.send(server.config(domain="mail.example.com"), HELLO)
        assert server.heard[0].lower() == "ehlo mail.example.com"
        assert not any("build-7" in heard for heard in server.heard)


# --- recipients --------------------------------------------------------------------------------------------------


async def test_blind_recipients_get_the_mail_and_nobody_reads_their_names(twin: Twin, server: Smtp) -> None:
    email = Email(
        ("ann@example.com",), "Hello", "Hi", cc=("cleo@example.com",), bcc=("boss@example.com", "ann@example.com")
    )
    report = await twin.send(config_of(server), email, server.client_context)
    (received,) = server.inbox.messages
    assert received.recipients == ("ann@example.com", "cleo@example.com", "boss@example.com")  # each once
    assert report.accepted == received.recipients
    assert b"boss" not in received.content
    assert b"\nbcc" not in received.content.lower()


async def test_refused_recipients_are_reported_and_the_others_get_the_mail(twin: Twin, server: Smtp) -> None:
    server.inbox.reject |= {"bob@example.com": "550 5.1.1 no such user", "cleo@example.com": "451 4.7.1 later"}
    email = Email(("ann@example.com", "bob@example.com", "cleo@example.com"), "Hello", "Hi")
    report = await twin.send(config_of(server), email, server.client_context)
    assert report.accepted == ("ann@example.com",)
    assert report.refused == {
        "bob@example.com": Refusal(550, "5.1.1 no such user"),
        "cleo@example.com": Refusal(451, "4.7.1 later"),
    }
    assert [a for a, refusal in report.refused.items() if refusal.temporary] == ["cleo@example.com"]
    assert server.inbox.messages[0].recipients == ("ann@example.com",)


async def test_both_libraries_drop_a_refused_recipient_without_an_exception(server: Smtp) -> None:
    server.inbox.reject["bob@example.com"] = "550 5.1.1 no such user"
    message = EmailMessage()
    message["From"], message["To"] = "shop@example.com", "ann@example.com, bob@example.com"
    with smtplib.SMTP("localhost", server.port) as naive:
        naive.starttls(context=server.client_context)
        naive.login(server.username, server.password)
        assert "bob@example.com" in naive.send_message(message)  # a return value, easy to overlook
    refused, _ = await aiosmtplib.send(
        message,
        hostname="localhost",
        port=server.port,
        start_tls=True,
        tls_context=server.client_context,
        username=server.username,
        password=server.password,
    )
    assert "bob@example.com" in refused


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (("550 5.1.1 unknown", "553 5.1.3 malformed"), SmtpPermanent),
        (("550 5.1.1 unknown", "450 4.2.0 busy"), SmtpTemporary),
        (("451 4.7.1 greylisted", "452 4.5.3 too many"), SmtpTemporary),
    ],
)
async def test_if_everybody_is_refused_one_4xx_makes_it_temporary(
    twin: Twin, server: Smtp, answers: tuple[str, str], kind: type[SmtpError]
) -> None:
    email = Email(("ann@example.com", "bob@example.com"), "Hello", "Hi")
    server.inbox.reject |= dict(zip(email.to, answers, strict=True))
    with pytest.raises(kind, match=f"every recipient was refused, the first with {answers[0]}") as caught:
        await twin.send(config_of(server), email, server.client_context)
    assert type(caught.value) is kind
    assert caught.value.refused == {
        address: Refusal(int(answer[:3]), answer[4:]) for address, answer in zip(email.to, answers, strict=True)
    }
    assert not caught.value.maybe_sent
    assert server.inbox.messages == []


@pytest.mark.parametrize("answer", ["421 4.3.2 shutting down", "gibberish", "299 odd", "699 odd"])
async def test_an_answer_that_is_no_refusal_ends_the_transaction_before_the_content(twin: Twin, answer: str) -> None:
    email = Email(("ann@example.com", "bob@example.com"), "Hello", "Hi")
    with Scripted(RCPT=["250 ok", answer]) as server:
        with pytest.raises(SmtpTemporary) as caught:
            await twin.send(server.config(), email)
        assert not caught.value.maybe_sent
        assert not any(line.upper() == "DATA" for line in server.heard)


async def test_a_recipient_who_will_be_forwarded_is_accepted(twin: Twin) -> None:
    with Scripted(RCPT="251 will forward") as server:
        assert (await twin.send(server.config(), HELLO)).accepted == ("ann@example.com",)


async def test_a_thousand_recipients_go_in_one_transaction(twin: Twin, server: Smtp) -> None:
    everybody = tuple(f"user{n}@example.com" for n in range(1000))
    server.inbox.reject |= dict.fromkeys(everybody[990:], "452 4.5.3 too many recipients")
    report = await twin.send(config_of(server), Email((), "News", "Hi", bcc=everybody), server.client_context)
    assert server.inbox.messages[0].recipients == report.accepted == everybody[:990]
    assert all(report.refused[address].temporary for address in everybody[990:])


async def test_a_recipient_cannot_smuggle_a_command(twin: Twin) -> None:
    attack = "ann@e.com>\r\nRCPT TO:<eve@example.net"
    with Scripted() as server:
        with pytest.raises(BadEmail):
            await twin.send(server.config(), Email((attack,), "Hello", "Hi"))
        assert server.heard == []


async def test_an_international_domain_is_sent_in_its_ascii_form(twin: Twin, server: Smtp) -> None:
    email = Email(("ann@münchen.example",), "Hello", "Hi")
    report = await twin.send(config_of(server), email, server.client_context)
    (received,) = server.inbox.messages
    assert received.recipients == report.accepted == email.to == ("ann@xn--mnchen-3ya.example",)
    assert received.content.isascii()


async def test_a_local_part_beyond_ascii_needs_a_server_with_smtputf8(twin: Twin, server: Smtp) -> None:
    jörg = "jörg@münchen.example"
    with Scripted() as old:
        for email in (
            Email((jörg,), "Grüße", "Hi"),
            Email((), "Grüße", "Hi", bcc=(jörg,)),
            Email(("ann@example.com",), "Grüße", "Hi", reply_to=jörg),
        ):
            with pytest.raises(BadEmail, match="SMTPUTF8"):
                await twin.send(old.config(), email)
        assert {line.split(" ")[0].upper() for line in old.heard} == {"EHLO", "QUIT"}
    email = Email((jörg,), "Grüße", "Hi", bcc=("ann@example.com",))
    report = await twin.send(config_of(server, sender=jörg), email, server.client_context)
    await twin.send(config_of(server), Email((), "Grüße", "Hi", bcc=(jörg,)), server.client_context)
    await twin.send(config_of(server), HELLO, server.client_context)
    shown, blind, plain = server.inbox.messages
    assert shown.mail_from == "jörg@xn--mnchen-3ya.example"
    assert shown.recipients == report.accepted == ("jörg@xn--mnchen-3ya.example", "ann@example.com")
    assert "To: jörg@xn--mnchen-3ya.example\r\n".encode() in shown.content
    assert parse(shown.content)["Subject"] == parse(blind.content)["Subject"] == "Grüße"
    for received, needed in ((shown, True), (blind, True), (plain, False)):
        assert ({"SMTPUTF8", "BODY=8BITMIME"} <= set(received.options)) is needed
        assert any(option.startswith("SIZE=") for option in received.options)


# --- content -----------------------------------------------------------------------------------------------------


async def test_a_lone_dot_and_a_line_of_2000_characters_arrive_intact(twin: Twin, server: Smtp) -> None:
    body = f".\n..\n.hidden\n{'x' * 2000}\nFrom here\n"
    email = Email(("ann@example.com",), "Hello", body, attachments=(Attachment("Rechnung ü.pdf", b".\r\n"),))
    await twin.send(config_of(server), email, server.client_context)
    plain, file = parse(server.inbox.messages[0].content).iter_parts()
    assert plain.get_content().replace("\r\n", "\n") == body
    assert (file.get_filename(), file.get_content()) == ("Rechnung ü.pdf", b".\r\n")


async def test_a_message_over_25_mib_is_refused_before_connecting(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    assert smtp_transaction.MAX_BYTES == 26_214_400
    size = len(build_message(HELLO, SENDER, domain="example.com").as_bytes())
    with Scripted() as server:
        monkeypatch.setattr(smtp_transaction, "MAX_BYTES", size - 1)
        with pytest.raises(BadEmail, match=f"{size} bytes, {size - 1} are allowed"):
            await twin.send(server.config(), HELLO)
        assert server.heard == []
        monkeypatch.setattr(smtp_transaction, "MAX_BYTES", size)
        assert await twin.send(server.config(), HELLO)


async def test_the_size_is_announced_to_a_server_that_has_a_limit(twin: Twin) -> None:
    with Scripted(EHLO="250-scripted\r\n250 SIZE 100", MAIL="552 5.3.4 too big") as server:
        with pytest.raises(SmtpPermanent, match=r"552 5\.3\.4 too big"):
            await twin.send(server.config(), HELLO)
        size = len(build_message(HELLO, SENDER, domain="example.com").as_bytes())
        assert server.heard[1].upper() == f"MAIL FROM:<SHOP@EXAMPLE.COM> SIZE={size}"
    with Scripted() as server:
        await twin.send(server.config(), HELLO)
        assert server.heard[1].upper() == "MAIL FROM:<SHOP@EXAMPLE.COM>"


# --- login -------------------------------------------------------------------------------------------------------


async def test_without_a_user_name_there_is_no_login(twin: Twin) -> None:
    async with running(auth_required=False) as server:
        report = await twin.send(config_of(server, username="", password=""), HELLO, server.client_context)
        assert report.accepted
        assert server.logins == []


async def test_a_wrong_password_is_no_reason_to_retry(twin: Twin, server: Smtp) -> None:
    with pytest.raises(SmtpAuthFailed, match=r"refuses the login: 535 5\.7\.8$"):
        await twin.send(config_of(server, password="wrong horse"), HELLO, server.client_context)
    assert server.inbox.messages == []


@pytest.mark.parametrize(
    ("offered", "answer", "kind", "text"),
    [
        ("AUTH PLAIN", "454 4.7.0 busy", SmtpTemporary, "puts the login off: 454 4.7.0"),
        ("AUTH PLAIN", "399 odd", SmtpAuthFailed, "refuses the login: 399"),
        ("AUTH PLAIN", "534 5.7.9 use an app password", SmtpAuthFailed, "refuses the login: 534 5.7.9"),
        ("AUTH PLAIN", "535 no, see 5.7.1", SmtpAuthFailed, "refuses the login: 535"),
        ("AUTH XOAUTH2", "235 never asked", SmtpAuthFailed, "no way to log in is offered"),
        ("8BITMIME", "235 never asked", SmtpAuthFailed, "no way to log in is offered"),
        ("AUTH PLAIN", CLOSE, SmtpTemporary, ""),
        ("AUTH PLAIN", HANG, SmtpTemporary, ""),
    ],
)
async def test_a_login_that_fails_says_whether_to_try_again(
    twin: Twin, offered: str, answer: str | None, kind: type[SmtpError], text: str
) -> None:
    with Scripted(EHLO=f"250-scripted\r\n250 {offered}", AUTH=answer) as server:
        patience = 0.05 if answer is HANG else 5.0
        config = server.config(username="app", password="correct horse", timeout=patience)
        with pytest.raises(kind) as caught:
            await twin.send(config, HELLO)
        assert type(caught.value) is kind
        assert str(caught.value).endswith(text)
        assert not any(line.startswith("MAIL") for line in server.heard)


async def test_the_password_is_in_no_log_and_no_traceback_even_while_debugging(
    twin: Twin,
    server: Smtp,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password = "correct horse"
    secrets = [password] + [base64.b64encode(form.encode()).decode() for form in (password, f"\0app\0{password}")]
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    monkeypatch.setattr(smtplib.SMTP, "debuglevel", 2)
    said = [repr(config_of(server)), str(config_of(server))]
    await twin.send(config_of(server), HELLO, server.client_context)
    # A server that repeats the command it did not understand.
    echo = f"535 5.7.8 AUTH PLAIN {secrets[2]} {password}"
    with Scripted(EHLO="250-scripted\r\n250 AUTH PLAIN", AUTH=echo) as rude:
        with pytest.raises(SmtpAuthFailed) as caught:
            await twin.send(rude.config(username="app", password=password), HELLO)
        logging.getLogger("app").error("not sent", exc_info=caught.value)
        said += traceback.format_exception(caught.value)
    said += [caplog.text, *capfd.readouterr()]
    assert "SmtpAuthFailed" in caplog.text
    assert not [secret for secret in secrets if any(secret in text for text in said)]


def test_smtplib_by_itself_prints_the_password_while_debugging(server: Smtp, capfd: pytest.CaptureFixture[str]) -> None:
    with smtplib.SMTP("localhost", server.port) as naive:
        naive.set_debuglevel(1)
        naive.starttls(context=server.client_context)
        naive.login("app", "correct horse")
    assert base64.b64encode(b"\0app\0correct horse").decode() in capfd.readouterr().err


# --- a server in trouble -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["BANNER", "EHLO", "MAIL", "RCPT", "DATA", "CONTENT"])
@pytest.mark.parametrize("trouble", [HANG, CLOSE, "421 4.3.2 shutting down", "gibberish", "299 odd"])
async def test_a_server_that_hangs_or_goes_away_is_a_temporary_failure(
    twin: Twin, step: str, trouble: str | None
) -> None:
    limit = "data_timeout" if step in {"DATA", "CONTENT"} else "timeout"
    patience = {limit: 0.05} if trouble is HANG else {}
    with Scripted(**{step: trouble}) as server, pytest.raises(SmtpTemporary) as caught:
        await twin.send(server.config(**patience), HELLO)
    assert str(caught.value)
    # DATA was sent and no clear answer came: from here on the server may have taken the message.
    unclear = step in {"DATA", "CONTENT"} and trouble != "421 4.3.2 shutting down"
    assert caught.value.maybe_sent is unclear


@pytest.mark.parametrize(
    ("step", "answer", "kind"),
    [
        ("BANNER", "554 5.7.1 your address is blocked", SmtpPermanent),
        ("EHLO", "550 5.7.1 bad name", SmtpPermanent),
        ("MAIL", "452 4.3.1 no space", SmtpTemporary),
        ("MAIL", "550 5.7.60 not your address", SmtpPermanent),
        ("DATA", "451 4.3.0 later", SmtpTemporary),
        ("CONTENT", "452 4.3.1 no space", SmtpTemporary),
        ("CONTENT", "554 5.6.0 spam", SmtpPermanent),
        ("CONTENT", "599 the last one", SmtpPermanent),
    ],
)
async def test_a_clear_refusal_of_the_message_is_sorted_by_its_first_digit(
    twin: Twin, step: str, answer: str, kind: type[SmtpError]
) -> None:
    with Scripted(**{step: answer}) as server, pytest.raises(kind, match=re.escape(answer)) as caught:
        await twin.send(server.config(timeout=2.0), HELLO)
    assert type(caught.value) is kind
    assert not caught.value.maybe_sent  # the server says that it did not take it
    assert caught.value.refused == {}


async def test_the_refusals_of_a_message_that_was_lost_are_kept(twin: Twin) -> None:
    email = Email(("ann@example.com", "bob@example.com"), "Hello", "Hi")
    with Scripted(RCPT=["250 ok", "550 unknown"], CONTENT=CLOSE) as server, pytest.raises(SmtpTemporary) as caught:
        await twin.send(server.config(), email)
    assert caught.value.refused == {"bob@example.com": Refusal(550, "unknown")}


async def test_a_blind_retry_after_a_lost_answer_sends_twice_and_maybe_sent_says_so(twin: Twin) -> None:
    with Scripted(CONTENT=[CLOSE, "250 queued"]) as server:
        with pytest.raises(SmtpTemporary) as caught:
            await twin.send(server.config(), HELLO)
        assert caught.value.maybe_sent  # ask, or accept a second copy
        report = await twin.send(server.config(), HELLO)
        copies = [heard for heard in server.heard if "Subject: Hello" in heard]
    assert len(copies) == 2  # SMTP has no idempotency key, so the server cannot tell
    assert all(f"Message-ID: {report.message_id}" in copy for copy in copies)  # but a person or a filter can


async def test_nobody_listening_is_a_temporary_failure(twin: Twin) -> None:
    with Scripted() as server:
        config = server.config()
    with pytest.raises(SmtpTemporary):
        await twin.send(config, HELLO)


async def test_the_content_has_more_time_than_a_command(
    twin: Twin, server: Smtp, fault_proxy: type[FaultProxy]
) -> None:
    email = Email(("ann@example.com",), "Hello", "Hi", attachments=(Attachment("a", bytes(6_000)),))
    with Scripted() as slow:
        proxy = fault_proxy("127.0.0.1", slow.port)
        proxy.bytes_per_second = 20_000  # 0.4 s for the content, next to nothing for a command
        impatient = slow.config(port=proxy.port, timeout=0.25, data_timeout=5.0)
        async with twin.mailer(impatient) as deliver:
            assert await deliver(email)
            slow.answers["MAIL"] = HANG
            with pytest.raises(SmtpTemporary):  # and the next command has the short time again
                await asyncio.wait_for(deliver(email), 2)


@pytest.mark.parametrize("step", ["DATA", "CONTENT"])
async def test_after_refused_content_the_time_limit_is_short_again(twin: Twin, step: str) -> None:
    with Scripted(QUIT=HANG, **{step: "554 5.6.0 spam"}) as server:
        patient = server.config(timeout=0.25, data_timeout=30.0)
        with pytest.raises(SmtpPermanent):
            await asyncio.wait_for(twin.send(patient, HELLO), 5)


async def test_the_text_of_a_server_cannot_break_a_log(twin: Twin) -> None:
    with Scripted(MAIL="550-first\r\n550 \udcff\tsecond") as server, pytest.raises(SmtpPermanent) as caught:
        await twin.send(server.config(), HELLO)
    assert str(caught.value) == "550 first \ufffd second"


async def test_an_unfriendly_goodbye_does_not_make_a_sent_message_a_failure(twin: Twin) -> None:
    with Scripted(QUIT="421 4.3.2 shutting down") as server:
        assert (await twin.send(server.config(), HELLO)).accepted
    with Scripted(QUIT=HANG) as server:
        assert (await twin.send(server.config(timeout=0.25), HELLO)).accepted


def test_smtplib_by_itself_raises_after_the_message_was_taken() -> None:
    with Scripted(QUIT="421 4.3.2 shutting down") as server:
        with (
            pytest.raises(smtplib.SMTPResponseException),
            smtplib.SMTP("127.0.0.1", server.port, "example.com") as naive,
        ):
            naive.sendmail("shop@example.com", ["ann@example.com"], b"Subject: Hello\r\n\r\nHi")
        assert "Subject: Hello" in server.heard[4]


async def test_tls_that_breaks_after_the_login_is_a_lost_connection(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]")

    monkeypatch.setattr(smtplib.SMTP, "rcpt", broken)
    monkeypatch.setattr(aiosmtplib.SMTP, "rcpt", broken)
    with Scripted() as server, pytest.raises(SmtpTemporary) as caught:
        await twin.send(server.config(), HELLO)
    assert not caught.value.maybe_sent


def test_tls_that_breaks_in_the_content_is_a_lost_connection() -> None:
    mail = smtp_transaction.Transaction(SmtpConfig(host="h", sender=SENDER), HELLO)
    dropped: list[bool] = []
    mail.stage = "content"
    with pytest.raises(SmtpTemporary) as caught, mail.errors(lambda: dropped.append(True)):
        raise ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]")
    assert (caught.value.maybe_sent, dropped) == (True, [True])


def test_an_error_survives_the_way_through_a_queue() -> None:
    error = SmtpTemporary("later", {"ann@example.com": Refusal(451, "later")}, maybe_sent=True)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.refused, copy.maybe_sent) == ("later", error.refused, True)
    assert isinstance(copy, SmtpError)


# --- many messages over one connection ---------------------------------------------------------------------------


async def test_many_messages_go_over_one_connection(twin: Twin, server: Smtp, fault_proxy: type[FaultProxy]) -> None:
    proxy = fault_proxy("127.0.0.1", server.port)
    async with twin.mailer(config_of(server, port=proxy.port), server.client_context) as deliver:
        assert proxy.accepted == 0  # opened by the first message
        for number in range(5):
            await deliver(Email((f"user{number}@example.com",), "Hello", "Hi"))
    assert [m.recipients for m in server.inbox.messages] == [(f"user{n}@example.com",) for n in range(5)]
    assert (proxy.accepted, len(server.logins)) == (1, 1)


async def test_tasks_and_threads_take_turns_on_one_connection(twin: Twin, server: Smtp) -> None:
    emails = [Email((f"user{n}@example.com",), f"Hello {n}", "Hi") for n in range(20)]
    async with twin.mailer(config_of(server), server.client_context) as deliver:
        reports = await asyncio.gather(*(deliver(email) for email in emails))
    assert [r.accepted for r in reports] == [e.to for e in emails]
    got = {m.recipients[0]: parse(m.content)["Subject"] for m in server.inbox.messages}
    assert got == {e.to[0]: e.subject for e in emails}
    assert len(server.logins) == 1


@pytest.mark.parametrize(
    ("step", "answer"),
    [("RCPT", "550 5.1.1 unknown"), ("RCPT", "450 4.2.0 busy"), ("MAIL", "452 4.3.1 full"), ("CONTENT", "554 spam")],
)
async def test_a_refused_message_does_not_disturb_the_next_one(twin: Twin, step: str, answer: str) -> None:
    usual = {"RCPT": "250 ok", "MAIL": "250 ok", "CONTENT": "250 queued"}[step]
    with Scripted(**{step: [answer, usual]}) as server:
        async with twin.mailer(server.config()) as deliver:
            with pytest.raises((SmtpPermanent, SmtpTemporary)):
                await deliver(HELLO)
            assert (await deliver(HELLO)).accepted
            assert (await deliver(HELLO)).accepted
        verbs = [line.split(" ")[0].upper() for line in server.heard]
        assert verbs.count("EHLO") == 1  # the same connection,
        assert verbs.count("RSET") == 1  # told once to forget what was begun


async def test_a_refused_reset_is_an_error(twin: Twin) -> None:
    with Scripted(MAIL=["550 no", "250 ok"], RSET="502 what?") as server:
        async with twin.mailer(server.config()) as deliver:
            for _ in range(2):
                with pytest.raises(SmtpPermanent):
                    await deliver(HELLO)


@pytest.mark.parametrize("trouble", [HANG, CLOSE, "421 4.7.0 enough messages", "gibberish"])
async def test_after_a_lost_connection_the_next_message_opens_another(twin: Twin, trouble: str | None) -> None:
    with Scripted(MAIL=["250 ok", trouble, "250 ok"]) as server:
        async with twin.mailer(server.config(timeout=0.5 if trouble is HANG else 5.0)) as deliver:
            await deliver(HELLO)
            with pytest.raises(SmtpTemporary) as caught:
                await deliver(HELLO)
            assert not caught.value.maybe_sent
            await deliver(HELLO)
        verbs = [line.split(" ")[0].upper() for line in server.heard]
        assert (verbs.count("EHLO"), verbs.count("RSET"), verbs.count("DATA")) == (2, 0, 2)


async def test_a_connection_that_breaks_in_the_content_is_not_reused(twin: Twin) -> None:
    with Scripted(CONTENT=[HANG, "250 queued"]) as server:
        async with twin.mailer(server.config(data_timeout=0.25)) as deliver:
            with pytest.raises(SmtpTemporary):
                await deliver(HELLO)
            assert await deliver(HELLO)
        assert sum(line.upper().startswith("EHLO") for line in server.heard) == 2


async def test_the_socket_is_closed_when_a_failed_send_returns(twin: Twin) -> None:
    with Scripted(EHLO=HANG) as server:
        with pytest.raises(SmtpTemporary):
            await twin.send(server.config(timeout=0.05), HELLO)
        assert server.left.wait(2)  # this holds the event loop: it closes nothing from here on


async def test_a_cancelled_message_does_not_leave_its_answer_to_the_next_one() -> None:
    with Scripted(RCPT=[HANG, "550 unknown"]) as server:
        async with AsyncMailer(server.config()) as mailer:
            sending = asyncio.create_task(mailer.send(HELLO))
            while not any(line.startswith("RCPT") for line in server.heard):
                await asyncio.sleep(0.001)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(SmtpPermanent):
                await mailer.send(HELLO)
        assert sum(line.startswith("EHLO") for line in server.heard) == 2


async def test_a_cancelled_message_confuses_a_bare_connection_and_not_an_async_mailer() -> None:
    begun: list[str] = []

    async def slow_rcpt(smtp: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        begun.append(address)
        if address.startswith("slow"):
            await asyncio.sleep(0.03)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def give_up_on(sending: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(sending)
        while "slow@example.com" not in begun:
            await asyncio.sleep(0.001)
        begun.clear()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async with running(auth_required=False) as server:
        server.inbox.handle_RCPT = slow_rcpt  # type: ignore[method-assign,assignment]
        config = config_of(server, username="", password="")
        async with aiosmtplib.SMTP(
            hostname="localhost", port=server.port, start_tls=True, tls_context=server.client_context
        ) as naive:
            message = b"Subject: Hello\r\n\r\nHi"
            await give_up_on(naive.sendmail("shop@example.com", ["slow@example.com"], message))
            with pytest.raises(aiosmtplib.SMTPException):  # it reads the answers to the first message
                await naive.sendmail("shop@example.com", ["ann@example.com"], message)
        async with AsyncMailer(config, context=server.client_context) as mailer:
            await give_up_on(mailer.send(Email(("slow@example.com",), "Hello", "Hi")))
            assert (await mailer.send(HELLO)).accepted == ("ann@example.com",)
        assert [m.recipients for m in server.inbox.messages] == [("ann@example.com",)]


async def test_a_message_that_is_cancelled_in_its_content_is_cut_off() -> None:
    film = Email(("ann@example.com",), "Film", "Hi", attachments=(Attachment("film", bytes(12_000_000)),))
    with Scripted() as server:
        server.reads_content.clear()
        async with AsyncMailer(server.config()) as mailer:
            sending = asyncio.create_task(mailer.send(film))
            while "DATA" not in server.heard or not mailer._client.transport.get_write_buffer_size():  # type: ignore[union-attr]
                await asyncio.sleep(0.001)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            server.reads_content.set()
            while not server.left.is_set():
                await asyncio.sleep(0.001)
        assert server.heard[-1] == "DATA"  # no end of the content, so the server throws it away


async def test_a_cancelled_connection_attempt_leaves_nothing_open() -> None:
    with Scripted(EHLO=HANG) as server:
        async with AsyncMailer(server.config()) as mailer:
            sending = asyncio.create_task(mailer.send(HELLO))
            while not server.heard:
                await asyncio.sleep(0.001)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            server.answers["EHLO"] = "250 scripted"
            assert await mailer.send(HELLO)


async def test_a_message_is_built_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    builders: list[int] = []

    def spied(*args: Any, **options: Any) -> EmailMessage:
        builders.append(threading.get_ident())
        return build_message(*args, **options)

    monkeypatch.setattr(smtp_transaction, "build_message", spied)
    with Scripted() as server:
        await asend(server.config(), HELLO)
    assert len(builders) == 1
    assert builders != [threading.get_ident()]  # 25 MiB take a while


# --- configuration -----------------------------------------------------------------------------------------------

ENV = {
    "SMTP_HOST": "smtp.example.com",
    "SMTP_PORT": "2587",
    "SMTP_USER": "app",
    "SMTP_PASSWORD": "correct horse",
    "SMTP_SECURITY": "tls",
    "MAIL_FROM": "Shop <shop@example.com>",
    "MAIL_DOMAIN": "mail.example.com",
}


def test_the_configuration_is_read_from_the_environment() -> None:
    assert SmtpConfig.from_env(ENV) == SmtpConfig(
        host="smtp.example.com",
        port=2587,
        username="app",
        password="correct horse",
        security="tls",
        sender="Shop <shop@example.com>",
        domain="mail.example.com",
        timeout=10.0,
        data_timeout=120.0,
    )


def test_only_the_host_and_the_sender_are_required() -> None:
    config = SmtpConfig.from_env({"SMTP_HOST": "smtp.example.com", "MAIL_FROM": "Shop <shop@münchen.example>"})
    assert (config.port, config.security, config.username, config.password) == (587, "starttls", "", "")
    assert config.domain == "xn--mnchen-3ya.example"
    bare = SmtpConfig(host="h", sender="a@example.com")
    assert (bare.port, bare.security, bare.username, bare.password) == (587, "starttls", "", "")
    empty = SmtpConfig.from_env({"SMTP_HOST": "h", "MAIL_FROM": "a@example.com", "SMTP_PORT": "", "SMTP_SECURITY": ""})
    assert (empty.port, empty.security) == (587, "starttls")


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    assert SmtpConfig.from_env() == SmtpConfig.from_env(ENV)


def test_every_missing_variable_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"^not set: SMTP_HOST, MAIL_FROM, SMTP_PASSWORD$"):
        SmtpConfig.from_env({"SMTP_USER": "app", "MAIL_FROM": ""})
    with pytest.raises(ValueError, match=r"^not set: SMTP_HOST, MAIL_FROM$"):
        SmtpConfig.from_env({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMTP_PORT", "smtp"),
        ("SMTP_PORT", "0"),
        ("SMTP_PORT", "65536"),
        ("SMTP_PORT", "-25"),
        ("SMTP_PORT", "5e2"),
        ("SMTP_PORT", "9" * 5000),
        ("SMTP_SECURITY", "ssl"),
        ("SMTP_SECURITY", "none"),
        ("SMTP_USER", "jörg"),
        ("SMTP_PASSWORD", "pässword"),
        ("MAIL_FROM", "shop"),
        ("MAIL_FROM", "a@example.com, b@example.com"),
        ("MAIL_FROM", "Shop\nBcc: eve@example.net <a@example.com>"),
        ("MAIL_DOMAIN", "example.com\r\nRSET"),
        ("MAIL_DOMAIN", "localhost"),
    ],
)
def test_a_malformed_variable_is_named_at_start_up(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        SmtpConfig.from_env(ENV | {name: value})
    assert "correct horse" not in str(caught.value)
    assert "pässword" not in str(caught.value)


@pytest.mark.parametrize("port", ["1", "65535", "٥٨٧"])
def test_the_first_and_the_last_port_are_ports(port: str) -> None:
    assert SmtpConfig.from_env(ENV | {"SMTP_PORT": port}).port == int(port)


def test_a_port_that_is_no_number_kills_a_naive_module_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "naive_mail.py").write_text('import os\nPORT = int(os.getenv("SMTP_PORT"))\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("SMTP_PORT", raising=False)
    with pytest.raises(TypeError, match="not 'NoneType'"):  # does not name the variable
        importlib.import_module("naive_mail")
    for name in ("smtp_types", "smtp_transaction", "smtp_email"):
        assert importlib.util.find_spec(name)


def test_port_465_is_tls_from_the_first_byte() -> None:
    assert SmtpConfig(host="h", sender=SENDER, port=465, security="tls").security == "tls"
    with pytest.raises(ValueError, match="SMTP_SECURITY: port 465"):
        SmtpConfig(host="h", sender=SENDER, port=465)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("192.168.1.10", False),
        ("mail", False),
        ("localhost.example.com", False),
    ],
)
def test_no_security_is_for_loopback_alone(host: str, allowed: bool) -> None:
    if allowed:
        assert SmtpConfig(host=host, sender=SENDER, security="none").security == "none"
    else:
        with pytest.raises(ValueError, match="SMTP_SECURITY: none"):
            SmtpConfig(host=host, sender=SENDER, security="none")


def test_a_user_name_without_a_password_is_an_error() -> None:
    with pytest.raises(ValueError, match="SMTP_PASSWORD"):
        SmtpConfig(host="h", sender=SENDER, username="app")


@pytest.mark.parametrize("name", ["timeout", "data_timeout"])
def test_a_time_out_must_be_positive(name: str) -> None:
    limits: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match="more than 0 seconds"):
        SmtpConfig(host="h", sender=SENDER, **limits)
    assert SmtpConfig(host="h", sender=SENDER, **{name: 0.5}).host == "h"  # type: ignore[arg-type]
