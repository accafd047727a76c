"""Proves docs/patterns/security/secret-management.md: secrets in files, their rotation, and their masking in logs."""

from __future__ import annotations

import base64
import json
import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from harness.clock import Clock
from harness.depth import examples
from harness.waiting import at_once, in_thread
from secret_redaction import MASK, RedactSecrets
from secret_source import RotatingSecret, SecretFileError, read_secret_file

CANARY = "canary-" + "s3cr3t" * 3
PEM = "-----BEGIN KEY-----\nAAAA\nBBBB\n-----END KEY-----"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SecretFileError) as caught:
        read_secret_file(path)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        ("abc", "abc"),
        ("  abc \r\n\n", "abc"),
        (PEM + "\n", PEM),
        ("pässword", "pässword"),
        ("a%sb{}c", "a%sb{}c"),
        ("x" * 65_536, "x" * 65_536),
        ("\ufeffabc", "abc"),
    ],
)
def test_the_content_is_the_secret_without_white_space_around_it(tmp_path: Path, content: str, secret: str) -> None:
    found = read_secret_file(write(tmp_path / "s", content))
    assert found.get_secret_value() == secret
    assert secret not in repr(found)


def test_naive_reading_keeps_a_byte_order_mark_and_a_newline_in_the_secret(tmp_path: Path) -> None:
    path = write(tmp_path / "s", "\ufeffabc\n")
    assert path.read_text(encoding="utf-8") == "\ufeffabc\n"
    assert path.read_text(encoding="utf-8").strip() == "\ufeffabc"
    assert read_secret_file(path).get_secret_value() == "abc"


def test_what_is_no_usable_secret_is_refused_without_its_content(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == "No such file or directory"
    assert refusal(tmp_path) == "not a plain file"
    assert refusal(write(tmp_path / "empty", "")) == "empty"
    assert refusal(write(tmp_path / "blank", "\ufeff \n")) == "empty"
    assert refusal(write(tmp_path / "long", "x" * 65_537)) == "longer than 65536 bytes"
    assert refusal(write(tmp_path / "huge", "x" * 1_000_000)) == "longer than 65536 bytes"
    assert refusal(write(tmp_path / "binary", b"\xff" + CANARY.encode())) == "not UTF-8 text"
    assert refusal(write(tmp_path / "nul", f"{CANARY}\x00")) == "not UTF-8 text"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "not a plain file"  # at once: nobody writes into it


@pytest.mark.parametrize(
    ("mode", "fine"), [(0o444, True), (0o644, True), (0o664, True), (0o666, False), (0o602, False)]
)
def test_a_file_that_everybody_may_write_is_refused_and_one_that_all_may_read_is_not(
    tmp_path: Path, mode: int, fine: bool
) -> None:
    path = write(tmp_path / "s", "abc")
    path.chmod(mode)
    if fine:
        assert read_secret_file(path).get_secret_value() == "abc"
    else:
        assert refusal(path) == "writable by everybody"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def plain(secret: RotatingSecret) -> list[str]:
    return [value.get_secret_value() for value in secret.all()]


def test_a_new_value_is_seen_after_reload_seconds_and_the_old_one_still_verifies(tmp_path: Path, clock: Clock) -> None:
    secret = RotatingSecret(write(tmp_path / "s", "one"), clock=clock)
    write(tmp_path / "s", "two")
    clock.now += 29.9
    assert plain(secret) == ["one"]
    clock.now += 0.1
    assert plain(secret) == ["two", "one"]
    assert secret.current() == SecretStr("two")
    clock.now += 30
    assert plain(secret) == ["two", "one"]  # nothing new: nothing changes
    write(tmp_path / "s", "three")
    clock.now += 30
    assert plain(secret) == ["three", "two"]
    clock.now += 86_399
    assert plain(secret) == ["three", "two"]
    clock.now += 1
    assert plain(secret) == ["three"]  # an old value does not verify forever
    clock.now += 1
    assert plain(secret) == ["three"]
    write(tmp_path / "s", "four")
    assert plain(RotatingSecret(tmp_path / "s", clock=clock)) == ["four"]


def test_the_clock_may_begin_anywhere(tmp_path: Path) -> None:
    for begin in (0.0, -50.0, 7.0):
        clock = Clock()
        clock.now = begin
        secret = RotatingSecret(write(tmp_path / "s", "one"), clock=clock)
        write(tmp_path / "s", "two")
        clock.now += 29
        assert plain(secret) == ["one"]
        clock.now += 1
        assert plain(secret) == ["two", "one"]


def test_an_unusable_new_file_keeps_the_old_value_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    path = write(tmp_path / "s", CANARY)
    secret = RotatingSecret(path, reload=5, clock=clock)
    reasons = []

    def look() -> None:
        clock.now += 5
        assert plain(secret) == [CANARY]
        reasons.append(caplog.records[-1].getMessage().partition(": ")[2])

    write(path, "")
    look()
    path.unlink()
    look()
    path.mkdir()
    look()
    with monkeypatch.context() as patched:

        def denied(*args: Any) -> int:
            raise PermissionError(13, "Permission denied")

        patched.setattr(os, "open", denied)  # as chmod does it to everybody but root
        look()
        assert plain(secret) == [CANARY]  # before the next look, nothing is opened
    stays = "the old value stays"
    assert reasons == [
        f"empty; {stays}",
        f"No such file or directory; {stays}",
        f"not a plain file; {stays}",
        f"Permission denied; {stays}",
    ]
    path.rmdir()
    write(path, "new-" + CANARY)
    clock.now += 5
    assert plain(secret) == ["new-" + CANARY, CANARY]
    assert CANARY not in caplog.text + repr(secret) + str(secret)
    assert caplog.records[-1].getMessage() == f"{path}: a new value is used"
    with pytest.raises(SecretFileError) as caught:
        RotatingSecret(write(tmp_path / "bad", b"\xff" + CANARY.encode()))
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_the_folder_swap_of_kubernetes_is_followed(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "key", name)
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "key").symlink_to("..data/key")
    clock = Clock()
    secret = RotatingSecret(tmp_path / "key", clock=clock)
    (tmp_path / "tmp").symlink_to("v2")
    (tmp_path / "tmp").replace(tmp_path / "..data")
    clock.now += 30
    assert plain(secret) == ["v2", "v1"]


