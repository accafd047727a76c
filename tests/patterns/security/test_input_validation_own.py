"""Proves docs/patterns/security/input-validation.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient

from problem_handler import install, json_body
from strict_models import StrictModel
from text_rules import Name


class Login(StrictModel):
    user: Name
    password: SecretStr
    age: int = 0


app = FastAPI()  # import yours instead
install(app)


@app.post("/logins")
async def login(wanted: Annotated[Login, Depends(json_body(Login))]) -> dict[str, str]:
    return {"user": wanted.user}


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"is_admin": True}, "/is_admin"),
        ({"age": True}, "/age"),
        ({"user": "\u200b"}, "/user"),
        ({"age": None}, "/age"),
    ],
)
def test_my_route_names_the_field_and_repeats_no_value(change: dict[str, object], pointer: str) -> None:
    sent = {"user": "Ann", "password": "correct horse", "age": 7}
    with TestClient(app) as client:
        assert client.post("/logins", json=sent).status_code == 200
        answer = client.post("/logins", json=sent | change)
    assert answer.status_code == 422
    assert [e["pointer"] for e in answer.json()["errors"]] == [pointer]
    assert "correct horse" not in answer.text


# --8<-- [end:own]
