"""Parse the queries of filters in a file, which have the names of `FilterQueryInput`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mail.filters.filter_compiler import GROUP_NAMES, MAX_DEPTH
from models import quantities
from models.errors import ErrorCollector, InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers.transfer import record_files


class _FileTest(NamedTuple):
    """The name of a test in stored queries, and the parser of its value."""

    stored_name: str
    parse: Callable[[Any], Any]


def _parse_truth_value(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("Must be true or false.")
    return value


TESTS: Mapping[str, _FileTest] = {  # by name in the schema
    **{
        name: _FileTest(name, record_files.parse_text)
        for name in ("from", "subject", "listId", "text", "query")
    },
    "toOrCc": _FileTest("to", record_files.parse_text),
    "hasAttachment": _FileTest("hasAttachment", _parse_truth_value),
    "larger": _FileTest("larger", quantities.parse_byte_count),
    "smaller": _FileTest("smaller", quantities.parse_byte_count),
}
HEADER_TEST = {
    "name": _FileTest("key", record_files.parse_text),
    "value": _FileTest("value", record_files.parse_text),
}
REGEX_TEST = {
    "name": _FileTest("key", record_files.parse_text),
    "pattern": _FileTest("pattern", record_files.parse_text),
}
NESTED_TESTS: Mapping[str, tuple[Mapping[str, _FileTest], str]] = {  # parts, and the required one
    "header": (HEADER_TEST, "name"),
    "regex": (REGEX_TEST, "pattern"),
}


def stored_query_from_file(value: Any, path: Sequence[str], depth: int = 0) -> dict[str, Any]:
    """Return a query of a file in its stored form, without tests that are null.

    Raises InvalidInput with all values of a wrong type, unknown fields and missing fields.
    """
    problems, stored = ErrorCollector(), dict[str, Any]()
    if depth > MAX_DEPTH:
        text = f"Groups (all, any, not) are nested at most {MAX_DEPTH} levels deep."
        raise InvalidInput(text, constraint=ValidationConstraint.DEPTH, path=path)
    for name, item in _require_object(value, path).items():
        with problems.collecting():
            if item is None:
                continue
            if name in GROUP_NAMES:
                stored[name] = _stored_group(item, [*path, name], depth)
            elif name in NESTED_TESTS:
                stored[name] = _stored_nested_test(name, item, [*path, name])
            else:
                test = _require_known_test(TESTS, name, path)
                stored[test.stored_name] = _parsed_value(test, item, [*path, name])
    problems.raise_collected()
    return stored


def _stored_group(value: Any, path: Sequence[str], depth: int) -> list[dict[str, Any]]:
    problems, queries = ErrorCollector(), list[dict[str, Any]]()
    if not isinstance(value, list):
        raise _type_error("Must be a list of queries.", path)
    for index, query in enumerate(value):
        with problems.collecting():
            queries.append(stored_query_from_file(query, [*path, str(index)], depth + 1))
    problems.raise_collected()
    return queries


def _stored_nested_test(test_name: str, value: Any, path: Sequence[str]) -> dict[str, Any]:
    parts, required_name = NESTED_TESTS[test_name]
    problems = ErrorCollector()
    stored: dict[str, Any] = {part.stored_name: None for part in parts.values()}
    fields = _require_object(value, path)
    for name, item in fields.items():
        with problems.collecting():
            part = _require_known_test(parts, name, path)
            if item is not None:
                stored[part.stored_name] = _parsed_value(part, item, [*path, name])
    with problems.collecting():
        if fields.get(required_name) is None:
            raise InvalidInput(
                "The field is required.",
                constraint=ValidationConstraint.REQUIRED,
                path=[*path, required_name],
            )
    problems.raise_collected()
    return stored


def _require_object(value: Any, path: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _type_error("Must be a JSON object.", path)
    return value


def _require_known_test(
    tests: Mapping[str, _FileTest], name: str, path: Sequence[str]
) -> _FileTest:
    if name not in tests:
        raise InvalidInput(
            "Unknown field.", constraint=ValidationConstraint.UNKNOWN, path=[*path, name]
        )
    return tests[name]


def _parsed_value(test: _FileTest, value: Any, path: Sequence[str]) -> Any:
    try:
        return test.parse(value)
    except (ValueError, TypeError) as problem:
        raise _type_error(str(problem), path) from problem


def _type_error(text: str, path: Sequence[str]) -> InvalidInput:
    return InvalidInput(text, constraint=ValidationConstraint.TYPE, path=path)
