"""Documents that a request names by their SHA-256, instead of the text or with it.

Trusted documents are in the database; administrators add them. Clients register other documents by
one request with text and hash; these are cached in this process only.

A request names a document by `documentId` (GraphQL over HTTP, appendix on persisted documents) or
by Apollo's `extensions.persistedQuery`.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from graph.execution.documents.document_cache import (
    MAX_CACHED_LENGTH,
    MAX_DOCUMENT_LENGTH,
    PreparedDocument,
    SizedLruCache,
)
from graph.http.graphql_request import GraphqlRequest, RequestRejected, bad_request
from models.users.roles import Role
from resolvers.admin.trusted_documents import hash_of
from resolvers.context import Context

FindTrustedText = Callable[[bytes], Awaitable[str | None]]
# context, text, operation name
PrepareDocument = Callable[[Context, str, str | None], PreparedDocument]

SHA256_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
DOCUMENT_ID_PREFIX = "sha256:"
PERSISTED_QUERY_VERSION = 1  # of Apollo's protocol
RECHECK_AFTER = timedelta(seconds=1)  # a removed document stays trusted at most this long


class UnknownDocumentRejected(RequestRejected):
    """A well-formed request for a document that is unknown or not trusted."""


class DocumentHash(NamedTuple):
    """The document hash of a request; `is_apollo` if it was sent as Apollo's persisted query."""

    digest: bytes
    is_apollo: bool


def parse_document_hash_or_none(request: GraphqlRequest) -> DocumentHash | None:
    """Return the document hash of a request; None without one.

    Raises RequestRejected if the hash is malformed or if the request has two different hashes.
    """
    by_apollo = _parse_persisted_query_digest((request.extensions or {}).get("persistedQuery"))
    if request.document_id is None:
        return DocumentHash(by_apollo, is_apollo=True) if by_apollo else None
    hex_digest = request.document_id.removeprefix(DOCUMENT_ID_PREFIX)
    if not SHA256_HEX.fullmatch(hex_digest):
        raise bad_request(
            f"`documentId` must be {DOCUMENT_ID_PREFIX} and 64 hexadecimal digits in lower case."
        )
    if by_apollo and by_apollo.hex() != hex_digest:
        raise bad_request("`documentId` and `persistedQuery` name two documents.")
    return DocumentHash(bytes.fromhex(hex_digest), is_apollo=False)


def _parse_persisted_query_digest(persisted_query: object) -> bytes | None:
    if persisted_query is None:
        return None
    members = persisted_query if isinstance(persisted_query, dict) else {}
    version, text = members.get("version"), members.get("sha256Hash")
    # True equals 1 too
    is_known_version = type(version) is int and version == PERSISTED_QUERY_VERSION
    if is_known_version and isinstance(text, str) and SHA256_HEX.fullmatch(text):
        return bytes.fromhex(text)
    raise bad_request(
        "`persistedQuery` must have version 1, and in `sha256Hash` 64 digits in lower case."
    )


@dataclass(slots=True)
class CachedTrustedDocument:
    """A document with its state in the database at a time."""

    text: str
    is_trusted: bool
    checked_at: datetime


