"""Proves docs/patterns/api-clients/graphql-client.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import httpx2
import pytest

from graphql_client_async import AsyncGraphQLClient
from graphql_result import GraphQLPartialError

PROFILE = "query Profile($id: ID!) { user(id: $id) { name avatar } }"


async def name_of(api: AsyncGraphQLClient, user: str) -> str:  # your code: a face is nice to have
    try:
        result = await api.execute(PROFILE, {"id": user})
    except GraphQLPartialError as error:
        if not error.data or any(item.path != ("user", "avatar") for item in error.errors):
            raise
        return str(error.data["user"]["name"])
    return str(result.data["user"]["name"])


async def test_a_profile_without_its_picture_is_still_a_profile() -> None:
    answers = [
        {"data": {"user": {"name": "Ada", "avatar": None}}, "errors": [{"message": "S3", "path": ["user", "avatar"]}]},
        {"data": {"user": None}, "errors": [{"message": "gone", "path": ["user"]}]},
    ]
    theirs = httpx2.MockTransport(lambda request: httpx2.Response(200, json=answers.pop(0)))
    async with httpx2.AsyncClient(transport=theirs) as http:
        api = AsyncGraphQLClient("https://api.test/graphql", http=http)
        assert await name_of(api, "7") == "Ada"
        with pytest.raises(GraphQLPartialError):
            await name_of(api, "8")


# --8<-- [end:own]
