"""Which passwords are taken: long ones, of any characters (NIST SP 800-63B-4)."""

from __future__ import annotations

import unicodedata
from collections.abc import Container

MAX_LENGTH = 1_024  # code points: nobody types more, and each byte would be hashed


class PasswordPolicyError(ValueError):
    """The password cannot be taken. The message is for its owner and does not repeat it."""


def check_policy(
    pw: str, *, username: str, min_length: int = 15, blocklist: Container[str] = ()
) -> None:
    """Refuse what is easy to guess, before it is hashed; NIST SP 800-63B-4 asks for no more.

    Args:
        pw: The new password.
        username: What the password must not consist of.
        min_length: In code points: 15 when the password is the only factor, else 8.
        blocklist: Common and leaked passwords, case-folded.

    Raises:
        PasswordPolicyError: It is too short, too long, the user name, listed, or no text.
        ValueError: `min_length` is no whole number over 0.
    """
    if not isinstance(min_length, int) or isinstance(min_length, bool) or min_length < 1:
        raise ValueError(f"min_length must be a whole number over 0, got {min_length!r}")
    text = prepared(pw).decode().casefold()
    if len(pw) < min_length:
        raise PasswordPolicyError(f"a password has at least {min_length} characters")
    name = unicodedata.normalize("NFKC", username).casefold()
    if name and len(text.replace(name, "")) < min_length // 2:
        raise PasswordPolicyError("a password is not the user name")
    if text in blocklist:
        raise PasswordPolicyError("this password is on the list of common ones")


def prepared(pw: str) -> bytes:
    """Return the bytes of a password that are hashed: its NFKC form in UTF-8, and not one less.

    Raises:
        PasswordPolicyError: It has more than 1,024 code points, or is no text (a lone surrogate).
    """
    if len(pw) > MAX_LENGTH:
        raise PasswordPolicyError(f"a password has at most {MAX_LENGTH} characters")
    try:
        # One form for all keyboards: an Å is one code point on some, and two on others.
        return unicodedata.normalize("NFKC", pw).encode()
    except UnicodeEncodeError:  # and "from None", because the cause holds the password
        raise PasswordPolicyError("a password is text, without lone surrogates") from None
