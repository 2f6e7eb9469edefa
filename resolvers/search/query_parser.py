"""Parse the search syntax into filter fields, in their JSON form."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from models.errors import InvalidInput, RequestError
from models.validation_constraints import ValidationConstraint
from resolvers.search.query_keys import (
    DOVEADM_KEYS,
    LIST_FIELDS,
    UNSUPPORTED_WORDS,
    FilterFields,
    InvalidValueError,
    fields_from_key_and_value_or_none,
    is_key,
)

MAX_QUERY_LENGTH = 4096  # characters
MAX_BRACKET_DEPTH = 8  # of brackets
MAX_TERMS = 250
# fields whose validity depends on other fields
GROUP_CHECKED_FIELDS = frozenset({"query", "uids", "seqs"})
OPERATORS = frozenset({"AND", "OR", "NOT"})
UNCLOSED_QUOTE_MESSAGE = "The closing quotation mark is missing."
MISSING_VALUE_MESSAGE = "The value is missing."

_TOKEN_PATTERN = re.compile(
    r"""\s*(?:
        (?P<open>\() | (?P<close>\)) |
        (?P<key>-?[A-Za-z][A-Za-z-]*):(?=\S) |
        (?P<quote>-?"(?:[^"\\]|\\.)*") |
        (?P<minus>-)(?=\() |
        (?P<odd>-?".*) |
        (?P<word>[^\s()"]+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED_CHARACTER = re.compile(r"\\([\\\"])")


class QueryToken(NamedTuple):
    """A token of a search text: its kind, its text and its position, counted from 1."""

    kind: str
    text: str
    position: int


class QueryProblem(NamedTuple):
    """An invalid term of a search text and its position, counted in characters from 1."""

    term: str  # empty if something is missing at the end
    position: int
    message: str
    first_token: str  # the first token of the term

    def __str__(self) -> str:
        position_text = (
            f"{self.first_token[:40]!r} at position {self.position}"
            if self.first_token
            else "End of the text"
        )
        return f"{position_text}: {self.message}"


@dataclass(frozen=True, slots=True)
class ParsedQuery:
    """The filter fields of the valid terms of a search text, and the problems of the others."""

    fields: dict[str, Any]
    problems: list[QueryProblem]
    is_void: bool = False  # no term is valid: the search matches nothing


# Raises RequestError if no search can ask for these fields.
FieldsValidator = Callable[[FilterFields], None]


def parse_search_query(
    text: str, now: datetime, validate: FieldsValidator | None = None
) -> ParsedQuery:
    """Parse a search text. Invalid terms, and terms that `validate` refuses, are left out.

    Each of them is listed in `problems`. Raises no error.
    """
    if len(text) > MAX_QUERY_LENGTH:
        message = f"The search text has at most {MAX_QUERY_LENGTH} characters."
        return ParsedQuery({}, [QueryProblem(text, 1, message, text)], is_void=True)
    reader = _QueryParser(text, _tokenize(text), now, validate)
    try:
        fields = reader.parse_alternatives(0)
        while reader.token_index < len(reader.tokens):
            reader.add_problem(reader.tokens[reader.token_index], "The opening bracket is missing.")
            reader.token_index += 1
            if reader.peek_token():
                fields = _combine_with_and(fields, reader.parse_alternatives(0))
    except _QueryRejected:
        fields = None
    if fields and validate and not reader.add_problem_unless_query_valid(fields):
        fields = None
    problems = sorted(reader.problems, key=lambda item: item.position)
    return ParsedQuery(fields or {}, problems, is_void=fields is None)


def has_only_words(text: str) -> bool:
    """True if a text has words and phrases only: no known key, no operator.

    Brackets without these change nothing, and an unknown key is a word.
    """
    return not any(map(_is_key_or_operator, _tokenize(text)))


def _is_key_or_operator(token: QueryToken) -> bool:
    """True if a token is a known key, an operator or a key of doveadm."""
    plain_word = token.text.removeprefix("-")
    if token.kind == "word":
        lone_key = plain_word.endswith(":") and is_key(plain_word[:-1].lower())
        return (
            lone_key
            or plain_word in OPERATORS
            or plain_word in DOVEADM_KEYS
            or plain_word in UNSUPPORTED_WORDS
        )
    return token.kind == "minus" or (token.kind == "key" and is_key(plain_word.lower()))


def fields_from_valid_query(
    text: str, now: datetime, path_in_input: Sequence[str] = ("query",)
) -> dict[str, Any]:
    """Parse a search text. Raises InvalidInput with the positions if it has problems."""
    parsed_query = parse_search_query(text, now)
    if parsed_query.problems:
        error_text = " ".join(map(str, parsed_query.problems[:5]))
        raise InvalidInput(error_text, constraint=ValidationConstraint.SYNTAX, path=path_in_input)
    return parsed_query.fields


def _tokenize(text: str) -> list[QueryToken]:
    """Split a search text into tokens."""
    tokens = []
    for match in _TOKEN_PATTERN.finditer(text):
        kind = match.lastgroup
        if kind:
            tokens.append(QueryToken(kind, match[kind], match.start(kind) + 1))
    return tokens


class _QueryRejected(Exception):
    """The text is too long or nested too deeply: all of it is invalid."""


@dataclass(slots=True)
class _QueryParser:
    """Parser of tokens.

    Its methods return None for a term that is left out because of a problem.
    """

    text: str
    tokens: list[QueryToken]
    now: datetime
    validate: FieldsValidator | None
    token_index: int = 0
    term_count: int = 0
    problems: list[QueryProblem] = field(default_factory=list)

    def add_problem(self, token: QueryToken | None, message: str, end_index: int = 0) -> None:
        """Add a problem.

        The term reaches from `token` to the token before `end_index`, or to the current one.
        """
        if token is None:
            self.problems.append(QueryProblem("", len(self.text) + 1, message, ""))
            return
        last = max(
            token,
            self.tokens[(end_index or self.token_index or 1) - 1],
            key=lambda item: item.position,
        )
        term = self.text[token.position - 1 : last.position - 1 + len(last.text)]
        self.problems.append(QueryProblem(term, token.position, message, token.text))

    def add_problem_unless_query_valid(self, fields: FilterFields) -> bool:
        """Check all fields of the text together.

        If they are refused, add a problem and return False.
        """
        try:
            if self.validate:
                self.validate(fields)
        except RequestError as refusal:
            self.problems.append(QueryProblem(self.text, 1, refusal.message, self.text))
            return False
        return True

    def peek_token(self) -> QueryToken | None:
        """Return the next token; None at the end."""
        return self.tokens[self.token_index] if self.token_index < len(self.tokens) else None

    def parse_alternatives(self, depth: int, *, in_list: bool = False) -> dict[str, Any] | None:
        """Parse conditions separated by OR, up to a closing bracket or the end."""
        if depth > MAX_BRACKET_DEPTH:
            self.add_problem(
                self.peek_token(), f"Brackets are nested at most {MAX_BRACKET_DEPTH} levels deep."
            )
            raise _QueryRejected
        read_ = [self.parse_conditions_up_to_or(depth, in_list=in_list)]
        while (token := self.peek_token()) and token.kind == "word" and token.text == "OR":
            self.token_index += 1
            read_.append(self.parse_conditions_up_to_or(depth, in_list=in_list, follows_or=True))
        alternatives = [alternative for alternative in read_ if alternative is not None]
        return (
            {"or": alternatives}
            if len(alternatives) > 1
            else alternatives[0]
            if alternatives
            else None
        )

    def parse_conditions_up_to_or(
        self, depth: int, *, in_list: bool, follows_or: bool = False
    ) -> dict[str, Any] | None:
        """Parse conditions joined by AND, up to OR, a closing bracket or the end."""
        conditions: dict[str, Any] = {}
        origins: dict[str, tuple[QueryToken, int]] = {}  # first token and end index of each field
        kept_count = dropped_count = 0
        while token := self.peek_token():
            if token.kind == "close" or (token.kind == "word" and token.text == "OR"):
                break
            if in_list and token.kind == "word" and token.text == ",":
                break
            if token.kind == "word" and token.text == "AND":
                self.token_index += 1
                continue
            self.term_count += 1
            if self.term_count > MAX_TERMS:
                self.add_problem(token, f"The search text has at most {MAX_TERMS} terms.")
                raise _QueryRejected
            condition = self.parse_condition(depth)
            dropped_count += condition is None
            kept_count += condition is not None
            origins = {**dict.fromkeys(condition or (), (token, self.token_index)), **origins}
            _merge_fields(conditions, condition or {})
        if not (kept_count or dropped_count) and (depth or follows_or or self.peek_token()):
            self.add_problem(self.peek_token(), "A term is missing before it.")
            return None
        dropped = self.drop_fields_invalid_in_group(conditions, origins)
        return (
            None
            if (dropped_count and not kept_count) or (dropped and not conditions)
            else conditions
        )

    def drop_fields_invalid_in_group(
        self, fields: dict[str, Any], origins: Mapping[str, tuple[QueryToken, int]]
    ) -> bool:
        """Delete the fields that are invalid in combination, and return True if there was one."""
        names = [
            name
            for name in sorted(GROUP_CHECKED_FIELDS & fields.keys())
            if self.add_problem_if_field_refused(fields, name, *origins[name])
        ]
        for name in names:
            del fields[name]
        return bool(names)

    def add_problem_if_field_refused(
        self, fields: FilterFields, field_name: str, token: QueryToken, end_index: int
    ) -> bool:
        """True if a field is invalid in its group. A problem is added then."""
        mailbox_field = {"mailbox": fields["mailbox"]} if "mailbox" in fields else {}
        try:
            if self.validate:
                self.validate({field_name: fields[field_name], **mailbox_field})
        except RequestError as refusal:
            self.add_problem(token, refusal.message, end_index)
            return True
        return False

    def parse_condition(self, depth: int) -> FilterFields | None:
        """Parse one condition."""
        token = self.tokens[self.token_index]
        self.token_index += 1
        match token.kind:
            case "open":
                condition = self.parse_bracket(token, depth)
                return (
                    condition
                    if condition is None or set(condition) == {"or"}
                    else {"and": [condition]}
                )
            case "minus":
                self.token_index += 1
                return self.negate(self.parse_bracket(token, depth), token)
            case "key":
                return self.parse_key_and_value(token, depth)
            case "quote":
                minus = token.text.startswith("-")
                phrase = unquote(token.text.removeprefix("-")).replace('"', " ")
                phrase_condition = {"query": f'"{phrase}"'}
                return self.negate(phrase_condition, token) if minus else phrase_condition
            case "word":
                return self.parse_word(token, depth)
        self.add_problem(token, UNCLOSED_QUOTE_MESSAGE)
        return None

    def parse_bracket(self, opening_token: QueryToken, depth: int) -> dict[str, Any] | None:
        """Parse the content of an open bracket. An unclosed bracket ends with the text."""
        condition = self.parse_alternatives(depth + 1)
        if (token := self.peek_token()) is None or token.kind != "close":
            self.add_problem(opening_token, "The closing bracket is missing.")
        else:
            self.token_index += 1
        return condition

    def negate(self, fields: FilterFields | None, token: QueryToken) -> FilterFields | None:
        """Return the negation of fields; None if they are invalid."""
        if fields is None or any(
            self.add_problem_if_field_refused(fields, name, token, self.token_index)
            for name in sorted(GROUP_CHECKED_FIELDS & fields.keys())
        ):
            return None
        return {"not": dict(fields)}

    def parse_key_and_value(self, token: QueryToken, depth: int) -> FilterFields | None:
        """Parse a key and its value."""
        minus, key = token.text.startswith("-"), token.text.removeprefix("-").lower()
        value = self.tokens[self.token_index]
        fields: FilterFields | None
        if value.kind == "open" and key in ("and", "or"):
            parts = self.parse_list(depth)
            fields = None if parts is None else {key: parts}
        elif value.kind == "open" and key == "mailboxes":
            parts = self.parse_list(depth)
            mailboxes = [part["mailbox"] for part in parts or () if "mailbox" in part]
            fields = None if parts is None else {"mailboxes": mailboxes}
        else:
            given = self.parse_value(token)
            fields = None if given is None else self.fields_from_key_and_values(token, key, given)
        return self.negate(fields, token) if minus and fields else fields

    def parse_list(self, depth: int) -> list[dict[str, Any]] | None:
        """Parse a list of filters in brackets, separated by commas."""
        opening = self.tokens[self.token_index]
        self.token_index += 1
        items: list[dict[str, Any]] = []
        item_count = 0
        while (token := self.peek_token()) and token.kind != "close":
            if item_count:
                self.token_index += 1  # a comma: only a comma ends a list item
            item_count += 1
            item = self.parse_alternatives(depth + 1, in_list=True)
            items += [] if item is None else [item]
        if self.peek_token() is None:
            self.add_problem(opening, "The closing bracket is missing.")
        else:
            self.token_index += 1
        return items if items or not item_count else None

    def parse_value(self, key_token: QueryToken) -> str | None:
        """Parse the value of a key: a quoted text, or all characters up to the next blank."""
        start = self.token_index
        parts: list[str] = []
        while (token := self.peek_token()) and (
            self.token_index == start
            or token.position == self.tokens[self.token_index - 1].position + len(parts[-1])
        ):
            if token.kind == "odd" and not parts:
                self.token_index += 1
                self.add_problem(key_token, UNCLOSED_QUOTE_MESSAGE)
                return None
            if token.kind in ("open", "close", "minus", "odd"):
                break
            self.token_index += 1
            if token.kind == "quote" and self.token_index == start + 1 and token.text[0] == '"':
                return unquote(token.text)
            parts.append(token.text + (":" if token.kind == "key" else ""))
        if not parts:
            self.add_problem(key_token, MISSING_VALUE_MESSAGE)
            return None
        return "".join(parts)

    def parse_word(self, token: QueryToken, depth: int) -> FilterFields | None:
        """Parse a word: an operator, a key of doveadm in capitals, or a plain word."""
        text = token.text
        if text == "AND":
            return {}
        if text == "NOT":
            return self.parse_negation(token, depth)
        if text in UNSUPPORTED_WORDS:
            self.add_problem(token, f"{UNSUPPORTED_WORDS[text]} is not supported.")
            return None
        return (
            self.parse_doveadm_key(token) if text in DOVEADM_KEYS else self.parse_plain_word(token)
        )

    def parse_plain_word(self, token: QueryToken) -> FilterFields | None:
        """Parse a word to search for, negated after a leading minus.

        A key without a value is added as a problem, and None is returned.
        """
        minus = token.text.startswith("-") and len(token.text) > 1
        bare = token.text.removeprefix("-") if minus else token.text
        if bare.endswith(":") and is_key(bare[:-1].lower()):
            self.add_problem(token, MISSING_VALUE_MESSAGE)
            return None
        return self.negate({"query": bare}, token) if minus else {"query": bare}

    def parse_doveadm_key(self, token: QueryToken) -> FilterFields | None:
        """Parse a key of doveadm and its values."""
        values = []
        for _ in range(DOVEADM_KEYS[token.text].value_count):
            if (following := self.peek_token()) is None:
                self.add_problem(token, MISSING_VALUE_MESSAGE)
                return None
            value = self.parse_value(following if following.kind != "open" else token)
            if value is None:
                return None
            values.append(value)
        return self.fields_from_key_and_values(token, token.text, *values)

    def parse_negation(self, token: QueryToken, depth: int) -> FilterFields | None:
        """Parse the operand of NOT, and return its negation."""
        if (following := self.peek_token()) is None:
            self.add_problem(token, "The value is missing.")
            return None
        if depth >= MAX_BRACKET_DEPTH:
            self.add_problem(token, f"Brackets are nested at most {MAX_BRACKET_DEPTH} levels deep.")
            raise _QueryRejected
        if following.kind == "open":
            self.token_index += 1
            return self.negate(self.parse_bracket(following, depth), token)
        return self.negate(self.parse_condition(depth + 1), token)

    def fields_from_key_and_values(
        self, token: QueryToken, key: str, *values: str
    ) -> FilterFields | None:
        """Return the fields of a key and its values; None, with a problem, if they are invalid."""
        try:
            if key in DOVEADM_KEYS:
                fields: FilterFields | None = DOVEADM_KEYS[key].parse_values(*values, self.now)
            else:
                fields = fields_from_key_and_value_or_none(key, values[0], self.now)
        except InvalidValueError as problem:
            self.add_problem(token, f"The value {problem}.")
            return None
        if fields is None:
            self.add_problem(
                token, "Unknown search key. To search for the words, put them in quotation marks."
            )
            return None
        single_fields = fields.keys() - GROUP_CHECKED_FIELDS
        refused = any(
            self.add_problem_if_field_refused(fields, name, token, self.token_index)
            for name in sorted(single_fields)
        )
        return None if refused else fields


def unquote(text: str) -> str:
    r"""Return the text between quotation marks, with `\"` and `\\` resolved.

    A backslash before any other character stands for itself.
    """
    return _ESCAPED_CHARACTER.sub(r"\1", text[1:-1])


def _combine_with_and(
    first: dict[str, Any] | None, second: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return the conjunction of two parts of a text, each of which can be missing."""
    if first is None or second is None:
        return first or second
    return {"and": [first, second]} if first and second else first or second


def _merge_fields(fields: dict[str, Any], added: Mapping[str, Any]) -> None:
    """Add fields to a conjunction. A field that is set already goes into `and`."""
    for name, value in added.items():
        if name not in fields:
            fields[name] = value
        elif name == "query":
            fields[name] = f"{fields[name]} {value}"
        elif name in ("and", *LIST_FIELDS.values()):
            fields[name] = [*fields[name], *value]
        elif name == "attachment" and not set(fields[name]) & set(value) and value and fields[name]:
            fields[name] = {**fields[name], **value}
        else:
            fields["and"] = [*fields.get("and", []), {name: value}]
