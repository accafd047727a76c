"""Proves docs/patterns/resilience/error-types.md: what no message, context, log or answer ever says."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import integration_errors
from error_mapping import from_exception
from error_redaction import one_line, redact, scrub
from harness.depth import examples
from integration_errors import IntegrationError, ValidationFailed, to_problem
from servers.http import Uvicorn

HIDDEN = "s3cr3t-value"


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    """Answer 401 to everything."""

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    running = Uvicorn(app, lifespan="off")
    yield running.url
    running.stop()


SECRET_NAMES = [
    *("Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "password", "passwd", "db_password", "pwd"),
    *("passphrase", "token", "accessToken", "refresh_token", "id-token", "X-Auth-Token", "secret", "client_secret"),
    *("api_key", "apikey", "X-Api-Key", "apiKey", "access_key", "privateKey", "private key", "sessionid", "Session-Id"),
    *("credentials", "X-Hub-Signature", "basic_auth", "authorisation", "AUTH"),
]
PUBLIC_NAMES = [
    "author",
    "Authors",
    "authored_by",
    "authority",
    "authenticated",
    "Unauthorized",
    "status",
    "pass",
    "key",
    "bypass",
]
names = st.sampled_from(SECRET_NAMES).flatmap(
    lambda name: st.sampled_from([name, name.upper(), name.lower(), name.title()])
)


def wrapped(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    safe = st.sampled_from(PUBLIC_NAMES)
    return (
        st.tuples(safe, inner).map(lambda pair: {pair[0]: pair[1], "n": 1})
        | inner.map(lambda one: ["x", one])
        | inner.map(lambda one: ("x", one, None))
    )


leaves = (
    names.map(lambda name: {name: HIDDEN})
    | names.map(lambda name: {name.encode(): [HIDDEN]})
    | names.map(lambda name: {name: {"deeper": HIDDEN}})
    | names.map(lambda name: [name, HIDDEN])
    | names.map(lambda name: (name.encode(), HIDDEN.encode()))
    | names.map(lambda name: f"{name}: {HIDDEN}")
    | names.map(lambda name: f"before {name}={HIDDEN} after")
    | names.map(lambda name: json.dumps({"a": {name: HIDDEN + " and more"}}))
    | names.map(lambda name: repr({name: HIDDEN, "b": [(name, HIDDEN)]}))
    | names.map(lambda name: json.dumps(json.dumps({name: HIDDEN + ' and "more'})))
    | st.sampled_from([f"https://{HIDDEN}@crm", f"redis://:{HIDDEN}@crm/0", f"ftp://a:b@{HIDDEN}@crm/x"])
    | st.sampled_from([f"https://crm/x?q={HIDDEN}", f"/x?{HIDDEN}#top", f"see 'https://crm/?a=1&b={HIDDEN}'"])
    | st.sampled_from([f"Bearer {HIDDEN}", f"basic {HIDDEN}"])
)


def everything_said(error: IntegrationError) -> str:
    """Return all that a log, a traceback and a problem document show of an error."""
    try:
        raise error
    except IntegrationError:
        stream = io.StringIO()
        logger, handler = logging.getLogger("everything said"), logging.StreamHandler(stream)
        logger.addHandler(handler)
        logger.exception("failed: %s %r %s", error, error, error.context)
        logger.removeHandler(handler)
    return stream.getvalue() + json.dumps([error.context, to_problem(error, instance="/x"), error.args])


@given(st.recursive(leaves, wrapped, max_leaves=3))
@settings(max_examples=examples(250), deadline=None)
def test_no_secret_is_said_in_whatever_nesting_and_letter_case(value: object) -> None:
    error = ValidationFailed(f"failed: {value}", fields={"f": value}, status=422, context={"c": value})
    assert HIDDEN not in everything_said(error)


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_the_value_beside_a_secret_name_is_replaced_whole_and_the_name_stays(name: str) -> None:
    assert redact({name: 17, "n": 1}) == {name: "***", "n": 1}
    assert redact({"name": name, "value": "x", "n": 1}) == {"name": name, "value": "***", "n": 1}
    assert redact({"name": name, "n": 1}) == {"name": name, "n": 1}
    assert redact([[name, "x"], ["n", "x"]]) == [[name, "***"], ["n", "x"]]
    assert redact([["n", name], [name, 1], [1, name], [name, "x", "y"]])[:3] == [["n", name], [name, "***"], [1, name]]
    assert redact(f"{name}={HIDDEN}") == f"{name}=***"
    assert redact(f'{{"{name}": "one \\"two", "n": "x"}}') == f'{{"{name}": "***", "n": "x"}}'


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_name_that_only_looks_alike_keeps_its_value(name: str) -> None:
    assert redact({name: "x"}) == {name: "x"}
    assert redact([name, "x"]) == [name, "x"]
    assert redact(f"{name}: x") == f"{name}: x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://u:p@h:1/x?a=1&b=2#f failed", "GET https://***@h:1/x?*** failed"),
        ("url 'https://h/x?a=1'", "url 'https://h/x?***'"),
        ('url "https://h/x?a=1", n', 'url "https://h/x?***", n'),
        ("mail to a@b, is it there? yes", "mail to a@b, is it there? yes"),
        ("https://h/@user/x", "https://h/@user/x"),
        ("Authorization: Digest a, b\nHost: h", "Authorization: ***\nHost: h"),
        ("Cookie: a=b; c=d\r\nHost: h", "Cookie: ***\r\nHost: h"),
        ("password = 'a b' and", "password = '***' and"),
        ("password: 'a\nb' and", "password: '***' and"),
        ("the tokens: ['a', 'b'], all of them", "the tokens: ***"),
        ("secret = (a b)", "secret = ***"),
        ("token='unclosed and", "token='***"),
        ("token refused", "token refused"),
        ("the bearer of bad news", "the bearer of bad news"),
        ("Bearer 12345678", "Bearer ***"),
        ("Bearer 1234567", "Bearer 1234567"),
        ("{'api_key': b'k', 'n': 1}", "{'api_key': '***', 'n': 1}"),
        ("one\ntwo", "one\ntwo"),
    ],
)
def test_a_text_keeps_all_but_its_secrets(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_the_client_s_text_leaks_the_address_and_a_logged_traceback_of_ours_does_not(refusing: str) -> None:
    address = refusing.replace("://", f"://user:{HIDDEN}@") + f"/x?api_key={HIDDEN}"
    with pytest.raises(httpx2.HTTPStatusError) as raised:
        httpx2.get(address).raise_for_status()
    assert str(raised.value).count(HIDDEN) == 2  # the naive way: log what the client says

    said = everything_said(from_exception(raised.value, service="crm"))
    assert "httpx2.HTTPStatusError: Client error '401 Unauthorized' for url 'http://***@127.0.0.1" in said
    assert HIDDEN not in said


def test_causes_contexts_and_notes_are_scrubbed_in_place_and_stay_the_same_objects() -> None:
    first, second, third = OSError(f"a https://u:{HIDDEN}@h"), ValueError(f"token={HIDDEN}", 7), TimeoutError("read")
    third.add_note(f"Cookie: {HIDDEN}")
    second.__context__, third.__cause__ = first, second
    first.__context__ = third  # a circle, which Python allows
    error = from_exception(third, service="crm")
    assert HIDDEN not in everything_said(error)
    assert (error.__cause__, third.__cause__, second.__context__) == (third, second, first)
    assert (second.args, third.__notes__) == (("token=***", 7), ["Cookie: ***"])
    other = KeyError(f"secret={HIDDEN}")
    scrub(other)
    assert other.args == ("secret=***",)


def test_a_json_log_stream_of_a_real_process_carries_the_facts_and_no_secret(tmp_path: Path) -> None:
    program = f"""
