"""Proves docs/patterns/security/ssrf-guard.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import socket

import pytest

from ssrf_guard_core import AddressRefused, Policy
from ssrf_guard_sync import fetch, guarded_client


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_my_fetcher_does_not_reach_a_server_of_mine(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mine:
        mine.setblocking(False)
        port = mine.getsockname()[1]
        policy = Policy(schemes=("http",), ports=(port,))  # yours, with the port allowed
        with guarded_client(policy) as client, pytest.raises(AddressRefused):
            fetch(client, f"http://{host}:{port}/")
        with pytest.raises(BlockingIOError):  # nobody knocked
            mine.accept()


# --8<-- [end:own]
