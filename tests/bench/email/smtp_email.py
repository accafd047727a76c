"""What the checks, the Message-ID and the error mapping cost a message, and what a connection of its own costs it."""

from __future__ import annotations

import asyncio
import json
import os
import smtplib
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.message import EmailMessage

import aiosmtplib

from bench import kit
from email_message import Email
from smtp_email import AsyncMailer, Mailer, asend
from smtp_types import SmtpConfig

MESSAGES, CONNECTIONS = 500, 20
SUBJECT, TEXT = "Your order is on its way", "It left our warehouse this morning.\n" * 10


# A process of its own, so that the server's work does not hold our interpreter.
_SERVER = """
import json, sys
from servers.smtp import Smtp
server = Smtp()
print(json.dumps([server.port, server.username, server.password, server.ca_pem.decode()]), flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def _server() -> Iterator[tuple[SmtpConfig, ssl.SSLContext]]:
    environment = os.environ | {"PYTHONPATH": str(kit.ROOT / "tests")}
    argv = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout
        port, username, password, ca = json.loads(process.stdout.readline())
        config = SmtpConfig(
            host="localhost", port=port, username=username, password=password, sender="shop@example.com"
        )
        yield config, ssl.create_default_context(cadata=ca)  # leaving closes stdin, which ends the server


def _bare(number: int) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@example.com", f"user{number}@example.com", SUBJECT
    message.set_content(TEXT)
    return message


def _email(number: int) -> Email:
    return Email((f"user{number}@example.com",), SUBJECT, TEXT)


def _subjects(config: SmtpConfig, context: ssl.SSLContext) -> dict[str, Callable[[], None]]:
    async def ours() -> None:
        async with AsyncMailer(config, context=context) as mailer:
            for number in range(MESSAGES):
                await mailer.send(_email(number))

    async def bare() -> None:
        async with aiosmtplib.SMTP(
            hostname=config.host,
            port=config.port,
            username=config.username,
            password=config.password,
            local_hostname=config.domain,
            start_tls=True,
            tls_context=context,
        ) as client:
            for number in range(MESSAGES):
                await client.send_message(_bare(number))

    def ours_blocking() -> None:
        with Mailer(config, context=context) as mailer:
            for number in range(MESSAGES):
                mailer.send(_email(number))

    def bare_blocking() -> None:
        with smtplib.SMTP(config.host, config.port, config.domain) as client:
            client.starttls(context=context)
            client.login(config.username, config.password)
            for number in range(MESSAGES):
                client.send_message(_bare(number))

    return {
        "this pattern, AsyncMailer": lambda: asyncio.run(ours()),
        f"{kit.version('aiosmtplib')}, bare": lambda: asyncio.run(bare()),
        "this pattern, Mailer": ours_blocking,
        "smtplib, bare": bare_blocking,
    }


def _reuse(config: SmtpConfig, context: ssl.SSLContext) -> dict[str, Callable[[], None]]:
    async def one_connection() -> None:
        async with AsyncMailer(config, context=context) as mailer:
            for number in range(CONNECTIONS):
                await mailer.send(_email(number))

    async def one_each() -> None:
        for number in range(CONNECTIONS):
            await asend(config, _email(number), context=context)

    return {
        "AsyncMailer, one connection": lambda: asyncio.run(one_connection()),
        "asend, a connection a message": lambda: asyncio.run(one_each()),
    }


def _cpu(subjects: Mapping[str, Callable[[], None]], *, rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of this process a message: the wait for the server is the same for all."""
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds + 1):
        for name, call in subjects.items():
            begin = time.process_time()
            call()
            samples[name].append((time.process_time() - begin) / MESSAGES)
    return {name: statistics.median(values[1:]) for name, values in samples.items()}  # the first warms up


def tables() -> list[kit.Table]:
    """Return the table against the bare libraries and the one of reuse against a connection a message."""
    with _server() as (config, context):
        cpu = _cpu(_subjects(config, context), rounds=5)
        reuse = kit.compare(_reuse(config, context), calls=1, rounds=7, per_call=CONNECTIONS)
    base = cpu["this pattern, AsyncMailer"]
    return [
        kit.Table(
            "bare",
            ("", "CPU time a message", "ratio"),
            [[name, f"{seconds * 1e3:.2f} ms", f"{seconds / base:.2f} ×"] for name, seconds in cpu.items()],
            note=f"{MESSAGES} messages of {len(TEXT)} characters to one recipient each, over one STARTTLS connection "
            "with login, to aiosmtpd in another process on loopback. Median of 5 rounds. CPU time of the client, "
            "because the wait for the server is the same for all.",
        ),
        kit.ratio_table(
            "reuse",
            reuse,
            base="AsyncMailer, one connection",
            unit="ms",
            note=f"Time a message: {CONNECTIONS} such messages, connecting and disconnecting included. "
            "On loopback, without the network's round trips: a real server is further away. Median of 7 rounds.",
        ),
    ]
