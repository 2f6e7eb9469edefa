"""Read trusted documents from GraphQL files and from the manifests of client compilers."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graph.execution.documents.documents_by_hash import DOCUMENT_ID_PREFIX
from merganser.errors import CommandError
from resolvers.admin.trusted_documents import hash_of

APOLLO_FORMAT = "apollo-persisted-query-manifest"
OTHER_HASHES = {32: "MD5", 40: "SHA-1"}  # by number of digits; the default hashes of some compilers
HEX_DIGITS = re.compile(r"[0-9a-f]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class ManifestDocument:
    """A GraphQL document, from a manifest or as a file of its own."""

    path: Path
    first_line: int  # in the file
    text: str
    hash_in_manifest: str = ""  # empty for a GraphQL file
    hash_error: str | None = None

    def location(self, line_in_document: int | None = None) -> str:
        """The location `path:line` that editors understand, with the hash in a manifest.

        `line_in_document` counts in the document and is used only for a GraphQL file.
        """
        at = (
            self.first_line
            if self.hash_in_manifest or line_in_document is None
            else line_in_document
        )
        return f"{self.path}:{at}" + (f": {self.hash_in_manifest}" if self.hash_in_manifest else "")


def read_documents(path: Path) -> list[ManifestDocument]:
    """Read the documents of a GraphQL file or JSON manifest.

    Raises CommandError if it can't be read or is not a known manifest.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as problem:
        raise CommandError(f"Cannot read {path}: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise CommandError(f"{path} is not in UTF-8.") from problem
    return (
        list(_read_manifest(path, text))
        if path.suffix == ".json"
        else [ManifestDocument(path, 1, text)]
    )


def _read_manifest(path: Path, manifest_text: str) -> Iterator[ManifestDocument]:
    try:
        manifest = json.loads(manifest_text)
    except (ValueError, RecursionError) as problem:
        line = getattr(problem, "lineno", 1)
        raise CommandError(f"{path}:{line} is not JSON.") from problem
    index = 0
    for key, text in _hashes_with_documents(path, manifest):
        index = max(manifest_text.find(json.dumps(key, ensure_ascii=False), index), index)
        line = manifest_text.count("\n", 0, index) + 1
        yield ManifestDocument(path, line, text, key, _hash_error(key, text))


def _hashes_with_documents(path: Path, manifest: Any) -> Iterator[tuple[str, str]]:
    """Yield hash and document of each entry of a manifest. Raises CommandError if it is unknown.

    Relay and graphql-codegen write one object, Apollo an object with a list.
    """
    pairs: list[tuple[Any, Any]]
    if isinstance(manifest, dict) and manifest.get("format") == APOLLO_FORMAT:
        listed = manifest.get("operations")
        if manifest.get("version") != 1 or not isinstance(listed, list):
            raise CommandError(f"{path} is a manifest of an unknown version.")
        pairs = [
            (entry.get("id"), entry.get("body")) if isinstance(entry, dict) else (None, None)
            for entry in listed
        ]
    else:
        pairs = list(manifest.items()) if isinstance(manifest, dict) else [(None, None)]
    for key, text in pairs:
        if not isinstance(key, str) or not isinstance(text, str):
            raise CommandError(
                f"{path} is not a manifest: it must be an object of hashes and documents."
            )
        yield key, text


def _hash_error(hash_in_manifest: str, document: str) -> str | None:
    """Why a hash in a manifest is not the SHA-256 of its document; None if it is."""
    if hash_in_manifest.removeprefix(DOCUMENT_ID_PREFIX) == hash_of(document).hex():
        return None
    if (kind := OTHER_HASHES.get(len(hash_in_manifest))) and HEX_DIGITS.fullmatch(hash_in_manifest):
        return f"a {kind} hash: set the compiler to SHA-256"
    return "not the SHA-256 of the document"
