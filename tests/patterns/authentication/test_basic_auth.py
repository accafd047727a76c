"""Proves docs/patterns/authentication/basic-auth.md: the header, and the server that reads it."""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import socket
import threading
import traceback
from typing import Any

import argon2
import httpx2
import pytest
import requests
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBasic
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.testclient import TestClient

from basic_client import CredentialError, basic_header
from basic_server import BasicAuth, parse_basic
from harness.depth import examples

CHALLENGE = 'Basic realm="staff only", charset="UTF-8"'
CHEAP = argon2.PasswordHasher(1, 8, 1)


def b64(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


# The header.


def test_the_known_answer_of_rfc_7617_is_made_and_read() -> None:
    assert basic_header("test", "123£") == "Basic dGVzdDoxMjPCow=="
    assert parse_basic("Basic dGVzdDoxMjPCow==") == ("test", "123£")
    assert parse_basic("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==") == ("Aladdin", "open sesame")


plain = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=60)


@given(plain.filter(lambda user: user and ":" not in user), plain)
@settings(max_examples=examples(100), deadline=None, database=None)
def test_whatever_can_be_sent_is_read_back_as_it_was(user: str, secret: str) -> None:
    assert parse_basic(basic_header(user, secret)) == (user, secret)
    assert basic_header(user, SecretStr(secret)) == basic_header(user, secret)


@pytest.mark.parametrize(
    ("user", "secret"),
    [
        ("", "x"),
        ("a:b", "x"),
        (":", "x"),
        ("a\n", "x"),
        ("a", "x\r\nX: 1"),
        ("a", "\x00"),
        ("a", "\x7f"),
        ("a", "\x85"),
    ],
)
def test_a_colon_in_the_user_name_a_control_character_and_an_empty_user_are_refused(user: str, secret: str) -> None:
    message = r"^the user name is empty, or has|^user name or secret has a control character"
    with pytest.raises(CredentialError, match=message) as caught:
        basic_header(user, secret)
    assert isinstance(caught.value, ValueError)
    for lone in (("a\ud800", "x"), ("a", "\udfff")):
        with pytest.raises(CredentialError, match="a surrogate"):
            basic_header(*lone)


def test_a_colon_in_the_password_is_kept() -> None:
    assert parse_basic(basic_header("a", "b:c")) == ("a", "b:c")
    assert parse_basic(basic_header("a", ":")) == ("a", ":")
    assert parse_basic(basic_header("a", "")) == ("a", "")


def test_naive_client_with_a_colon_in_the_user_name_logs_in_as_somebody_else() -> None:
    request = next(httpx2.BasicAuth("a:b", "c").auth_flow(httpx2.Request("GET", "https://x")))
    assert parse_basic(request.headers["authorization"]) == ("a", "b:c")
    with pytest.raises(CredentialError, match="colon"):
        basic_header("a:b", "c")


def test_naive_requests_cannot_send_cyrillic_and_httpx2_sends_utf_8() -> None:
    with pytest.raises(UnicodeEncodeError):
        requests.Request("GET", "https://x", auth=("u", "пароль")).prepare()
    latin = requests.Request("GET", "https://x", auth=("u", "pä")).prepare().headers["Authorization"]
    assert parse_basic(str(latin)) is None  # Latin-1, and not UTF-8
    request = next(httpx2.BasicAuth("u", "пароль").auth_flow(httpx2.Request("GET", "https://x")))
    assert request.headers["authorization"] == basic_header("u", "пароль")


def test_naive_encodebytes_breaks_a_long_token_over_two_lines() -> None:
    token = "A" * 192  # as long as Atlassian's
    naive = "Basic " + base64.encodebytes(f"ada@example.com:{token}".encode()).decode()
    assert naive.count("\n") > 1
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(httpx2.LocalProtocolError, match="Illegal header value"),
    ):
        httpx2.get(f"http://127.0.0.1:{server.getsockname()[1]}", headers={"Authorization": naive})
    assert "\n" not in basic_header("ada@example.com", token)


# Reading it.

MALFORMED = {
    "missing": None,
    "empty": "",
    "scheme alone": "Basic",
    "no space": "Basic" + b64("u:p"),
    "another scheme": "Bearer " + b64("u:p"),
    "a longer scheme": "Basics " + b64("u:p"),
    "no colon": "Basic " + b64("user"),
    "empty pair": "Basic " + b64(""),
    "empty user": "Basic " + b64(":p"),
    "bad base64": "Basic !!!!",
    "a lone digit": "Basic A",
    "padding missing": "Basic " + b64("u:pw").rstrip("="),
    "padding twice": "Basic dTpw==",
    "a scheme with a long s": "Ba\u017fic " + b64("u:p"),
    "padding inside": "Basic dTpw=dTpw",
    "base64url": "Basic " + base64.urlsafe_b64encode("u:ÿÿÿÿ~~~".encode()).decode(),
    "line break": "Basic " + b64("u:p") + "\n",
    "two pairs": f"Basic {b64('u:p')} {b64('u:p')}",
    "a comma": f"Basic {b64('u:p')}, Basic {b64('u:p')}",
    "bad UTF-8": "Basic " + b64(b"u:\xff"),
    "Latin-1": "Basic " + b64("u:pä".encode("latin-1")),
    "NUL in the user": "Basic " + b64("u\x00:p"),
    "NUL in the password": "Basic " + b64("u:p\x00"),
    "line break in the pair": "Basic " + b64("u:p\n"),
    "C1 control": "Basic " + b64("u:p\x85"),
    "64 KB": "Basic " + b64("u:" + "p" * 49_000),
    "not ASCII": "Basic dTpwé",
    "Arabic digits": "Basic ١٢٣٤",
}


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_header_is_none_and_never_an_exception(header: str | None) -> None:
    assert parse_basic(header) is None


