"""The records in archives of this server: one JSON object per line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from mail.mailboxes import paths

FORMAT, VERSION = "merganser", 1
FOLDER = "merganser/"  # with the records of the archive
ACCOUNT = f"{FOLDER}account.json"
MANIFEST = f"{FOLDER}messages-"  # each has the records of the messages after it
MOST = 16 << 20  # of the account record, and of a manifest
ITEMS = 10_000  # mailboxes of an account, and other lists
FLAGS = 100  # of a message, and recipients
LONGEST = 1000  # characters of an address
PLAIN = 120  # longer paths get a generated folder name
LETTERS = {"\\Draft": "D", "\\Flagged": "F", "$Forwarded": "P", "\\Answered": "R",
           "\\Seen": "S", "\\Deleted": "T"}  # fmt: skip
_ODD = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


class Wrong(Exception):
    """A record that is invalid; the text says why."""


@dataclass(frozen=True, slots=True)
class Told:
    """The facts of a message in an archive."""

    mailbox: str
    received_at: datetime
    flags: Sequence[str] = ()
    expires: datetime | None = None
    meta_data: dict[str, Any] | None = None
    sender: str | None = None
    recipients: Sequence[str] = ()
    digest: str | None = None  # SHA-256, hex


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to be written to an archive, with its record."""

    raw: bytes
    told: Told
    mailbox_id: int
    number: int  # in the archive, from 1


@dataclass(frozen=True, slots=True)
class Account:
    """The account that an archive was made of."""

    mailboxes: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    key_values: Sequence[Mapping[str, Any]] = ()
    labels: Sequence[Mapping[str, Any]] = ()
    identities: Sequence[Mapping[str, Any]] = ()
    messages: int | None = None
    sender_rules: Sequence[Mapping[str, Any]] = ()
    autoreply: Mapping[str, Any] = field(default_factory=dict)
    filters: Sequence[Mapping[str, Any]] = ()
    scripts: Sequence[Mapping[str, Any]] = ()
    connectors: Sequence[Mapping[str, Any]] = ()
    lock: Mapping[str, Any] = field(
        default_factory=dict
    )  # the key derivation that their passwords are encrypted with


def written(told: Told, **more: Any) -> dict[str, Any]:
    """Return the JSON object of a message record. Empty values are left out."""
    facts = {
        **more,
        "mailbox": told.mailbox,
        "receivedAt": told.received_at,
        "flags": list(told.flags),
        "expires": told.expires,
        "metaData": told.meta_data,
        "envelopeFrom": told.sender,
        "envelopeTo": list(told.recipients),
        "sha256": told.digest,
    }
    return {name: value for name, value in facts.items() if value not in (None, [])}


def line(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line of JSON."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def parsed(text: bytes) -> dict[str, Any]:
    """Parse the JSON object of a line. Raises InvalidRecordError if it is none."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as problem:
        raise Wrong("what is told of it is no JSON") from problem
    if not isinstance(found, dict):
        raise Wrong("what is told of it is no JSON object")
    return found


def told(record: Mapping[str, Any]) -> Told:
    """Return the message record of a JSON object. Raises InvalidRecordError."""
    flags, recipients = record.get("flags", []), record.get("envelopeTo", [])
    meta, received = record.get("metaData"), moment(record.get("receivedAt"))
    if not isinstance(record.get("mailbox"), str) or received is None:
        raise Wrong("mailbox and receivedAt are not told of it")
    if not _texts(flags) or len(flags) > FLAGS or not _texts(recipients):
        raise Wrong("its flags, or recipients, are no lists of text")
    if meta is not None and not isinstance(meta, dict):
        raise Wrong("its metaData is no object")
    sender = record.get("envelopeFrom")
    if not isinstance(sender, str | None) or any(
        len(each) > LONGEST for each in (sender or "", *recipients)
    ):
        raise Wrong("its envelope is no address")
    return Told(
        record["mailbox"],
        received,
        flags,
        moment(record.get("expires")),
        meta,
        sender,
        recipients[:FLAGS],
        record.get("sha256"),
    )


def account(record: Mapping[str, Any]) -> Account:
    """Return the account record of a JSON object. Raises InvalidRecordError."""
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise Wrong(f"an archive of another format than {FORMAT} {VERSION}")
    boxes, settings = record.get("mailboxes", []), record.get("settings") or {}
    values, many = record.get("keyValues", []), record.get("messages")
    labels, answer = record.get("labels", []), record.get("autoreply") or {}
    identities, scripts = record.get("identities", []), record.get("sieveScripts", [])
    filters, rules = record.get("filters", []), record.get("senderRules", [])
    connectors, lock = record.get("connectors", []), record.get("connectorLock") or {}
    lists = (boxes, values, labels, identities, scripts, filters, rules, connectors)
    objects = (settings, answer, lock)
    right = all(map(_objects, lists)) and all(isinstance(one, dict) for one in objects)
    if right and max(map(len, lists)) > ITEMS:
        raise Wrong(f"an archive that tells of more than {ITEMS} folders, or other things")
    if not right or not all(isinstance(box.get("path"), str) for box in boxes):
        raise Wrong("the record of the account is not what it must be")
    messages = many if isinstance(many, int) else None
    more: dict[str, Any] = {"sender_rules": rules, "autoreply": answer, "filters": filters}
    more |= {"scripts": scripts, "connectors": connectors, "lock": lock}
    return Account(boxes, settings, values, labels, identities, messages, **more)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def moment(text: Any) -> datetime | None:
    """Return the UTC time of an ISO 8601 text, None for None. Raises InvalidRecordError."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as problem:
        raise Wrong("a time that is told of it is none") from problem


def folder(path: str, key: int) -> str:
    """Return the folder of a mailbox in an archive.

    It is the path if every file system accepts that, else a name with the mailbox ID.
    """
    levels = path.split("/")
    plain = (
        len(path.encode(errors="replace")) <= PLAIN
        and not _ODD.search(path)
        and not any(level.startswith(".") or level[-1:] in ". " for level in levels)
        and levels[0] not in ("merganser", "Maildir")
    )
    return path if plain else f"mailbox-{key}"


def maildir(path: str, key: int) -> str:
    """Return the Maildir++ folder of a mailbox with a slash at its end; "" for INBOX."""
    if path == paths.INBOX:
        return ""
    name = ".".join(paths.utf7(level).replace(".", "&AC4-") for level in path.split("/"))
    return f".{name}/" if len(name) <= PLAIN and not _ODD.search(name) else f".mailbox-{key}/"


def letters(flags: Sequence[str]) -> str:
    """Return the flags as letters of a file name in a Maildir."""
    return "".join(letter for flag, letter in LETTERS.items() if flag in flags)
