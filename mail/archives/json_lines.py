"""The records in archives of this server: one JSON object per line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from mail.mailboxes import paths
from mail.mime.header_fields import UTF8_BOM
from mail.text.storable_text import has_nul

FORMAT, VERSION = "merganser", 1
RECORDS_FOLDER = "merganser/"  # with the records of the archive
ACCOUNT_FILE = f"{RECORDS_FOLDER}account.json"
MANIFEST_PREFIX = f"{RECORDS_FOLDER}messages-"  # each has the records of the messages after it
MAX_RECORD_BYTES = 16 << 20  # of the account record, and of a manifest
MAX_JSON_VALUES = 1 << 20  # of a record: a parsed value can have 30 times the size of its text
MAX_ITEMS = 10_000  # mailboxes of an account, and other lists
MAX_FLAGS = 100  # of a message, and recipients
MAX_ADDRESS_LENGTH = 1000  # characters of an address
MAX_FOLDER_NAME_BYTES = 120  # longer paths get a generated folder name
MAILDIR_LETTERS = {"\\Draft": "D", "\\Flagged": "F", "$Forwarded": "P", "\\Answered": "R",
           "\\Seen": "S", "\\Deleted": "T"}  # fmt: skip
_UNSAFE_IN_FILE_NAME = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


class InvalidRecordError(Exception):
    """A record that is invalid; the text says why."""


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """The facts of a message in an archive."""

    mailbox: str
    received_at: datetime
    flags: Sequence[str] = ()
    expires: datetime | None = None
    public_metadata: dict[str, Any] | None = None
    sender: str | None = None
    recipients: Sequence[str] = ()
    digest: str | None = None  # SHA-256, hex


@dataclass(frozen=True, slots=True)
class ExportedMessage:
    """A message to be written to an archive, with its record."""

    raw: bytes
    record: MessageRecord
    mailbox_id: int
    number: int  # in the archive, from 1


@dataclass(frozen=True, slots=True)
class AccountRecord:
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
    saved_searches: Sequence[Mapping[str, Any]] = ()
    subscriptions: Sequence[str] = ()  # paths without a mailbox
    connectors: Sequence[Mapping[str, Any]] = ()
    # the key derivation that their passwords are encrypted with
    lock: Mapping[str, Any] = field(default_factory=dict)
    entries_with_nul: Sequence[str] = ()  # names of left-out entries, such as labels[2]


def json_object_from_record(record: MessageRecord, **other_fields: Any) -> dict[str, Any]:
    """Return the JSON object of a message record. Empty values are left out."""
    facts = {
        **other_fields,
        "mailbox": record.mailbox,
        "receivedAt": record.received_at,
        "flags": list(record.flags),
        "expires": record.expires,
        "metadata": record.public_metadata,
        "envelopeFrom": record.sender,
        "envelopeTo": list(record.recipients),
        "sha256": record.digest,
    }
    return {name: value for name, value in facts.items() if value not in (None, [])}


def json_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line of JSON."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def parse_json_object(text: bytes) -> dict[str, Any]:
    """Parse the JSON object of a line. Raises InvalidRecordError if it is none or too complex."""
    _require_limited_values(text)
    try:
        value = orjson.loads(text.removeprefix(UTF8_BOM))
    except orjson.JSONDecodeError as problem:
        raise InvalidRecordError("The metadata of the message is not JSON.") from problem
    if not isinstance(value, dict):
        raise InvalidRecordError("The metadata of the message is not a JSON object.")
    return value


def parse_json_objects(text: bytes) -> list[dict[str, Any]]:
    """Parse the JSON objects of lines. Raises InvalidRecordError if they are too complex."""
    _require_limited_values(text)
    return [parse_json_object(line) for line in text.splitlines()]


def _require_limited_values(text: bytes) -> None:
    """Raise InvalidRecordError if JSON can have more than MAX_JSON_VALUES values."""
    # Characters in strings are counted too. The source of a message, in base64, has none of them.
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise InvalidRecordError(f"A record has more than {MAX_JSON_VALUES} values.")


def parse_message_record(record: Mapping[str, Any]) -> MessageRecord:
    """Return the message record of a JSON object. Raises InvalidRecordError."""
    if has_nul(record):
        raise InvalidRecordError("The metadata of the message contains NUL.")
    flags, recipients = record.get("flags", []), record.get("envelopeTo", [])
    meta, received = record.get("metadata"), parse_timestamp(record.get("receivedAt"))
    if not isinstance(record.get("mailbox"), str) or received is None:
        raise InvalidRecordError("`mailbox` and `receivedAt` of the message are missing.")
    if (
        not _is_list_of_strings(flags)
        or len(flags) > MAX_FLAGS
        or not _is_list_of_strings(recipients)
    ):
        raise InvalidRecordError("The flags or recipients of the message are not lists of strings.")
    if meta is not None and not isinstance(meta, dict):
        raise InvalidRecordError("`metadata` of the message is not an object.")
    sender = record.get("envelopeFrom")
    if not isinstance(sender, str | None) or any(
        len(address) > MAX_ADDRESS_LENGTH for address in (sender or "", *recipients)
    ):
        raise InvalidRecordError("The envelope sender of the message is not an address.")
    return MessageRecord(
        record["mailbox"],
        received,
        flags,
        parse_timestamp(record.get("expires")),
        meta,
        sender,
        recipients[:MAX_FLAGS],
        record.get("sha256"),
    )


def _split_off_entries_with_nul(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the record without entries that have NUL, and the names of these entries.

    Entries are the items of lists, the settings, and the other values.
    """
    kept, names = dict[str, Any](), list[str]()
    for name, value in record.items():
        if isinstance(value, list):
            kept[name] = [item for item in value if not has_nul(item)]
            names += [f"{name}[{index}]" for index, item in enumerate(value) if has_nul(item)]
        elif name == "settings" and isinstance(value, dict):
            kept[name] = {key: item for key, item in value.items() if not has_nul([key, item])}
            names += [f"setting {key}" for key in value if key not in kept[name]]
        elif has_nul([name, value]):
            names.append(name)
        else:
            kept[name] = value
    return kept, names


