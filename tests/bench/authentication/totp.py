"""Checks a second: the arithmetic of the module against pyotp, a window of one step on either side."""

from __future__ import annotations

import functools
import time

import pyotp

from bench.kit import Table, compare, ratio_table, version
from totp_codes import match_step, new_secret


def tables() -> list[Table]:
    """Time a right code, and a wrong one."""
    secret = new_secret()
    library = pyotp.TOTP(secret)
    now = time.time()
    right = library.at(int(now))
    wrong = next(code for code in ("000000", "111111", "222222", "333333") if match_step(secret, code, now) is None)
    made = []
    for name, code in (("right", right), ("wrong", wrong)):
        if (match_step(secret, code, now) is not None) != library.verify(code, valid_window=1):
            raise RuntimeError("the two do not agree")
        seconds = compare(
            {
                "`match_step`": functools.partial(match_step, secret, code, now),
                version("pyotp"): functools.partial(library.verify, code, valid_window=1),
            },
            calls=2_000,
        )
        note = f"A {name} code, on one core; both look at three time steps."
        made.append(ratio_table(name, seconds, base="`match_step`", note=note))
    return made
