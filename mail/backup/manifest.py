"""The manifest of a backup: what it contains, from when, and the hashes of its files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from mail.backup.errors import BackupError

FORMAT = 1  # increased by an incompatible change of manifests or layout


@dataclass(frozen=True, slots=True)
class BackupFile:
    """A file of a backup: its size in bytes and the SHA-256 of its bytes, in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """The store that a backup belongs to: its incarnation and the marks of its object stores."""

    store: str  # random ID of the database
    incarnation: int
    beat: int
    # "blobs" and "cold blobs" -> content of the object 00/merganser.mark
    object_store_marks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """The manifest. The field names are its JSON keys."""

    id: str  # the time of the backup, as in 20260131T235959.123Z
    version: str  # of Merganser
    dialect: str  # sqlite or postgresql
    revision: str  # the last migration of the database
    began_at: str  # ISO 8601; the database is the one of this moment or slightly later
    ended_at: str
    identity: StoreIdentity
    database: BackupFile
    objects: BackupFile  # the list of objects
    object_count: int  # objects that the list has
    object_bytes: int
    copied_count: int  # of them, those that an earlier backup of the target did not have
    copied_bytes: int
    missing_objects: tuple[str, ...] = ()  # named by the database, but lost or damaged
    purged_objects: tuple[str, ...] = ()  # deleted while the backup ran, since their mail was
    has_keys: bool = False  # the key files were copied to another folder
    format: int = FORMAT

    def to_json(self) -> bytes:
        """Encode the manifest."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def manifest_from_json(data: bytes, name: str) -> BackupManifest:
    """Decode a manifest. Raises BackupError if it is damaged, or of a newer format."""
    try:
        values: dict[str, Any] = orjson.loads(data)
        if values["format"] > FORMAT:
            raise BackupError(f"{name} was written by a newer version of Merganser.")
        identity = StoreIdentity(**values.pop("identity"))
        database = BackupFile(**values.pop("database"))
        objects = BackupFile(**values.pop("objects"))
        missing_objects = tuple(values.pop("missing_objects"))
        purged_objects = tuple(values.pop("purged_objects"))
        return BackupManifest(
            identity=identity,
            database=database,
            objects=objects,
            missing_objects=missing_objects,
            purged_objects=purged_objects,
            **values,
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as problem:
        raise BackupError(
            f"The manifest {name} is damaged: name another backup with --id, or delete its files."
        ) from problem
