"""The section of a root field's page that lists its errors."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from graph.execution.public_errors import ERROR_CODE_BY_CONSTRAINT
from graph.types.errors import MutationError
from models import errors
from models.errors import ErrorCode
from models.validation_constraints import ValidationConstraint
from tests.support.reference.areas import RootField
from tests.support.reference.errors.error_site import ErrorSite
from tests.support.reference.errors.root_field_errors import errors_by_root_field
from tests.support.reference.markdown import cell, table
from tests.support.schema.printed_schema import SDL

MUTATION_TEXT = (
    "Errors of this mutation in `errors`, besides the "
    "[errors of every mutation](../errors.md#errors-of-every-mutation). Words in italics stand "
    "for values, and `n` in a path for the position of an item."
)
QUERY_TEXT = (
    "Errors of this field in the top-level `errors`, besides the "
    "[errors of every field](../errors.md#errors-of-every-field). Words in italics stand for "
    "values."
)
ERROR_CLASS_BY_CODE: dict[ErrorCode, type[errors.RequestError]] = {
    **{type_.code: type_ for type_ in MutationError.types_by_error},
    # Classes whose code depends on their arguments.
    ErrorCode.ABORTED: errors.ServiceUnavailable,
    ErrorCode.FORBIDDEN: errors.Forbidden,
    ErrorCode.FORBIDDEN_OPERATION: errors.Forbidden,
    ErrorCode.NO_SESSION: errors.ServiceUnavailable,
    ErrorCode.UNAVAILABLE: errors.ServiceUnavailable,
    ErrorCode.USER_OFFLINE: errors.ServiceUnavailable,
    ErrorCode.VALIDATION: errors.InvalidInput,
}
IDENTIFIER = re.compile(r"[a-z]+[A-Z]")  # such as `addFlags`, which keeps its small letter
PLACEHOLDER_IN_CODE = re.compile(r"`(\*[a-z ]+\*)`")  # in code, asterisks are no italics


def error_section(root_field: RootField) -> Iterator[str]:
    """Yield the lines of the section. Without own errors it only has the link."""
    found = errors_by_root_field()[root_field.name]
    yield from ("## Errors", "")
    if root_field.operation == "mutation":
        yield from (MUTATION_TEXT, "")
        yield from mutation_error_table(found, "../")
    else:
        yield from (QUERY_TEXT, "")
        yield from query_error_table(found)


def mutation_error_table(found: Iterable[ErrorSite], folder: str) -> Iterator[str]:
    """Yield a table of errors of payloads. `folder` leads to docs/reference."""
    paths = defaultdict[tuple[str, str, str], list[str]](list)
    for one in found:
        link = f"[`{one.code}`]({folder}errors.md#{_type_name(one).lower()})"
        rule = f"`{one.constraint}`" if one.constraint else ""
        paths[link, rule, _condition(one)] += [f"`{_path_text(one)}`"] if one.path else []
    rows = (
        (link, rule, ", ".join(names), condition)
        for (link, rule, condition), names in paths.items()
    )
    yield from table(("Code", "Rule", "Path", "Condition"), rows)


def query_error_table(found: Iterable[ErrorSite]) -> Iterator[str]:
    """Yield a table of errors of fields."""
    rows = sorted({(f"`{query_code(one)}`", _condition(one)) for one in found})
    yield from table(("Code", "Condition"), rows)


def query_code(error: ErrorSite) -> str:
    """The code in `extensions` of an error, as `error_extensions` gives it."""
    if error.code == ErrorCode.VALIDATION:
        constraint = error.constraint and ValidationConstraint(error.constraint)
        return ERROR_CODE_BY_CONSTRAINT.get(constraint, "BAD_USER_INPUT")  # type: ignore[arg-type]
    if error.code == ErrorCode.AUTHENTICATION_FAILED:
        return "UNAUTHENTICATED"
    return "FORBIDDEN" if error.code == ErrorCode.FORBIDDEN_OPERATION else error.code


def _path_text(error: ErrorSite) -> str:
    """Return the path with `n` for the position of an item in a list."""
    return ".".join("n" if part.isdecimal() else part for part in error.path.split("."))


def _type_name(error: ErrorSite) -> str:
    return MutationError.types_by_error[ERROR_CLASS_BY_CODE[ErrorCode(error.code)]].__name__


def _condition(error: ErrorSite) -> str:
    """The message as a sentence, or else the description of the rule or of the error type."""
    text = error.condition
    if not text and error.constraint:
        constraints: Any = SDL.type_map["ValidationConstraint"]
        text = constraints.values[error.constraint].description
    elif not text:
        text = (SDL.type_map[_type_name(error)].description or "").removeprefix("Error: ")
    text = PLACEHOLDER_IN_CODE.sub(r"\1", text)
    if not IDENTIFIER.match(text):
        text = text[:1].upper() + text[1:]
    return cell(text if text.endswith((".", "!", "?")) else f"{text}.")
