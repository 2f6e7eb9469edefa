"""Read users from CSV and JSON Lines files: one record for each user.

Fields have the names of `NewUserInput` in the schema. In CSV an empty cell is a missing field, a
list is separated by `;` or is a JSON array, and free data is a JSON object. The names of special
mailboxes are the columns `mailboxes.sent` and so on.
"""

import csv
import ipaddress
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from models import quantities
from models.errors import Invalid, Problems
from models.mailboxes.tables import SpecialUse
from models.users.list_formats import UserFileFormat
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.tables import DelimiterAction, ProtocolScope
from resolvers.users.creation.create import NewUser
from resolvers.users.validation import camel

LONGEST = 1 << 20  # characters
MAILBOXES = "mailboxes"
ADMINISTERS = "administers"  # column with domain names
YES, NO = {"true", "yes", "1"}, {"false", "no", "0"}
NAMED_USES = ("sent", "junk", "drafts", "trash", "archive")

csv.field_size_limit(LONGEST)


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One user of a file, as the file has it."""

    line: int  # first line, from 1
    fields: dict[str, Any] = field(default_factory=dict)
    problem: Invalid | None = None  # the record can't be read


def detect_format(head: bytes) -> UserFileFormat:
    """Return JSON Lines if the first character is a brace, else CSV."""
    is_json = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return UserFileFormat.JSON_LINES if is_json else UserFileFormat.CSV


def read(path: Path, form: UserFileFormat) -> Generator[UserRecord]:
    """Yield the records of a file in order. Raises Invalid if the file is not in this format."""
    with path.open(
        encoding="utf-8-sig", newline="" if form is UserFileFormat.CSV else None
    ) as file:
        try:
            yield from _read_csv(file) if form is UserFileFormat.CSV else _read_json(file)
        except UnicodeDecodeError as problem:
            raise Invalid(
                "the file is not UTF-8", constraint="encoding", path=["file"]
            ) from problem


def _read_json(lines: Iterator[str]) -> Generator[UserRecord]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line) if len(line) <= LONGEST else None
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            yield UserRecord(number, value)
        else:
            text = f"not a JSON object of at most {LONGEST} characters"
            yield UserRecord(number, problem=Invalid(text, constraint="json"))


def _read_csv(lines: Iterator[str]) -> Generator[UserRecord]:
    rows = csv.reader(lines, strict=True)
    begins = 1
    try:
        header = [name.strip() for name in next(rows, [])]
        _check_header(header)
        while True:
            begins = rows.line_num + 1
            row = next(rows, None)
            if row is None:
                return
            if not any(row):
                continue
            if len(row) > len(header):
                problem = Invalid("more cells than the header has", constraint="max")
                yield UserRecord(begins, problem=problem)
            else:
                cells = zip(header, row, strict=False)
                yield UserRecord(begins, {name: cell for name, cell in cells if cell})
    except csv.Error as problem:
        text = f"line {begins}: {problem}"
        raise Invalid(text, constraint="csv", path=["file"]) from problem


def check_head(head: bytes, form: UserFileFormat) -> None:
    """Raise Invalid if the first bytes of a CSV file have no header, or unknown columns."""
    if form is UserFileFormat.CSV:
        first = head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").splitlines()[:1]
        _check_header([name.strip() for name in next(csv.reader(first), [])])


def _check_header(header: list[str]) -> None:
    known = READERS.keys() | {f"{MAILBOXES}.{name}" for name in NAMED_USES} | {ADMINISTERS}
    wrong = [name for name in header if name not in known]
    if not header or wrong:
        text = f"unknown columns: {', '.join(wrong)}" if wrong else "the file has no header"
        raise Invalid(text[:500], constraint="columns", path=["file"])
    if len(set(header)) < len(header):
        raise Invalid("two columns of one name", constraint="columns", path=["file"])


def new_user(record: UserRecord, problems: Problems) -> tuple[NewUser, list[str]]:
    """Return the new user of a record, and the names of the domains it administers.

    Adds fields that can't be read to `problems`.
    """
    given, charges, boxes = dict[str, Any](), list[str](), dict[SpecialUse, str]()
    for name, value in record.fields.items():
        if value is None:
            continue
        with problems.caught():
            try:
                if name == ADMINISTERS:
                    charges = _texts(value)
                elif name == MAILBOXES or name.startswith(f"{MAILBOXES}."):
                    boxes |= _mailboxes(name, value)
                elif name in READERS:
                    attribute, reader = READERS[name]
                    given[attribute] = reader(value)
                else:
                    raise Invalid("no such field", constraint="field", path=[name])
            except (ValueError, TypeError, KeyError) as problem:
                text = str(problem) or "not a value of this field"
                raise Invalid(text, constraint="type", path=name.split(".")) from problem
    return NewUser(**given, mailboxes=boxes), charges


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text is expected")
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = _text(value).strip().lower()
    if text not in YES | NO:
        raise ValueError("true or false is expected")
    return text in YES


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError("a whole number is expected")
    try:
        return int(value)
    except ValueError:
        raise ValueError("a whole number is expected") from None


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            return [part.strip() for part in text.split(";") if part.strip()]
        value = orjson.loads(text)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError("a list of texts is expected")
    return value


def _free(value: Any) -> Any:
    return orjson.loads(value) if isinstance(value, str) else value


def _choice(kind: type[StrEnum]) -> Callable[[Any], StrEnum]:
    def choose(value: Any) -> StrEnum:
        try:
            return kind(_text(value).strip().upper())
        except ValueError:
            raise ValueError(f"one of {', '.join(kind)} is expected") from None

    return choose


def _choices(kind: type[StrEnum]) -> Callable[[Any], list[StrEnum]]:
    choose = _choice(kind)
    return lambda value: [choose(one) for one in _texts(value)]


def _networks(value: Any) -> list[str]:
    try:
        return [str(ipaddress.ip_network(one, strict=False)) for one in _texts(value)]
    except ValueError:
        raise ValueError("networks such as 192.0.2.0/24 are expected") from None


def _mailboxes(name: str, value: Any) -> dict[SpecialUse, str]:
    given = value if name == MAILBOXES else {name.partition(".")[2]: value}
    if not isinstance(given, dict) or not given.keys() <= set(NAMED_USES):
        raise TypeError(f"names of {', '.join(NAMED_USES)} are expected")
    return {SpecialUse[use.upper()]: _text(path) for use, path in given.items() if path}


def _reader(name: str) -> Callable[[Any], Any]:
    special: dict[str, Callable[[Any], Any]] = {
        "role": _choice(Role),
        "admin_permissions": _choices(AdminPermission),
        "permissions": _choices(UserPermission),
        "delimiter_action": _choice(DelimiterAction),
        "disabled_scopes": _choices(ProtocolScope),
        "smtp_allowed_networks": _networks,
        "quota": quantities.size,
        "retention": quantities.duration,
        "meta_data": _free,
        "internal_data": _free,
    }
    if name in special:
        return special[name]
    if name in {"tags", "targets", "from_whitelist"}:
        return _texts
    if name in {"spam_level", "recipients", "forwards", "received_max"}:
        return _number
    if isinstance(NewUser.__dataclass_fields__[name].default, bool):
        return _flag
    return _text


READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {  # by name in the file
    camel(name): (name, _reader(name))
    for name in NewUser.__dataclass_fields__
    if name not in {MAILBOXES, ADMINISTERS}
}
