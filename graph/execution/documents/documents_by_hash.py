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

from graph.execution.documents.document_cache import KEPT_MAX, TEXT_MAX, Known, Shelf
from graph.http.graphql_request import Question, Rejected, bad
from models.users.roles import Role
from resolvers.admin.trusted_documents import hash_of
from resolvers.context import Context

Find = Callable[[bytes], Awaitable[str | None]]
Read = Callable[[Context, str, str | None], Known]  # context, text, operation name

HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
PREFIX = "sha256:"
VERSION = 1  # of Apollo's protocol
FRESH = timedelta(seconds=1)  # a removed document stays trusted at most this long


class Unmet(Rejected):
    """A well-formed request for a document that is unknown or not trusted."""


class Claim(NamedTuple):
    """The document hash of a request; `is_apollo` if it was sent as Apollo's persisted query."""

    hash: bytes
    apollo: bool


def claim(asked: Question) -> Claim | None:
    """Return the document hash of a request; None without one.

    Raises Rejected if the hash is malformed or if the request has two different hashes.
    """
    by_apollo = _of_apollo((asked.extensions or {}).get("persistedQuery"))
    if asked.document_id is None:
        return Claim(by_apollo, apollo=True) if by_apollo else None
    found = asked.document_id.removeprefix(PREFIX)
    if not HEX.fullmatch(found):
        raise bad(f"documentId must be {PREFIX} and 64 hexadecimal digits in lower case.")
    if by_apollo and by_apollo.hex() != found:
        raise bad("documentId and persistedQuery name two documents.")
    return Claim(bytes.fromhex(found), apollo=False)


def _of_apollo(found: object) -> bytes | None:
    if found is None:
        return None
    members = found if isinstance(found, dict) else {}
    version, text = members.get("version"), members.get("sha256Hash")
    known = type(version) is int and version == VERSION  # True equals 1 too
    if known and isinstance(text, str) and HEX.fullmatch(text):
        return bytes.fromhex(text)
    raise bad("persistedQuery must have version 1, and in sha256Hash 64 digits in lower case.")


@dataclass(slots=True)
class Kept:
    """A document with its state in the database at a time."""

    text: str
    trusted: bool
    at: datetime


class Persisted:
    """The texts of documents by hash. Registered documents can't displace trusted ones."""

    def __init__(
        self,
        read: Read,
        find: Find | None,
        now: Callable[[], datetime],
        *,
        only_trusted: bool = False,
    ) -> None:
        self.read = read
        self.find = find
        self.now = now
        self.only_trusted = only_trusted
        self.trusted: Shelf[Kept] = Shelf(entries=10_000, room=32 << 20)
        self.registered: Shelf[str] = Shelf(entries=1_000, room=8 << 20)
        self.strangers: Shelf[str] = Shelf(entries=100, room=1 << 20)

    async def resolve(self, asked: Question, context: Context) -> Question:
        """Return the request with the text of its document.

        Raises Rejected if the hash doesn't belong to the text, UnknownDocumentRejected if no
        document has this hash, or if only trusted documents are allowed and this one is not
        trusted.
        """
        claimed = claim(asked)
        if self.only_trusted:
            return await self._trusted_only(asked, claimed)
        if claimed is None:
            return asked
        if asked.query:
            self._register(asked, claimed.hash, context)
            return asked
        text = self._registered(claimed.hash) or await self._trusted(claimed.hash)
        if text is None:
            raise _unknown(claimed)
        return replace(asked, query=text)

    async def _trusted_only(self, asked: Question, claimed: Claim | None) -> Question:
        text = None
        if not asked.query and claimed:
            text = await self._trusted(claimed.hash)
        elif len(asked.query) <= TEXT_MAX:
            found = hash_of(asked.query)
            _compare(found, claimed)
            text = await self._trusted(found)
        if text is None:
            message = "This server runs registered documents only, and this is none of them."
            raise Unmet(403, "DOCUMENT_NOT_TRUSTED", message)
        return replace(asked, query=text)

    async def _trusted(self, wanted: bytes) -> str | None:
        """Return the text of a trusted document, or None; cached for a second.

        Unknown hashes are not cached, since anonymous clients could fill the cache with them.
        """
        kept, now = self.trusted.get(wanted), self.now()
        if kept is None or not kept.at <= now < kept.at + FRESH:
            text = await self.find(wanted) if self.find else None
            if kept is None and text is not None:
                kept = Kept(text, trusted=True, at=now)
                self.trusted.put(wanted, kept, size=len(text.encode()))
            elif kept is not None:
                kept.trusted, kept.at = text is not None, now  # the hash fixes the text
        return kept.text if kept is not None and kept.trusted else None

    def _registered(self, wanted: bytes) -> str | None:
        return self.registered.get(wanted) or self.strangers.get(wanted)

    def _register(self, asked: Question, wanted: bytes, context: Context) -> None:
        """Register a valid document under its hash. Raises Rejected if the hash is wrong."""
        text = asked.query
        if len(text) > TEXT_MAX or self._registered(wanted) == text:
            return  # too long to be run, or registered already
        _compare(hash_of(text), Claim(wanted, apollo=True))
        if len(text) > KEPT_MAX or self.read(context, text, asked.operation_name).faults:
            return
        shelf = self.strangers if context.viewer.role is Role.PUBLIC else self.registered
        shelf.put(wanted, text, size=len(text.encode()))


def _compare(found: bytes, claimed: Claim | None) -> None:
    if claimed and claimed.hash != found:
        raise bad("The hash is not the SHA-256 of the query in UTF-8.")


def _unknown(claimed: Claim) -> Unmet:
    if claimed.apollo:  # the message is part of the protocol: some clients compare it
        return Unmet(200, "PERSISTED_QUERY_NOT_FOUND", "PersistedQueryNotFound")
    return Unmet(400, "PERSISTED_QUERY_NOT_FOUND", "No document of this documentId is known.")
