"""Proves docs/patterns/security/secret-management.md: settings that name every mistake and show no value."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, Json, SecretBytes, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

import app_settings
from app_settings import AppSettings, SettingsError, settings_from_env
from secret_redaction import RedactSecrets

CANARY = "canary-" + "s3cr3t" * 3
OTHER = "canary-" + "0th3r" * 3
NAMES = ("DB_PASSWORD", "API_KEY", "PORT", "HOSTS", "TOKEN", "APP_ENV", "SECRETS_DIR")


class Settings(AppSettings):
    db_password: SecretStr
    api_key: SecretStr
    port: int = 8000
    hosts: Json[list[str]] = Field(default_factory=list)
    token: SecretStr | None = None


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)


def problems(*args: Any, **given: Any) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        settings_from_env(Settings, *args, **given)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    shown = str(error) + repr(error) + everything(error)
    assert CANARY not in shown
    assert OTHER not in shown
    return error.problems


def everything(error: BaseException) -> str:
    """Return the traceback with the local variables of every frame, as rich handlers and crash reports show them."""
    made = traceback.TracebackException.from_exception(error, capture_locals=True)
    here = Path(__file__).name  # this file holds the canaries itself
    lines = [f"{frame.name}: {frame.locals}" for frame in made.stack if Path(frame.filename).name != here]
    return "\n".join([*lines, *made.format_exception_only()])


def test_all_missing_and_invalid_names_come_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", CANARY)
    monkeypatch.setenv("PORT", OTHER)
    monkeypatch.setenv("HOSTS", f"[{OTHER}")
    assert problems() == {"API_KEY": "missing", "PORT": "int_parsing", "HOSTS": "json_invalid"}
    with pytest.raises(SettingsError) as caught:
        settings_from_env(Settings)
    assert str(caught.value) == "API_KEY is not set, or is empty; HOSTS: json_invalid; PORT: int_parsing"
    assert caught.value.names == ("API_KEY", "HOSTS", "PORT")


def test_a_variable_that_is_set_and_lacks_a_part_is_not_called_unset() -> None:
    class Account(BaseModel):
        user: str
        password: SecretStr

    class Mail(AppSettings):
        account: Json[Account]

    with pytest.raises(SettingsError) as caught:
        settings_from_env(Mail, environ={"ACCOUNT": json.dumps({"user": CANARY})})
    assert str(caught.value) == "ACCOUNT: incomplete"
    assert caught.value.problems == {"ACCOUNT": "incomplete"}


def test_a_process_that_lacks_a_secret_ends_with_1_and_shows_no_value_anywhere(tmp_path: Path) -> None:
    (tmp_path / "db_password").write_text(OTHER)
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(app_settings.__file__).parent)!r})
        from pydantic import SecretStr
        from app_settings import AppSettings, settings_from_env

        class Settings(AppSettings):
            db_password: SecretStr
            api_key: SecretStr
            port: int
            url: SecretStr

        settings_from_env(Settings)
    """)
    env = os.environ | {"API_KEY": CANARY, "PORT": CANARY, "SECRETS_DIR": str(tmp_path)}
    env["PYTHONFAULTHANDLER"] = "1"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "SettingsError: PORT: int_parsing; URL is not set, or is empty" in done.stderr
    for canary in (CANARY, OTHER):
        assert canary not in done.stdout + done.stderr


def test_naive_settings_print_the_neighbors_of_a_missing_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Naive(BaseSettings):
        db_password: SecretStr
        api_key: SecretStr

    monkeypatch.setenv("DB_PASSWORD", CANARY)
    with pytest.raises(ValidationError) as caught:
        Naive()  # type: ignore[call-arg]
    assert CANARY in str(caught.value)  # though the field is a SecretStr
    assert problems() == {"API_KEY": "missing"}


def test_naive_hiding_leaves_the_raw_values_in_the_error_for_handlers_with_locals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Naive(BaseSettings):
        model_config = SettingsConfigDict(hide_input_in_errors=True)
        db_password: SecretStr
        api_key: SecretStr

    monkeypatch.setenv("DB_PASSWORD", CANARY)
    with pytest.raises(ValidationError) as caught:
        Naive()  # type: ignore[call-arg]
    assert CANARY not in str(caught.value)
    assert CANARY in everything(caught.value) + str(caught.value.errors())


