"""Construction of header fields that end with a signature."""

import base64
import re
from collections.abc import Callable, Sequence

from mail.authentication.header_fields import CanonicalField

UPPER_CASE_WORDS = frozenset({"arc", "dkim"})

_LINE_LENGTH = 72  # characters of base64 in one line
_FOLD_POSITION = re.compile(r"(\S{40,60}:)(?=\S)")  # places where a long list of names is folded


def build_folded_signature_field(name: str, parts: Sequence[str]) -> CanonicalField:
    """A field of these parts, with as many in a line as fit."""
    words = (w.upper() if w in UPPER_CASE_WORDS else w.capitalize() for w in name.split("-"))
    lines = ["-".join(words) + ":"]
    for part in ";\n".join(parts).split("\n"):
        if len(lines[-1]) + len(part) > _LINE_LENGTH:
            lines.append("")
        lines[-1] += f" {part}"
    return CanonicalField(name, ("\r\n".join(lines) + "\r\n").encode(errors="replace"))


def fold_names(names: Sequence[str]) -> str:
    """The field names for `h=`, folded into lines."""
    return _FOLD_POSITION.sub("\\1\n", ":".join(names))


def append_signature(
    unsigned_field: CanonicalField, sign: Callable[[bytes], bytes], digest: bytes
) -> CanonicalField:
    """The field with the signature of a digest in base64 at its end."""
    proof = base64.b64encode(sign(digest)).decode()
    lines = "".join(
        f"\r\n {proof[at : at + _LINE_LENGTH]}" for at in range(0, len(proof), _LINE_LENGTH)
    )
    return CanonicalField(
        unsigned_field.name, unsigned_field.raw.removesuffix(b"\r\n") + lines.encode() + b"\r\n"
    )
