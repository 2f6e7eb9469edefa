"""Texts for people and for logs: sentences in errors, short phrases in log lines, plain words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from models.errors import RequestError

ROOT = Path(__file__).parents[2]
LAYERS = ("models", "mail", "resolvers", "graph", "merganser")
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}

# Functions and classes whose text reaches people, with the position of the text.
TEXT_POSITIONS = {
    "AcmeError": 0, "ArchiveDecryptionError": 0, "CommandError": 0, "CredentialFailure": 1,
    "DamagedArchiveError": 0, "GraphQLError": 0, "HTTPException": 1, "HttpRequestFailed": 0,
    "InvalidRecordError": 0, "MailLoop": 0, "NoFilterEquivalent": 0, "PostResult": 1,
    "RemoteFailure": 1, "SpamForwardRefused": 0, "SpamRefused": 0, "UnusableKey": 0,
    "UnusableMessageError": 0, "UserLimitExceeded": 0, "VirusRefused": 0, "add_problem": 1,
    "add_skipped": 1, "add_warning": 1, "bad_request": 0, "check_count_from_one_to_limit": 2,
    "error_at": 1, "prefix_username_unless_viewer": 1, "record_problem_as_error": 1,
    "require_within_limit": 2, "warn": 1, "with_skip_reason": 0,
}  # fmt: skip
NO_TEXT_FIRST = {"NotFound", "StaleObject", "MultipleErrors", "DamagedContent", "Unauthenticated"}

# A sentence begins with a capital letter, or with the name of a value, option or parameter.
SENTENCE_START = re.compile(r"[A-Z]|\{|[`\"]|--[a-z]|:[a-z{]|(?:match|protocols)=|\\\{sign\}|\$\{")
SENTENCE_END = re.compile(r"(?:[.!?]|\})$")  # a placeholder at the end has the period itself
PHRASES = {
    # a line of a report, which ends with the error code
    "Line {error['line']}: {location}: {error['message']} ({error['code']})",
    # parts of a sentence that another function completes
    "The {expected.name} of {node.name}",
    # commands to copy, which a period would change
    "OpenTelemetry is missing: pip install 'merganser[telemetry]'",
}
ALLOWED_STARTS = {
    # the Sieve command
    "require must come before all other commands.",
}
ALLOWED_ENDS = re.compile(
    r"pip install '\S+'$|run chmod 600 \{path\}$|joined by one of \. _ = :$|smtps://$"
)
PRIVATE_WORDS = re.compile(
    r"\b(?:elsewhere|whoever|whose turn|of ours|on our side|we know|letters?|anew|meanwhile|"
    r"by itself|stands?|lies|nobody|told|brought|bring|vault|sealed|unit of work|goes in circles|"
    r"sent on|left out|somebody|such as are|to whom|is gone|are gone)\b",
    re.IGNORECASE,
)
ALLOWED_WORDS = {
    # the term of RFC 8617
    "Message not ARC-sealed: %s",
    # "letter" and "letters" are characters here, not messages
    "The password must have exactly {LENGTH} lower-case letters from a to z.",
    "The text mixes letters of several scripts that look alike: use one script.",
    "A selector has letters a-z, digits, hyphens and underscores, and dots between parts of at "
    "most 63 characters. Its first part does not begin or end with a hyphen.",
}


DURATION_IN_WORDS = re.compile(r"(?:\d|\}) (?:second|minute|hour|day|week|year)s?\b")
ALLOWED_DURATIONS = {
    # how long the server has waited
    "The ACME server did not finish within {minutes} minutes.",
    "The database or object store did not respond within {seconds} seconds.",
    # the period of a limit
    "At most {limit} recipients in 24 hours are allowed. {left_count} are left.",
}


class MessageText(NamedTuple):
    """A text in the code: where it is, and the text with its placeholders in braces."""

    location: str
    text: str
    is_log_line: bool


def _literal_text(node: ast.AST | None) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    return None


def _possible_texts(node: ast.AST | None, texts_by_name: dict[str, list[str]]) -> Iterator[str]:
    """Yield the literals that the argument can be: itself, branches, or values of a variable."""
    if isinstance(node, ast.IfExp):
        yield from _possible_texts(node.body, texts_by_name)
        yield from _possible_texts(node.orelse, texts_by_name)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _possible_texts(value, texts_by_name)
    elif isinstance(node, ast.Name):
        yield from texts_by_name.get(node.id, ())
    elif (text := _literal_text(node)) is not None:
        yield text


def _texts_by_variable(tree: ast.AST) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            texts.setdefault(node.targets[0].id, []).extend(_possible_texts(node.value, {}))
    return texts


def _error_names() -> set[str]:
    def subclasses(parent: type[RequestError]) -> Iterator[str]:
        for child in parent.__subclasses__():
            yield child.__name__
            yield from subclasses(child)

    return {*subclasses(RequestError)} - NO_TEXT_FIRST


def _message_texts() -> Iterator[MessageText]:
    positions = dict.fromkeys(_error_names(), 0) | TEXT_POSITIONS
    for path in sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py")):
        tree = ast.parse(path.read_text())
        texts_by_name = _texts_by_variable(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            name = function.id if isinstance(function, ast.Name) else name
            is_log = (
                name in LOG_METHODS
                and isinstance(function, ast.Attribute)
                and ast.unparse(function.value) == "log"
            )
            position = 0 if is_log else positions.get(name)
            if position is None or len(node.args) <= position:
                continue
            location = f"{path.relative_to(ROOT)}:{node.lineno}"
            for text in _possible_texts(node.args[position], texts_by_name):
                if is_log or " " in text:
                    yield MessageText(location, text, is_log)


def test_error_texts_are_whole_sentences() -> None:
    texts = [text for text in _message_texts() if not text.is_log_line]
    assert len(texts) > 900
    wrong = [
        text
        for text in texts
        if text.text not in PHRASES
        and not (
            (SENTENCE_START.match(text.text) or text.text in ALLOWED_STARTS)
            and (SENTENCE_END.search(text.text) or ALLOWED_ENDS.search(text.text))
        )
    ]
    assert not wrong


def test_durations_in_errors_are_iso_8601() -> None:
    """Clients send durations as ISO 8601, such as PT4M; Python writes 0:04:00."""
    assert not [
        text
        for text in _message_texts()
        if not text.is_log_line
        and text.location.startswith(("resolvers/", "graph/"))
        and DURATION_IN_WORDS.search(text.text)
        and text.text not in ALLOWED_DURATIONS
    ]


def test_log_lines_are_phrases() -> None:
    texts = [text for text in _message_texts() if text.is_log_line]
    assert len(texts) > 100
    assert not [text for text in texts if not text.text[:1].isupper() or text.text.endswith(".")]


def test_texts_have_no_private_words() -> None:
    assert not [
        text
        for text in _message_texts()
        if PRIVATE_WORDS.search(text.text) and text.text not in ALLOWED_WORDS
    ]


def test_allowed_texts_exist() -> None:
    texts = {text.text for text in _message_texts()}
    source_text = "".join(
        path.read_text() for layer in LAYERS for path in (ROOT / layer).rglob("*.py")
    )
    assert not [
        text
        for text in PHRASES | ALLOWED_STARTS | ALLOWED_WORDS | ALLOWED_DURATIONS
        if text not in texts and text not in source_text
    ]
