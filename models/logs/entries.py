"""Entries of the log: components, levels, and the form in which both stores keep them."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import orjson

MAX_MESSAGE_LENGTH = 1000  # characters
MAX_FIELDS = 40
MAX_FIELD_LENGTH = 500  # characters of a text in the fields
MAX_LIST_ITEMS = 100
MAX_NESTED_LEVELS = 3  # of lists and mappings in the fields
MAX_VALUES = 1000  # in the fields, with nested ones
OMITTED = "(omitted)"  # in the place of values beyond these limits
MAX_FIELDS_SIZE = 16_384  # bytes of the fields as JSON
MAX_ID_LENGTH = 500  # characters of a queue id, Message-ID or correlation id
MAX_WORDS = 200  # of an entry in the text index
MAX_WORD_LENGTH = 64  # characters
MAX_QUERY_LENGTH = 500  # characters of a text filter
MAX_QUERY_WORDS = 20
MAX_INT64 = (1 << 63) - 1
LABEL_MARK = "\ue000"  # begins tokens that no text contains: it is no letter and no digit
ENTRY_OVERHEAD, VALUE_OVERHEAD = 300, 50  # bytes in memory
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_WORD = re.compile(r"[^\W_]+")
# For bytes.translate, which is faster than that of str: letters in lower case, digits, else spaces
_ASCII_WORD_CHARACTERS = bytes(c if bytes([c]).isalnum() else 32 for c in range(256)).lower()
_SCALAR_TYPES = (int, float, type(None))
_NESTED_TYPES = (list, dict, tuple, set, frozenset, Mapping)  # the slowest check last
_TEXT_TYPES = frozenset({str})
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class LogComponent(StrEnum):
    """A part of the server that writes log entries."""

    ACME = "ACME"
    API = "API"
    AUTODISCOVER = "AUTODISCOVER"
    STORE = "STORE"
    THROTTLE = "THROTTLE"
    MTA = "MTA"
    RATE_LIMIT = "RATE_LIMIT"
    SPAM = "SPAM"
    WEB = "WEB"
    HEALTH = "HEALTH"
    CONNECTOR = "CONNECTOR"
    WEBHOOK = "WEBHOOK"
    AUTH = "AUTH"
    TASK = "TASK"
    CLUSTER = "CLUSTER"


class LogLevel(StrEnum):
    """The severity of a log entry."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"

    def __init__(self, _name: str) -> None:
        self.rank = len(type(self).__members__)  # 0 for DEBUG, 3 for ERROR


LEVELS = tuple(LogLevel)


@dataclass(slots=True)
class NewLogEntry:
    """An entry as a component reports it. Texts are cleaned and shortened when it is stored."""

    at: datetime
    component: LogComponent
    level: LogLevel
    program: str  # the logger, or the module
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    user_id: int | None = None
    domain_id: int | None = None  # its administrators can read the entry
    queue_id: str | None = None
    message_id: str | None = None  # Message-ID in angle brackets
    correlation_id: str | None = None  # of the request


class LogRow(NamedTuple):
    """An entry as both stores keep it, with its columns in their order."""

    id: int  # increases in the order in which entries are stored; never below `at`
    at: int  # microseconds since 1970
    component: str
    level: int  # LogLevel.rank
    program: str
    message: str
    user_id: int | None
    domain_id: int | None
    queue_id: str | None
    message_id: str | None
    correlation_id: str | None
    fields: str  # JSON


COLUMNS = LogRow._fields


class StorableLogEntry(NamedTuple):
    """A row and its tokens in the text index."""

    row: LogRow
    tokens: Sequence[str]


@dataclass(frozen=True, slots=True)
class LogConditions:
    """Conditions of a list of entries; all must hold. The texts are as in the filter."""

    components: tuple[LogComponent, ...] | None = None  # None: all
    min_level: LogLevel = LogLevel.DEBUG
    since: datetime | None = None  # inclusive
    before: datetime | None = None  # exclusive
    words: tuple[str, ...] = ()  # all must occur
    user_id: int | None = None
    queue_id: str | None = None
    message_id: str | None = None
    correlation_id: str | None = None
    domain_ids: tuple[int, ...] | None = None  # None: entries of all domains and of none

    def required_tokens(self) -> list[list[str]]:
        """Return groups of tokens: an entry must have a token of each group."""
        groups = [[word] for word in self.words]
        if self.components is not None:
            groups.append([_component_token(component) for component in self.components])
        if self.min_level.rank:
            groups.append([_level_token(self.min_level.rank)])
        if self.domain_ids is not None:
            groups.append([_domain_token(domain_id) for domain_id in self.domain_ids])
        if self.user_id is not None:
            groups.append([_user_token(self.user_id)])
        for kind, value in (
            ("q", self.queue_id),
            ("m", self.message_id),
            ("r", self.correlation_id),
        ):
            if value is not None:
                groups.append([_id_token(kind, value)])
        return groups

    @property
    def matches_nothing(self) -> bool:
        """True if a list of components or domains is empty."""
        return self.components == () or self.domain_ids == ()

    def since_retention(self, oldest: datetime) -> "LogConditions":
        """Return the conditions for entries that are not older than `oldest`, either."""
        return replace(self, since=oldest if self.since is None else max(self.since, oldest))


