"""Users in CSV and JSON Lines files: one record for each user.

Fields have the names of `NewUserInput` in the schema. The names of special mailboxes are the
columns `mailboxes.sent` and so on, and the limits `limits.receivedPerHour` and so on.
"""

import ipaddress
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from models import quantities
from models.errors import ErrorCollector
from models.mailboxes.tables import SpecialUse
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.tables import ProtocolScope, SubaddressAction
from resolvers.transfer import record_files
from resolvers.transfer.record_files import FieldParser, FileRecord
from resolvers.users.creation.create import NewUser
from resolvers.users.validation import schema_name

MAILBOXES = "mailboxes"
ADMINISTERS = "administers"  # column with domain names
LIMIT_COLUMNS = ("received_per_hour", "recipients_per_day", "forwards_per_day")
NULLABLE_LIMITS = frozenset({"quota", *map(schema_name, LIMIT_COLUMNS)})  # null: unlimited
NAMEABLE_SPECIAL_USES = ("sent", "junk", "drafts", "trash", "archive")


class NewUserFromRecord(NamedTuple):
    """The new user of a record, and the names of the domains it administers."""

    new_user: NewUser
    administered_domains: list[str]


def user_from_record(
    record: FileRecord, problems: ErrorCollector, max_metadata_size: int
) -> NewUserFromRecord:
    """Return the new user of a record, and the names of the domains it administers.

    Adds fields that can't be read to `problems`.
    """
    values = record_files.parse_known_fields(
        record.fields,
        FIELD_PARSERS,
        problems,
        nullable_fields=NULLABLE_LIMITS,
        max_metadata_size=max_metadata_size,
    )
    domain_names, mailbox_paths = values.pop(ADMINISTERS, []), values.pop(MAILBOXES, {})
    for name in NAMEABLE_SPECIAL_USES:
        mailbox_paths |= values.pop(f"{MAILBOXES}.{name}", {})
    columns = {ATTRIBUTES[name]: value for name, value in values.items()}
    return NewUserFromRecord(NewUser(**columns, mailboxes=mailbox_paths), domain_names)


def _parse_points(value: Any) -> float:
    """Return points as a number.

    Raises TypeError for a value that is neither a number nor a text, such as a bool, and ValueError
    for a text without a number, or a number that no float can hold.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError("Must be a number.")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError("Must be a number.") from None


def _parse_networks(value: Any) -> list[str]:
    """Return the networks in normal form. Raises ValueError, also for an empty list."""
    texts = record_files.parse_texts(value)
    if not texts:
        raise ValueError("An empty list would restrict nothing: use null or omit the field.")
    try:
        return [str(ipaddress.ip_network(network, strict=False)) for network in texts]
    except ValueError:
        raise ValueError("Must be a list of networks such as 192.0.2.0/24.") from None


def _special_use_paths_from_field(name: str, value: Any) -> dict[SpecialUse, str]:
    """Return the mailbox paths of a field by special use, without empty ones.

    The field `mailboxes` has an object of paths; a column such as `mailboxes.sent` has one path.
    Raises TypeError for another special use, and for a path that is no string.
    """
    paths_by_use = value if name == MAILBOXES else {name.partition(".")[2]: value}
    if not isinstance(paths_by_use, dict) or not paths_by_use.keys() <= set(NAMEABLE_SPECIAL_USES):
        raise TypeError(f"Must be an object with names of {', '.join(NAMEABLE_SPECIAL_USES)}.")
    return {
        SpecialUse[use.upper()]: record_files.parse_text(path)
        for use, path in paths_by_use.items()
        if path
    }


def _parser_of_field(name: str) -> FieldParser:
    """Return the parser for a field of a user in an imported file."""
    special_parsers: dict[str, FieldParser] = {
        "role": record_files.enum_parser(Role),
        "admin_permissions": record_files.enum_list_parser(AdminPermission),
        "permissions": record_files.enum_list_parser(UserPermission),
        "subaddress_action": record_files.enum_parser(SubaddressAction),
        "disabled_scopes": record_files.enum_list_parser(ProtocolScope),
        "smtp_allowed_networks": _parse_networks,
        "quota": record_files.limit_parser(quantities.parse_byte_count),
        "retention": quantities.parse_iso_duration,
        "spam_level": record_files.parse_number,
        "junk_score": _parse_points,
        "reject_score": _parse_points,
        "public_metadata": record_files.parse_json,
        "private_metadata": record_files.parse_json,
    }
    if name in special_parsers:
        return special_parsers[name]
    if name in {"tags", "forward_to", "allowed_senders"}:
        return record_files.parse_texts
    if name in LIMIT_COLUMNS:
        return record_files.limit_parser(record_files.parse_number)
    if isinstance(NewUser.__dataclass_fields__[name].default, bool):
        return record_files.parse_flag
    return record_files.parse_text


ATTRIBUTES = {  # of a new user, by name in the file
    schema_name(name): name
    for name in NewUser.__dataclass_fields__
    if name not in {MAILBOXES, ADMINISTERS}
}
COLUMN_PARSERS: Mapping[str, FieldParser] = {
    **{name: _parser_of_field(attribute) for name, attribute in ATTRIBUTES.items()},
    **{
        f"{MAILBOXES}.{name}": partial(_special_use_paths_from_field, f"{MAILBOXES}.{name}")
        for name in NAMEABLE_SPECIAL_USES
    },
    ADMINISTERS: record_files.parse_texts,
}
FIELD_PARSERS: Mapping[str, FieldParser] = {
    **COLUMN_PARSERS,
    MAILBOXES: partial(_special_use_paths_from_field, MAILBOXES),  # an object, which CSV can't have
}
