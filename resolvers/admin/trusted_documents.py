"""Trusted documents: added, listed and removed by operators, read by hash."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import bindparam, delete, select
from sqlmodel import col

from models.admin.trusted_documents import TrustedDocument
from models.errors import NotFound
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.users.roles import Role, Scope
from resolvers.context import MAX_BATCH_KEYS, Context
from resolvers.viewer import GuardRule

log = logging.getLogger(__name__)

GUARD_RULE = GuardRule(role=Role.ROOT, scope=Scope.FULL)
SELECT_TEXT_BY_HASH = select(col(TrustedDocument.text)).where(
    col(TrustedDocument.hash) == bindparam("wanted")
)


@dataclass(frozen=True, slots=True)
class NewTrustedDocument:
    """A document to trust, with the names of its operations. The caller has validated it."""

    text: str
    operations: tuple[str, ...] = ()


def hash_of(text: str) -> bytes:
    """Return the hash that names a document: 32 bytes of SHA-256 of its text in UTF-8."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


async def find_document_text(environment: Environment, wanted_hash: bytes) -> str | None:
    """Return the text of the trusted document with this hash, or None."""
    rows = await environment.database.read(SELECT_TEXT_BY_HASH, {"wanted": wanted_hash})
    return next((row.text for row in rows), None)


async def add_documents_and_count_new(ctx: Context, documents: Sequence[NewTrustedDocument]) -> int:
    """Trust documents, all or none, and return how many were not trusted before.

    Raises Forbidden unless the viewer is ROOT.
    """
    ctx.viewer.require(GUARD_RULE)
    now, dialect = ctx.environment.now(), ctx.environment.database.dialect
    rows = {
        hash_of(document.text): {
            "text": document.text,
            "operations": list(document.operations),
            "added_at": now,
        }
        for document in documents
    }
    hashes, added = sorted(rows), 0
    async with ctx.write_session() as session:
        connection = await session.connection()
        for start in range(0, len(hashes), MAX_BATCH_KEYS):
            chunk = [{"hash": key, **rows[key]} for key in hashes[start : start + MAX_BATCH_KEYS]]
            statement = (
                insert_with_conflict(dialect, TrustedDocument)
                .values(chunk)
                .on_conflict_do_nothing()
            )
            added += len(
                (await connection.execute(statement.returning(col(TrustedDocument.hash)))).all()
            )
    log.info("Trusted documents added", extra={"documents": added, "by": ctx.viewer.principal})
    return added


async def list_documents(ctx: Context) -> Sequence[ColumnRow]:
    """Return all trusted documents without their texts, the last added at the end.

    Raises Forbidden unless the viewer is ROOT.
    """
    ctx.viewer.require(GUARD_RULE)
    columns = select_columns(TrustedDocument, {"hash", "operations", "added_at"})
    return await ctx.read(
        select(*columns).order_by(col(TrustedDocument.added_at), col(TrustedDocument.hash))
    )


async def remove_trusted_documents(ctx: Context, hashes: Sequence[bytes]) -> None:
    """Stop trusting documents, all or none.

    Raises NotFound with the index of a missing one, and Forbidden unless the viewer is ROOT.
    """
    ctx.viewer.require(GUARD_RULE)
    async with ctx.write_session() as session:
        connection = await session.connection()
        for index, document_hash_of_row in enumerate(hashes):
            statement = (
                delete(TrustedDocument)
                .where(col(TrustedDocument.hash) == document_hash_of_row)
                .returning(col(TrustedDocument.hash))
            )
            if not (await connection.execute(statement)).all():
                raise NotFound(document_hash_of_row.hex(), path=["hashes"], index=index)
    log.info(
        "Trusted documents removed", extra={"documents": len(hashes), "by": ctx.viewer.principal}
    )
