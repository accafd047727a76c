"""Settings of an application, secrets among them: all mistakes at start-up, and no value in any.

Order: an argument, `NAME` in the environment or the file that `NAME_FILE` names, in development
`.env`, the file `name` in the secrets directory, the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import SecretBytes, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from secret_source import SecretFileError, read_secret_file

S = TypeVar("S", bound="AppSettings")


class SettingsError(RuntimeError):
    """The application cannot start. `problems` maps names of variables to reasons: no values."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(_sentence(*item) for item in sorted(problems.items())))
        self.problems = dict(problems)

    @property
    def names(self) -> tuple[str, ...]:
        """The variables to mend."""
        return tuple(sorted(self.problems))


class AppSettings(BaseSettings):
    """Derive yours from it, and make it with `settings_from_env`, once, at the start.

    Secrets, and URLs that hold one, are `SecretStr` without a default. A list is `Json[list[str]]`.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False
    )

    def __init__(self, **given: Any) -> None:
        problems = {}
        try:
            super().__init__(**given)
        except ValidationError as error:
            for one in error.errors(include_input=False, include_context=False):
                place, why = one["loc"] or ("settings",), one["type"]
                if why == "missing" and len(place) > 1:  # the variable is set, and lacks a part
                    why = "incomplete"
                problems[str(place[0]).upper()] = why
        if problems:
            # Outside of the except and without the values: nothing in the traceback holds them.
            given.clear()
            del self
            raise SettingsError(problems)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a secret with a default: it would be in the source code."""
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if (
                not field.is_required()
                and field.default is not None
                and _is_secret(field.annotation)
            ):
                raise TypeError(f"{name}: a secret has no default")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the looking to `settings_from_env`."""
        return (init_settings,)

    def secrets(self) -> list[SecretStr]:
        """Return the secrets, to register them for redaction."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return [value for value in values if isinstance(value, SecretStr)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled: that would write the secrets out."""
        raise TypeError("settings are not pickled: load them again where they are needed")


def settings_from_env(
    cls: type[S],
    secrets_dir: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    **given: Any,
) -> S:
    """Find the values of all fields and make the settings.

    Args:
        cls: Your settings.
        secrets_dir: Folder with a file for each secret; by default SECRETS_DIR, or none.
        environ: Where the variables are looked for.
        given: Values that win over all else.

    Raises:
        SettingsError: Something is missing or unusable. All of it is named at once.
    """
    problems: dict[str, str] = {}
    env = {name: value for name, value in environ.items() if value}  # empty counts as missing
    folder = secrets_dir or env.get("SECRETS_DIR")
    if folder is not None and not Path(folder).is_dir():
        problems["SECRETS_DIR"] = "not a folder"
    dotenv: Mapping[str, str | None] = {}
    if env.get("APP_ENV") == "development":
        dotenv = DotEnvSettingsSource(cls, env_file=".env", env_file_encoding="utf-8").env_vars
    for name in cls.model_fields:
        if name in given:
            continue
        variable = name.upper()
        file = Path(folder) / name if folder is not None else None
        if f"{variable}_FILE" in env:
            file = Path(env[f"{variable}_FILE"])
            if variable in env:
                problems[variable] = f"set together with {variable}_FILE"
        elif dotenv.get(name) and variable not in env:
            given[name] = dotenv[name]
            continue
        if variable in env:
            given[name] = env[variable]
        elif file is not None and (file.exists() or f"{variable}_FILE" in env):
            try:
                given[name] = read_secret_file(file).get_secret_value()
            except SecretFileError as error:
                problems[variable] = f"file: {error}"
    try:
        made = cls(**given)
    except SettingsError as error:
        problems = error.problems | problems
    finally:
        given, env, environ, dotenv = {}, {}, {}, {}
    if problems:
        raise SettingsError(problems)
    return made


def _sentence(name: str, why: str) -> str:
    return f"{name} is not set, or is empty" if why == "missing" else f"{name}: {why}"


def _is_secret(annotation: Any) -> bool:
    return annotation in (SecretStr, SecretBytes) or any(map(_is_secret, get_args(annotation)))
