"""Construction of header fields that end with a signature."""

import base64
import re
from collections.abc import Callable, Sequence

from mail.authentication.header_fields import Field

CAPITALS = frozenset({"arc", "dkim"})

_LINE = 72  # characters of base64 in one line
_FOLDS = re.compile(r"(\S{40,60}:)(?=\S)")  # places where a long list of names is folded


def field_of(name: str, parts: Sequence[str]) -> Field:
    """A field of these parts, with as many in a line as fit."""
    words = (w.upper() if w in CAPITALS else w.capitalize() for w in name.split("-"))
    lines = ["-".join(words) + ":"]
    for part in ";\n".join(parts).split("\n"):
        if len(lines[-1]) + len(part) > _LINE:
            lines.append("")
        lines[-1] += f" {part}"
    return Field(name, ("\r\n".join(lines) + "\r\n").encode(errors="replace"))


def folded(names: Sequence[str]) -> str:
    """The field names for `h=`, folded into lines."""
    return _FOLDS.sub("\\1\n", ":".join(names))


def proven(bare: Field, sign: Callable[[bytes], bytes], digest: bytes) -> Field:
    """The field with the signature of a digest in base64 at its end."""
    proof = base64.b64encode(sign(digest)).decode()
    lines = "".join(f"\r\n {proof[at : at + _LINE]}" for at in range(0, len(proof), _LINE))
    return Field(bare.name, bare.raw.removesuffix(b"\r\n") + lines.encode() + b"\r\n")
