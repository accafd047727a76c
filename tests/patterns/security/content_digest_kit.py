"""Node.js as the browser's side, and the forgery that a hash without HMAC allows."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from typing import Any

import pytest

_NODE = shutil.which("node")

# It reads {name: argument} and answers {name: result}. `crypto.subtle` and TextEncoder are the browser's own API.
_SCRIPT = r"""
const hex = (buffer) => Buffer.from(buffer).toString("hex")
const sorted = (value) => Array.isArray(value) ? value.map(sorted)
  : value && typeof value === "object"
    ? Object.fromEntries(Object.keys(value).sort().map((name) => [name, sorted(value[name])])) : value
const jobs = {
  texts: (list) => Promise.all(list.map(async ([algorithm, units]) =>
    hex(await crypto.subtle.digest(algorithm, new TextEncoder().encode(String.fromCharCode(...units)))))),
  refused: (list) => Promise.all(list.map((algorithm) =>
    crypto.subtle.digest(algorithm, new Uint8Array()).then(() => "taken", (error) => error.name))),
  macs: (list) => Promise.all(list.map(async ([algorithm, key, data]) => {
    const made = await crypto.subtle.importKey("raw", Buffer.from(key, "hex"),
      { name: "HMAC", hash: algorithm }, false, ["sign"])
    return hex(await crypto.subtle.sign("HMAC", made, Buffer.from(data, "hex"))) })),
  emptyKey: () => crypto.subtle.importKey("raw", new Uint8Array(), { name: "HMAC", hash: "SHA-256" }, false, ["sign"])
    .then(() => "taken", (error) => error.name),
  typed: async (numbers) => hex(await crypto.subtle.digest("SHA-256", new Uint16Array(numbers))),
  sorted: (list) => list.map((text) => JSON.stringify(sorted(JSON.parse(text)))),
  plain: (list) => list.map((text) => JSON.stringify(JSON.parse(text))),
  createHash: (text) => require("node:crypto").createHash("sha256", text).digest("hex"),
}
let input = ""
process.stdin.on("data", (chunk) => { input += chunk }).on("end", async () => {
  const answers = {}
  for (const [name, argument] of Object.entries(JSON.parse(input))) answers[name] = await jobs[name](argument)
  process.stdout.write(JSON.stringify(answers))
})
"""


def node(**jobs: Any) -> dict[str, Any]:
    """Run the named jobs in one Node.js process; skip the test where there is none."""
    if _NODE is None:
        pytest.skip("no Node.js on this machine: the stored vectors were checked, its own answers were not")
    done = subprocess.run(
        [_NODE, "-e", _SCRIPT], input=json.dumps(jobs), capture_output=True, text=True, timeout=30, check=True
    )
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


# The fractional parts of cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
def _constants() -> list[int]:
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, int(n**0.5) + 1))]
    roots = []
    for prime in primes:
        root = 0  # the integer cube root of prime * 2**96, digit by digit
        for bit in reversed(range(40)):
            if (root | 1 << bit) ** 3 <= prime << 96:
                root |= 1 << bit
        roots.append(root & 0xFFFFFFFF)
    return roots


def _turn(word: int, by: int) -> int:
    return (word >> by | word << (32 - by)) & 0xFFFFFFFF


def _compress(state: list[int], block: bytes) -> list[int]:
    words = list(struct.unpack(">16I", block))
    for i in range(16, 64):
        low = _turn(words[i - 15], 7) ^ _turn(words[i - 15], 18) ^ words[i - 15] >> 3
        high = _turn(words[i - 2], 17) ^ _turn(words[i - 2], 19) ^ words[i - 2] >> 10
        words.append((words[i - 16] + low + words[i - 7] + high) & 0xFFFFFFFF)
    a, b, c, d, e, f, g, h = state
    for constant, word in zip(_constants(), words, strict=True):
        first = h + (_turn(e, 6) ^ _turn(e, 11) ^ _turn(e, 25)) + (e & f ^ ~e & g) + constant + word
        second = (_turn(a, 2) ^ _turn(a, 13) ^ _turn(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (first + second) & 0xFFFFFFFF, a, b, c, (d + first) & 0xFFFFFFFF, e, f, g
    return [(old + new) & 0xFFFFFFFF for old, new in zip(state, (a, b, c, d, e, f, g, h), strict=True)]


def padding(length: int) -> bytes:
    """Return what SHA-256 appends to a message of `length` bytes (FIPS 180-4, 5.1.1)."""
    return b"\x80" + b"\0" * ((55 - length) % 64) + struct.pack(">Q", length * 8)


def go_on(digest: bytes, seen: int, more: bytes) -> bytes:
    """Continue SHA-256 from a digest of `seen` bytes (padding included) with `more`: no secret is needed."""
    state = list(struct.unpack(">8I", digest))
    rest = more + padding(seen + len(more))
    for at in range(0, len(rest), 64):
        state = _compress(state, rest[at : at + 64])
    return struct.pack(">8I", *state)