WRITER = """
import os, sys
for number in range(1, 10_001):
    with open("new", "w") as file:
        file.write(f"{number:05d}" * 40)
    os.replace("new", "s")
"""


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: a disk would take long for ten thousand renames."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_readers_never_see_a_half_written_value_over_ten_thousand_replacements(quick_folder: Path) -> None:
    secret = RotatingSecret(write(quick_folder / "s", "00000" * 40), reload=0)
    wrong: list[str] = []
    seen: set[str] = set()
    writer = subprocess.Popen([sys.executable, "-I", "-S", "-c", WRITER], cwd=quick_folder)

    def read() -> None:
        while writer.poll() is None:
            for found in plain(secret):
                seen.add(found[:5])
                if found != found[:5] * 40:
                    wrong.append(found)

    assert at_once(2, read) == [None, None]
    assert writer.wait(10) == 0
    assert wrong == []
    assert len(seen) > 20
    assert plain(secret)[0] == "10000" * 40


def test_while_one_thread_looks_the_others_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    secret = RotatingSecret(write(tmp_path / "s", "one"), clock=clock)
    inside, go_on = threading.Event(), threading.Event()
    real = os.open

    def slow(*args: Any) -> int:
        inside.set()
        assert go_on.wait(5)
        return real(*args)

    monkeypatch.setattr(os, "open", slow)
    clock.now += 60
    looking = in_thread(secret.all)
    assert inside.wait(5)
    clock.now += 60
    assert plain(secret) == ["one"]  # at once, though the look hangs on a slow disk
    go_on.set()
    looking.result(20)


# Masking.


