"""The launchers: real servers that answer, die on command, and never outlive the tests."""

from __future__ import annotations

import asyncio
import os
import signal
import smtplib
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from servers.faults import FaultProxy
from servers.http import Uvicorn, UvicornProcess
from servers.postgres import Postgres
from servers.smtp import Smtp
from servers.valkey import Valkey


def test_every_test_gets_an_empty_postgres_database(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        assert connection.execute(
            "select count(*) from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
        ).fetchone() == (0,)


def test_every_test_gets_an_empty_valkey(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")
