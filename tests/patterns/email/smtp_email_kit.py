"""Mail servers of every kind, and what sends to them in either color."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from email_message import Email
from harness.color import Blocking, Color
from servers.smtp import Smtp
from smtp_email import AsyncMailer, Mailer, asend, send
from smtp_types import SendReport, SmtpConfig

SENDER = "Shop <shop@example.com>"
HELLO = Email(to=("ann@example.com",), subject="Hello", text="Hi Ann")
HANG, CLOSE = None, ""  # instead of an answer of the scripted server


class Sender:
    """`send` and `Mailer` of one color, called as if they were sync."""

    def __init__(self, color: Color) -> None:
        self.color = color

    def send(self, config: SmtpConfig, email: Email, context: ssl.SSLContext | None = None) -> SendReport:
        report: SendReport = self.color.call(self.color.pick(asend, send), config, email, context=context)
        return report

    def mailer(self, config: SmtpConfig, context: ssl.SSLContext | None = None) -> Blocking:
        kind: Any = self.color.pick(AsyncMailer, Mailer)
        return Blocking(self.color, kind(config, context=context))


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Smtp]:
    """A real server of one test's own."""
    server = Smtp(**options)
    try:
        yield server
    finally:
        server.stop()


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
