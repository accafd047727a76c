"""Start-up and one read: these settings, pydantic-settings alone, dynaconf."""

import os
import tempfile
from pathlib import Path

from dynaconf import Dynaconf
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from app_settings import AppSettings, settings_from_env
from bench.kit import Table, compare, version
from secret_source import RotatingSecret


class Ours(AppSettings):
    """Five fields."""

    bench_url: SecretStr
    bench_key: SecretStr
    bench_port: int = 1
    bench_name: str = "x"
    bench_debug: bool = False


class Theirs(BaseSettings):
    """The same, read by pydantic-settings."""

    bench_url: SecretStr
    bench_key: SecretStr
    bench_port: int = 1
    bench_name: str = "x"
    bench_debug: bool = False


def _theirs() -> Theirs:
    return Theirs()  # type: ignore[call-arg]  # the environment has them


def tables() -> list[Table]:
    """Time the making of the settings from the environment, and the reading of one secret."""
    os.environ |= {f"BENCH_{name}": "12" for name in ("URL", "KEY", "PORT", "NAME")}
    names = ["this module", version("pydantic-settings"), version("dynaconf"), "RotatingSecret, from memory"]

    def dynaconf() -> object:
        made = Dynaconf(envvar_prefix="BENCH", settings_files=[], load_dotenv=False)
        return made.KEY

    start = compare(
        {names[0]: lambda: settings_from_env(Ours), names[1]: _theirs, names[2]: dynaconf},
        calls=20,
        rounds=15,
    )
    ours, theirs = settings_from_env(Ours), _theirs()
    layered = Dynaconf(envvar_prefix="BENCH", settings_files=[], load_dotenv=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "key")
        path.write_text("secret")
        rotating = RotatingSecret(path)
        read = compare(
            {
                names[0]: lambda: ours.bench_key,
                names[1]: lambda: theirs.bench_key,
                names[2]: lambda: layered.KEY,
                names[3]: rotating.current,
            },
            calls=20_000,
            rounds=9,
        )
    rows = []
    for name in names:
        first = f"{start[name] * 1e6:,.0f} µs ({start[name] / start[names[0]]:.2f} ×)" if name in start else ""
        rows.append([name, first, f"{read[name] * 1e9:,.0f} ns"])
    return [
        Table(
            "start-and-read",
            ("", "start", "one read"),
            rows,
            note="Settings of five fields, four of them set in the environment, made once; then one secret read. A "
            "RotatingSecret opens its file once in 30 seconds; what is timed is a read between.",
        )
    ]
