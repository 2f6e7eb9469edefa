"""Read trusted documents from GraphQL files and from the manifests of client compilers."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graph.execution.documents.documents_by_hash import PREFIX
from merganser.errors import Trouble
from resolvers.admin.trusted_documents import hash_of

APOLLO = "apollo-persisted-query-manifest"
OTHERS = {32: "MD5", 40: "SHA-1"}  # by number of digits; the default hashes of some compilers
HEX = re.compile(r"[0-9a-f]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """A GraphQL document, from a manifest or as a file of its own."""

    path: Path
    line: int  # in the file
    text: str
    name: str = ""  # empty for a GraphQL file
    fault: str | None = None

    def place(self, line: int | None = None) -> str:
        """The location `path:line` that editors understand, with the hash in a manifest.

        `line` counts in the document and is used only for a GraphQL file.
        """
        at = self.line if self.name or line is None else line
        return f"{self.path}:{at}" + (f": {self.name}" if self.name else "")


def entries(path: Path) -> list[Entry]:
    """Read the documents of a GraphQL file or JSON manifest.

    Raises CommandError if it can't be read or is not a known manifest.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as problem:
        raise Trouble(f"cannot read {path}: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise Trouble(f"{path} is not in UTF-8") from problem
    return list(_manifest(path, text)) if path.suffix == ".json" else [Entry(path, 1, text)]


def _manifest(path: Path, raw: str) -> Iterator[Entry]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as problem:
        line = getattr(problem, "lineno", 1)
        raise Trouble(f"{path}:{line}: that is not JSON") from problem
    place = 0
    for key, text in _pairs(path, found):
        place = max(raw.find(json.dumps(key, ensure_ascii=False), place), place)
        line = raw.count("\n", 0, place) + 1
        yield Entry(path, line, text, key, _fault(key, text))


def _pairs(path: Path, found: Any) -> Iterator[tuple[str, str]]:
    """Yield hash and document of each entry of a manifest. Raises CommandError if it is unknown.

    Relay and graphql-codegen write one object, Apollo an object with a list.
    """
    pairs: list[tuple[Any, Any]]
    if isinstance(found, dict) and found.get("format") == APOLLO:
        listed = found.get("operations")
        if found.get("version") != 1 or not isinstance(listed, list):
            raise Trouble(f"{path} is a manifest of a version that we do not know")
        pairs = [
            (each.get("id"), each.get("body")) if isinstance(each, dict) else (None, None)
            for each in listed
        ]
    else:
        pairs = list(found.items()) if isinstance(found, dict) else [(None, None)]
    for key, text in pairs:
        if not isinstance(key, str) or not isinstance(text, str):
            raise Trouble(f"{path} is no manifest: it should be an object of hashes and documents")
        yield key, text


def _fault(key: str, text: str) -> str | None:
    """Why a hash in a manifest is not the SHA-256 of its document; None if it is."""
    if key.removeprefix(PREFIX) == hash_of(text).hex():
        return None
    if (kind := OTHERS.get(len(key))) and HEX.fullmatch(key):
        return f"a hash by {kind}: tell the compiler to use SHA-256"
    return "that is not the SHA-256 of the document"
