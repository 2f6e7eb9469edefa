"""Read users from CSV and JSON Lines files: one record for each user.

Fields have the names of `NewUserInput` in the schema. In CSV an empty cell is a missing field, a
list is separated by `;` or is a JSON array, and free data is a JSON object. The names of special
mailboxes are the columns `mailboxes.sent` and so on, and the limits `limits.receivedPerHour` and so
on. An unlimited quota or limit is the word `unlimited`; in JSON it can also be null.
"""

import csv
import ipaddress
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from models import quantities
from models.errors import ErrorCollector, InvalidInput
from models.mailboxes.tables import SpecialUse
from models.users.list_formats import UserFileFormat
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.tables import ProtocolScope, SubaddressAction
from models.validation_constraints import ValidationConstraint
from resolvers.users.creation.create import NewUser
from resolvers.users.limit_values import Unlimited
from resolvers.users.validation import schema_name

MAX_RECORD_LENGTH = 1 << 20  # characters
MAILBOXES = "mailboxes"
ADMINISTERS = "administers"  # column with domain names
OBJECT_FIELDS = ("limits", "spam")  # their fields have names such as limits.forwardsPerDay
LIMIT_COLUMNS = ("received_per_hour", "recipients_per_day", "forwards_per_day")
NULLABLE_LIMITS = frozenset({"quota", *map(schema_name, LIMIT_COLUMNS)})  # null: unlimited
UNLIMITED_WORD = "unlimited"
TRUE_WORDS, FALSE_WORDS = {"true", "yes", "1"}, {"false", "no", "0"}
NAMEABLE_SPECIAL_USES = ("sent", "junk", "drafts", "trash", "archive")

csv.field_size_limit(MAX_RECORD_LENGTH)


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One user of a file, as the file has it."""

    line: int  # first line, from 1
    fields: dict[str, Any] = field(default_factory=dict)
    problem: InvalidInput | None = None  # the record can't be read


def detect_format(head: bytes) -> UserFileFormat:
    """Return JSON Lines if the first character is a brace, else CSV."""
    is_json = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return UserFileFormat.JSON_LINES if is_json else UserFileFormat.CSV


def read_user_records(path: Path, file_format: UserFileFormat) -> Generator[UserRecord]:
    """Yield the records of a file in order.

    Raises InvalidInput if the file is not in this format.
    """
    with path.open(
        encoding="utf-8-sig", newline="" if file_format is UserFileFormat.CSV else None
    ) as file:
        try:
            yield from _read_csv(file) if file_format is UserFileFormat.CSV else _read_json(file)
        except UnicodeDecodeError as problem:
            raise InvalidInput(
                "The file must be encoded in UTF-8.",
                constraint=ValidationConstraint.ENCODING,
                path=["file"],
            ) from problem


def _read_json(lines: Iterator[str]) -> Generator[UserRecord]:
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line) if len(line) <= MAX_RECORD_LENGTH else None
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            yield UserRecord(line_number, value)
        else:
            text = f"A line must be a JSON object of at most {MAX_RECORD_LENGTH:,} characters."
            yield UserRecord(
                line_number, problem=InvalidInput(text, constraint=ValidationConstraint.JSON)
            )


def _read_csv(lines: Iterator[str]) -> Generator[UserRecord]:
    rows = csv.reader(lines, strict=True)
    first_line = 1
    try:
        header = [name.strip() for name in next(rows, [])]
        _require_known_header(header)
        while True:
            first_line = rows.line_num + 1
            row = next(rows, None)
            if row is None:
                return
            if not any(row):
                continue
            if len(row) > len(header):
                problem = InvalidInput(
                    "The row has more cells than the header.", constraint=ValidationConstraint.MAX
                )
                yield UserRecord(first_line, problem=problem)
            else:
                cells = zip(header, row, strict=False)
                yield UserRecord(first_line, {name: cell for name, cell in cells if cell})
    except csv.Error as problem:
        text = f"Line {first_line} is not valid CSV: {problem}."
        raise InvalidInput(text, constraint=ValidationConstraint.CSV, path=["file"]) from problem


def require_known_csv_columns(head: bytes, file_format: UserFileFormat) -> None:
    """Raise InvalidInput if the first bytes of a CSV file have no header, or unknown columns."""
    if file_format is UserFileFormat.CSV:
        first_line = head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").splitlines()[:1]
        _require_known_header([name.strip() for name in next(csv.reader(first_line), [])])


def _require_known_header(header: list[str]) -> None:
    known_columns = (
        PARSERS.keys() | {f"{MAILBOXES}.{name}" for name in NAMEABLE_SPECIAL_USES} | {ADMINISTERS}
    )
    unknown_columns = [name for name in header if name not in known_columns]
    if not header or unknown_columns:
        text = (
            f"Unknown columns: {', '.join(unknown_columns)}."
            if unknown_columns
            else "The file must have a header."
        )
        raise InvalidInput(text[:500], constraint=ValidationConstraint.COLUMNS, path=["file"])
    if len(set(header)) < len(header):
        raise InvalidInput(
            "The names of the columns must be unique.",
            constraint=ValidationConstraint.COLUMNS,
            path=["file"],
        )


class NewUserFromRecord(NamedTuple):
    """The new user of a record, and the names of the domains it administers."""

    new_user: NewUser
    administered_domains: list[str]


def user_from_record(record: UserRecord, problems: ErrorCollector) -> NewUserFromRecord:
    """Return the new user of a record, and the names of the domains it administers.

    Adds fields that can't be read to `problems`.
    """
    values, domain_names, mailbox_paths = dict[str, Any](), list[str](), dict[SpecialUse, str]()
    for name, value in _flattened_fields(record.fields):
        if value is None and name not in NULLABLE_LIMITS:
            continue
        with problems.collecting():
            try:
                if name == ADMINISTERS:
                    domain_names = _parse_texts(value)
                elif name == MAILBOXES or name.startswith(f"{MAILBOXES}."):
                    mailbox_paths |= _parse_mailbox_paths(name, value)
                elif name in PARSERS:
                    attribute, reader = PARSERS[name]
                    values[attribute] = reader(value)
                else:
                    raise InvalidInput(
                        "Unknown field.", constraint=ValidationConstraint.UNKNOWN, path=[name]
                    )
            except (ValueError, TypeError, KeyError) as problem:
                text = str(problem) or "Not a valid value of this field."
                raise InvalidInput(
                    text, constraint=ValidationConstraint.TYPE, path=name.split(".")
                ) from problem
    return NewUserFromRecord(NewUser(**values, mailboxes=mailbox_paths), domain_names)


def _flattened_fields(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a record; those of an object have names such as spam.level."""
    for name, value in fields.items():
        if name in OBJECT_FIELDS and isinstance(value, dict):
            for member_name, member in value.items():
                yield f"{name}.{member_name}", member
        else:
            yield name, value


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("Must be a string.")
    return value


