"""Proves docs/patterns/databases/connection-pool.md: settings, their errors, and a password that no message shows."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from types import ModuleType
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

import pool_async
import pool_core
import pool_sync
from harness.depth import examples
from patterns.databases import connection_pool_kit as kit
from patterns.databases.connection_pool_kit import NOWHERE, Pools
from pool_core import PoolConfig, PoolStats, pool_size_for

pools = kit.pools


def test_both_twins_have_the_same_names_defaults_and_signatures() -> None:
    def public(module: ModuleType) -> set[str]:
        return {k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and k[0] != "_"}

    assert public(pool_async) == {"AsyncDatabase"}
    assert public(pool_sync) == {"Database"}
    errors_and_settings = {"PoolClosed", "PoolConfig", "PoolStats", "PoolUnavailable", "pool_size_for"}
    assert public(pool_core) == errors_and_settings | {"finite_seconds", "why_give_up"}
    for name in ("open", "close", "connection", "healthy", "stats"):
        a, b = (inspect.signature(getattr(m, name)) for m in (pool_async.AsyncDatabase, pool_sync.Database))
        assert [(p.name, p.default) for p in a.parameters.values()] == [
            (p.name, p.default) for p in b.parameters.values()
        ]


def test_an_application_with_both_pools_catches_one_error() -> None:
    for error in ("PoolUnavailable", "PoolClosed"):
        assert getattr(pool_async, error) is getattr(pool_sync, error) is getattr(pool_core, error)


def test_the_defaults_are_those_the_page_names() -> None:
    assert dataclasses.asdict(PoolConfig("host=h")) == {
        "dsn": "host=h",
        "min_size": 1,
        "max_size": 10,
        "acquire_timeout": 5.0,
        "connect_timeout": 5,
        "open_deadline": 30.0,
        "statement_timeout_ms": 30_000,
        "idle_in_tx_timeout_ms": 60_000,
        "max_lifetime": 1800.0,
        "app_name": "app",
    }


def test_settings_come_from_the_environment() -> None:
    env = {"DATABASE_URL": "host=h", "DB_POOL_MIN": "2", "DB_POOL_MAX": "7", "DB_ACQUIRE_TIMEOUT": "0.5"}
    assert PoolConfig.from_env(env) == PoolConfig("host=h", min_size=2, max_size=7, acquire_timeout=0.5)
    unset = {"DATABASE_URL": "host=h", "DB_POOL_MIN": "", "DB_POOL_MAX": ""}
    assert PoolConfig.from_env(unset) == PoolConfig("host=h")


def test_the_real_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "host=elsewhere")
    assert PoolConfig.from_env().dsn == "host=elsewhere"


@pytest.mark.parametrize("env", [{}, {"DATABASE_URL": ""}], ids=["missing", "empty"])
def test_a_missing_address_is_named(env: dict[str, str]) -> None:
    with pytest.raises(RuntimeError, match=r"^DATABASE_URL is not set, or is empty$"):
        PoolConfig.from_env(env)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"DB_POOL_MIN": "few"}, "DB_POOL_MIN must be a whole number, got 'few'"),
        ({"DB_POOL_MAX": "1.5"}, "DB_POOL_MAX must be a whole number, got '1.5'"),
        ({"DB_ACQUIRE_TIMEOUT": "5s"}, "DB_ACQUIRE_TIMEOUT must be a number, got '5s'"),
        (
            {"DB_ACQUIRE_TIMEOUT": "nan"},
            "acquire_timeout (DB_ACQUIRE_TIMEOUT) must be a number of seconds over 0, got nan",
        ),
        (
            {"DB_POOL_MIN": "3", "DB_POOL_MAX": "2"},
            "min_size (DB_POOL_MIN) must be a whole number from 0 to 2, got 3",
        ),
        ({"DB_POOL_MAX": "-1"}, "max_size (DB_POOL_MAX) must be a whole number of at least 1, got -1"),
        ({"DATABASE_URL": "postgresql+psycopg://u:hunter2@h/db"}, "dsn (DATABASE_URL) is not postgresql://"),
    ],
)
def test_a_missing_or_malformed_variable_is_named(env: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        PoolConfig.from_env({"DATABASE_URL": "host=h"} | env)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_size": -1},
        {"min_size": 11},
        {"min_size": 1.0},
        {"min_size": True},
        {"max_size": 0, "min_size": 0},
        {"max_size": math.inf},
        {"acquire_timeout": 0},
        {"acquire_timeout": math.nan},
        {"acquire_timeout": True},
        {"acquire_timeout": "5"},
        {"connect_timeout": 0},
        {"connect_timeout": 2.5},
        {"open_deadline": -1},
        {"open_deadline": math.inf},
        {"statement_timeout_ms": -1},
        {"statement_timeout_ms": 0.5},
        {"idle_in_tx_timeout_ms": -1},
        {"idle_in_tx_timeout_ms": True},
        {"max_lifetime": float("inf")},
        {"max_lifetime": -math.inf},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    name, got = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=rf"^{name}( \(\w+\))? must be .*, got {re.escape(repr(got))}$"):
        PoolConfig("host=h", **wrong)


def test_a_pool_may_keep_no_idle_connection_or_exactly_its_maximum() -> None:
    assert PoolConfig("host=h", min_size=0, max_size=1).min_size == 0
    assert PoolConfig("host=h", min_size=1, max_size=1).max_size == 1
    never = PoolConfig("host=h", statement_timeout_ms=0, idle_in_tx_timeout_ms=0, connect_timeout=1)
    assert (never.statement_timeout_ms, never.idle_in_tx_timeout_ms, never.connect_timeout) == (0, 0, 1)


@pytest.mark.parametrize("timeout", [math.nan, math.inf, True, "1"])
def test_a_timeout_that_is_no_finite_number_is_refused(pools: Pools, timeout: Any) -> None:
    db = pools.database(NOWHERE)
    message = f"timeout must be a finite number of seconds, got {re.escape(repr(timeout))}"
    with pytest.raises(ValueError, match=message), db.connection(timeout):
        pass
    with pytest.raises(ValueError, match=message):
        db.close(timeout)


@given(middle=st.text("@/:?#[]%&=,. 1a'\\", max_size=6), encoded=st.booleans())
@example(middle="@", encoded=False)
@example(middle="/", encoded=False)
@example(middle="%a1", encoded=False)
@example(middle="@/:", encoded=True)
@settings(max_examples=examples(80), deadline=None)
def test_no_message_and_no_repr_shows_the_password(middle: str, encoded: bool) -> None:
    password = f"hunter2{middle}hunter2"
    dsn = f"postgresql://app:{quote(password, safe='') if encoded else password}@db.example:5433/shop"
    config, refused = None, None
    try:
        config = PoolConfig(dsn)
    except ValueError as error:
        refused = error
    if config:
        assert "hunter2" not in f"{config!r} {config}"
        assert "user=app host=db.example port=5433 dbname=shop" in repr(config)
        assert "dbname=shop', min_size=1, max_size=10, acquire_timeout=5.0" in repr(config)
    if encoded:
        assert config
        assert conninfo_to_dict(config.conninfo())["password"] == password
    if refused:
        assert "hunter2" not in str(refused)
        assert "percent-encoded" in str(refused)
        assert refused.__context__ is None  # nor does a logged chain show libpq's message


@pytest.mark.parametrize("dsn", ["postgresql://app:hunter2", "postgresql://app:hunter2/shop"])
def test_a_dsn_without_a_host_is_refused_and_not_shown(dsn: str) -> None:
    with pytest.raises(ValueError, match="DATABASE_URL") as caught:
        PoolConfig(dsn)
    assert "hunter2" not in str(caught.value)


def test_several_hosts_each_with_a_port_are_accepted() -> None:
    assert "port=5432,5433" in repr(PoolConfig("postgresql://app@a:5432,b:5433/shop"))


def test_libpq_repeats_a_malformed_dsn_with_its_password() -> None:
    with pytest.raises(psycopg.ProgrammingError, match="hunter2"):
        conninfo_to_dict("postgresql+psycopg://app:hunter2@db.example/shop")


@pytest.mark.parametrize(
    ("connections", "reserved", "processes", "size"), [(100, 10, 8, 11), (10, 2, 8, 1), (10, 0, 3, 3)]
)
def test_the_size_of_a_pool_is_its_share_of_the_server(
    connections: int, reserved: int, processes: int, size: int
) -> None:
    assert pool_size_for(connections, reserved, processes) == size


@pytest.mark.parametrize("numbers", [(100, 93, 8), (10, 20, 1)])
def test_too_many_processes_for_the_server_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"too few for {numbers[2]} processes"):
        pool_size_for(*numbers)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((10, 3, 0), "processes must be a whole number of at least 1, got 0"),
        ((10, 3, -1), "processes must be a whole number of at least 1, got -1"),
        ((10, 3, 1.5), "processes must be a whole number of at least 1, got 1.5"),
        ((10, -1, 1), "reserved must be a whole number of at least 0, got -1"),
        ((math.nan, 0, 1), "max_connections must be a whole number of at least 0, got nan"),
        ((True, 0, 1), "max_connections must be a whole number of at least 0, got True"),
    ],
)
def test_numbers_of_processes_and_connections_are_whole(numbers: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        pool_size_for(*numbers)
    assert pool_size_for(1, 0, 1) == 1


def test_a_server_whose_connections_are_all_reserved_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"0 connections, 0 of them reserved.*put PgBouncer in between"):
        pool_size_for(0, 0, 1)


def test_a_vanished_server_is_noticed_by_keepalives_that_the_dsn_may_change() -> None:
    config = PoolConfig("host=h keepalives_idle=7 options='-c search_path=shop'", connect_timeout=3)
    given = conninfo_to_dict(config.conninfo())
    assert {k: str(v) for k, v in given.items() if k not in ("host", "application_name")} == {
        "keepalives_idle": "7",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "60000",
        "connect_timeout": "3",
        "options": "-c search_path=shop -c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000",
    }
    assert conninfo_to_dict(PoolConfig("host=h").conninfo())["keepalives_idle"] == "30"


def test_numbers_that_psycopg_pool_does_not_give_are_zero() -> None:
    assert PoolStats.of({}) == PoolStats(size=0, max_size=0, idle=0, waiting=0)
    found = {"pool_size": 4, "pool_max": 9, "pool_available": 3, "requests_waiting": 2, "more": 7}
    assert PoolStats.of(found) == PoolStats(size=4, max_size=9, idle=3, waiting=2)