class DocumentsByHash:
    """The texts of documents by hash. Registered documents can't displace trusted ones."""

    def __init__(
        self,
        prepare_document: PrepareDocument,
        find_trusted_text: FindTrustedText | None,
        current_time: Callable[[], datetime],
        *,
        only_trusted: bool = False,
    ) -> None:
        self.prepare_document = prepare_document
        self.find_trusted_text = find_trusted_text
        self.current_time = current_time
        self.only_trusted = only_trusted
        self.trusted: SizedLruCache[CachedTrustedDocument] = SizedLruCache(
            max_entries=10_000, max_bytes=32 << 20
        )
        self.registered: SizedLruCache[str] = SizedLruCache(max_entries=1_000, max_bytes=8 << 20)
        self.registered_by_anonymous: SizedLruCache[str] = SizedLruCache(
            max_entries=100, max_bytes=1 << 20
        )

    async def resolve_or_register_document(
        self, request: GraphqlRequest, context: Context
    ) -> GraphqlRequest:
        """Return the request with the text of its document.

        Raises RequestRejected if the hash doesn't belong to the text, UnknownDocumentRejected if no
        document has this hash, or if only trusted documents are allowed and this one is not
        trusted.
        """
        claimed = parse_document_hash_or_none(request)
        if self.only_trusted:
            return await self._resolve_trusted_document_or_raise(request, claimed)
        if claimed is None:
            return request
        if request.document_text:
            self._register_text_if_valid(request, claimed.digest, context)
            return request
        text = self._find_registered_text(claimed.digest) or await self._find_trusted_text(
            claimed.digest
        )
        if text is None:
            raise _unknown_document_error(claimed)
        return replace(request, document_text=text)

    async def _resolve_trusted_document_or_raise(
        self, request: GraphqlRequest, document_hash: DocumentHash | None
    ) -> GraphqlRequest:
        text = None
        if not request.document_text and document_hash:
            text = await self._find_trusted_text(document_hash.digest)
        elif len(request.document_text) <= MAX_DOCUMENT_LENGTH:
            digest = hash_of(request.document_text)
            _require_matching_hash(digest, document_hash)
            text = await self._find_trusted_text(digest)
        if text is None:
            message = (
                "This server runs registered documents only, and this document is not registered."
            )
            raise UnknownDocumentRejected(403, "DOCUMENT_NOT_TRUSTED", message)
        return replace(request, document_text=text)

    async def _find_trusted_text(self, digest: bytes) -> str | None:
        """Return the text of a trusted document, or None; cached for a second.

        Unknown hashes are not cached, since anonymous clients could fill the cache with them.
        """
        cached, now = self.trusted.get(digest), self.current_time()
        if cached is None or not cached.checked_at <= now < cached.checked_at + RECHECK_AFTER:
            text = await self.find_trusted_text(digest) if self.find_trusted_text else None
            if cached is None and text is not None:
                cached = CachedTrustedDocument(text, is_trusted=True, checked_at=now)
                self.trusted.put_unless_present_or_too_large(
                    digest, cached, size=len(text.encode())
                )
            elif cached is not None:
                cached.is_trusted, cached.checked_at = (
                    text is not None,
                    now,
                )  # the hash fixes the text
        return cached.text if cached is not None and cached.is_trusted else None

    def _find_registered_text(self, digest: bytes) -> str | None:
        return self.registered.get(digest) or self.registered_by_anonymous.get(digest)

    def _register_text_if_valid(
        self, request: GraphqlRequest, digest: bytes, context: Context
    ) -> None:
        """Register a valid document under its hash. Raises RequestRejected if the hash is wrong."""
        text = request.document_text
        if len(text) > MAX_DOCUMENT_LENGTH or self._find_registered_text(digest) == text:
            return  # too long to be run, or registered already
        _require_matching_hash(hash_of(text), DocumentHash(digest, is_apollo=True))
        if (
            len(text) > MAX_CACHED_LENGTH
            or self.prepare_document(context, text, request.operation_name).faults
        ):
            return
        shelf = (
            self.registered_by_anonymous if context.viewer.role is Role.PUBLIC else self.registered
        )
        shelf.put_unless_present_or_too_large(digest, text, size=len(text.encode()))


def _require_matching_hash(digest: bytes, document_hash: DocumentHash | None) -> None:
    if document_hash and document_hash.digest != digest:
        raise bad_request("The hash is not the SHA-256 of the query in UTF-8.")


def _unknown_document_error(document_hash: DocumentHash) -> UnknownDocumentRejected:
    if document_hash.is_apollo:  # the message is part of the protocol: some clients compare it
        return UnknownDocumentRejected(200, "PERSISTED_QUERY_NOT_FOUND", "PersistedQueryNotFound")
    return UnknownDocumentRejected(
        400, "PERSISTED_QUERY_NOT_FOUND", "No document has this documentId."
    )