def emitted(redact: RedactSecrets, *args: Any, **more: Any) -> str:
    """Log one record through a handler with the filter, and return what it would write."""
    logger = logging.getLogger("masked")
    logger.propagate = False
    lines: list[str] = []
    usual = logging.makeLogRecord({}).__dict__.keys() | {"message"}

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            extra = {name: value for name, value in record.__dict__.items() if name not in usual}
            lines.append(self.format(record) + json.dumps(extra, default=str) * bool(extra))

    handler = Handler()
    handler.addFilter(redact)
    logger.addHandler(handler)
    try:
        logger.error(*args, **more)
    finally:
        logger.removeHandler(handler)
    return lines[0]


@pytest.fixture
def redact() -> RedactSecrets:
    made = RedactSecrets()
    assert made.register(SecretStr(CANARY))
    return made


def test_a_registered_value_is_masked_in_message_arguments_traceback_and_extras(redact: RedactSecrets) -> None:
    assert emitted(redact, f"key {CANARY}!") == f"key {MASK}!"
    assert emitted(redact, "key %s, %r", CANARY, {"key": CANARY}) == f"key {MASK}, {{'key': '{MASK}'}}"
    try:
        raise RuntimeError(f"refused {CANARY}") from ValueError(CANARY)
    except RuntimeError:
        text = emitted(redact, "failed", exc_info=True)
    assert CANARY not in text
    assert f"RuntimeError: refused {MASK}" in text
    assert f"ValueError: {MASK}" in text
    extra = {"token": CANARY, "deep": [CANARY], "number": 7, "nothing": None, "kept": ["a"]}
    text = emitted(redact, "x", extra=extra, stack_info=True)
    assert CANARY not in text
    assert '"number": 7' in text
    assert '"nothing": null' in text
    assert '"kept": ["a"]' in text
    assert "Stack (most recent call last)" in text
    assert emitted(redact, "nothing of it %d", 1) == "nothing of it 1"


def test_a_handler_that_makes_its_own_traceback_gets_none_with_the_value(redact: RedactSecrets) -> None:
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        record = logging.LogRecord("x", 40, "", 1, "failed", (), sys.exc_info())
    record.stack_info = CANARY
    assert redact.filter(record) is True
    assert record.exc_info is None
    assert record.exc_text
    assert CANARY not in str(record.__dict__)
    formatted = logging.LogRecord("x", 40, "", 1, "%s", (CANARY,), None)
    logging.Formatter("%(message)s").format(formatted)  # by a handler without the filter, before ours
    redact.filter(formatted)
    assert CANARY not in str(formatted.__dict__)
    again = logging.LogRecord("x", 40, "", 1, "failed", (), None)
    again.exc_text = f"cached {CANARY}"
    redact.filter(again)
    assert again.exc_text == f"cached {MASK}"


@pytest.mark.parametrize("prefix", ["", "u", "us", "user:"])
def test_base64_and_url_forms_are_masked_too(prefix: str) -> None:
    secret = "pä55/w+rd&=?~" + "x" * len(prefix)
    redact = RedactSecrets()
    redact.register(secret)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode((prefix + secret + "|tail").encode()).decode()
        assert MASK in redact.mask(text)
        assert len(redact.mask(text).replace(MASK, "")) < len(text) - 12
    assert (
        redact.mask(f"a={quote(secret)}&b={quote_plus(secret)}&c={quote(secret, safe='')}")
        == f"a={MASK}&b={MASK}&c={MASK}"
    )


@given(st.binary(max_size=6), st.text(min_size=8, max_size=30), st.binary(max_size=6))
@settings(max_examples=examples(80), deadline=None, database=None)
def test_wherever_a_secret_stands_in_base64_the_masked_text_does_not_decode_to_it(
    before: bytes, secret: str, after: bytes
) -> None:
    try:
        data = secret.encode()
    except UnicodeEncodeError:
        data = b""
    redact = RedactSecrets()
    known = redact.register(secret)
    masked = redact.mask(base64.b64encode(before + data + after).decode())
    assert not (known and data) or MASK in masked


