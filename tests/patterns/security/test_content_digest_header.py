"""Proves docs/patterns/security/content-digest.md: the header of RFC 9530, and JSON that is the same everywhere."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from canonical_json import canonical_json
from content_digest import Digest, UnsupportedAlgorithm, digest_bytes
from content_digest_header import BadHeader, DigestMismatch, check, make_header, strongest
from harness.depth import examples
from patterns.security.content_digest_kit import node

BODY = b'{"hello": "world"}\n'
# RFC 9530, appendix B: the same body in its examples.
HEADER_256 = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:"


def test_the_header_is_the_one_of_the_standards_example() -> None:
    assert make_header(digest_bytes(BODY)) == HEADER_256
    check(HEADER_256, BODY)


def test_a_header_of_several_digests_is_checked_by_the_strongest() -> None:
    strong, weak = digest_bytes(BODY, "SHA-512"), digest_bytes(BODY, "SHA-256")
    for header in (make_header(weak, strong), make_header(strong, weak)):
        assert strongest(header) == strong
        check(header, BODY)
    wrong = Digest("SHA-512", bytes(64))
    with pytest.raises(DigestMismatch, match="SHA-512"):
        check(make_header(weak, wrong), BODY)


def test_unknown_algorithms_are_ignored_md5_and_sha1_among_them() -> None:
    check(f"md5=:AAAA:, sha=:AAAA:,\tblake3=:AA==:;note=1 , {HEADER_256}", BODY)
    assert strongest("md5=:AAAA:") is None


@pytest.mark.parametrize("header", [None, "", "md5=:AAAA:", "sha-384=:AAAA:"])
def test_without_a_known_digest_a_required_check_is_refused(header: str | None) -> None:
    with pytest.raises(BadHeader, match="or is missing"):
        check(header, BODY)
    check(header, b"whatever", required=False)


@pytest.mark.parametrize(
    "header",
    [
        " ",
        "sha-256",
        "sha-256=RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=",
        "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg:",
        "sha-256=:RK_0qy18MlBSVnWgjwz6lZEWjP_lF5HF9bvEF8FabDg=:",
        "sha-256=:=:",
        "sha-256=:AAAA:",
        f"{HEADER_256}, {HEADER_256}",
        f"md5=:AAAA:, {HEADER_256}, md5=:AAAA:",
        f"{HEADER_256},",
        f",{HEADER_256}",
        f"{HEADER_256} x",
        HEADER_256.upper(),
        HEADER_256 + "\n",
        "sha-256=::",
        "é=:AAAA:",
        f"unknown=1, {HEADER_256}",
    ],
)
def test_a_malformed_header_is_refused_even_where_none_is_required(header: str) -> None:
    with pytest.raises(BadHeader) as refused:
        check(header, BODY, required=False)
    assert "RK" not in str(refused.value)


@given(st.text(alphabet="sha-2561md=:;, AQ/+\"'\u00e9", max_size=60))
@settings(max_examples=examples(100))
def test_whatever_the_header_holds_it_is_refused_or_the_body_differs(header: str) -> None:
    with pytest.raises((BadHeader, DigestMismatch)):
        check(header, BODY)


def test_one_flipped_bit_of_the_body_is_noticed() -> None:
    for at in range(len(BODY)):
        with pytest.raises(DigestMismatch):
            check(HEADER_256, BODY[:at] + bytes([BODY[at] ^ 1]) + BODY[at + 1 :])


def test_only_algorithms_of_the_standard_go_into_a_header() -> None:
    for other in (digest_bytes(BODY, "SHA-384"), digest_bytes(BODY, "SHA-1", allow_sha1=True)):
        with pytest.raises(UnsupportedAlgorithm):
            make_header(digest_bytes(BODY), other)
    value = make_header(digest_bytes(BODY, "SHA-512"))
    assert value == f"sha-512=:{base64.b64encode(digest_bytes(BODY, 'SHA-512').value).decode()}:"


# Canonical JSON.

SHOWN: list[tuple[Any, str]] = [
    ({"b": 1, "a": "é"}, '{"a":"é","b":1}'),
    ([True, False, None, [], {}], "[true,false,null,[],{}]"),
    ((-(2**53 - 1), 2**53 - 1, 0), "[-9007199254740991,9007199254740991,0]"),
    ('"\\/\b\f\n\r\t\x00\x1f\x7f\u2028', '"\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\x7f\u2028"'),
    # By UTF-16 code units an emoji comes before U+E000: by code points it would come after.
    ({"\ue000": 1, "😀": 2, "a": 3, "": 4}, '{"":4,"a":3,"😀":2,"\ue000":1}'),
    ({"z": [{"y": 1, "x": {"w": 2, "v": 3}}]}, '{"z":[{"x":{"v":3,"w":2},"y":1}]}'),
]


@pytest.mark.parametrize(("value", "text"), SHOWN)
def test_canonical_json_is_sorted_short_and_not_escaped(value: Any, text: str) -> None:
    assert canonical_json(value) == text.encode()
    assert canonical_json(value) == rfc8785.dumps(value)


def test_node_writes_sorted_objects_the_same_way() -> None:
    texts = [json.dumps(value) for value, _ in SHOWN]
    assert [text.encode() for text in node(sorted=texts)["sorted"]] == [canonical_json(value) for value, _ in SHOWN]


def test_naive_json_dumps_writes_other_bytes_than_javascript() -> None:
    texts = ['{"b":1}', '"\u00e9"', "1.0", "-0.0", "1e21"]
    javascript = node(plain=texts)["plain"]
    naive = [json.dumps(json.loads(text)) for text in texts]
    assert javascript == ['{"b":1}', '"é"', "1", "0", "1e+21"]
    assert naive == ['{"b": 1}', '"\\u00e9"', "1.0", "-0.0", "1e+21"]
    assert canonical_json({"b": 1}) == b'{"b":1}'
    assert canonical_json("é").decode() == javascript[1]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1.0, "float has no canonical form here: send an integer"),
        (-0.0, "float"),
        (float("nan"), "float"),
        (float("inf"), "float"),
        ([{"a": 0.1}], "float"),
        (2**53, "beyond"),
        ({"a": -(2**53)}, "beyond"),
        ("a\ud800b", "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({1: 2}, "name"),
        ({None: 2, "a": 1}, "name"),
        (b"bytes", "bytes has no canonical form here$"),
        ({1, 2}, "set"),
    ],
)
def test_what_has_no_single_form_is_an_error(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        canonical_json(value)


def test_a_value_that_is_too_deep_or_holds_itself_is_an_error() -> None:
    circle: list[Any] = []
    circle.append(circle)
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (circle, deep):
        with pytest.raises(ValueError, match="too deep"):
            canonical_json(value)
    while isinstance(deep, list):  # taken apart by hand: Python frees a nest this deep by recursion
        deep = deep.pop()


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53 - 1), 2**53 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(_values)
@settings(max_examples=examples(40), deadline=None)
def test_canonical_json_equals_the_reference_library_and_reads_back(value: Any) -> None:
    written = canonical_json(value)
    assert written == rfc8785.dumps(value)
    assert json.loads(written) == value
