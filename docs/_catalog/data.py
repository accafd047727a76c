"""The catalogue for machines: `patterns.json` and its JSON Schema."""

from __future__ import annotations

from typing import Any

from _catalog.badges import verdict
from _catalog.model import Catalog, Meta, Pattern


def machine_readable(catalog: Catalog, base: str) -> dict[str, Any]:
    """Return the catalogue as `patterns.json` publishes it; `base` is the site's absolute address, or empty."""
    return {
        "$schema": f"{base}patterns.schema.json",
        "patterns": [_entry(pattern, base) for pattern in catalog.patterns],
    }


def _entry(pattern: Pattern, base: str) -> dict[str, Any]:
    return {
        "id": pattern.id,
        "category": pattern.category,
        "url": base + pattern.url,
        "markdown": base + pattern.markdown,
        **pattern.meta.model_dump(mode="json"),
        "works_with": list(pattern.colors),
        "modules": [base + module for module in pattern.modules],
        "requires": [{"name": d.name, "requirement": d.requirement, "tested": d.locked} for d in pattern.requires],
        "proofs": [proof.sentence for proof in pattern.proofs],
        "verified": verdict(pattern.verified),
    }


def schema(base: str) -> dict[str, Any]:
    """Return the JSON Schema of `patterns.json`."""
    meta = Meta.model_json_schema()
    definitions = meta.pop("$defs", {})
    text: dict[str, Any] = {"type": "string"}
    texts = {"type": "array", "items": text}
    distribution = {
        "type": "object",
        "properties": dict.fromkeys(("name", "requirement", "tested"), text),
        "required": ["name", "requirement", "tested"],
        "additionalProperties": False,
    }
    derived = {
        "id": text,
        "category": text,
        "url": text,
        "markdown": text,
        "works_with": {"type": "array", "items": {"enum": ["async", "sync"]}},
        "modules": texts,
        "requires": {"type": "array", "items": distribution},
        "proofs": texts,
        "verified": text,
    }
    pattern = {
        "type": "object",
        "properties": {**meta["properties"], **derived},
        "required": [*meta["required"], *derived],
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{base}patterns.schema.json",
        "title": "Proven Patterns: the catalogue",
        "type": "object",
        "properties": {"$schema": text, "patterns": {"type": "array", "items": pattern}},
        "required": ["patterns"],
        "additionalProperties": False,
        "$defs": definitions,
    }