def test_naive_constrained_secret_repeats_the_value_in_its_own_error() -> None:
    class Naive(BaseSettings):
        api_key: Annotated[SecretStr, Field(min_length=20)]

    with pytest.raises(ValidationError) as caught:
        Naive(api_key="short-one")  # type: ignore[arg-type]
    assert "short-one" in str(caught.value.errors()) + str(caught.value)

    class Ours(AppSettings):
        api_key: Annotated[SecretStr, Field(min_length=20)]

    with pytest.raises(SettingsError, match=r"^API_KEY: too_short$") as ours:
        settings_from_env(Ours, api_key="short-one")
    assert "short-one" not in everything(ours.value)


def test_naive_getenv_of_a_missing_key_is_sent_as_the_word_none() -> None:
    assert f"Bearer {os.getenv('API_KEY')}" == "Bearer None"


def test_an_argument_wins_over_the_environment_over_a_file_over_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secrets").mkdir()
    folder = tmp_path / "secrets"
    for name in ("db_password", "api_key", "port"):
        (folder / name).write_text("7" if name == "port" else "from-file")
    monkeypatch.setenv("API_KEY", "from-env")
    made = settings_from_env(Settings, folder)
    assert (made.db_password.get_secret_value(), made.api_key.get_secret_value(), made.port) == (
        "from-file",
        "from-env",
        7,
    )
    monkeypatch.setenv("SECRETS_DIR", str(folder))
    monkeypatch.setenv("HOSTS", '["a", "b"]')
    made = settings_from_env(Settings, api_key="given", port=9)
    assert (made.api_key.get_secret_value(), made.port, made.hosts) == ("given", 9, ["a", "b"])
    (folder / "port").unlink()
    assert settings_from_env(Settings).port == 8000
    assert settings_from_env(Settings).token is None


def test_a_variable_may_name_a_file_and_both_together_are_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("from-named-file\n")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "api_key").write_text("from-dir")
    monkeypatch.setenv("API_KEY_FILE", str(tmp_path / "key"))
    made = settings_from_env(Settings, tmp_path / "dir", db_password="x")
    assert made.api_key.get_secret_value() == "from-named-file"
    monkeypatch.setenv("API_KEY", CANARY)
    assert problems(db_password="x") == {"API_KEY": "set together with API_KEY_FILE"}
    monkeypatch.delenv("API_KEY")
    monkeypatch.setenv("API_KEY_FILE", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PORT_FILE", str(tmp_path))  # a mistake is not covered up by the default
    assert problems() == {
        "API_KEY": "file: No such file or directory",
        "DB_PASSWORD": "missing",
        "PORT": "file: not a plain file",
    }


def test_the_variables_may_come_from_elsewhere() -> None:
    made = settings_from_env(Settings, environ={"DB_PASSWORD": "one", "API_KEY": "two"})
    assert (made.db_password.get_secret_value(), made.api_key.get_secret_value()) == ("one", "two")


def test_an_empty_value_counts_as_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DB_PASSWORD", "")
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("SECRETS_DIR", "")
    assert problems() == {"DB_PASSWORD": "missing", "API_KEY": "missing"}
    (tmp_path / "api_key").write_text(" \n")
    assert problems(tmp_path) == {"DB_PASSWORD": "missing", "API_KEY": "file: empty"}


def test_a_secrets_folder_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good = {"db_password": "x", "api_key": "y"}
    assert problems(tmp_path / "nowhere", **good) == {"SECRETS_DIR": "not a folder"}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path / "file"))
    assert problems(**good) == {"SECRETS_DIR": "not a folder"}


def test_naive_missing_secrets_folder_is_only_a_warning(tmp_path: Path) -> None:
    class Naive(BaseSettings):
        port: int = 1

    with pytest.warns(UserWarning, match="does not exist"):
        Naive(_secrets_dir=tmp_path / "nowhere")  # type: ignore[call-arg]


def test_dotenv_is_read_in_development_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DB_PASSWORD=dot\nAPI_KEY=dot\nPORT=5\nUNRELATED=1\nTOKEN=\n")
    assert problems() == {"DB_PASSWORD": "missing", "API_KEY": "missing"}
    monkeypatch.setenv("APP_ENV", "production")
    assert problems() == {"DB_PASSWORD": "missing", "API_KEY": "missing"}
    monkeypatch.setenv("APP_ENV", "development")
    monkeypatch.setenv("API_KEY", "from-env")
    (tmp_path / "db_password").write_text("from-dir")
    made = settings_from_env(Settings, tmp_path)
    assert (made.db_password.get_secret_value(), made.api_key.get_secret_value(), made.port) == ("dot", "from-env", 5)
    assert made.token is None


