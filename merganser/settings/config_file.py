"""The settings file: TOML, or lines `VARIABLE=value`. The environment overrides its settings."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from merganser.settings.toml_config import InvalidToml, TextOrTexts, parse_toml

TOML_SUFFIX = ".toml"
MAX_SIZE = 256 << 10  # bytes
QUOTES = "\"'"


class InvalidConfigFile(Exception):
    """The settings file can't be used. The text names the line, but no value."""


@dataclass(frozen=True, slots=True)
class ConfigLine:
    """The value of a variable in the settings file. Only TOML has lists of texts."""

    value: TextOrTexts
    line_number: int


def read_config_file(path: Path) -> dict[str, ConfigLine]:
    """Read the values of a settings file by variable. Raises InvalidConfigFile.

    A file whose name ends with .toml is TOML.
    """
    try:
        # a FIFO without a writer would block
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidConfigFile(f"{path} is not a regular file.")
            raw = file.read(MAX_SIZE + 1)
    except OSError as problem:
        raise InvalidConfigFile(f"Cannot read {path}: {problem.strerror}.") from problem
    if len(raw) > MAX_SIZE:
        raise InvalidConfigFile(f"{path} is larger than {MAX_SIZE >> 10} KiB.")
    return _parse_toml(path, raw) if path.suffix == TOML_SUFFIX else _parse_lines(path, raw)


def _parse_toml(path: Path, raw: bytes) -> dict[str, ConfigLine]:
    try:
        values = parse_toml(raw.decode())
    except UnicodeDecodeError as problem:
        line_number = raw.count(b"\n", 0, problem.start) + 1
        raise InvalidConfigFile(f"{path}, line {line_number}: the text is not UTF-8.") from problem
    except InvalidToml as problem:
        raise InvalidConfigFile(f"{path}, line {problem.line_number}: {problem}") from problem
    return {variable: ConfigLine(value, number) for variable, (value, number) in values.items()}


def _parse_lines(path: Path, raw: bytes) -> dict[str, ConfigLine]:
    lines: dict[str, ConfigLine] = {}
    for number, raw_line in enumerate(raw.split(b"\n"), 1):
        place = f"{path}, line {number}"
        try:
            line = raw_line.decode().strip()
        except UnicodeDecodeError as problem:
            raise InvalidConfigFile(f"{place}: the text is not UTF-8.") from problem
        if not line or line.startswith("#"):
            continue
        variable, separator, value = line.partition("=")
        variable = variable.rstrip()
        if not separator or not variable.isidentifier() or not variable.isascii():
            raise InvalidConfigFile(f"{place}: write VARIABLE=value.")
        if variable in lines:
            first = lines[variable].line_number
            raise InvalidConfigFile(f"{place}: {variable} is also set in line {first}.")
        lines[variable] = ConfigLine(_unquoted_value(value.strip(), place), number)
    return lines


def _unquoted_value(value: str, place: str) -> str:
    """Return a value without the quotes around it. Raises InvalidConfigFile."""
    if any(ord(character) < ord(" ") for character in value):
        raise InvalidConfigFile(f"{place}: the value has a control character.")
    if value[:1] and value[0] in QUOTES:
        if len(value) == 1 or value[-1] != value[0]:
            raise InvalidConfigFile(f"{place}: the closing quote is missing.")
        return value[1:-1]
    return value
