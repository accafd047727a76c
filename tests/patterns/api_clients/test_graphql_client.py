"""Proves docs/patterns/api-clients/graphql-client.md: what an answer means, and how pages end."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import httpx2
import pytest

from graphql_result import (
    GraphQLClientError,
    GraphQLErrorItem,
    GraphQLPaginationLoop,
    GraphQLPartialError,
    GraphQLRequestError,
    GraphQLResult,
    GraphQLTransportError,
    parse,
)
from harness.color import Blocking, Color
from harness.tls import NOBODY
from patterns.api_clients import graphql_client_kit as kit
from patterns.api_clients.graphql_client_kit import (
    DOUBLE,
    GRAPHQL_JSON,
    HTML,
    ISSUES,
    JSON,
    PING,
    PLAIN,
    USER,
    Core,
    answering,
    answering_call,
    client_of,
    failure,
    reply,
)

# Fixtures.
core, url, strawberry_url, client = kit.core, kit.url, kit.strawberry_url, kit.client


# --- What an answer means -------------------------------------------------------------------------


def test_data_with_an_error_is_returned_or_raised_and_the_error_carries_the_data(color: Color, url: str) -> None:
    client = client_of(color, url)
    result = client.execute(USER, {"id": "1"}, partial="return")
    assert result.data == {"user": {"id": "1", "email": None}}
    assert [(item.path, item.message) for item in result.errors] == [
        (("user", "email"), "no mailbox for ada@example.com")
    ]
    error = failure(lambda: client.execute(USER, {"id": "1"}), GraphQLPartialError)
    assert (error.data, error.errors, error.retryable) == (result.data, result.errors, False)


def test_null_data_with_a_path_means_that_it_was_executed(color: Color, url: str) -> None:
    for partial in ("raise", "return"):
        error = failure(
            lambda mode=partial: client_of(color, url).execute("{ must { id } }", partial=mode), GraphQLPartialError
        )
        assert (error.data, error.errors[0].path is not None) == (None, True)


def test_an_integer_that_is_too_large_is_a_request_error_as_nothing_was_executed(
    color: Color, url: str, core: Core
) -> None:
    client = client_of(color, url)
    assert client.execute(DOUBLE, {"number": 2**30 - 1}).data == {"double": 2**31 - 2}
    error = failure(lambda: client.execute(DOUBLE, {"number": 2**31}), GraphQLRequestError)
    assert [item.path for item in error.errors] == [None]
    assert not error.retryable
    naive = httpx2.post(url, json={"query": DOUBLE, "variables": {"number": 2**31}}, verify=NOBODY)
    # Naive: errors under status 200 are a partial answer. Here one server says 200, and there is no data at all.
    assert (naive.status_code, naive.json().get("data")) == (400 if url.startswith(core.url) else 200, None)


def test_a_document_that_is_refused_is_a_request_error(color: Color, url: str) -> None:
    for document in ("{ nothing }", "{ user(", DOUBLE):
        error = failure(lambda text=document: client_of(color, url).execute(text), GraphQLRequestError)
        assert error.errors
        assert error.data is None


def test_a_400_of_a_graphql_server_is_read_and_raise_for_status_loses_its_errors(client: Blocking, core: Core) -> None:
    error = failure(lambda: client.execute("{ nothing }"), GraphQLRequestError)
    assert (error.status, error.errors[0].message) == (400, "Cannot query field 'nothing' on type 'Query'.")
    naive = httpx2.post(core.url, json={"query": "{ nothing }"}, verify=NOBODY)
    with pytest.raises(httpx2.HTTPStatusError) as thrown:
        naive.raise_for_status()
    assert "nothing" not in str(thrown.value)


def test_partial_success_in_status_294_is_a_success(client: Blocking, core: Core) -> None:
    naive = httpx2.post(core.url, json={"query": USER, "variables": {"id": "1"}}, verify=NOBODY)
    assert naive.status_code == 294
    assert client.execute(USER, {"id": "1"}, partial="return").data == {"user": {"id": "1", "email": None}}
    assert failure(lambda: client.execute(USER, {"id": "1"}), GraphQLPartialError).status == 294


@pytest.mark.parametrize("status", [199, 300, 400, 500])
def test_with_another_status_only_the_newer_media_type_is_believed(status: int) -> None:
    body = b'{"errors": [{"message": "no"}]}'
    assert len(parse(status, "Application/GraphQL-Response+JSON ; charset=utf-8", body).errors) == 1
    with pytest.raises(ValueError, match="no GraphQL answer"):
        parse(status, JSON, body)
    for success in (200, 294, 299):
        assert len(parse(success, JSON, body).errors) == 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{}", "neither data nor errors"),
        (b"[]", "neither data nor errors"),
        (b'{"data": null}', "neither data nor errors"),
        (b'{"data": null, "errors": []}', "neither data nor errors"),
        (b'{"errors": null}', "neither data nor errors"),
        (b'{"data": {}, "errors": {"message": "no list"}}', "malformed data or errors"),
        (b'{"data": {}, "errors": ""}', "malformed data or errors"),
        (b'{"data": {}, "errors": ["no object"]}', "malformed data or errors"),
        (b'{"data": [1]}', "malformed data or errors"),
        (b'{"data": {"user": {"id"', "not JSON, or ambiguous"),
        (b'{"data": {"a": 1}, "errors": [{"message": "no"}], "errors": []}', "not JSON, or ambiguous"),
        (b'{"data": {"a": NaN}}', "not JSON, or ambiguous"),
        (b'{"data": {"a": "\xff"}}', "not JSON, or ambiguous"),
        (b"[" * 100_000, "not JSON, or ambiguous"),
        (b"", "not JSON, or ambiguous"),
        (b"<html>sign in</html>", "not JSON, or ambiguous"),
    ],
)
def test_a_success_that_is_no_graphql_answer_is_a_transport_error(
    client: Blocking, core: Core, body: bytes, why: str
) -> None:
    core.script(reply(body, kind=JSON))
    error = failure(lambda: client.execute(PING), GraphQLTransportError)
    assert str(error) == f"{core.url.removesuffix('/graphql')}: status 200, {why}"
    assert (error.status, error.excerpt, error.retryable) == (200, body[:200], False)
    assert error.__cause__ is None


def test_duplicate_keys_could_hide_errors_from_an_ordinary_parser() -> None:
    body = b'{"data": {"a": 1}, "errors": [{"message": "no"}], "errors": []}'
    assert json.loads(body)["errors"] == []
    with pytest.raises(ValueError, match="ambiguous"):
        parse(200, JSON, body)


def test_a_502_with_html_is_a_transport_error_with_its_status_and_its_beginning(client: Blocking, core: Core) -> None:
    page = b"<html>" + b"x" * 300
    core.script(*[reply(page, status=502, kind=HTML)] * 3)
    error = failure(lambda: client.execute(PLAIN, {"id": "1"}), GraphQLTransportError)
    assert (error.status, error.excerpt, error.retryable) == (502, page[:200], True)
    assert str(error).endswith(": status 502, no GraphQL answer")


def test_an_empty_list_of_errors_is_no_error(color: Color) -> None:
    empty: tuple[Any, ...] = ([], None)
    for errors in empty:
        result = answering(color, {"data": {"a": 1}, "errors": errors, "extensions": {"cost": 3}}).execute(PING)
        assert result == GraphQLResult({"a": 1}, (), {"cost": 3})


def test_what_a_server_leaves_out_or_gets_wrong_in_an_error_is_none(color: Color) -> None:
    odd = [
        {},
        {"message": 7, "path": "user", "extensions": []},
        {"message": "m", "path": [], "extensions": {"code": 9}},
    ]
    error = failure(answering_call(color, {"errors": odd, "extensions": 5}), GraphQLRequestError)
    assert error.errors == (
        GraphQLErrorItem(""),
        GraphQLErrorItem(""),
        GraphQLErrorItem("m", (), None, {"code": 9}),
    )
    assert error.extensions == {}
    assert GraphQLResult({}) == GraphQLResult({}, (), {})


# --- What an error says ---------------------------------------------------------------------------


def test_the_words_of_the_server_are_in_no_text_and_the_naive_error_logs_variables(
    client: Blocking, core: Core
) -> None:
    secret = "4111-1111-1111-1111"
    answer = httpx2.post(core.url, json={"query": DOUBLE, "variables": {"number": secret}}, verify=NOBODY).json()
    with pytest.raises(Exception, match=secret):
        raise Exception(answer["errors"])
    error = failure(lambda: client.execute(DOUBLE, {"number": secret}), GraphQLRequestError)
    assert secret in error.errors[0].message
    assert secret not in str(error) + repr(error) + repr(error.errors)
    assert str(error) == f"{core.url.removesuffix('/graphql')}: 1 error"


def test_raising_on_any_error_drops_the_data_that_is_good(client: Blocking, core: Core) -> None:
    def naive() -> Any:
        answer = httpx2.post(core.url, json={"query": USER, "variables": {"id": "1"}}, verify=NOBODY).json()
        if "errors" in answer:
            raise RuntimeError(answer["errors"])
        return answer["data"]

    with pytest.raises(RuntimeError, match="no mailbox for ada") as dropped:
        naive()
    assert not hasattr(dropped.value, "data")
    error = failure(lambda: client.execute(USER, {"id": "1"}), GraphQLPartialError)
    assert error.data == {"user": {"id": "1", "email": None}}


def test_what_an_answer_says_beside_its_errors_is_kept_and_pathless_data_is_partial(
    color: Color,
) -> None:
    item = {"message": "m", "extensions": {"argument": "a secret"}}
    answer = {"data": {"a": 1}, "errors": [item, item], "extensions": {"cost": 3}}
    error = failure(answering_call(color, answer), GraphQLPartialError)
    assert (error.data, error.extensions, error.status) == ({"a": 1}, {"cost": 3}, 200)
    assert str(error) == "https://api.test: 2 errors"
    assert error.errors[0].extensions == {"argument": "a secret"}
    assert "secret" not in repr(error.errors)
    result = answering(color, answer).execute(PING, partial="return")
    assert (result.errors, result.extensions) == (error.errors, {"cost": 3})
    for each in (result, result.errors[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            each.extensions = {}


def test_the_text_counts_the_errors_and_has_the_codes_that_look_like_codes(color: Color) -> None:
    codes = ["FORBIDDEN", "B_C", "A", "a secret", "D" * 40, "E" * 41, "FORBIDDEN", "", None]
    errors = [{"message": "m", "extensions": {"code": code}} for code in codes]
    error = failure(answering_call(color, {"errors": errors}), GraphQLRequestError)
    assert str(error) == f"https://api.test: 9 errors, A, B_C, {'D' * 40}"
    assert [item.code for item in error.errors] == codes
    one = failure(answering_call(color, {"errors": errors[:1]}), GraphQLRequestError)
    assert str(one) == "https://api.test: 1 error, FORBIDDEN"


def test_ten_megabytes_of_error_message_are_cut(client: Blocking, core: Core) -> None:
    core.script(reply({"errors": [{"message": "x" * 10_000_000}]}, status=400))
    error = failure(lambda: client.execute(PING), GraphQLRequestError)
    assert (error.errors[0].message, len(str(error)) < 100) == ("x" * 1000, True)


def test_an_error_survives_pickling() -> None:
    item = GraphQLErrorItem("m", ("a", 1), "C", {"k": 1})
    error = GraphQLPartialError("t", status=294, data={"a": 1}, errors=[item], extensions={"x": 1}, retry_after=2.0)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == ("t", vars(error))
    assert vars(GraphQLClientError("t")) == {
        "status": None,
        "data": None,
        "errors": (),
        "extensions": {},
        "retryable": False,
        "retry_after": None,
        "excerpt": b"",
    }


# --- Pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["nodes { number }", "edges { node { number } }"])
def test_pages_are_requested_as_their_items_are_used_up(client: Blocking, core: Core, shape: str) -> None:
    document = ISSUES.replace("nodes { number }", shape)
    variables = {"after": None}
    pages = client.paginate(document, variables, connection=("issues",))
    assert core.seen == []
    for number, requests in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)):
        assert (next(pages)["number"], len(core.seen)) == (number, requests)
    assert list(pages) == []
    assert [seen["variables"]["after"] for seen in core.seen] == [None, "c1", "c2"]
    assert variables == {"after": None}


def test_pages_begin_at_the_cursor_of_the_variables_and_name_their_operation(client: Blocking, core: Core) -> None:
    document = ISSUES.replace("$after", "$from") + PLAIN
    pages = client.paginate(document, {"from": "c2"}, connection=("issues",), cursor="from", operation_name="I")
    assert [node["number"] for node in pages] == [5, 6]
    assert [seen["operationName"] for seen in core.seen] == ["I"]


@pytest.mark.parametrize("cursors", [["c1", "c1", None], ["c1", "c2", "c1"]])
def test_a_cursor_that_comes_back_ends_the_pages_where_the_naive_loop_never_ends(
    client: Blocking, core: Core, cursors: list[str | None]
) -> None:
    core.cursors = cursors
    after, naive = None, 0
    while naive < 10:
        answer = httpx2.post(core.url, json={"query": ISSUES, "variables": {"after": after}}, verify=NOBODY).json()
        naive += 1
        info = answer["data"]["issues"]["pageInfo"]
        if not info["hasNextPage"]:
            break
        after = info["endCursor"]
    assert naive == 10
    core.server.seen.clear()
    pages = len({cursor for cursor in cursors if cursor}) + 1
    nodes = client.paginate(ISSUES, connection=("issues",))
    assert [next(nodes)["number"] for _ in range(pages * 2)] == list(range(1, pages * 2 + 1))
    with pytest.raises(GraphQLPaginationLoop, match="the cursor of the next page was used before"):
        next(nodes)
    assert len(core.seen) == pages


def test_a_next_page_without_a_cursor_or_at_the_first_one_is_a_loop(color: Color) -> None:
    for cursor in (None, "c0"):
        info = {"hasNextPage": True, "endCursor": cursor}
        client = answering(color, {"data": {"a": {"nodes": [1], "pageInfo": info}}})
        pages = client.paginate(PING, {"after": "c0"}, connection=["a"])
        assert next(pages) == 1
        with pytest.raises(GraphQLPaginationLoop):
            next(pages)


def test_a_null_connection_has_no_items_and_one_not_asked_for_is_a_key_error(color: Color) -> None:
    client = answering(color, {"data": {"repo": None}}, {"data": {"repo": {"issues": None}}}, {"data": {"repo": {}}})
    for _ in range(2):
        assert list(client.paginate(PING, connection=("repo", "issues"))) == []
    with pytest.raises(KeyError, match="issues"):
        list(client.paginate(PING, connection=("repo", "issues")))


def test_an_error_on_a_later_page_comes_after_the_items_before_it(client: Blocking, core: Core) -> None:
    pages = client.paginate(ISSUES, connection=("issues",))
    assert next(pages)["number"] == 1
    core.script(reply({"data": None, "errors": [{"message": "m", "path": ["issues"]}]}, kind=GRAPHQL_JSON))
    assert next(pages)["number"] == 2
    with pytest.raises(GraphQLPartialError):
        next(pages)