def test_a_secret_with_a_default_is_refused_where_the_class_is_written() -> None:
    with pytest.raises(TypeError, match=r"^api_key: a secret has no default$"):

        class Bad(AppSettings):
            api_key: SecretStr = SecretStr("x")

    with pytest.raises(TypeError, match=r"^raw: a secret has no default$"):

        class AlsoBad(AppSettings):
            raw: SecretBytes | None = SecretBytes(b"x")

    class Good(AppSettings):
        raw: SecretBytes | None = None
        name: str = "x"

    assert Good().name == "x"


def test_no_way_of_showing_settings_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    made = settings_from_env(Settings, db_password=CANARY, api_key=OTHER)
    shown = [repr(made), str(made), f"{made}", made.model_dump_json(), str(made.model_dump()), repr(made.secrets())]
    logging.getLogger("x").warning("started with %s and %r", made, made)
    try:
        raise RuntimeError("later")
    except RuntimeError as error:
        local = made
        shown.append(everything(error) + repr(local))
    for text in [*shown, caplog.text]:
        assert CANARY not in text
        assert OTHER not in text
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="settings are not pickled"):
            pickle.dumps(made, protocol)
    assert [s.get_secret_value() for s in made.secrets()] == [CANARY, OTHER]
    with pytest.raises(ValidationError):
        made.port = 1
    assert copy.copy(made) == made


def test_two_settings_share_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    one = settings_from_env(Settings, db_password="a", api_key="b")
    monkeypatch.setenv("PORT", "1")
    two = settings_from_env(Settings, db_password="c", api_key="d")
    one.hosts.append("changed")
    assert (one.port, two.port, two.hosts, two.db_password.get_secret_value()) == (8000, 1, [], "c")
    with pytest.raises(SettingsError, match=r"^NONSENSE: extra_forbidden$"):
        settings_from_env(Settings, db_password="a", api_key="b", nonsense=CANARY)


def test_settings_as_a_whole_can_be_refused_too() -> None:
    from pydantic import model_validator

    class Pair(AppSettings):
        key: SecretStr

        @model_validator(mode="after")
        def check(self) -> Pair:
            raise ValueError(self.key.get_secret_value())

    with pytest.raises(SettingsError, match=r"^SETTINGS: value_error$") as caught:
        settings_from_env(Pair, key=CANARY)
    assert CANARY not in everything(caught.value)


def test_naive_settings_at_import_need_production_secrets_for_every_tool(tmp_path: Path) -> None:
    (tmp_path / "naive_module.py").write_text(
        "from pydantic_settings import BaseSettings\nclass S(BaseSettings):\n    api_key: str\nsettings = S()\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ValidationError):
            __import__("naive_module")  # a linter, a test, a migration: all of them
    finally:
        sys.path.remove(str(tmp_path))


def test_naive_secrets_in_the_environment_are_handed_to_every_child(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("API_KEY", CANARY)
    shown = subprocess.run(["env"], capture_output=True, text=True, timeout=10).stdout
    assert CANARY in shown
    monkeypatch.delenv("API_KEY")
    (tmp_path / "api_key").write_text(CANARY)
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    settings_from_env(Settings, db_password="x")
    assert CANARY not in subprocess.run(["env"], capture_output=True, text=True, timeout=10).stdout


def test_naive_database_url_in_a_plain_field_shows_its_password() -> None:
    class Naive(BaseSettings):
        database_url: str

    url = f"postgresql://app:{CANARY}@db/app"
    assert CANARY in repr(Naive(database_url=url))

    class Ours(AppSettings):
        database_url: SecretStr

    made = settings_from_env(Ours, database_url=url)
    assert CANARY not in repr(made)
    stream = io.StringIO()
    handler, redact = logging.StreamHandler(stream), RedactSecrets()
    handler.addFilter(redact)
    assert [redact.register(secret) for secret in made.secrets()] == [True]
    record = logging.LogRecord("db", 40, "", 1, "connection to %s refused, password was %s", (url, CANARY), None)
    handler.handle(record)
    assert stream.getvalue() == "connection to [redacted] refused, password was [redacted]\n"
    assert json.dumps(made.model_dump_json())
