"""Verifications and upgrades against pwdlib at equal parameters, and what time each memory setting takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import bcrypt
from argon2 import PasswordHasher
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher

from bench.kit import Plot, Table, compare, version
from password_hashing import Passwords

PW = "correct horse battery staple"
#: Memory in KiB, passes, lanes: OWASP's five settings, and the defaults of argon2-cffi.
SETTINGS = ((47_104, 1, 1), (19_456, 2, 1), (12_288, 3, 1), (9_216, 4, 1), (7_168, 5, 1), (65_536, 3, 4))


def tables() -> list[Table]:
    """Measure a login: right, of an old hash (bcrypt, 4 rounds, so that the new hash is what counts), of nobody."""
    ours = Passwords(memory_kib=19_456, time_cost=2, parallelism=1)
    library = PasswordHash((Argon2Hasher(time_cost=2, memory_cost=19_456, parallelism=1), BcryptHasher(rounds=4)))
    stored, old = ours.hash(PW), bcrypt.hashpw(PW.encode(), bcrypt.gensalt(4)).decode()
    if not library.verify(PW, stored) or library.verify_and_update(PW, old)[1] is None:
        raise RuntimeError("the two do not agree")
    logins: dict[str, dict[str, Callable[[], object]]] = {
        "current hash": {
            "ours": lambda: ours.verify(PW, stored),
            "theirs": lambda: library.verify_and_update(PW, stored),
        },
        "old hash, with its upgrade": {
            "ours": lambda: ours.verify(PW, old),
            "theirs": lambda: library.verify_and_update(PW, old),
        },
        "unknown user": {"ours": lambda: ours.verify(PW, None)},
    }
    names = {"ours": "this module", "theirs": version("pwdlib")}
    measured = {title: compare(pair, calls=4, rounds=15) for title, pair in logins.items()}
    rows = []
    for key, name in names.items():
        cells = [
            f"{1 / seconds[key]:,.0f} /s ({seconds['ours'] / seconds[key]:.2f} ×)" if key in seconds else "left to you"
            for seconds in measured.values()
        ]
        rows.append([name, *cells])
    return [
        Table(
            name="login",
            columns=("", *measured),
            rows=rows,
            note="Logins a second on one core at 19 MiB, two passes, one lane; in brackets, as a multiple of this "
            "module's. The old hash is bcrypt with 4 rounds, to show the upgrade and not bcrypt.",
        )
    ]


def plots() -> list[Plot]:
    """Draw the time of one hash against its memory."""
    spent: dict[tuple[int, int, int], float] = {}
    hashers = {setting: PasswordHasher(setting[1], setting[0], setting[2]) for setting in SETTINGS}
    samples: dict[tuple[int, int, int], list[float]] = {setting: [] for setting in SETTINGS}
    for _ in range(15):
        for setting, hasher in hashers.items():
            begin = time.perf_counter()
            hasher.hash(PW)
            samples[setting].append(time.perf_counter() - begin)
    spent = {setting: sorted(times)[len(times) // 2] * 1e3 for setting, times in samples.items()}

    def draw(axes: Any) -> None:
        owasp, default = SETTINGS[:5], SETTINGS[5]
        for settings, label, marker in ((owasp, "OWASP's five, one lane", "o"), ((default,), "argon2-cffi's", "s")):
            axes.plot(
                [setting[0] / 1024 for setting in settings],
                [spent[setting] for setting in settings],
                marker=marker,
                linestyle="--" if len(settings) > 1 else "none",
                label=label,
            )
        for setting in SETTINGS:
            left = setting[1] == 5
            text = f"t={setting[1]}" + (", p=4" if setting[2] > 1 else "")
            below = setting[1] == 4  # its neighbors are close
            at = (setting[0] / 1024, spent[setting])
            axes.annotate(text, at, (-6 if left else 0, -18 if below else 9), textcoords="offset points", ha="center")
        axes.set_xlabel("memory of one hash, MiB")
        axes.set_ylabel("median time, ms")
        axes.set_xlim(0, 70)
        axes.set_ylim(0, max(spent.values()) * 1.35)
        axes.legend(loc="lower right")

    told = "; ".join(f"{m / 1024:.0f} MiB, t={t}, p={p}: {spent[m, t, p]:.0f} ms" for m, t, p in SETTINGS)
    return [Plot("settings", f"Median time of one hash against its memory, on the machine of the table. {told}.", draw)]
