"""What stands in for a reader's own code in the tests that these pages give away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # each fixture imports what it needs: no other proof loads it
    from fastapi import FastAPI

    from token_manager_sync import TokenStore


@pytest.fixture
def app(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """An application with log-ins, its sessions in a Redis for tests."""
    from patterns.authentication.sessions_app import create_app

    monkeypatch.setenv("REDIS_URL", f"{valkey_url}?socket_timeout=5")
    return create_app()


@pytest.fixture
def my_store(tmp_path: Path) -> TokenStore:
    """A store for threads that holds one token set."""
    from patterns.authentication.token_refresh_kit import Store
    from token_manager_core import TokenSet

    return Store(tmp_path / "mine.db", TokenSet("first", "r", None))