def parse_account_record(record: Mapping[str, Any]) -> AccountRecord:
    """Return the account record of a JSON object. Raises InvalidRecordError.

    Entries with NUL, which no column accepts, are left out.
    """
    record, entries_with_nul = _split_off_entries_with_nul(record)
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise InvalidRecordError(f"The archive has another format than {FORMAT} {VERSION}.")
    mailboxes, settings = record.get("mailboxes", []), record.get("settings") or {}
    values, message_count = record.get("keyValues", []), record.get("messages")
    labels, answer = record.get("labels", []), record.get("autoreply") or {}
    identities, scripts = record.get("identities", []), record.get("sieveScripts", [])
    filters, rules = record.get("filters", []), record.get("senderRules", [])
    connectors, lock = record.get("connectors", []), record.get("connectorLock") or {}
    searches, subscriptions = record.get("savedSearches", []), record.get("subscriptions", [])
    lists = (mailboxes, values, labels, identities, scripts, filters, rules, connectors, searches)
    objects = (settings, answer, lock)
    is_valid = all(map(_is_list_of_objects, lists)) and all(
        isinstance(object_, dict) for object_ in objects
    )
    is_valid = is_valid and _is_list_of_strings(subscriptions)
    if is_valid and max(map(len, (*lists, subscriptions))) > MAX_ITEMS:
        raise InvalidRecordError(f"The archive has more than {MAX_ITEMS} mailboxes or other items.")
    if not is_valid or not all(isinstance(mailbox.get("path"), str) for mailbox in mailboxes):
        raise InvalidRecordError("The account record is invalid.")
    messages = message_count if isinstance(message_count, int) else None
    payload: dict[str, Any] = {"sender_rules": rules, "autoreply": answer, "filters": filters}
    payload |= {"scripts": scripts, "connectors": connectors, "lock": lock}
    payload |= {"saved_searches": searches, "subscriptions": subscriptions}
    payload |= {"entries_with_nul": entries_with_nul}
    return AccountRecord(mailboxes, settings, values, labels, identities, messages, **payload)


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def parse_timestamp(text: Any) -> datetime | None:
    """Return the UTC time of an ISO 8601 text, None for None. Raises InvalidRecordError."""
    if text is None:
        return None
    try:
        timestamp = datetime.fromisoformat(text)
        return (timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as problem:
        raise InvalidRecordError("A time of the message is invalid.") from problem


def portable_folder_path(path: str, mailbox_id: int) -> str:
    """Return the folder of a mailbox in an archive.

    It is the path if every file system accepts that, else a name with the mailbox ID.
    """
    levels = path.split("/")
    plain = (
        len(path.encode(errors="replace")) <= MAX_FOLDER_NAME_BYTES
        and not _UNSAFE_IN_FILE_NAME.search(path)
        and not any(level.startswith(".") or level[-1:] in ". " for level in levels)
        and levels[0] not in ("merganser", "Maildir")
    )
    return path if plain else f"mailbox-{mailbox_id}"


def maildir_folder_prefix_or_empty(mailbox_path: str, mailbox_id: int) -> str:
    """Return the Maildir++ folder of a mailbox with a slash at its end; "" for INBOX."""
    if mailbox_path == paths.INBOX:
        return ""
    name = ".".join(
        paths.modified_utf7(level).replace(".", "&AC4-") for level in mailbox_path.split("/")
    )
    return (
        f".{name}/"
        if len(name) <= MAX_FOLDER_NAME_BYTES and not _UNSAFE_IN_FILE_NAME.search(name)
        else f".mailbox-{mailbox_id}/"
    )


def maildir_flag_letters(flags: Sequence[str]) -> str:
    """Return the flags as letters of a file name in a Maildir."""
    return "".join(flag_letter for flag, flag_letter in MAILDIR_LETTERS.items() if flag in flags)