def microseconds_of(moment: datetime) -> int:
    """Return an instant as microseconds since 1970."""
    since_epoch = moment - EPOCH
    return (since_epoch.days * 86_400 + since_epoch.seconds) * 1_000_000 + since_epoch.microseconds


def estimated_size(entry: NewLogEntry) -> int:
    """Return about how many bytes of memory a new entry needs."""
    return ENTRY_OVERHEAD + len(entry.message) + _estimated_size_of_value(entry.fields)


def _estimated_size_of_value(value: Any, depth: int = 0) -> int:
    if isinstance(value, str | bytes):
        return VALUE_OVERHEAD + len(value)
    if isinstance(value, _SCALAR_TYPES) or not isinstance(value, _NESTED_TYPES):
        return VALUE_OVERHEAD
    size = VALUE_OVERHEAD * len(value)
    if depth < MAX_NESTED_LEVELS:
        items = value.values() if isinstance(value, Mapping) else value
        size += sum(
            _estimated_size_of_value(item, depth + 1) for item in islice(items, MAX_LIST_ITEMS)
        )
    return size


def storable_entry(entry: NewLogEntry) -> StorableLogEntry:
    """Return the row of an entry, still without an id (0), and its tokens.

    Control characters, half surrogate pairs and terminal escapes become visible escapes.
    """
    fields = {name: value for name, value in entry.fields.items() if value is not None}
    fields_json = _json_of_plain_fields(fields)
    if fields_json is None:
        fields = _bounded_json_fields(fields)
        fields_json = orjson.dumps(fields)
    row = LogRow(
        0,
        microseconds_of(entry.at),
        str(entry.component),
        entry.level.rank,
        clean_text(entry.program, MAX_FIELD_LENGTH),
        clean_text(entry.message, MAX_MESSAGE_LENGTH),
        entry.user_id,
        entry.domain_id,
        clean_id(entry.queue_id),
        clean_id(entry.message_id),
        clean_id(entry.correlation_id),
        fields_json.decode(),
    )
    return StorableLogEntry(row, _tokens_of_row(row, fields))


def _json_of_plain_fields(fields: Mapping[str, Any]) -> bytes | None:
    """Return the JSON of fields that are stored as they are; None if they need to be cleaned.

    This is a shortcut for short fields of numbers, texts and lists of texts, as most entries have.
    JSON escapes all control characters with a backslash, except DEL.
    """
    for value in fields.values():
        kind = type(value)
        if kind is list:
            if len(value) > MAX_LIST_ITEMS or not _TEXT_TYPES.issuperset(map(type, value)):
                return None
        elif kind is int:
            if not -MAX_INT64 <= value <= MAX_INT64:
                return None
        elif kind is not str and kind is not float and kind is not bool:
            return None
    try:
        fields_json = orjson.dumps(fields)
    except TypeError:  # half a surrogate pair
        return None
    is_short = len(fields_json) <= MAX_FIELD_LENGTH and len(fields) <= MAX_FIELDS
    is_clean = fields_json.isascii() and b"\\" not in fields_json and b"\x7f" not in fields_json
    return fields_json if is_short and is_clean else None


def _bounded_json_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields as JSON values, cleaned, and shortened to MAX_FIELDS_SIZE."""
    cleaner = _ValueCleaner()
    cleaned = {
        _clean_field_name(name): cleaner.clean_value(value)
        for name, value in islice(fields.items(), MAX_FIELDS)
    }
    if len(orjson.dumps(cleaned)) > MAX_FIELDS_SIZE - len(cleaned):
        _shorten_fields(cleaned)
    return cleaned


def _shorten_fields(fields: dict[str, Any]) -> None:
    """Halve the largest list, mapping or text until the fields have at most MAX_FIELDS_SIZE bytes.

    The names, numbers and `type` of at most MAX_FIELDS fields are always smaller.
    """
    sizes = {name: len(orjson.dumps({name: value})) for name, value in fields.items()}
    while sum(sizes.values()) > MAX_FIELDS_SIZE:
        name = max(
            (name for name, value in fields.items() if name != "type" and _is_divisible(value)),
            key=sizes.__getitem__,
        )
        fields[name] = _first_half(fields[name])
        sizes[name] = len(orjson.dumps({name: fields[name]}))


def _is_divisible(value: Any) -> bool:
    return isinstance(value, str | list | dict) and len(value) > 0


def _first_half(value: Any) -> Any:
    half = len(value) // 2
    return dict(islice(value.items(), half)) if isinstance(value, dict) else value[:half]


def clean_id(text: str | None) -> str | None:
    """Return an identifier as it is stored and searched; None for None and an empty text."""
    return clean_text(text, MAX_ID_LENGTH) or None if text else None


@lru_cache(maxsize=1000)
def _clean_field_name(name: str) -> str:
    return clean_text(name, MAX_WORD_LENGTH)


def clean_text(text: str, max_length: int) -> str:
    """Return a text in one line without characters that control a terminal or can't be stored."""
    text = text[:max_length]
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped_if_unsafe(character) for character in text)[:max_length]