@given(st.text() | st.binary(max_size=40).map(lambda data: "Basic " + b64(data)))
@settings(max_examples=examples(100), deadline=None, database=None)
def test_whatever_is_sent_nothing_is_raised(header: str) -> None:
    pair = parse_basic(header)
    assert pair is None or (pair[0] and ":" not in pair[0])


def test_the_scheme_has_no_case_and_may_be_followed_by_several_spaces() -> None:
    for scheme in ("Basic ", "basic ", "BASIC ", "bAsIc   "):
        assert parse_basic(scheme + b64("u:p")) == ("u", "p")


def test_a_header_of_8192_characters_is_read_and_a_longer_one_is_not() -> None:
    fits, longer = ("Basic " + b64("u:" + "p" * size) for size in (6_136, 6_139))
    assert len(fits) <= 8_192 < len(longer)
    assert parse_basic(fits) == ("u", "p" * 6_136)
    assert parse_basic("Basic" + " " * (8_192 - 5 - len(b64("u:p"))) + b64("u:p")) == ("u", "p")
    assert parse_basic("Basic" + " " * (8_193 - 5 - len(b64("u:p"))) + b64("u:p")) is None
    assert parse_basic(longer) is None


# The dependency.


class Hasher:
    """Notes what is verified, and how many at a time."""

    def __init__(self, real: argon2.PasswordHasher) -> None:
        self.real = real
        self.verified: list[str] = []
        self.inside = self.most = 0
        self.lock = threading.Lock()

    def hash(self, data: bytes) -> str:
        return self.real.hash(data)

    def verify(self, stored: str, password: str) -> bool:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.verified.append(stored)
        try:
            return self.real.verify(stored, password)
        finally:
            with self.lock:
                self.inside -= 1


def application(users: dict[str, str], hasher: Any = CHEAP, **options: Any) -> FastAPI:
    async def lookup(name: str) -> str | None:
        return users.get(name)

    return guarded(BasicAuth("staff only", lookup, hasher=hasher, **options))


def guarded(auth: BasicAuth) -> FastAPI:
    app = FastAPI()

    async def whoami(user: str = Depends(auth)) -> dict[str, str]:
        return {"user": user}

    app.get("/")(whoami)
    return app


def get(app: FastAPI, header: str | None = None) -> httpx2.Response:
    headers = [] if header is None else [(b"authorization", header.encode("latin-1", "replace"))]
    return TestClient(app).get("/", headers=headers)


def test_the_right_password_passes_also_when_it_is_not_ascii() -> None:
    app = application({"ada": CHEAP.hash("pässwörd:ключ"), "юля": CHEAP.hash("x")})
    for user, password in (("ada", "pässwörd:ключ"), ("юля", "x")):
        answer = get(app, basic_header(user, password))
        assert (answer.status_code, answer.json()) == (200, {"user": user})


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED.keys())
def test_every_malformed_header_is_a_401_with_a_challenge_and_never_a_500(header: str | None) -> None:
    hasher = Hasher(CHEAP)
    answer = get(application({}, hasher), header)
    assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})
    assert answer.headers["www-authenticate"] == CHALLENGE
    assert hasher.verified == []


def test_a_wrong_password_and_an_unknown_user_get_one_answer_for_one_verification() -> None:
    hasher = Hasher(CHEAP)
    app = application({"ada": CHEAP.hash("right")}, hasher)
    answers = [get(app, basic_header(user, "wrong")) for user in ("ada", "eve")]
    assert len(hasher.verified) == 2
    assert len(set(hasher.verified)) == 2  # the second is a dummy
    for answer in answers:
        assert (answer.status_code, answer.json()) == (401, {"detail": "Not authenticated"})
        assert answer.headers["www-authenticate"] == CHALLENGE


def test_an_unknown_user_costs_as_much_computing_as_a_known_one() -> None:
    hasher = Hasher(argon2.PasswordHasher(2, 19_456, 1))
    app = application({"ada": hasher.hash(b"right")}, hasher)
    for user in ("ada", "eve"):
        assert get(app, basic_header(user, "wrong")).status_code == 401
    known, unknown = (argon2.extract_parameters(stored) for stored in hasher.verified)
    assert known == unknown  # the same passes over the same memory


def test_the_hasher_by_default_is_that_of_owasp() -> None:
    async def nobody(name: str) -> str | None:
        return None

    auth = BasicAuth("x", nobody)
    assert auth._dummy.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert auth._pool._max_workers == 4


