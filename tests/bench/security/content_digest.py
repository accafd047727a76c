"""Throughput of digests: the module against hashlib.file_digest, and the hash functions against each other."""

from __future__ import annotations

import hashlib
import hmac
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3

from bench.kit import FAINT, Plot, Table, compare, version
from content_digest import digest_bytes, digest_stream, hmac_bytes

_SIZE = 256 * 1_048_576
_FUNCTIONS: dict[str, Callable[[], Any]] = {
    "SHA-256": hashlib.sha256,
    "SHA-512": hashlib.sha512,
    "BLAKE2b": hashlib.blake2b,
    "BLAKE3, one thread": blake3.blake3,
}


def tables() -> list[Table]:
    """Measure a file of 256 MiB that is in the page cache, small messages, and the memory of 1 GiB."""
    return [_file(), _small()]


def _file() -> Table:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(os.urandom(1_048_576) * (_SIZE // 1_048_576))

        def ours() -> object:
            with path.open("rb") as file:
                return digest_stream(file)

        def theirs() -> object:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256")

        seconds = compare({"`digest_stream`": ours, "`hashlib.file_digest`": theirs}, calls=1, rounds=7)
    base = seconds["`digest_stream`"]
    rows = [[name, f"{_SIZE / 1e6 / took:,.0f} MB/s", f"{base / took:.2f} ×"] for name, took in seconds.items()]
    peak = _peak_of_a_gigabyte()
    return Table(
        "file",
        ("SHA-256 of a file", "throughput", "ratio"),
        rows,
        f"A file of 256 MiB in the page cache, on one core. A stream of 1 GiB took {peak / 1e6:.1f} MB at most.",
    )


def _peak_of_a_gigabyte() -> int:
    class Zeros:
        left = 1 << 30

        def read(self, size: int) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    tracemalloc.start()
    try:
        digest_stream(Zeros())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _small() -> Table:
    body, key = os.urandom(2_048), os.urandom(32)
    seconds = compare(
        {
            "`digest_bytes`": lambda: digest_bytes(body),
            "`hashlib.sha256`": lambda: hashlib.sha256(body).digest(),
            "`hmac_bytes`": lambda: hmac_bytes(key, body),
            "`hmac.digest`": lambda: hmac.digest(key, body, "sha256"),
        },
        calls=5_000,
    )
    base = {"`hashlib.sha256`": "`digest_bytes`", "`hmac.digest`": "`hmac_bytes`"}
    rows = [
        [name, f"{took * 1e6:.2f} µs", f"{took / seconds[base.get(name, name)]:.2f} ×"]
        for name, took in seconds.items()
    ]
    return Table("small", ("2 KB", "time a call", "ratio"), rows, "The ratio is to the function of this module above.")


def plots() -> list[Plot]:
    """Draw throughput against the size of a chunk."""
    sizes = [1 << power for power in range(6, 21, 2)]
    curves: dict[str, list[float]] = {name: [] for name in _FUNCTIONS}
    for size in sizes:
        data, times = os.urandom(size), max(1, (1 << 22) // size)

        def run(make: Callable[[], Any], data: bytes = data, times: int = times) -> None:
            state = make()
            for _ in range(times):
                state.update(data)

        took = compare({name: lambda make=make: run(make) for name, make in _FUNCTIONS.items()}, calls=1, rounds=5)  # type: ignore[misc]
        for name, seconds in took.items():
            curves[name].append(size * times / 1e6 / seconds)

    def draw(axes: Any) -> None:
        for name, curve in curves.items():
            axes.plot(sizes, curve, label=name, marker="o", markersize=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{s} B" if s < 1024 else f"{s // 1024} K" for s in sizes])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("bytes a call of update()")
        axes.set_ylabel("MB a second")
        axes.grid(axis="y", color=FAINT)
        axes.legend()

    last = ", ".join(f"{name} {curve[-1]:,.0f}" for name, curve in curves.items())
    early = curves["SHA-256"][3] / curves["SHA-256"][-1]
    alt = (
        "Throughput of four hash functions against the size of a chunk, on one core: the larger, the faster. "
        f"In MB a second at 1 MiB: {last}. At 4 K, SHA-256 has reached {early:.0%} of that. {version('blake3')}."
    )
    return [Plot("chunks", alt, draw)]
