"""Trusted documents: added, listed and removed by operators, read by hash."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import bindparam, delete, select
from sqlmodel import col

from models.admin.trusted_documents import Document
from models.errors import NotFound
from models.runtime.environment import World
from models.store.columns import Picked, insert_or, picked
from models.users.roles import Role, Scope
from resolvers.context import BATCH, Context, Needs

log = logging.getLogger(__name__)

OPERATORS = Needs(role=Role.ROOT, scope=Scope.MASTER)
BY_HASH = select(col(Document.text)).where(col(Document.hash) == bindparam("wanted"))


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document to trust, with the names of its operations. The caller has validated it."""

    text: str
    operations: tuple[str, ...] = ()


def hash_of(text: str) -> bytes:
    """Return the hash that names a document: 32 bytes of SHA-256 of its text in UTF-8."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


async def text_of(world: World, wanted: bytes) -> str | None:
    """Return the text of the trusted document with this hash, or None."""
    rows = await world.database.read(BY_HASH, {"wanted": wanted})
    return next((row.text for row in rows), None)


async def add(ctx: Context, new: Sequence[NewDocument]) -> int:
    """Trust documents, all or none, and return how many were not trusted before.

    Raises Forbidden unless the viewer is ROOT.
    """
    ctx.viewer.require(OPERATORS)
    at, dialect = ctx.world.now(), ctx.world.database.dialect
    rows = {
        hash_of(each.text): {"text": each.text, "operations": list(each.operations), "added_at": at}
        for each in new
    }
    hashes, added = sorted(rows), 0
    async with ctx.write() as session:
        connection = await session.connection()
        for start in range(0, len(hashes), BATCH):
            some = [{"hash": key, **rows[key]} for key in hashes[start : start + BATCH]]
            missing = insert_or(dialect, Document).values(some).on_conflict_do_nothing()
            added += len((await connection.execute(missing.returning(col(Document.hash)))).all())
    log.info("documents added", extra={"documents": added, "by": ctx.viewer.principal})
    return added


async def all_of(ctx: Context) -> Sequence[Picked]:
    """Return all trusted documents without their texts, the last added at the end.

    Raises Forbidden unless the viewer is ROOT.
    """
    ctx.viewer.require(OPERATORS)
    columns = picked(Document, {"hash", "operations", "added_at"})
    return await ctx.read(select(*columns).order_by(col(Document.added_at), col(Document.hash)))


async def remove(ctx: Context, hashes: Sequence[bytes]) -> None:
    """Stop trusting documents, all or none.

    Raises NotFound with the index of a missing one, and Forbidden unless the viewer is ROOT.
    """
    ctx.viewer.require(OPERATORS)
    async with ctx.write() as session:
        connection = await session.connection()
        for index, key in enumerate(hashes):
            gone = delete(Document).where(col(Document.hash) == key).returning(col(Document.hash))
            if not (await connection.execute(gone)).all():
                raise NotFound(key.hex(), path=["hashes"], index=index)
    log.info("documents removed", extra={"documents": len(hashes), "by": ctx.viewer.principal})
