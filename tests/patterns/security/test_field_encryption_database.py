"""Proves docs/patterns/security/field-encryption.md: encrypted columns, and the job that gives them a new key."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import StatementError

from encrypted_text import EncryptedText
from field_encryption import DecryptError, FieldCipher, Keyring, blind_index, row_context
from field_rotation import Rotation, old_tokens, rotate_column

OLD, NEW, INDEX = (os.urandom(32) for _ in range(3))
# An id that LIKE would take for a pattern: "a_c" matches "abc" too.
BEFORE = FieldCipher(Keyring("abc", {"abc": OLD}))
BOTH = FieldCipher(Keyring("a_c", {"abc": OLD, "a_c": NEW}))
AFTER = FieldCipher(Keyring("a_c", {"a_c": NEW}))
CANARY = "canary-" + "pl41n" * 3

metadata = MetaData()
notes = Table("notes", metadata, Column("id", Integer, primary_key=True), Column("body", Text))
people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token", EncryptedText(lambda: BEFORE, "people.token")),
    Column("email_index", Text),
)


def place(row: object) -> str:
    return row_context("notes", "body", row)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'db'}", hide_parameters=True)
    metadata.create_all(made)
    yield made
    made.dispose()


def fill(engine: Engine, rows: int) -> None:
    metadata.create_all(engine)
    values = [{"id": n, "body": BEFORE.encrypt(f"note {n}".encode(), context=place(n))} for n in range(1, rows + 1)]
    with engine.begin() as connection:
        connection.execute(insert(notes), [*values, {"id": rows + 1, "body": None}])


def opened(engine: Engine, cipher: FieldCipher) -> dict[int, str | None]:
    with engine.connect() as connection:
        found = connection.execute(select(notes.c.id, notes.c.body)).all()
    return {n: token and cipher.decrypt(token, context=place(n)).decode() for n, token in found}


def rotate(engine: Engine, cipher: FieldCipher = BOTH, **options: Any) -> Rotation:
    return rotate_column(engine, notes, "body", cipher, context=place, **options)


@pytest.mark.parametrize("batch", [1, 7, 10, 11, 500])
def test_the_job_gives_every_value_the_new_key_and_then_the_old_one_can_go(engine: Engine, batch: int) -> None:
    fill(engine, 10)
    before = opened(engine, BEFORE)
    assert old_tokens(engine, notes, "body", BOTH) == 10
    assert rotate(engine, batch=batch) == Rotation(rotated=10)
    assert old_tokens(engine, notes, "body", BOTH) == 0
    assert opened(engine, AFTER) == before
    assert before[11] is None  # NULL stays NULL
    assert rotate(engine) == Rotation()


def test_a_killed_job_keeps_whole_batches_and_goes_on_where_it_was(engine: Engine) -> None:
    fill(engine, 10)

    class Killed(BaseException):
        pass

    class Dying(FieldCipher):
        left = 5

        def rotate(self, token: str, *, context: str) -> str:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return super().rotate(token, context=context)

    with pytest.raises(Killed):
        rotate(engine, Dying(Keyring("a_c", {"abc": OLD, "a_c": NEW})), batch=2)
    assert old_tokens(engine, notes, "body", BOTH) == 6  # two batches of two are done, the third is undone
    assert opened(engine, BOTH)[10] == "note 10"  # meanwhile both keys are read
    assert rotate(engine) == Rotation(rotated=6)
    assert opened(engine, AFTER)[1] == "note 1"


@pytest.mark.parametrize("batch", [2, 500])
def test_a_row_that_no_key_opens_is_reported_and_left_and_the_others_go_on(engine: Engine, batch: int) -> None:
    fill(engine, 5)
    with engine.begin() as connection:
        connection.execute(update(notes).where(notes.c.id == 2).values(body="v1.abc.AAAA"))
        moved = connection.execute(select(notes.c.body).where(notes.c.id == 1)).scalar_one()
        connection.execute(update(notes).where(notes.c.id == 4).values(body=moved))
    assert rotate(engine, batch=batch) == Rotation(rotated=3, lost=[2, 4])
    assert old_tokens(engine, notes, "body", BOTH) == 2
    with engine.connect() as connection:  # the copy of row 1 in row 4 is not touched with it
        assert connection.execute(select(notes.c.body).where(notes.c.id == 4)).scalar_one() == moved


@pytest.mark.parametrize("wrong", [0, -1, 1.5, float("nan"), True, "1"])
def test_a_batch_that_is_no_number_of_rows_is_refused(engine: Engine, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^batch must be a whole number over 0, got {wrong!r}$"):
        rotate(engine, batch=wrong)


def test_a_batch_is_500_rows_unless_you_say_otherwise(engine: Engine) -> None:
    fill(engine, 1)
    limits: list[object] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if "LIMIT" in statement:
            limits.append(parameters[-2])

    rotate(engine)
    assert set(limits) == {500}


def test_another_primary_key_is_named(engine: Engine) -> None:
    odd = Table("odd", MetaData(), Column("name", Text, primary_key=True), Column("body", Text))
    odd.create(engine)
    with engine.begin() as connection:
        for name in ("x", "y", "z"):
            connection.execute(insert(odd).values(name=name, body=BEFORE.encrypt(b"1", context=name)))
    done = rotate_column(engine, odd, "body", BOTH, context=str, id_column="name", batch=2)
    assert done == Rotation(rotated=3)


def overtake(engine: Engine, row: int, token: str) -> None:
    """Write `token` into a row at the moment after the job has read it."""

    class Meanwhile:
        done = False

    @event.listens_for(engine, "before_cursor_execute")
    def write(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("UPDATE") and not Meanwhile.done:
            Meanwhile.done = True
            cursor.execute("update notes set body = ? where id = ?", (token, row))


@pytest.mark.parametrize("kid", ["a_c", "zzz"])  # sorted before the old id, and after it
def test_a_value_that_was_written_meanwhile_is_not_overwritten(engine: Engine, kid: str) -> None:
    both, after = FieldCipher(Keyring(kid, {"abc": OLD, kid: NEW})), FieldCipher(Keyring(kid, {kid: NEW}))
    fill(engine, 3)
    overtake(engine, 2, both.encrypt(b"newer", context=place(2)))
    assert rotate(engine, both) == Rotation(rotated=2, overtaken=1)
    assert opened(engine, after) == {1: "note 1", 2: "newer", 3: "note 3", 4: None}
    assert old_tokens(engine, notes, "body", both) == 0


def test_naive_read_modify_write_overwrites_a_concurrent_update(engine: Engine) -> None:
    fill(engine, 1)
    with engine.begin() as connection:
        token = connection.execute(select(notes.c.body).where(notes.c.id == 1)).scalar_one()
        newer = BOTH.encrypt(b"newer", context=place(1))
        connection.execute(update(notes).where(notes.c.id == 1).values(body=newer))  # somebody else
        connection.execute(update(notes).where(notes.c.id == 1).values(body=BOTH.rotate(token, context=place(1))))
    assert opened(engine, AFTER)[1] == "note 1"  # the newer value is gone


def test_readers_and_writers_go_on_while_two_jobs_run_on_a_real_database(database_url: str) -> None:
    engine = create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"), pool_size=8)
    fill(engine, 300)
    written: dict[int, str] = {}
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                wrong.extend(n for n, value in opened(engine, BOTH).items() if n <= 300 and not value)
            except DecryptError as error:
                wrong.append(error)

    def write() -> None:
        number = 0
        while not stop.is_set():
            number = number % 300 + 7
            row, value = number % 300 + 1, f"newer {number}"
            with engine.begin() as connection:
                token = BOTH.encrypt(value.encode(), context=place(row))
                connection.execute(update(notes).where(notes.c.id == row).values(body=token))
            written[row] = value

    others = [threading.Thread(target=read), threading.Thread(target=write)]
    results: list[Rotation] = []
    jobs = [threading.Thread(target=lambda: results.append(rotate(engine, batch=20))) for _ in range(2)]
    for thread in [*others, *jobs]:
        thread.start()
    for job in jobs:
        job.join()
    stop.set()
    for other in others:
        other.join()
    assert wrong == []
    assert sum(result.rotated for result in results) > 100
    assert [result.lost for result in results] == [[], []]
    assert old_tokens(engine, notes, "body", BOTH) == 0
    final = opened(engine, AFTER)
    assert final == {n: written.get(n, f"note {n}") for n in range(1, 301)} | {301: None}
    engine.dispose()


# The column type.


def test_the_column_type_encrypts_on_the_way_in_and_keeps_null(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        connection.execute(
            insert(people), [{"id": 1, "token": CANARY}, {"id": 2, "token": None}, {"id": 3, "token": ""}]
        )
        assert connection.execute(select(people.c.token).order_by(people.c.id)).scalars().all() == [CANARY, None, ""]
        raw = connection.execute(text("select token from people order by id")).scalars().all()
        assert str(raw[0]).startswith("v1.abc.")
        assert raw[1] is None
        found = connection.execute(select(people.c.id).where(people.c.token.is_(None))).scalars().all()
        assert found == [2]
        assert connection.execute(select(people.c.id).where(people.c.token.is_not(None))).scalars().all() == [1, 3]
    assert CANARY.encode() not in (tmp_path / "db").read_bytes()


def test_a_comparison_with_an_encrypted_column_is_refused_because_it_never_matches(engine: Engine) -> None:
    comparisons: list[Callable[[], object]] = [
        lambda: people.c.token == CANARY,
        lambda: people.c.token != CANARY,
        lambda: people.c.token.like("%"),
        lambda: people.c.token.in_([CANARY]),
        lambda: people.c.token < CANARY,
    ]
    for compare in comparisons:
        with pytest.raises(TypeError, match=r"^an encrypted column cannot be compared: use a blind index$") as caught:
            compare()
        assert CANARY not in str(caught.value)
    email = "ann@example.com"
    with engine.begin() as connection:
        connection.execute(insert(people).values(id=1, token=email, email_index=blind_index(email, INDEX)))
        wanted = select(people.c.token).where(people.c.email_index == blind_index(email, INDEX))
        assert connection.execute(wanted).scalar_one() == email


def test_a_token_of_another_column_or_of_bytes_that_are_no_text_is_refused(engine: Engine) -> None:
    for token in (
        BEFORE.encrypt(b"x", context="people.other"),
        BEFORE.encrypt(b"\xff", context="people.token"),
        "plain",
    ):
        with engine.begin() as connection:
            connection.execute(text("delete from people"))
            connection.execute(text("insert into people (id, token) values (1, :token)"), {"token": token})
        with engine.connect() as connection, pytest.raises(DecryptError) as caught:
            connection.execute(select(people.c.token)).scalar_one()
        assert caught.value.__context__ is None


def test_naive_engine_shows_the_plain_text_when_encrypting_fails() -> None:
    def broken() -> FieldCipher:
        raise LookupError("no keys here")

    table = Table("t", MetaData(), Column("token", EncryptedText(broken, "t.token")))
    shown = []
    for hide in (False, True):
        engine = create_engine("sqlite://", hide_parameters=hide)
        with engine.connect() as connection, pytest.raises(StatementError, match="no keys here") as caught:
            connection.execute(insert(table), {"token": CANARY})
        shown.append(CANARY in str(caught.value))
        engine.dispose()
    assert shown == [True, False]


def test_the_type_can_be_cached_and_tells_columns_apart() -> None:
    one, two = (EncryptedText(lambda: BEFORE, context) for context in ("a.b", "a.c"))
    assert EncryptedText.cache_ok is True
    assert (one.context, two.context) == ("a.b", "a.c")
