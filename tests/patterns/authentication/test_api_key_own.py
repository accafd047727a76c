"""Proves docs/patterns/authentication/api-key.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import time

from fastapi import Depends, FastAPI
from starlette.testclient import TestClient

from api_key_guard import require_api_key
from api_keys import KeyRecord, issue


class OneKey:
    """Your store in your test: one record."""

    def __init__(self, record: KeyRecord) -> None:
        self.record = record

    async def get(self, key_id: str) -> KeyRecord | None:
        return self.record if key_id == self.record.key_id else None

    async def touch(self, key_id: str, at: float) -> None: ...


def test_my_route_wants_a_key_with_its_scope() -> None:
    issued = issue("ada", {"reports:read"}, brand="acme", expires_at=time.time() + 60)
    store, app = OneKey(issued.record), FastAPI()

    @app.get("/reports", dependencies=[Depends(require_api_key(store, "reports:read"))])
    def reports() -> list[str]:
        return ["March"]

    @app.delete("/reports", dependencies=[Depends(require_api_key(store, "reports:write"))])
    def clear() -> None: ...

    client = TestClient(app)
    headers = {"Authorization": f"Bearer {issued.plaintext}"}
    assert client.get("/reports", headers=headers).json() == ["March"]
    assert client.delete("/reports", headers=headers).status_code == 403
    assert client.get("/reports").status_code == 401


# --8<-- [end:own]