import json, logging, sys
sys.path[:0] = [{str(Path(integration_errors.__file__).parent)!r}]
from error_mapping import from_exception
from error_redaction import redact

class Json(logging.Formatter):
    def format(self, record):
        line = {{"event": record.getMessage(), "traceback": self.formatException(record.exc_info)}}
        return json.dumps(redact(line | vars(record.exc_info[1])))

handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(Json())
logging.getLogger().addHandler(handler)
try:
    try:
        raise ConnectionError("no way to amqp://guest:{HIDDEN}@mq")
    except ConnectionError as exc:
        error = from_exception(exc, service="mq")
        error.context["headers"] = {{"authorization": "{HIDDEN}"}}  # added later, so not yet redacted
        raise error from exc
except Exception:
    logging.exception("%s", "https://u:{HIDDEN}@h")
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert HIDDEN not in run.stdout + run.stderr
    line = json.loads(run.stdout)
    assert (line["code"], line["retryable"], line["service"]) == ("service_unavailable", True, "mq")
    assert line["event"] == "https://***@h"
    assert line["context"] == {"headers": {"authorization": "***"}}
    assert "ConnectionError: no way to amqp://***@mq" in line["traceback"]


def test_a_context_that_holds_itself_or_is_too_deep_ends_in_dots() -> None:
    ring: dict[str, Any] = {"n": 1}
    ring["self"] = [ring, ring]
    assert IntegrationError("x", context=ring).context == {"n": 1, "self": ["...", "..."]}
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert json.dumps(redact(deep)) == "[" * 10 + '"..."' + "]" * 10
    twice = {"a": 1}
    assert redact([twice, twice]) == [{"a": 1}, {"a": 1}]


