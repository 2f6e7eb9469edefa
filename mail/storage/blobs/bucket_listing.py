"""Ordered lists of the objects and folders of a bucket, by its own ordered listing."""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from mail.storage.blobs.object_names import ADMIN_PREFIX, is_visible_folder, is_visible_name
from models.store.object_store import ObjectRange, StoredObject

LAST_NAME_END = "zzzz"  # follows every character of a hash
# The objects below a folder (None: all) whose names follow a text, in the order of the names.
IterateObjects = Callable[[str | None, str | None], AsyncGenerator[StoredObject]]
ListTopFolders = Callable[[], Awaitable[Sequence[str]]]  # each with a slash at its end


async def objects_in_range(
    iterate: IterateObjects, list_top_folders: ListTopFolders, object_range: ObjectRange
) -> Sequence[StoredObject]:
    """Return the visible objects of a range, in its order.

    A bucket lists only in ascending order. So a descending page reads the whole top folder that
    it ends in: 1/256 of all objects, or all objects of administrators.
    """
    prefix, limit = object_range.prefix, object_range.limit
    if not object_range.is_descending:
        return await _first_objects(iterate, _parent_folder(prefix), object_range)
    folder = _parent_folder(prefix)
    folders = [folder] if folder else _top_folders_of_range(await list_top_folders(), object_range)
    found: list[StoredObject] = []
    for name in folders:
        if len(found) < limit:
            missing_count = limit - len(found)
            found += await _last_objects(iterate, name, object_range, missing_count)
    return found


async def folders_in_range(
    iterate: IterateObjects, list_top_folders: ListTopFolders, object_range: ObjectRange
) -> Sequence[str]:
    """Return the folders with objects directly below the prefix of a range, in its order."""
    prefix, limit, cursor = object_range.prefix, object_range.limit, object_range.cursor
    if not prefix:
        folders = [
            folder
            for folder in sorted(await list_top_folders(), reverse=object_range.is_descending)
            if is_visible_folder(folder) and object_range.is_beyond_cursor(folder)
        ]
        return folders[:limit]
    if not prefix.startswith(ADMIN_PREFIX):
        return []  # the shards have no folders
    found: deque[str] = deque(maxlen=limit)
    after = prefix if object_range.is_descending or cursor is None else _after_folder(cursor)
    while (folder := await _next_folder(iterate, prefix, after)) is not None:
        if object_range.is_descending and not object_range.is_beyond_cursor(folder):
            break
        found.append(folder)
        if len(found) == limit and not object_range.is_descending:
            break
        after = _after_folder(folder)
    return list(reversed(found)) if object_range.is_descending else list(found)


def _parent_folder(prefix: str) -> str | None:
    return prefix.rpartition("/")[0] or None


def _top_folders_of_range(folders: Sequence[str], object_range: ObjectRange) -> list[str]:
    """Return the top folders that can contain objects of a range, without slash, the last first."""
    return [
        folder[:-1]
        for folder in sorted(folders, reverse=True)
        if is_visible_folder(folder)
        and folder.startswith(object_range.prefix)
        and (object_range.cursor is None or folder < object_range.cursor)
    ]


def _text_before_prefix(prefix: str) -> str | None:
    """Return a text that precedes every name with this prefix, and nearly no other name."""
    if not prefix or prefix.endswith("/"):
        return prefix or None
    before = chr(ord(prefix[-1]) - 1)
    if not before.isalnum():
        before = "9" if prefix[-1] > "9" else ""
    return prefix[:-1] + (before and before + LAST_NAME_END)


def _after_folder(folder: str) -> str:
    """Return a text that follows every name in a folder; "0" is the character after the slash."""
    return f"{folder[:-1]}0"


async def _first_objects(
    iterate: IterateObjects, folder: str | None, object_range: ObjectRange
) -> Sequence[StoredObject]:
    found: list[StoredObject] = []
    prefix, limit = object_range.prefix, object_range.limit
    start = max(_text_before_prefix(prefix) or "", object_range.cursor or "") or None
    async with aclosing(iterate(folder, start)) as objects:
        while limit and (stored := await anext(objects, None)) is not None:
            if not stored.name.startswith(prefix):
                if stored.name > prefix:
                    break
            elif is_visible_name(stored.name):
                found.append(stored)
                if len(found) == limit:
                    break
    return found


async def _last_objects(
    iterate: IterateObjects, folder: str, object_range: ObjectRange, limit: int
) -> Sequence[StoredObject]:
    """Return the last objects of a range in one folder, the last one first."""
    found: deque[StoredObject] = deque(maxlen=limit)
    prefix = object_range.prefix
    async with aclosing(iterate(folder, _text_before_prefix(prefix))) as objects:
        async for stored in objects:
            if not stored.name.startswith(prefix):
                if stored.name > prefix:
                    break
            elif not object_range.is_beyond_cursor(stored.name):
                break
            elif is_visible_name(stored.name):
                found.append(stored)
    return list(reversed(found))


async def _next_folder(iterate: IterateObjects, prefix: str, after: str) -> str | None:
    """Return the first folder below a prefix with objects whose names follow a text, or None."""
    async with aclosing(iterate(prefix[:-1], after)) as objects:
        async for stored in objects:
            name, slash, _ = stored.name[len(prefix) :].partition("/")
            if slash and is_visible_name(stored.name):
                return f"{prefix}{name}/"
    return None
