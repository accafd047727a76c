"""Small objects decoded and validated: this module, pydantic alone, msgspec."""

from __future__ import annotations

import json

import msgspec

from bench.kit import Table, compare, ratio_table, version
from strict_models import StrictModel, parse_json


class Order(StrictModel):
    """What both read."""

    id: int
    customer: str
    total: float
    paid: bool
    lines: list[str]


class OrderStruct(msgspec.Struct, forbid_unknown_fields=True):  # type: ignore[call-arg]
    """The same for msgspec."""

    id: int
    customer: str
    total: float
    paid: bool
    lines: list[str]


def tables() -> list[Table]:
    """Time 10,000 objects of about 100 bytes, one after the other."""
    bodies = [
        json.dumps({"id": n, "customer": f"c-{n}", "total": n / 4, "paid": n % 2 == 0, "lines": ["a", "b"]}).encode()
        for n in range(10_000)
    ]
    decoder = msgspec.json.Decoder(OrderStruct)

    def ours() -> object:
        return [parse_json(body, Order) for body in bodies]

    def pydantic_alone() -> object:
        return [Order.model_validate_json(body) for body in bodies]

    def theirs() -> object:
        return [decoder.decode(body) for body in bodies]

    seconds = compare(
        {"this module": ours, version("pydantic"): pydantic_alone, version("msgspec"): theirs},
        calls=1,
        rounds=9,
        per_call=10_000,
    )
    return [
        ratio_table(
            "decode",
            seconds,
            base="this module",
            note="10,000 JSON objects of about 80 bytes with five fields, decoded and validated one by one. Only this "
            "module also bounds the depth and refuses duplicate keys.",
        )
    ]