def test_nobody_logs_in_as_the_dummy_or_with_an_empty_stored_hash() -> None:
    class Yes(Hasher):
        def verify(self, stored: str, password: str) -> bool:
            return True  # even then

    app = application({"empty": ""}, Yes(CHEAP))
    for user in ("eve", "empty"):
        assert get(app, basic_header(user, "x")).status_code == 401


@pytest.mark.parametrize(
    "stored", ["plain", "$2b$04$" + "." * 53, "$argon2id$v=19$m=7,t=1,p=1$c29tZXNhbHQ$aGFzaGhhc2g"]
)
def test_a_stored_value_that_cannot_be_used_is_a_401_and_logged(stored: str, caplog: pytest.LogCaptureFixture) -> None:
    assert get(application({"ada": stored}), basic_header("ada", "x")).status_code == 401
    assert "a stored password hash cannot be used" in caplog.text
    assert stored not in caplog.text


def test_a_look_up_that_fails_is_503_and_never_401(caplog: pytest.LogCaptureFixture) -> None:
    async def lookup(name: str) -> str | None:
        raise OSError("connection refused")

    answer = get(guarded(BasicAuth("staff only", lookup, hasher=CHEAP)), basic_header("ada", "x"))
    assert (answer.status_code, answer.json()) == (503, {"detail": "Try again later"})
    assert answer.headers["retry-after"] == "5"
    assert "connection refused" in caplog.text


def test_two_authorization_headers_are_a_401_even_if_both_are_good() -> None:
    app = application({"ada": CHEAP.hash("right")})
    good = (b"authorization", basic_header("ada", "right").encode())
    assert TestClient(app).get("/", headers=[good]).status_code == 200
    assert TestClient(app).get("/", headers=[good, good]).status_code == 401


def test_of_parallel_logins_no_more_than_max_parallel_are_verified_at_a_time() -> None:
    hasher = Hasher(argon2.PasswordHasher(1, 2_048, 1))
    app = application({"ada": hasher.hash(b"right")}, hasher, max_parallel=2)

    async def main() -> list[int]:
        transport = httpx2.ASGITransport(app)
        headers = {"Authorization": basic_header("ada", "right")}
        async with httpx2.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:
            return [answer.status_code for answer in await asyncio.gather(*(client.get("/") for _ in range(20)))]

    assert asyncio.run(main()) == [200] * 20
    assert hasher.most <= 2
    assert len(hasher.verified) == 20


@pytest.mark.parametrize("value", [0, -1, 1.5, True, float("nan"), float("inf"), None])
def test_a_number_of_verifications_that_is_none_stops_the_start(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^max_parallel must be a whole number over 0, got {value!r}$"):
        application({}, max_parallel=value)


@pytest.mark.parametrize("realm", ["", 'a"b', "a\\b", "a\r\nX: 1", "größe", "a\n"])
def test_a_realm_that_would_break_the_challenge_is_refused(realm: str) -> None:
    async def nobody(name: str) -> str | None:
        return None

    with pytest.raises(ValueError, match=r"^realm is visible ASCII and spaces, without quotation marks$"):
        BasicAuth(realm, nobody, hasher=CHEAP)


def test_naive_http_basic_of_fastapi_locks_out_whoever_has_an_umlaut_in_the_password() -> None:
    scheme = Depends(HTTPBasic())

    async def naive(credentials: Any = scheme) -> str:
        return str(credentials.password)

    app = FastAPI()
    app.get("/")(naive)
    assert get(app, basic_header("u", "pa")).status_code == 200
    answer = get(app, basic_header("u", "pä"))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Basic"  # no realm, though RFC 7617 requires one
    assert get(application({"u": CHEAP.hash("pä")}), basic_header("u", "pä")).status_code == 200


def test_naive_comparison_of_texts_raises_on_an_umlaut() -> None:
    with pytest.raises(TypeError):  # a 500 for whoever sends one
        hmac.compare_digest("pä", "pä")
    assert get(application({"u": CHEAP.hash("pa")}), basic_header("u", "pä")).status_code == 401


def test_no_password_is_in_any_log_answer_or_text_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    async def broken(name: str) -> str | None:
        raise OSError("down")

    users = {"ada": CHEAP.hash("CANARY"), "bob": "CANARY-stored"}
    apps = [application(users), guarded(BasicAuth("x", broken, hasher=CHEAP))]
    pairs = [("ada", "CANARY"), ("ada", "CANARY!"), ("CANARY", "typed into the wrong field"), ("bob", "CANARY")]
    for app in apps:
        for user, password in pairs:
            answer = get(app, basic_header(user, password))
            seen += [answer.text, str(answer.headers)]
            assert "CANARY" not in str(answer.headers)
    for bad in (("CANARY:", "x"), ("a", "CANARY\n"), ("a", "CANARY\ud800")):
        with pytest.raises(CredentialError) as caught:
            basic_header(*bad)
        seen += [line for line in traceback.format_exception(caught.value) if not line.startswith("  File")]
    output = "\n".join([*seen, caplog.text])
    assert "Basic authentication failed" in output
    assert "CANARY" not in output
    assert b64("ada:CANARY") not in output
