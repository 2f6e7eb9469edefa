"""Checks of store names, paths and prefixes, before an object store sees them."""

import re
from collections.abc import Sequence

from mail.storage.blobs.object_names import (
    ADMIN_PREFIX,
    MAX_LEVELS,
    MAX_NAME_LENGTH,
    is_admin_name,
    is_visible_name,
)
from mail.storage.blobs.tiered_store import browsable_stores_by_name
from models.errors import InvalidInput
from models.store.object_store import BrowsableObjectStore
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context

MAX_TEXT_BYTES = 1024 * 1024  # of `Blob.text`
PATH_TEXT = (
    "A path is that of a listed object, or `admin/` and parts of A-Z, a-z, 0-9 and ._@+=,- that "
    "do not begin with a dot."
)
PREFIX_TEXT = (
    "A prefix has A-Z, a-z, 0-9, ._@+=,- and single slashes, none at its beginning, and no "
    "part of dots only or of more than 255 characters."
)

_PREFIX = re.compile(r"(?:(?!\.{1,2}(?:/|$))[A-Za-z0-9._@+=,-]{1,255}(?:/|\Z))*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


def require_store(
    ctx: Context, store_name: str, path: Sequence[str] = ("store",)
) -> BrowsableObjectStore:
    """Return the object store with this name. Raises InvalidInput if none is configured."""
    stores = browsable_stores_by_name(ctx.environment.object_store)
    if store_name not in stores:
        raise InvalidInput(
            "There is no object store with this name.",
            constraint=ValidationConstraint.UNKNOWN,
            path=path,
            allowed_values=stores,
        )
    return stores[store_name]


def require_blob_path(
    text: str, path: Sequence[str] = ("path",), *, index: int | None = None
) -> None:
    """Raise InvalidInput if a text can't be the path of an object that lists contain."""
    _require_short(text, path, index)
    if not is_visible_name(text):
        raise InvalidInput(
            PATH_TEXT, constraint=ValidationConstraint.PATTERN, path=path, index=index
        )


def require_admin_path(text: str, path: Sequence[str] = ("path",)) -> None:
    """Raise InvalidInput if administrators can't write an object with this path."""
    _require_short(text, path, None)
    if is_visible_name(text) and not is_admin_name(text):
        raise InvalidInput(
            f"Administrators write only below `{ADMIN_PREFIX}`.",
            constraint=ValidationConstraint.RESERVED,
            path=path,
        )
    require_blob_path(text, path)


def require_folder_path(text: str, path: Sequence[str], *, index: int | None = None) -> None:
    """Raise InvalidInput if a text is neither the path of an object nor of a folder."""
    require_prefix(text, path, index=index)
    if not text:
        raise InvalidInput(
            "A path is required.", constraint=ValidationConstraint.REQUIRED, path=path, index=index
        )


def require_prefix(
    text: str, path: Sequence[str] = ("filter", "prefix"), *, index: int | None = None
) -> None:
    """Raise InvalidInput if a text can't be the beginning of a path."""
    _require_short(text, path, index)
    if not _PREFIX.fullmatch(text):
        raise InvalidInput(
            PREFIX_TEXT, constraint=ValidationConstraint.PATTERN, path=path, index=index
        )


def require_text_limit(max_bytes: int) -> None:
    """Raise InvalidInput if a number of bytes is not from 1 to 1,048,576."""
    if not 1 <= max_bytes <= MAX_TEXT_BYTES:
        raise InvalidInput(
            f"From 1 to {MAX_TEXT_BYTES} bytes can be read.",
            constraint=ValidationConstraint.RANGE,
            path=["maxBytes"],
        )


def validated_digest(text: str | None) -> str | None:
    """Return a SHA-256 in lower case. Raises InvalidInput if it has not 64 hex digits."""
    if text is None:
        return None
    if not _SHA256.fullmatch(text):
        raise InvalidInput(
            "A SHA-256 has 64 hex digits.", constraint=ValidationConstraint.PATTERN, path=["sha256"]
        )
    return text.lower()


def require_expected_digest(digest: str, expected_digest: str | None) -> None:
    """Raise InvalidInput if the content has another SHA-256 than the caller expects."""
    if expected_digest is not None and digest != expected_digest:
        raise InvalidInput(
            "The content has another SHA-256. Nothing was stored.",
            constraint=ValidationConstraint.MISMATCH,
            path=["sha256"],
        )


def _require_short(text: str, path: Sequence[str], index: int | None) -> None:
    """Raise InvalidInput if a path has too many characters or parts."""
    if len(text) > MAX_NAME_LENGTH:
        raise InvalidInput(
            f"A path has at most {MAX_NAME_LENGTH} characters.",
            constraint=ValidationConstraint.LENGTH,
            path=path,
            index=index,
        )
    if text.count("/") > MAX_LEVELS:
        raise InvalidInput(
            f"A path has at most {MAX_LEVELS} parts.",
            constraint=ValidationConstraint.DEPTH,
            path=path,
            index=index,
        )
