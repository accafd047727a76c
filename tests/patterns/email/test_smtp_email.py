"""Proves docs/patterns/email/smtp-email.md: what is sent, to whom, over which connection, and what a failure means."""

from __future__ import annotations

import asyncio
import base64
import importlib
import logging
import pickle
import re
import smtplib
import socket
import ssl
import threading
import traceback
from collections.abc import Coroutine, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, cast

import aiosmtplib
import pytest

import smtp_transaction
from email_message import Attachment, BadEmail, Email, build_message
from harness.color import Color
from harness.waiting import auntil, each_at_once
from patterns.email.smtp_email_kit import CLOSE, HANG, HELLO, SENDER, Scripted, Sender, config_of, running
from servers.faults import FaultProxy
from servers.smtp import Smtp
from smtp_email import AsyncMailer, Mailer, asend, send
from smtp_types import (
    Refusal,
    SmtpAuthFailed,
    SmtpConfig,
    SmtpError,
    SmtpPermanent,
    SmtpTemporary,
    SmtpTlsFailed,
)

# aiosmtpd warns of a server without STARTTLS; some of these have none on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")


@pytest.fixture
def sender(color: Color) -> Sender:
    return Sender(color)


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


def parse(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


# --- TLS ---------------------------------------------------------------------------------------------------------


def test_a_message_is_sent_over_verified_tls_after_login(sender: Sender, server: Smtp) -> None:
    report = sender.send(config_of(server), HELLO, server.client_context)
    (received,) = server.inbox.messages
    assert (received.over_tls, received.authenticated) == (True, True)
    assert (received.mail_from, received.recipients) == ("shop@example.com", ("ann@example.com",))
    assert parse(received.content)["Message-ID"] == report.message_id
    assert parse(received.content).get_content() == "Hi Ann\r\n"
    assert (report.accepted, report.refused) == (("ann@example.com",), {})


@pytest.mark.parametrize("kind", ["starttls", "implicit"])
@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_server_that_cannot_prove_its_name_gets_no_password(sender: Sender, kind: str, wrong: str) -> None:
    names = ("mail.example.net",) if wrong == "name" else ("localhost",)
    with running(tls=kind, names=names) as server:
        context = server.client_context if wrong == "name" else None
        config = config_of(server, security="tls" if kind == "implicit" else "starttls")
        with pytest.raises(SmtpTlsFailed, match="certificate verify failed") as caught:
            sender.send(config, HELLO, context)
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


def test_by_default_the_trust_store_of_the_system_decides(
    sender: Sender, server: Smtp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_bytes(server.ca_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))  # OpenSSL's own variable
    assert sender.send(config_of(server), HELLO).accepted


@pytest.mark.parametrize("loose", ["name", "certificate"])
def test_a_context_that_verifies_nothing_is_refused(server: Smtp, loose: str) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    if loose == "certificate":
        context.verify_mode = ssl.CERT_NONE
    for mailer in (Mailer, AsyncMailer):
        with pytest.raises(ValueError, match="verifies nothing"):
            mailer(config_of(server), context=context)


def test_a_server_that_does_not_offer_starttls_gets_neither_password_nor_mail(sender: Sender) -> None:
    with running(tls="none") as server:
        with pytest.raises(SmtpTlsFailed, match="localhost does not offer STARTTLS"):
            sender.send(config_of(server), HELLO, server.client_context)
        assert server.logins == []
        assert server.inbox.messages == []


async def test_aiosmtplib_by_itself_sends_the_password_in_the_clear() -> None:
    with running(tls="none") as server:
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


def test_security_tls_speaks_tls_from_the_first_byte(sender: Sender) -> None:
    with running(tls="implicit") as server:
        config = config_of(server, security="tls")
        assert sender.send(config, HELLO, server.client_context).accepted
        assert server.inbox.messages[0].authenticated


def test_starttls_followed_by_garbage_is_no_tls(sender: Sender) -> None:
    with Scripted(EHLO="250-scripted\r\n250-AUTH PLAIN\r\n250 STARTTLS", STARTTLS="220 go on") as server:
        with pytest.raises(SmtpTlsFailed):
            sender.send(server.config(security="starttls", username="app", password="pw"), HELLO)
        assert [line.split()[0].upper() for line in server.heard] == ["EHLO", "STARTTLS"]


@pytest.mark.parametrize(
    ("answer", "kind"), [("454 not now", SmtpTemporary), ("500 what?", SmtpPermanent), (CLOSE, SmtpTemporary)]
)
def test_a_refused_starttls_ends_the_conversation(sender: Sender, answer: str, kind: type[SmtpError]) -> None:
    with Scripted(EHLO="250-scripted\r\n250-AUTH PLAIN\r\n250 STARTTLS", STARTTLS=answer) as server:
        with pytest.raises(kind):
            sender.send(server.config(security="starttls", username="app", password="pw"), HELLO)
        assert not any(line.startswith(("AUTH", "MAIL")) for line in server.heard)


def test_a_handshake_that_never_comes_is_timed_out(sender: Sender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        config = SmtpConfig(host="127.0.0.1", port=silent.getsockname()[1], sender=SENDER, security="tls", timeout=0.05)
        with pytest.raises(SmtpTemporary):
            sender.send(config, HELLO)


def test_a_greeting_that_is_refused_inside_tls_is_a_refusal(sender: Sender) -> None:
    async def greet(smtp: Any, session: Any, envelope: Any, name: str, answers: list[str]) -> list[str]:
        return ["451 4.3.0 later"] if session.ssl else answers

    with running() as server:
        server.inbox.handle_EHLO = greet  # type: ignore[attr-defined]
        with pytest.raises(SmtpTemporary, match=r"451 4\.3\.0 later"):
            sender.send(config_of(server), HELLO, server.client_context)
        assert server.logins == []


def test_a_handshake_that_is_cut_short_is_an_outage_and_not_a_bad_certificate(
    sender: Sender, server: Smtp, fault_proxy: type[FaultProxy]
) -> None:
    offer = "250-scripted\r\n250 STARTTLS"
    with (
        Scripted(EHLO=offer, STARTTLS="220 go on", HANDSHAKE=CLOSE) as leaving,
        pytest.raises(SmtpTemporary),
    ):
        sender.send(leaving.config(security="starttls"), HELLO)
    proxy = fault_proxy("127.0.0.1", server.port)
    proxy.cut_after = 400  # in the middle of the server's certificate
    with pytest.raises(SmtpTemporary) as caught:
        sender.send(config_of(server, port=proxy.port), HELLO, server.client_context)
    assert not caught.value.maybe_sent


async def greet(port: int) -> None:
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port) as naive:
        await naive.ehlo()


def test_ehlo_tells_the_domain_where_both_libraries_tell_the_name_of_the_machine(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getfqdn(name: str = "") -> str:  # in the worst case this waits on DNS
        return "build-7.internal.example"

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    with Scripted() as server:
        asyncio.run(greet(server.port))
        with smtplib.SMTP("127.0.0.1", server.port) as blocking:
            blocking.ehlo()
        assert {h for h in server.heard if "build-7" in h} == {
            "EHLO build-7.internal.example",
            "ehlo build-7.internal.example",
        }
        server.heard.clear()
        sender.send(server.config(domain="mail.example.com"), HELLO)
        assert server.heard[0].lower() == "ehlo mail.example.com"
        assert not any("build-7" in heard for heard in server.heard)


# --- recipients --------------------------------------------------------------------------------------------------


def test_blind_recipients_get_the_mail_and_nobody_reads_their_names(sender: Sender, server: Smtp) -> None:
    email = Email(
        ("ann@example.com",), "Hello", "Hi", cc=("cleo@example.com",), bcc=("boss@example.com", "ann@example.com")
    )
    report = sender.send(config_of(server), email, server.client_context)
    (received,) = server.inbox.messages
    assert received.recipients == ("ann@example.com", "cleo@example.com", "boss@example.com")  # each once
    assert report.accepted == received.recipients
    assert b"boss" not in received.content
    assert b"\nbcc" not in received.content.lower()


def test_refused_recipients_are_reported_and_the_others_get_the_mail(sender: Sender, server: Smtp) -> None:
    server.inbox.reject |= {"bob@example.com": "550 5.1.1 no such user", "cleo@example.com": "451 4.7.1 later"}
    email = Email(("ann@example.com", "bob@example.com", "cleo@example.com"), "Hello", "Hi")
    report = sender.send(config_of(server), email, server.client_context)
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
def test_if_everybody_is_refused_one_4xx_makes_it_temporary(
    sender: Sender, server: Smtp, answers: tuple[str, str], kind: type[SmtpError]
) -> None:
    email = Email(("ann@example.com", "bob@example.com"), "Hello", "Hi")
    server.inbox.reject |= dict(zip(email.to, answers, strict=True))
    with pytest.raises(kind, match=f"every recipient was refused, the first with {answers[0]}") as caught:
        sender.send(config_of(server), email, server.client_context)
    assert type(caught.value) is kind
    assert caught.value.refused == {
        address: Refusal(int(answer[:3]), answer[4:]) for address, answer in zip(email.to, answers, strict=True)
    }
    assert not caught.value.maybe_sent
    assert server.inbox.messages == []


@pytest.mark.parametrize("answer", ["421 4.3.2 shutting down", "gibberish", "299 odd", "699 odd"])
def test_an_answer_that_is_no_refusal_ends_the_transaction_before_the_content(sender: Sender, answer: str) -> None:
    email = Email(("ann@example.com", "bob@example.com"), "Hello", "Hi")
    with Scripted(RCPT=["250 ok", answer]) as server:
        with pytest.raises(SmtpTemporary) as caught:
            sender.send(server.config(), email)
        assert not caught.value.maybe_sent
        assert not any(line.upper() == "DATA" for line in server.heard)


def test_a_recipient_who_will_be_forwarded_is_accepted(sender: Sender) -> None:
    with Scripted(RCPT="251 will forward") as server:
        assert sender.send(server.config(), HELLO).accepted == ("ann@example.com",)


def test_a_thousand_recipients_go_in_one_transaction(sender: Sender, server: Smtp) -> None:
    everybody = tuple(f"user{n}@example.com" for n in range(1000))
    server.inbox.reject |= dict.fromkeys(everybody[990:], "452 4.5.3 too many recipients")
    report = sender.send(config_of(server), Email((), "News", "Hi", bcc=everybody), server.client_context)
    assert server.inbox.messages[0].recipients == report.accepted == everybody[:990]
    assert all(report.refused[address].temporary for address in everybody[990:])


def test_a_recipient_cannot_smuggle_a_command(sender: Sender) -> None:
    attack = "ann@e.com>\r\nRCPT TO:<eve@example.net"
    with Scripted() as server:
        with pytest.raises(BadEmail):
            sender.send(server.config(), Email((attack,), "Hello", "Hi"))
        assert server.heard == []


def test_an_international_domain_is_sent_in_its_ascii_form(sender: Sender, server: Smtp) -> None:
    email = Email(("ann@münchen.example",), "Hello", "Hi")
    report = sender.send(config_of(server), email, server.client_context)
    (received,) = server.inbox.messages
    assert received.recipients == report.accepted == email.to == ("ann@xn--mnchen-3ya.example",)
    assert received.content.isascii()


def test_a_local_part_beyond_ascii_needs_a_server_with_smtputf8(sender: Sender, server: Smtp) -> None:
    jörg = "jörg@münchen.example"
    with Scripted() as old:
        for email in (
            Email((jörg,), "Grüße", "Hi"),
            Email((), "Grüße", "Hi", bcc=(jörg,)),
            Email(("ann@example.com",), "Grüße", "Hi", reply_to=jörg),
        ):
            with pytest.raises(BadEmail, match="SMTPUTF8"):
                sender.send(old.config(), email)
        assert {line.split(" ")[0].upper() for line in old.heard} == {"EHLO", "QUIT"}
    email = Email((jörg,), "Grüße", "Hi", bcc=("ann@example.com",))
    report = sender.send(config_of(server, sender=jörg), email, server.client_context)
    sender.send(config_of(server), Email((), "Grüße", "Hi", bcc=(jörg,)), server.client_context)
    sender.send(config_of(server), HELLO, server.client_context)
    shown, blind, plain = server.inbox.messages
    assert shown.mail_from == "jörg@xn--mnchen-3ya.example"
    assert shown.recipients == report.accepted == ("jörg@xn--mnchen-3ya.example", "ann@example.com")
    assert "To: jörg@xn--mnchen-3ya.example\r\n".encode() in shown.content
    assert parse(shown.content)["Subject"] == parse(blind.content)["Subject"] == "Grüße"
    for received, needed in ((shown, True), (blind, True), (plain, False)):
        assert ({"SMTPUTF8", "BODY=8BITMIME"} <= set(received.options)) is needed
        assert any(option.startswith("SIZE=") for option in received.options)


# --- content -----------------------------------------------------------------------------------------------------


def test_a_lone_dot_and_a_line_of_2000_characters_arrive_intact(sender: Sender, server: Smtp) -> None:
    body = f".\n..\n.hidden\n{'x' * 2000}\nFrom here\n"
    email = Email(("ann@example.com",), "Hello", body, attachments=(Attachment("Rechnung ü.pdf", b".\r\n"),))
    sender.send(config_of(server), email, server.client_context)
    plain, file = parse(server.inbox.messages[0].content).iter_parts()
    assert plain.get_content().replace("\r\n", "\n") == body
    assert (file.get_filename(), file.get_content()) == ("Rechnung ü.pdf", b".\r\n")


def test_a_message_over_25_mib_is_refused_before_connecting(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    assert smtp_transaction.MAX_BYTES == 26_214_400
    size = len(build_message(HELLO, SENDER, domain="example.com").as_bytes())
    with Scripted() as server:
        monkeypatch.setattr(smtp_transaction, "MAX_BYTES", size - 1)
        with pytest.raises(BadEmail, match=f"{size} bytes, {size - 1} are allowed"):
            sender.send(server.config(), HELLO)
        assert server.heard == []
        monkeypatch.setattr(smtp_transaction, "MAX_BYTES", size)
        assert sender.send(server.config(), HELLO)


def test_the_size_is_announced_to_a_server_that_has_a_limit(sender: Sender) -> None:
    with Scripted(EHLO="250-scripted\r\n250 SIZE 100", MAIL="552 5.3.4 too big") as server:
        with pytest.raises(SmtpPermanent, match=r"552 5\.3\.4 too big"):
            sender.send(server.config(), HELLO)
        size = len(build_message(HELLO, SENDER, domain="example.com").as_bytes())
        assert server.heard[1].upper() == f"MAIL FROM:<SHOP@EXAMPLE.COM> SIZE={size}"
    with Scripted() as server:
        sender.send(server.config(), HELLO)
        assert server.heard[1].upper() == "MAIL FROM:<SHOP@EXAMPLE.COM>"


# --- login -------------------------------------------------------------------------------------------------------


def test_without_a_user_name_there_is_no_login(sender: Sender) -> None:
    with running(auth_required=False) as server:
        report = sender.send(config_of(server, username="", password=""), HELLO, server.client_context)
        assert report.accepted
        assert server.logins == []


def test_a_wrong_password_is_no_reason_to_retry(sender: Sender, server: Smtp) -> None:
    with pytest.raises(SmtpAuthFailed, match=r"refuses the login: 535 5\.7\.8$"):
        sender.send(config_of(server, password="wrong horse"), HELLO, server.client_context)
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
def test_a_login_that_fails_says_whether_to_try_again(
    sender: Sender, offered: str, answer: str | None, kind: type[SmtpError], text: str
) -> None:
    with Scripted(EHLO=f"250-scripted\r\n250 {offered}", AUTH=answer) as server:
        patience = 0.05 if answer is HANG else 5.0
        config = server.config(username="app", password="correct horse", timeout=patience)
        with pytest.raises(kind) as caught:
            sender.send(config, HELLO)
        assert type(caught.value) is kind
        assert str(caught.value).endswith(text)
        assert not any(line.startswith("MAIL") for line in server.heard)


def test_the_password_is_in_no_log_and_no_traceback_even_while_debugging(
    sender: Sender,
    server: Smtp,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password = "correct horse"
    secrets = [password] + [base64.b64encode(form.encode()).decode() for form in (password, f"\0app\0{password}")]
    caplog.set_level(logging.DEBUG)
    if sender.color.is_async:
        sender.color.loop.set_debug(True)
    monkeypatch.setattr(smtplib.SMTP, "debuglevel", 2)
    said = [repr(config_of(server)), str(config_of(server))]
    sender.send(config_of(server), HELLO, server.client_context)
    # A server that repeats the command it did not understand.
    echo = f"535 5.7.8 AUTH PLAIN {secrets[2]} {password}"
    with Scripted(EHLO="250-scripted\r\n250 AUTH PLAIN", AUTH=echo) as rude:
        with pytest.raises(SmtpAuthFailed) as caught:
            sender.send(rude.config(username="app", password=password), HELLO)
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
def test_a_server_that_hangs_or_goes_away_is_a_temporary_failure(
    sender: Sender, step: str, trouble: str | None
) -> None:
    limit = "data_timeout" if step in {"DATA", "CONTENT"} else "timeout"
    patience = {limit: 0.05} if trouble is HANG else {}
    with Scripted(**{step: trouble}) as server, pytest.raises(SmtpTemporary) as caught:
        sender.send(server.config(**patience), HELLO)
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
def test_a_clear_refusal_of_the_message_is_sorted_by_its_first_digit(
    sender: Sender, step: str, answer: str, kind: type[SmtpError]
) -> None:
    with Scripted(**{step: answer}) as server, pytest.raises(kind, match=re.escape(answer)) as caught:
        sender.send(server.config(timeout=2.0), HELLO)
    assert type(caught.value) is kind
    assert not caught.value.maybe_sent  # the server says that it did not take it
    assert caught.value.refused == {}


def test_the_refusals_of_a_message_that_was_lost_are_kept(sender: Sender) -> None:
    email = Email(("ann@example.com", "bob@example.com"), "Hello", "Hi")
    with Scripted(RCPT=["250 ok", "550 unknown"], CONTENT=CLOSE) as server, pytest.raises(SmtpTemporary) as caught:
        sender.send(server.config(), email)
    assert caught.value.refused == {"bob@example.com": Refusal(550, "unknown")}


def test_a_blind_retry_after_a_lost_answer_sends_twice_and_maybe_sent_says_so(sender: Sender) -> None:
    with Scripted(CONTENT=[CLOSE, "250 queued"]) as server:
        with pytest.raises(SmtpTemporary) as caught:
            sender.send(server.config(), HELLO)
        assert caught.value.maybe_sent  # ask, or accept a second copy
        report = sender.send(server.config(), HELLO)
        copies = [heard for heard in server.heard if "Subject: Hello" in heard]
    assert len(copies) == 2  # SMTP has no idempotency key, so the server cannot tell
    assert all(f"Message-ID: {report.message_id}" in copy for copy in copies)  # but a person or a filter can


def test_nobody_listening_is_a_temporary_failure(sender: Sender) -> None:
    with Scripted() as server:
        config = server.config()
    with pytest.raises(SmtpTemporary):
        sender.send(config, HELLO)


def test_the_content_has_more_time_than_a_command(sender: Sender, server: Smtp, fault_proxy: type[FaultProxy]) -> None:
    email = Email(("ann@example.com",), "Hello", "Hi", attachments=(Attachment("a", bytes(6_000)),))
    with Scripted() as slow:
        proxy = fault_proxy("127.0.0.1", slow.port)
        proxy.bytes_per_second = 20_000  # 0.4 s for the content, next to nothing for a command
        impatient = slow.config(port=proxy.port, timeout=0.25, data_timeout=600)
        with sender.mailer(impatient) as mailer:
            assert mailer.send(email)
            slow.answers["MAIL"] = HANG
            with pytest.raises(SmtpTemporary):  # and the next command has the short time again
                mailer.send(email)


@pytest.mark.parametrize("step", ["DATA", "CONTENT"])
def test_after_refused_content_the_time_limit_is_short_again(sender: Sender, step: str) -> None:
    with Scripted(QUIT=HANG, **{step: "554 5.6.0 spam"}) as server:
        patient = server.config(timeout=0.25, data_timeout=600)
        with pytest.raises(SmtpPermanent):
            sender.send(patient, HELLO)


def test_the_text_of_a_server_cannot_break_a_log(sender: Sender) -> None:
    with Scripted(MAIL="550-first\r\n550 \udcff\tsecond") as server, pytest.raises(SmtpPermanent) as caught:
        sender.send(server.config(), HELLO)
    assert str(caught.value) == "550 first \ufffd second"


def test_an_unfriendly_goodbye_does_not_make_a_sent_message_a_failure(sender: Sender) -> None:
    with Scripted(QUIT="421 4.3.2 shutting down") as server:
        assert sender.send(server.config(), HELLO).accepted
    with Scripted(QUIT=HANG) as server:
        assert sender.send(server.config(timeout=0.25), HELLO).accepted


def test_smtplib_by_itself_raises_after_the_message_was_taken() -> None:
    with Scripted(QUIT="421 4.3.2 shutting down") as server:
        with (
            pytest.raises(smtplib.SMTPResponseException),
            smtplib.SMTP("127.0.0.1", server.port, "example.com") as naive,
        ):
            naive.sendmail("shop@example.com", ["ann@example.com"], b"Subject: Hello\r\n\r\nHi")
        assert "Subject: Hello" in server.heard[4]


def test_tls_that_breaks_after_the_login_is_a_lost_connection(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]")

    monkeypatch.setattr(smtplib.SMTP, "rcpt", broken)
    monkeypatch.setattr(aiosmtplib.SMTP, "rcpt", broken)
    with Scripted() as server, pytest.raises(SmtpTemporary) as caught:
        sender.send(server.config(), HELLO)
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


def test_many_messages_go_over_one_connection(sender: Sender, server: Smtp, fault_proxy: type[FaultProxy]) -> None:
    proxy = fault_proxy("127.0.0.1", server.port)
    with sender.mailer(config_of(server, port=proxy.port), server.client_context) as mailer:
        assert proxy.accepted == 0  # opened by the first message
        for number in range(5):
            mailer.send(Email((f"user{number}@example.com",), "Hello", "Hi"))
    assert [m.recipients for m in server.inbox.messages] == [(f"user{n}@example.com",) for n in range(5)]
    assert (proxy.accepted, len(server.logins)) == (1, 1)


def test_tasks_and_threads_take_turns_on_one_connection(sender: Sender, server: Smtp) -> None:
    emails = [Email((f"user{n}@example.com",), f"Hello {n}", "Hi") for n in range(20)]
    with sender.mailer(config_of(server), server.client_context) as mailer:
        reports = each_at_once(mailer.send, emails)
    assert [r.accepted for r in reports] == [e.to for e in emails]
    got = {m.recipients[0]: parse(m.content)["Subject"] for m in server.inbox.messages}
    assert got == {e.to[0]: e.subject for e in emails}
    assert len(server.logins) == 1


@pytest.mark.parametrize(
    ("step", "answer"),
    [("RCPT", "550 5.1.1 unknown"), ("RCPT", "450 4.2.0 busy"), ("MAIL", "452 4.3.1 full"), ("CONTENT", "554 spam")],
)
def test_a_refused_message_does_not_disturb_the_next_one(sender: Sender, step: str, answer: str) -> None:
    usual = {"RCPT": "250 ok", "MAIL": "250 ok", "CONTENT": "250 queued"}[step]
    with Scripted(**{step: [answer, usual]}) as server:
        with sender.mailer(server.config()) as mailer:
            with pytest.raises((SmtpPermanent, SmtpTemporary)):
                mailer.send(HELLO)
            assert mailer.send(HELLO).accepted
            assert mailer.send(HELLO).accepted
        verbs = [line.split(" ")[0].upper() for line in server.heard]
        assert verbs.count("EHLO") == 1  # the same connection,
        assert verbs.count("RSET") == 1  # told once to forget what was begun


def test_a_refused_reset_is_an_error(sender: Sender) -> None:
    with Scripted(MAIL=["550 no", "250 ok"], RSET="502 what?") as server, sender.mailer(server.config()) as mailer:
        for _ in range(2):
            with pytest.raises(SmtpPermanent):
                mailer.send(HELLO)


@pytest.mark.parametrize("trouble", [HANG, CLOSE, "421 4.7.0 enough messages", "gibberish"])
def test_after_a_lost_connection_the_next_message_opens_another(sender: Sender, trouble: str | None) -> None:
    with Scripted(MAIL=["250 ok", trouble, "250 ok"]) as server:
        with sender.mailer(server.config(timeout=0.5 if trouble is HANG else 5.0)) as mailer:
            mailer.send(HELLO)
            with pytest.raises(SmtpTemporary) as caught:
                mailer.send(HELLO)
            assert not caught.value.maybe_sent
            mailer.send(HELLO)
        verbs = [line.split(" ")[0].upper() for line in server.heard]
        assert (verbs.count("EHLO"), verbs.count("RSET"), verbs.count("DATA")) == (2, 0, 2)


def test_a_connection_that_breaks_in_the_content_is_not_reused(sender: Sender) -> None:
    with Scripted(CONTENT=[HANG, "250 queued"]) as server:
        with sender.mailer(server.config(data_timeout=0.25)) as mailer:
            with pytest.raises(SmtpTemporary):
                mailer.send(HELLO)
            assert mailer.send(HELLO)
        assert sum(line.upper().startswith("EHLO") for line in server.heard) == 2


def test_the_socket_is_closed_when_a_failed_send_returns(color: Color) -> None:
    def in_a_thread() -> bool:
        with pytest.raises(SmtpTemporary):
            send(config, HELLO)
        return server.left.wait(20)

    async def on_the_loop() -> bool:
        with pytest.raises(SmtpTemporary):
            await asend(config, HELLO)
        return server.left.wait(20)  # this holds the event loop: it closes nothing from here on

    with Scripted(EHLO=HANG) as server:
        config = server.config(timeout=0.05)
        assert color.call(color.pick(on_the_loop, in_a_thread))


async def test_a_cancelled_message_does_not_leave_its_answer_to_the_next_one() -> None:
    with Scripted(RCPT=[HANG, "550 unknown"]) as server:
        async with AsyncMailer(server.config()) as mailer:
            sending = asyncio.create_task(mailer.send(HELLO))
            await auntil(lambda: any(line.startswith("RCPT") for line in server.heard))
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(SmtpPermanent):
                await mailer.send(HELLO)
        assert sum(line.startswith("EHLO") for line in server.heard) == 2


async def test_a_cancelled_message_confuses_a_bare_connection_and_not_an_async_mailer() -> None:
    begun: list[str] = []
    go_on = threading.Event()

    async def slow_rcpt(smtp: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        begun.append(address)
        while address.startswith("slow") and not go_on.is_set():
            await asyncio.sleep(0.001)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def give_up_on(sending: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(sending)
        await auntil(lambda: "slow@example.com" in begun)
        begun.clear()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with running(auth_required=False) as server:
        server.inbox.handle_RCPT = slow_rcpt  # type: ignore[method-assign,assignment]
        config = config_of(server, username="", password="")
        async with aiosmtplib.SMTP(
            hostname="localhost", port=server.port, start_tls=True, tls_context=server.client_context
        ) as naive:
            message = b"Subject: Hello\r\n\r\nHi"
            await give_up_on(naive.sendmail("shop@example.com", ["slow@example.com"], message))
            second = asyncio.create_task(naive.sendmail("shop@example.com", ["ann@example.com"], message))
            for _ in range(50):  # it has sent its first command when the server answers the first message
                await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(aiosmtplib.SMTPException):  # it reads the answers to the first message
                await second
        go_on.clear()
        async with AsyncMailer(config, context=server.client_context) as mailer:
            await give_up_on(mailer.send(Email(("slow@example.com",), "Hello", "Hi")))
            assert (await mailer.send(HELLO)).accepted == ("ann@example.com",)
        go_on.set()
        assert [m.recipients for m in server.inbox.messages] == [("ann@example.com",)]


def is_writing(mailer: AsyncMailer) -> bool:
    """Tell whether some of a message waits in the buffer of its connection."""
    client = mailer._client
    return bool(client and client.transport and cast(asyncio.WriteTransport, client.transport).get_write_buffer_size())


async def test_a_message_that_is_cancelled_in_its_content_is_cut_off() -> None:
    film = Email(("ann@example.com",), "Film", "Hi", attachments=(Attachment("film", bytes(12_000_000)),))
    with Scripted() as server:
        server.reads_content.clear()
        async with AsyncMailer(server.config()) as mailer:
            sending = asyncio.create_task(mailer.send(film))
            await auntil(lambda: "DATA" in server.heard and is_writing(mailer))
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            server.reads_content.set()
            await auntil(server.left.is_set)
        assert server.heard[-1] == "DATA"  # no end of the content, so the server throws it away


async def test_a_cancelled_connection_attempt_leaves_nothing_open() -> None:
    with Scripted(EHLO=HANG) as server:
        async with AsyncMailer(server.config()) as mailer:
            sending = asyncio.create_task(mailer.send(HELLO))
            await auntil(lambda: server.heard)
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
    named = "; ".join(f"{name} is not set, or is empty" for name in ("SMTP_HOST", "MAIL_FROM", "SMTP_PASSWORD"))
    with pytest.raises(RuntimeError, match=f"^{named}$"):
        SmtpConfig.from_env({"SMTP_USER": "app", "MAIL_FROM": ""})
    with pytest.raises(RuntimeError, match=r"^MAIL_FROM is not set, or is empty$"):
        SmtpConfig.from_env({"SMTP_HOST": "smtp.example.com"})


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
@pytest.mark.parametrize("value", [0, -1, True, float("nan"), float("inf"), "10", None])
def test_a_time_out_is_a_number_of_seconds_over_0(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a number of seconds over 0, got {value!r}$"):
        SmtpConfig(host="h", sender=SENDER, **{name: value})
    limits: dict[str, Any] = {name: 0.5}
    assert SmtpConfig(host="h", sender=SENDER, **limits).host == "h"


@pytest.mark.parametrize("value", [0, 65_536, True, 25.0, float("nan"), "587", None])
def test_a_port_is_a_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^SMTP_PORT must be a whole number from 1 to 65535, got {value!r}$"):
        SmtpConfig(host="h", sender=SENDER, port=value)
