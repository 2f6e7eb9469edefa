"""Header fields that prove something: made of their parts, with the proof at the end."""

import base64
import re
from collections.abc import Callable, Sequence

from mail.authentication.header_fields import Field

CAPITALS = frozenset({"arc", "dkim"})

_LINE = 72  # characters of Base64 in one line
_FOLDS = re.compile(r"(\S{40,60}:)(?=\S)")  # where a long list of names is cut


def field_of(name: str, parts: Sequence[str]) -> Field:
    """A field of these parts, as many in a line as fit."""
    words = (w.upper() if w in CAPITALS else w.capitalize() for w in name.split("-"))
    lines = ["-".join(words) + ":"]
    for part in ";\n".join(parts).split("\n"):
        if len(lines[-1]) + len(part) > _LINE:
            lines.append("")
        lines[-1] += f" {part}"
    return Field(name, ("\r\n".join(lines) + "\r\n").encode(errors="replace"))


def folded(names: Sequence[str]) -> str:
    """Names of fields as `h=` has them, cut into lines."""
    return _FOLDS.sub("\\1\n", ":".join(names))


def proven(bare: Field, sign: Callable[[bytes], bytes], digest: bytes) -> Field:
    """The field with the proof at its end."""
    proof = base64.b64encode(sign(digest)).decode()
    lines = "".join(f"\r\n {proof[at : at + _LINE]}" for at in range(0, len(proof), _LINE))
    return Field(bare.name, bare.raw.removesuffix(b"\r\n") + lines.encode() + b"\r\n")
