"""The MIME structure of stored messages, read from its column."""

import asyncio

import orjson

from mail.mime import ParsedPart, tree_from_json_rows
from models.store.columns import ColumnRow

THREAD_THRESHOLD = 8 * 1024  # bytes; from this size on a thread works on them


async def read_structure(row: ColumnRow) -> ParsedPart:
    """Parse the MIME tree of a row; a large one in a thread."""
    if is_large_structure(row):
        return await asyncio.to_thread(structure_from_row, row)
    return structure_from_row(row)


def is_large_structure(row: ColumnRow) -> bool:
    """True if the MIME tree of a row must be parsed in a thread."""
    return len(row.mime_structure) >= THREAD_THRESHOLD


def structure_from_row(row: ColumnRow) -> ParsedPart:
    """Parse the MIME tree of a row."""
    return tree_from_json_rows(orjson.loads(row.mime_structure))
