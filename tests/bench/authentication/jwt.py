"""Issue and verify: the modules against joserfc, with Ed25519 and with HMAC."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from joserfc import jwt as peer
from joserfc.jwk import OctKey, OKPKey

from bench.kit import Table, compare, version
from jwt_keys import KeyRing, SigningKey
from jwt_tokens import Issuer, Verifier

ISSUER, AUDIENCE = "https://auth.example", "https://api.example"


def _subjects(algorithm: str) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """Return the two ways to issue, and the two ways to verify."""
    shared = secrets.token_bytes(32)
    key = SigningKey("k", "HS256", shared) if algorithm == "HS256" else SigningKey.generate("k")
    ring = KeyRing("k", [key])
    issuer, verifier = Issuer(ring, ISSUER, AUDIENCE), Verifier(ring, ISSUER, AUDIENCE)
    theirs: Any = OctKey.import_key(shared) if algorithm == "HS256" else OKPKey.generate_key("Ed25519")
    essential: Any = {name: {"essential": True} for name in ("exp", "iat", "sub", "jti")}
    essential |= {"iss": {"essential": True, "value": ISSUER}, "aud": {"essential": True, "value": AUDIENCE}}
    registry = peer.JWTClaimsRegistry(leeway=30, **essential)

    def issue() -> str:
        return issuer.issue("ada", scopes=["read"])

    def peer_issue() -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 900}
        claims |= {"jti": secrets.token_urlsafe(16), "scope": "read"}
        return peer.encode({"alg": algorithm, "typ": "at+jwt", "kid": "k"}, claims, theirs, algorithms=[algorithm])

    ours_token, their_token = issue(), peer_issue()

    def verify() -> object:
        return verifier.verify(ours_token)

    def peer_verify() -> object:
        token = peer.decode(their_token, theirs, algorithms=[algorithm])
        if token.header.get("typ") != "at+jwt":
            raise ValueError("another type")
        registry.validate(token.claims)
        return token

    name = version("joserfc")
    return {"these modules": issue, name: peer_issue}, {"these modules": verify, name: peer_verify}


def tables() -> list[Table]:
    """Measure both algorithms."""
    columns, seconds = ["", "EdDSA, issue", "EdDSA, verify", "HS256, issue", "HS256, verify"], []
    for algorithm in ("EdDSA", "HS256"):
        seconds += [compare(subjects, calls=500, rounds=9) for subjects in _subjects(algorithm)]
    rows = []
    for name in seconds[0]:
        cells = [f"{s[name] * 1e6:.0f} µs ({s[name] / s['these modules']:.2f} ×)" for s in seconds]
        rows.append([name, *cells])
    note = "One core. The same claims, required and checked by both; in brackets, as a multiple of these modules' time."
    return [Table(name="issue-verify", columns=columns, rows=rows, note=note)]