def test_a_context_is_fit_for_json_whatever_it_holds() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    context = {
        "odd": Odd(),
        7: b"caf\xe9",
        "set": {1},
        "path": Path("/tmp"),
        "half\ud800": "\ud800",
        "name": "n",
        "value": 1,
    }
    kept = IntegrationError("x", context=context).context  # type: ignore[arg-type]
    shown = {"odd": "<Odd>", "7": "caf\ufffd", "set": [1], "path": "/tmp", "half?": "?", "name": "n", "value": 1}
    assert kept == shown
    json.dumps(kept, ensure_ascii=False).encode()
    assert str(IntegrationError(Odd())) == "<Odd>"  # type: ignore[arg-type]


def test_a_message_cannot_add_a_line_or_a_header_and_cannot_turn_the_text_around() -> None:
    error = IntegrationError("no\r\nSet-Cookie: a=b\n2026-01-01 INFO all is well\x00\x1b[2J\u202e\u2028 end")
    assert str(error) == "no Set-Cookie: *** 2026-01-01 INFO all is well [2J end"
    assert one_line("  kept  as it is ") == "  kept  as it is "
    problem = to_problem(error, instance="/x\r\nX-Evil: 1?token=2")
    assert problem["instance"] == "/x X-Evil: 1?***"


def test_a_secret_that_the_cut_goes_through_is_hidden_all_the_same() -> None:
    text = "x" * 480 + f" https://user:{HIDDEN * 20}@host/"
    assert HIDDEN[:4] not in one_line(text)
    assert one_line("\n" * 3999 + "ab") == "a"  # of a text that is too long the first 4,000 characters are read


@pytest.mark.parametrize(
    "piece",
    ["token", "auth", "cookie", "api_key", "?'", "://", "bearer ", 'token="', '\\"', "\"',", "session id ", "a"],
)
def test_a_hostile_text_costs_no_more_than_its_length(piece: str) -> None:
    begin = time.thread_time()
    redact(piece * (100_000 // len(piece)) + "\\" * 50_000 + " " * 50_000)
    assert time.thread_time() - begin < 3.0  # 0.1 s when it is quiet; a minute and more if it were quadratic
