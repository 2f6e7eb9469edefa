"""Names of objects: those of messages and files in 256 shards, and those of administrators."""

import re

from models.events.incarnation import MARK_OBJECT_NAME

OBJECT_NAME = re.compile(r"[0-9a-f]{2}/(?!\.{1,2}$)[A-Za-z0-9._-]{1,255}")
OWNER_MARK = (
    "00/merganser.mark"  # names the owner of the objects: merganser/server/store/common_facts.py
)
SHARDS = frozenset(f"{number:02x}" for number in range(256))
PART_PREFIX = ".part-"  # prefix of the names of unfinished files
ADMIN_PREFIX = "admin/"  # of the objects that administrators write
MAX_NAME_LENGTH = 512  # characters of a name below ADMIN_PREFIX
MAX_LEVELS = 16  # parts of a name below ADMIN_PREFIX, the first one included
INTERNAL_NAMES = frozenset({OWNER_MARK, MARK_OBJECT_NAME})

_ADMIN_NAME = re.compile(r"admin(/[A-Za-z0-9_@+=,-][A-Za-z0-9._@+=,-]{0,254})+", re.ASCII)
_NAME_WITH_DIGEST = re.compile(r"[0-9a-f]{2}/([0-9a-f]{64})\.[0-9a-f]+(\.cold)?")


def is_admin_name(name: str) -> bool:
    """True if an administrator can write an object with this name.

    The characters are those that file systems and buckets store unchanged.
    """
    return (
        len(name) <= MAX_NAME_LENGTH
        and name.count("/") < MAX_LEVELS
        and _ADMIN_NAME.fullmatch(name) is not None
    )


def is_visible_name(name: str) -> bool:
    """True for the name of an object that lists contain: no mark and no unfinished file."""
    if name.startswith(ADMIN_PREFIX):
        return is_admin_name(name)
    return (
        len(name) <= MAX_NAME_LENGTH
        and OBJECT_NAME.fullmatch(name) is not None
        and name not in INTERNAL_NAMES
        and not name[3:].startswith(PART_PREFIX)
    )


def is_visible_folder(folder: str) -> bool:
    """True for a folder, with a slash at its end, that can contain visible objects."""
    return folder[:-1] in SHARDS or folder == ADMIN_PREFIX or is_admin_name(folder[:-1])


def validated_name(name: str) -> str:
    """Return the name. Raises ValueError if it is no object name."""
    if not (OBJECT_NAME.fullmatch(name) or is_admin_name(name)):
        raise ValueError(f"{name!r} is not an object name.")
    return name


def digest_in_name_or_none(name: str) -> str | None:
    """Return the SHA-256 of the content that the name of an object contains, or None."""
    match = _NAME_WITH_DIGEST.fullmatch(name)
    return match[1] if match else None