def _parse_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = _parse_text(value).strip().lower()
    if text not in TRUE_WORDS | FALSE_WORDS:
        raise ValueError("Must be true or false.")
    return text in TRUE_WORDS


def _parse_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError("Must be an integer.")
    try:
        return int(value)
    except ValueError:
        raise ValueError("Must be an integer.") from None


def _parse_points(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError("Must be a number.")
    try:
        return float(value)
    except ValueError:
        raise ValueError("Must be a number.") from None


def _limit_parser(parse_number: Callable[[Any], int]) -> Callable[[Any], int | Unlimited]:
    """Return a parser of a limit, which is a number, null, or the word `unlimited`."""

    def parse(value: Any) -> int | Unlimited:
        if value is None or value == UNLIMITED_WORD:
            return Unlimited.UNLIMITED
        return parse_number(value)

    return parse


def _parse_texts(value: Any) -> list[str]:
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            return [part.strip() for part in text.split(";") if part.strip()]
        value = orjson.loads(text)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("Must be a list of strings.")
    return value


def _parse_json(value: Any) -> Any:
    return orjson.loads(value) if isinstance(value, str) else value


def _enum_parser(enum_type: type[StrEnum]) -> Callable[[Any], StrEnum]:
    def parse(value: Any) -> StrEnum:
        try:
            return enum_type(_parse_text(value).strip().upper())
        except ValueError:
            raise ValueError(f"Must be one of {', '.join(enum_type)}.") from None

    return parse


def _enum_list_parser(enum_type: type[StrEnum]) -> Callable[[Any], list[StrEnum]]:
    parse = _enum_parser(enum_type)
    return lambda value: [parse(text) for text in _parse_texts(value)]


def _parse_networks(value: Any) -> list[str]:
    try:
        return [str(ipaddress.ip_network(network, strict=False)) for network in _parse_texts(value)]
    except ValueError:
        raise ValueError("Must be a list of networks such as 192.0.2.0/24.") from None


def _parse_mailbox_paths(name: str, value: Any) -> dict[SpecialUse, str]:
    paths_by_use = value if name == MAILBOXES else {name.partition(".")[2]: value}
    if not isinstance(paths_by_use, dict) or not paths_by_use.keys() <= set(NAMEABLE_SPECIAL_USES):
        raise TypeError(f"Must be an object with names of {', '.join(NAMEABLE_SPECIAL_USES)}.")
    return {
        SpecialUse[use.upper()]: _parse_text(path) for use, path in paths_by_use.items() if path
    }


def _parser_of_field(name: str) -> Callable[[Any], Any]:
    special_parsers: dict[str, Callable[[Any], Any]] = {
        "role": _enum_parser(Role),
        "admin_permissions": _enum_list_parser(AdminPermission),
        "permissions": _enum_list_parser(UserPermission),
        "subaddress_action": _enum_parser(SubaddressAction),
        "disabled_scopes": _enum_list_parser(ProtocolScope),
        "smtp_allowed_networks": _parse_networks,
        "quota": _limit_parser(quantities.parse_byte_count),
        "retention": quantities.parse_iso_duration,
        "spam_level": _parse_number,
        "junk_score": _parse_points,
        "reject_score": _parse_points,
        "public_metadata": _parse_json,
        "private_metadata": _parse_json,
    }
    if name in special_parsers:
        return special_parsers[name]
    if name in {"tags", "forward_to", "allowed_senders"}:
        return _parse_texts
    if name in LIMIT_COLUMNS:
        return _limit_parser(_parse_number)
    if isinstance(NewUser.__dataclass_fields__[name].default, bool):
        return _parse_flag
    return _parse_text


PARSERS: dict[str, tuple[str, Callable[[Any], Any]]] = {  # by name in the file
    schema_name(name): (name, _parser_of_field(name))
    for name in NewUser.__dataclass_fields__
    if name not in {MAILBOXES, ADMINISTERS}
}