def _escaped_if_unsafe(character: str) -> str:
    if unicodedata.category(character) in _UNSAFE_CATEGORIES:
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"  # noqa: PLR2004 - one byte
    return character


class _ValueCleaner:
    """Converts the fields of one entry to JSON values, as long as they are not too many."""

    def __init__(self) -> None:
        self._values_left = MAX_VALUES

    def clean_value(self, value: Any, depth: int = 0) -> Any:
        """Return a value as JSON has it: texts cleaned, numbers and nested values bounded."""
        self._values_left -= 1
        if isinstance(value, str):  # first, since most values are texts
            return clean_text(value, MAX_FIELD_LENGTH)
        if isinstance(value, bool | float) or value is None:
            return value
        if isinstance(value, int):
            is_small = abs(value) <= MAX_INT64
            return int(value) if is_small else clean_text(hex(value), MAX_FIELD_LENGTH)
        if isinstance(value, _NESTED_TYPES):
            return self._clean_items(value, depth)
        return clean_text(str(value), MAX_FIELD_LENGTH)

    def _clean_items(self, value: Any, depth: int) -> Any:
        if depth >= MAX_NESTED_LEVELS or self._values_left <= 0:
            return OMITTED
        if isinstance(value, Mapping):
            return {
                clean_text(str(name), MAX_WORD_LENGTH): self.clean_value(item, depth + 1)
                for name, item in islice(value.items(), MAX_LIST_ITEMS)
            }
        return [self.clean_value(item, depth + 1) for item in islice(value, MAX_LIST_ITEMS)]


def text_words(text: str) -> list[str]:
    """Return the different words of a text as the index has them: case folded, without accents."""
    if text.isascii():
        words = text.encode().translate(_ASCII_WORD_CHARACTERS).decode().split()
    else:
        decomposed = unicodedata.normalize("NFKD", text.casefold())
        words = _WORD.findall("".join(c for c in decomposed if not unicodedata.combining(c)))
    return [word[:MAX_WORD_LENGTH] for word in dict.fromkeys(words)]


def _tokens_of_row(row: LogRow, fields: Mapping[str, Any]) -> list[str]:
    tokens = [*_component_and_level_tokens(row.component, row.level)]
    if row.domain_id is not None:
        tokens.append(_domain_token(row.domain_id))
    if row.user_id is not None:
        tokens.append(_user_token(row.user_id))
    if row.queue_id is not None:
        tokens.append(_id_token("q", row.queue_id))
    if row.message_id is not None:
        tokens.append(_id_token("m", row.message_id))
    if row.correlation_id is not None:
        tokens.append(_id_token("r", row.correlation_id))
    words = text_words(" ".join((row.message, row.program, *_texts_in(fields.values()))))
    return tokens + words[:MAX_WORDS]


def _texts_in(values: Iterable[Any]) -> list[str]:
    """Return the texts among JSON values and inside them, without the names of members."""
    texts: list[str] = []
    for value in values:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            texts += _texts_in(value.values())
        elif isinstance(value, list):
            texts += _texts_in(value)
    return texts


@lru_cache
def _component_and_level_tokens(component: str, level: int) -> Sequence[str]:
    return [_component_token(component), *map(_level_token, range(1, level + 1))]


def _component_token(component: str) -> str:
    return f"{LABEL_MARK}c{component.lower().replace('_', '')}"


def _level_token(rank: int) -> str:
    """Return the token of all entries with this level or a higher one."""
    return f"{LABEL_MARK}l{rank}"


@lru_cache(maxsize=1000)
def _domain_token(domain_id: int) -> str:
    return f"{LABEL_MARK}d{domain_id}"


def _user_token(user_id: int) -> str:
    return f"{LABEL_MARK}u{user_id}"


@lru_cache(maxsize=1000)  # the entries of a message have the same ids
def _id_token(kind: str, text: str) -> str:
    digest = hashlib.blake2b(text.lower().encode(errors="replace"), digest_size=8).hexdigest()
    return f"{LABEL_MARK}{kind}{digest}"
