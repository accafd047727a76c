"""Proves docs/patterns/security/security-headers.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from cors_middleware import wrap

app = wrap(FastAPI())  # import yours instead


@pytest.mark.parametrize("path", ["/", "/nowhere", "/docs"])
def test_my_application_sends_the_headers_and_opens_nothing(path: str) -> None:
    client = TestClient(app, raise_server_exceptions=False)
    answer = client.get(path, headers={"Origin": "https://evil.example"})
    assert "default-src" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert "origin" in answer.headers["vary"].lower()


# --8<-- [end:own]