def test_escaped_forms_of_a_secret_with_line_breaks_are_masked() -> None:
    redact = RedactSecrets()
    redact.register(PEM)
    assert redact.mask(json.dumps({"key": PEM})) == f'{{"key": "{MASK}"}}'
    assert redact.mask(repr(PEM)) == f"'{MASK}'"
    assert redact.mask(f"\n{PEM}\n") == f"\n{MASK}\n"
    umlaut = RedactSecrets()
    umlaut.register("Bär\tenzwinger")
    assert umlaut.mask(json.dumps("Bär\tenzwinger")) == f'"{MASK}"'
    assert umlaut.mask(json.dumps("Bär\tenzwinger", ensure_ascii=False)) == f'"{MASK}"'


@pytest.mark.parametrize("word", ["", "short-1", "password", "LOCALHOST", "changeme"])
def test_a_short_or_common_value_is_not_masked_and_a_warning_says_so_without_it(
    word: str, caplog: pytest.LogCaptureFixture
) -> None:
    redact = RedactSecrets()
    assert redact.register(word) is (word == "")
    assert redact.mask(f"the {word} stays") == f"the {word} stays"
    if word:
        assert caplog.messages == ["a secret is too short or too common a word to be masked in logs"]
    assert redact.register("eight-88") is True
    assert redact.mask("eight-88") == MASK


def test_the_password_inside_a_url_is_masked_by_itself_too(caplog: pytest.LogCaptureFixture) -> None:
    redact = RedactSecrets()
    assert redact.register("postgresql://app:p%40ss-w0rd-9@db/app")
    assert redact.mask("p%40ss-w0rd-9, p@ss-w0rd-9, postgresql://app:p%40ss-w0rd-9@db/app") == ", ".join([MASK] * 3)
    assert redact.register("https://example.com/hook/abcdef")
    assert redact.mask("https://example.com/hook/abcdef") == MASK
    assert redact.register("broken://[::1")
    assert redact.mask("broken://[::1") == MASK
    assert not redact.register("redis://:short@db")
    assert redact.mask("redis://:short@db") == MASK


def test_a_secret_with_percent_signs_and_arguments_that_do_not_fit_break_nothing(redact: RedactSecrets) -> None:
    redact.register("a%sb%dc-secret")
    assert emitted(redact, "key %s", "a%sb%dc-secret") == f"key {MASK}"
    assert emitted(redact, f"100% of {CANARY}") == f"100% of {MASK}"
    wrong = logging.LogRecord("x", 40, "", 1, "%d %s", (CANARY,), None)
    assert redact.filter(wrong)
    assert wrong.getMessage() == f"'%d %s' ('{MASK}',)"


def test_the_longest_of_overlapping_secrets_is_masked_whole() -> None:
    redact = RedactSecrets()
    redact.register("abcdefgh")
    redact.register("abcdefghij")
    assert redact.mask("abcdefghij abcdefgh") == f"{MASK} {MASK}"
    assert "abcdefgh" not in repr(redact)


def test_naive_filter_on_a_logger_does_not_see_what_its_children_log() -> None:
    parent, child = logging.getLogger("naive"), logging.getLogger("naive.child")
    parent.propagate = False
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler, redact = Keep(), RedactSecrets()
    redact.register(CANARY)
    parent.addHandler(handler)
    parent.addFilter(redact)
    child.error(CANARY)
    assert lines == [CANARY]  # past the filter
    handler.addFilter(redact)
    child.error(CANARY)
    assert lines[1:] == [MASK]
    parent.removeHandler(handler)
    parent.removeFilter(redact)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), True, "1"])
def test_a_time_that_is_no_number_of_seconds_is_refused(tmp_path: Path, wrong: Any) -> None:
    path = write(tmp_path / "s", "one")
    with pytest.raises(ValueError, match=rf"^reload must be a number of seconds, 0 or more, got {wrong!r}$"):
        RotatingSecret(path, reload=wrong)
    with pytest.raises(ValueError, match=rf"^grace must be a number of seconds, 0 or more, got {wrong!r}$"):
        RotatingSecret(path, grace=wrong)
