"""Checks of stored bytes: each blob exists, is readable and has its digest; and garbage figures."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import case, exists, func, select
from sqlmodel import SQLModel, col

from mail.consistency.blob_content import ABOUT, AT_ONCE, content, digest
from mail.consistency.blob_restore import clear_marks, restore
from mail.consistency.checks import Look, identity, ranges
from mail.consistency.report import Finding, Value
from mail.storage.blobs.errors import Corrupt
from mail.storage.blobs.garbage_collector import GRACE, REFERENCES, named_objects
from models.events.incarnation import MARK
from models.files.blobs import Blob, Upload, UploadPart
from models.runtime.environment import World
from models.store.columns import Picked
from models.store.object_store import Stored

SUBJECT = "blobs"
NAMES = 1000  # object names of one look-up

Problem = tuple[str, Value, Value]  # rule, expected, found


async def pieces(look: Look, *, read: bool, repair: bool = False) -> list[Finding]:
    """Check every blob; with `reads_content` all of its bytes, otherwise its last byte.

    With `repair`, damaged blobs are restored from other copies of their bytes.
    """
    world, findings, damaged = look.world, list[Finding](), list[int]()
    async for low, high in ranges(look, SUBJECT, Blob):
        key = col(Blob.id)
        asked = select(*ABOUT, func.length(col(Blob.data)).label("inline"))
        rows = await world.database.read(asked.where(key > low, key <= high).order_by(key))
        problems: dict[int, Problem] = {}
        for start in range(0, len(rows), AT_ONCE):
            problems |= await _problems(world, rows[start : start + AT_ONCE], read=read)
        findings += await _standing(world, Blob, problems)
        damaged += problems
    if repair:
        restored = await restore(world, damaged)
        names = {f"{Blob.__tablename__}/{key}" for key in restored}
        findings = [
            replace(one, repairable=one.object in names, repaired=one.object in names)
            for one in findings
        ]
        if read:
            await clear_marks(world, set(damaged))
    findings += await _objects_of(look, Upload, col(Upload.blob_name), col(Upload.size))
    return findings + await _objects_of(
        look, UploadPart, col(UploadPart.name), col(UploadPart.size)
    )


async def _problems(world: World, rows: Sequence[Picked], *, read: bool) -> dict[int, Problem]:
    if read:
        keys = [row.id for row in rows]
        asked = select(*ABOUT, col(Blob.data)).where(col(Blob.id).in_(keys))
        found = [(row.id, await _read(world, row)) for row in await world.database.read(asked)]
    else:
        found = [(row.id, await _touch(world, row)) for row in rows]
    return {key: problem for key, problem in found if problem}


async def _read(world: World, row: Picked) -> Problem | None:
    try:
        found = await digest(await content(world, row))
    except KeyError:
        return "object", row.name or "in the row", None
    except Corrupt as problem:
        return "readable", f"{row.size} bytes", str(problem)
    return None if found == row.digest else ("digest", row.digest, found)


async def _touch(world: World, row: Picked) -> Problem | None:
    if row.name:
        return await _ends(world, row.name, row.stored_size)
    return None if row.inline == row.stored_size else ("readable", row.stored_size, row.inline)


async def _ends(world: World, name: str, size: int) -> Problem | None:
    """Check that the object has a byte at the position of its last one; the problem, or None."""
    try:
        await world.blobs.get_range(name, max(size - 1, 0), size)
    except KeyError:
        return "object", name, None
    except Corrupt as problem:
        return "readable", f"{size} bytes", str(problem)
    return None


async def _standing(
    world: World, table: type[SQLModel], problems: dict[int, Problem]
) -> list[Finding]:
    """The findings for rows that still exist: the garbage collector can have removed others."""
    if not problems:
        return []
    key, keys, left = identity(table), list(problems), set[int]()
    for start in range(0, len(keys), NAMES):
        asked = select(key).where(key.in_(keys[start : start + NAMES]))
        left |= {row[0] for row in await world.database.read(asked)}
    return [
        Finding(SUBJECT, rule, f"{table.__tablename__}/{key}", expected, found)
        for key, (rule, expected, found) in problems.items()
        if key in left
    ]


async def _objects_of(look: Look, table: type[SQLModel], name: Any, size: Any) -> list[Finding]:
    """Check the object that each row of a table names; rows without a name have none yet."""
    world, findings, key = look.world, list[Finding](), identity(table)
    asked = select(key.label("id"), name.label("name"), size.label("size"))
    async for low, high in ranges(look, SUBJECT, table):
        these = asked.where(key > low, key <= high, name.is_not(None))
        rows = await world.database.read(these)
        found = [(row.id, await _ends(world, row.name, row.size)) for row in rows]
        problems = {row_id: problem for row_id, problem in found if problem}
        findings += await _standing(world, table, problems)
    return findings


async def figures(look: Look, grace: timedelta = GRACE) -> dict[str, int]:
    """Count the blobs without references and the objects without a row.

    The garbage collector will remove them.
    """
    world = look.world
    before = world.now() - grace
    unused = [~exists().where(reference == col(Blob.id)) for reference in REFERENCES]
    old = case((col(Blob.created_at) < before, 1))
    asked = select(func.count(), func.count(old)).select_from(Blob).where(*unused)
    (row,) = await world.database.read(asked)
    garbage, size, many = 0, 0, 0
    async for batch in _listed(world):
        named = await named_objects(world, [stored.name for stored in batch])
        useless = [s for s in batch if s.modified < before and s.name not in named]
        garbage, size = garbage + len(useless), size + sum(stored.size for stored in useless)
        many += len(batch)
        look.tell("objects", many)
    look.looked["objects"] = many
    return {
        "unused_blobs": int(row[0]),
        "unused_blobs_past_grace": int(row[1]),
        "garbage_objects": garbage,
        "garbage_bytes": size,
    }


async def _listed(world: World) -> AsyncIterator[list[Stored]]:
    batch: list[Stored] = []
    async for stored in world.blobs.list():
        if stored.name == MARK:
            continue
        batch.append(stored)
        if len(batch) == NAMES:
            yield batch
            batch = []
    yield batch
