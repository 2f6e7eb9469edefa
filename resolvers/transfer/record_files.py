"""Read CSV and JSON Lines files with one object in each record, and parse the fields.

In CSV an empty cell is a missing field, a list is separated by `;` or is a JSON array, and free
data is a JSON object. An unlimited quota or limit is the word `unlimited`; in JSON it can also be
null.
"""

import csv
import io
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from mail.text.storable_text import has_nul, make_storable
from models.errors import ErrorCollector, InvalidInput
from models.users.list_formats import UserFileFormat
from models.validation_constraints import ValidationConstraint
from resolvers.users.custom_data import MAX_SIZE, require_custom_data_within_limit
from resolvers.users.limit_values import Unlimited

MAX_RECORD_LENGTH = 1 << 20  # characters
MAX_RECORD_FIELDS = 200  # also counts members of objects such as `spam`
UNLIMITED_WORD = "unlimited"
TRUE_WORDS, FALSE_WORDS = {"true", "yes", "1"}, {"false", "no", "0"}

csv.field_size_limit(MAX_RECORD_LENGTH)

FieldParser = Callable[[Any], Any]
METADATA_FIELDS = ("metadata", "privateMetadata")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One record of a file, as the file has it."""

    line: int  # first line, from 1
    fields: dict[str, Any] = field(default_factory=dict, repr=False)  # can have passwords
    problem: InvalidInput | None = None  # the record can't be read


def detect_format(head: bytes) -> UserFileFormat:
    """Return JSON Lines if the first character is a brace, else CSV."""
    is_json = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return UserFileFormat.JSON_LINES if is_json else UserFileFormat.CSV


def read_records(
    path: Path, file_format: UserFileFormat, known_columns: Collection[str]
) -> Generator[FileRecord]:
    """Yield the records of a file in order. A CSV file has no other columns than the known ones.

    Raises InvalidInput if the file is not in this format.
    """
    with path.open(
        encoding="utf-8-sig", newline="" if file_format is UserFileFormat.CSV else None
    ) as file:
        yield from _read_stream(file, file_format, known_columns)


def read_records_of_bytes(
    content: bytes, file_format: UserFileFormat, known_columns: Collection[str]
) -> Generator[FileRecord]:
    """Yield the records of a file that is in memory, as `read_records` does."""
    newline = "" if file_format is UserFileFormat.CSV else None
    with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline=newline) as file:
        yield from _read_stream(file, file_format, known_columns)


def _read_stream(
    lines: Iterator[str], file_format: UserFileFormat, known_columns: Collection[str]
) -> Generator[FileRecord]:
    try:
        if file_format is UserFileFormat.CSV:
            yield from _read_csv(lines, known_columns)
        else:
            yield from _read_json(lines)
    except UnicodeDecodeError as problem:
        raise InvalidInput(
            "The file must be encoded in UTF-8.",
            constraint=ValidationConstraint.ENCODING,
            path=["file"],
        ) from problem


def _read_json(lines: Iterator[str]) -> Generator[FileRecord]:
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line) if len(line) <= MAX_RECORD_LENGTH else None
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            yield FileRecord(line_number, value)
        else:
            text = f"A line must be a JSON object of at most {MAX_RECORD_LENGTH:,} characters."
            yield FileRecord(
                line_number, problem=InvalidInput(text, constraint=ValidationConstraint.JSON)
            )


def _read_csv(lines: Iterator[str], known_columns: Collection[str]) -> Generator[FileRecord]:
    rows = csv.reader(lines, strict=True)
    first_line = 1
    try:
        header = [name.strip() for name in next(rows, [])]
        _require_known_header(header, known_columns)
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
                yield FileRecord(first_line, problem=problem)
            else:
                cells = zip(header, row, strict=False)
                yield FileRecord(first_line, {name: cell for name, cell in cells if cell})
    except csv.Error as problem:
        text = f"Line {first_line} is not valid CSV: {problem}."
        raise InvalidInput(text, constraint=ValidationConstraint.CSV, path=["file"]) from problem


def require_known_csv_columns(
    head: bytes, file_format: UserFileFormat, known_columns: Collection[str]
) -> None:
    """Raise InvalidInput if the first bytes of a CSV file have no header, or unknown columns."""
    if file_format is UserFileFormat.CSV:
        first_line = head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").splitlines()[:1]
        header = [name.strip() for name in next(csv.reader(first_line), [])]
        _require_known_header(header, known_columns)


def _require_known_header(header: list[str], known_columns: Collection[str]) -> None:
    unknown_columns = [name for name in header if name not in known_columns]
    if not header or unknown_columns:
        text = (
            f"Unknown columns: {', '.join(unknown_columns)}."
            if unknown_columns
            else "The file must have a header."
        )
        error_text = make_storable(text[:500])  # a task stores it
        raise InvalidInput(error_text, constraint=ValidationConstraint.COLUMNS, path=["file"])
    if len(set(header)) < len(header):
        raise InvalidInput(
            "The names of the columns must be unique.",
            constraint=ValidationConstraint.COLUMNS,
            path=["file"],
        )


def parse_known_fields(
    fields: Mapping[str, Any],
    parsers: Mapping[str, FieldParser],
    problems: ErrorCollector,
    *,
    nullable_fields: Collection[str] = (),
    max_metadata_size: int = MAX_SIZE,
) -> dict[str, Any]:
    """Return the parsed values by field name. Adds an error to `problems` for each other field.

    If parsers have names such as `spam.level`, `spam` can be an object. Null is a missing
    value, except for `nullable_fields`. A parser raises ValueError, TypeError or KeyError. The
    metadata of an object have at most `max_metadata_size` bytes of JSON. Raises InvalidInput for
    too many fields.
    """
    values = dict[str, Any]()
    flattened_fields = list(islice(_flattened_fields(fields, parsers), MAX_RECORD_FIELDS + 1))
    if len(flattened_fields) > MAX_RECORD_FIELDS:
        text = f"A record has at most {MAX_RECORD_FIELDS} fields."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX)
    for name, value in flattened_fields:
        if value is None and name not in nullable_fields:
            continue
        with problems.collecting():
            _require_no_nul(name, [name, value])
            if name not in parsers:
                raise InvalidInput(
                    "Unknown field.", constraint=ValidationConstraint.UNKNOWN, path=[name]
                )
            try:
                parsed_value = parsers[name](value)
            except (ValueError, TypeError, KeyError) as problem:
                text = str(problem) or "Not a valid value of this field."
                raise InvalidInput(
                    text, constraint=ValidationConstraint.TYPE, path=name.split(".")
                ) from problem
            _require_no_nul(name, parsed_value)  # the text of a JSON value can have it escaped
            if name in METADATA_FIELDS:
                require_custom_data_within_limit(parsed_value, [name], max_metadata_size)
            values[name] = parsed_value
    return values


def _require_no_nul(name: str, value: object) -> None:
    """Raise InvalidInput for this field if the value has NUL, which no column accepts."""
    if has_nul(value):
        raise InvalidInput(
            "A field must not contain NUL.",
            constraint=ValidationConstraint.PATTERN,
            path=make_storable(name).split("."),
        )


def _flattened_fields(
    fields: Mapping[str, Any], parsers: Mapping[str, FieldParser]
) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a record; those of an object have names such as spam.level."""
    object_names = {name.partition(".")[0] for name in parsers if "." in name} - parsers.keys()
    for name, value in fields.items():
        if name in object_names and isinstance(value, dict):
            for member_name, member in value.items():
                yield f"{name}.{member_name}", member
        else:
            yield name, value


