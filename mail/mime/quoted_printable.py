"""Quoted-printable (RFC 2045, section 6.7), read as leniently as mail programs do."""

import binascii
import re

_SIGN_BEFORE_SIGN = re.compile(rb"=(?==)")
_BLANKS_AT_SOFT_BREAK = re.compile(rb"=[ \t]++(?=\r?\n)")


def decode_quoted_printable(body: bytes, *, is_encoded_word: bool = False) -> bytes:
    """Decode quoted-printable. Never raises.

    An equals sign before other characters than two hexadecimal digits or a line end is text. So
    the first one of `==41` is text, and the second one begins an encoded byte.
    """
    if b"= " in body or b"=\t" in body:
        body = _BLANKS_AT_SOFT_BREAK.sub(b"=", body)
    if b"==" in body:  # binascii takes both signs as one
        body = _SIGN_BEFORE_SIGN.sub(b"=3D", body)
    return binascii.a2b_qp(body, header=is_encoded_word)
