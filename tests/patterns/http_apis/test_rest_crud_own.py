"""Proves docs/patterns/http-apis/rest-crud.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from fastapi.testclient import TestClient

from rest_crud.api import create_app
from rest_crud.store_async import AsyncItemStore
from rest_crud.store_sync import ItemStore


def test_two_editors_of_one_item_cannot_overwrite_each_other(database_url: str) -> None:
    with ItemStore(database_url) as tables:
        tables.create_table()
    with TestClient(create_app(AsyncItemStore(database_url))) as client:
        body = {"owner_email": "ada@example.com", "name": "Engine", "password": "correct horse battery"}
        created = client.post("/items", json=body)
        path, read = created.headers["Location"], {"If-Match": created.headers["ETag"]}
        merge = read | {"Content-Type": "application/merge-patch+json"}
        assert client.patch(path, json={"name": "First"}, headers=merge).status_code == 200
        assert client.patch(path, json={"name": "Second"}, headers=merge).status_code == 412
        assert client.delete(path, headers=read).status_code == 412
        assert client.get(path).json()["name"] == "First"


# --8<-- [end:own]
