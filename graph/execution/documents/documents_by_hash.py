"""Documents that a request names by their SHA-256, in place of the text or beside it.

Trusted ones lie in the store, and whoever runs the server adds them. Others are registered by
clients which send text and hash together once, and lie in the memory of this process alone.

Two ways to name one: `documentId`, from the appendix on persisted documents of GraphQL over
HTTP, and Apollo's `extensions.persistedQuery`.
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
Read = Callable[[Context, str, str | None], Known]  # a document, and its operation

HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
PREFIX = "sha256:"
VERSION = 1  # of Apollo's protocol
FRESH = timedelta(seconds=1)  # that long a document stays trusted here after its removal elsewhere


class Unmet(Rejected):
    """A request that is well-formed, and whose document is none that we run."""


class Claim(NamedTuple):
    """The hash that a request names, and whether in Apollo's way."""

    hash: bytes
    apollo: bool


def claim(asked: Question) -> Claim | None:
    """What a request names as its document; None where it names nothing."""
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
    known = type(version) is int and version == VERSION  # nor True, which is 1 as well
    if known and isinstance(text, str) and HEX.fullmatch(text):
        return bytes.fromhex(text)
    raise bad("persistedQuery must have version 1, and in sha256Hash 64 digits in lower case.")


@dataclass(slots=True)
class Kept:
    """A document as the store had it at `at`."""

    text: str
    trusted: bool
    at: datetime


class Persisted:
    """The texts of documents by their hashes. Nothing that clients send displaces trusted ones."""

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
        self.strangers: Shelf[str] = Shelf(entries=100, room=1 << 20)  # of those without credential

    async def resolve(self, asked: Question, context: Context) -> Question:
        """The same question with its document's text.

        Rejected where the hash is not the text's; Unmet where no document of this hash is
        known, or where none but trusted ones are run and this is none.
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
        """The text of a trusted document, from memory while that is fresh.

        Hashes that are not in the store are asked for each time: a memory of those would be
        full of what strangers make up.
        """
        kept, now = self.trusted.get(wanted), self.now()
        if kept is None or not kept.at <= now < kept.at + FRESH:
            text = await self.find(wanted) if self.find else None
            if kept is None and text is not None:
                kept = Kept(text, trusted=True, at=now)
                self.trusted.put(wanted, kept, size=len(text.encode()))
            elif kept is not None:
                kept.trusted, kept.at = text is not None, now  # its text is what has the hash
        return kept.text if kept is not None and kept.trusted else None

    def _registered(self, wanted: bytes) -> str | None:
        return self.registered.get(wanted) or self.strangers.get(wanted)

    def _register(self, asked: Question, wanted: bytes, context: Context) -> None:
        """Keep a text that has this hash, once it is found to be valid."""
        text = asked.query
        if len(text) > TEXT_MAX or self._registered(wanted) == text:
            return  # too long to be run, or known
        _compare(hash_of(text), Claim(wanted, apollo=True))
        if len(text) > KEPT_MAX or self.read(context, text, asked.operation_name).faults:
            return
        shelf = self.strangers if context.viewer.role is Role.PUBLIC else self.registered
        shelf.put(wanted, text, size=len(text.encode()))


def _compare(found: bytes, claimed: Claim | None) -> None:
    if claimed and claimed.hash != found:
        raise bad("The hash is not the SHA-256 of the query in UTF-8.")


def _unknown(claimed: Claim) -> Unmet:
    if claimed.apollo:  # the message is part of the protocol: some clients look at nothing else
        return Unmet(200, "PERSISTED_QUERY_NOT_FOUND", "PersistedQueryNotFound")
    return Unmet(400, "PERSISTED_QUERY_NOT_FOUND", "No document of this documentId is known.")