def parse_text(value: Any) -> str:
    """Return the text. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError("Must be a string.")
    return value


def parse_flag(value: Any) -> bool:
    """Return a truth value, also from a word such as `yes`. Raises TypeError or ValueError."""
    if isinstance(value, bool):
        return value
    text = parse_text(value).strip().lower()
    if text not in TRUE_WORDS | FALSE_WORDS:
        raise ValueError("Must be true or false.")
    return text in TRUE_WORDS


def parse_number(value: Any) -> int:
    """Return an integer, also from its digits. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError("Must be an integer.")
    try:
        return int(value)
    except ValueError:
        raise ValueError("Must be an integer.") from None


def limit_parser(parse_limit: Callable[[Any], int]) -> Callable[[Any], int | Unlimited]:
    """Return a parser of a limit, which is a number, null, or the word `unlimited`."""

    def parse(value: Any) -> int | Unlimited:
        if value is None or value == UNLIMITED_WORD:
            return Unlimited.UNLIMITED
        return parse_limit(value)

    return parse


def parse_texts(value: Any) -> list[str]:
    """Return a list of texts, also from one text: separated by `;`, or a JSON array.

    Raises TypeError or ValueError.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            return [part.strip() for part in text.split(";") if part.strip()]
        value = parse_json(text)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("Must be a list of strings.")
    return value


def parse_json(value: Any) -> Any:
    """Return a JSON value, also from its text. Raises ValueError."""
    try:
        return orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError:
        raise ValueError("Must be valid JSON.") from None


def enum_parser(enum_type: type[StrEnum]) -> Callable[[Any], StrEnum]:
    """Return a parser of the values of this enum, in any case."""

    def parse(value: Any) -> StrEnum:
        try:
            return enum_type(parse_text(value).strip().upper())
        except ValueError:
            raise ValueError(f"Must be one of {', '.join(enum_type)}.") from None

    return parse


def enum_list_parser(enum_type: type[StrEnum]) -> Callable[[Any], list[StrEnum]]:
    """Return a parser of a list of values of this enum."""
    parse = enum_parser(enum_type)
    return lambda value: [parse(text) for text in parse_texts(value)]
