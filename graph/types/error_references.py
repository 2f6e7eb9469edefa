"""References in NotFound errors: the client's own reference in place of a row key."""

from collections.abc import Sequence
from typing import Any

from strawberry import Some
from strawberry.types import get_object_definition, has_object_definition
from strawberry.utils.str_converters import to_camel_case

from models.errors import NotFound, RequestError


def error_with_public_reference(error: RequestError, input_value: Any) -> RequestError:
    """Return the error, with a row key in NotFound replaced by the reference in the input.

    The reference is "" if the input doesn't name the object.
    """
    if not isinstance(error, NotFound):
        return error
    ref, prefix = error.ref, ""
    if ref.endswith(": "):  # the user of an object that was named by ID
        ref, prefix = "", ref
    if ref.isdecimal() or not ref:
        public_error = NotFound(
            f"{prefix}{_reference_at_path(input_value, error.path, error.index)}",
            path=error.path,
            index=error.index,
        )
        public_error.message = error.message
        return public_error
    return error


def _reference_at_path(input_value: Any, path: Sequence[str], index: int | None) -> str:
    value = input_value
    for part in path:
        value = _member_by_schema_name(value, part)
    if isinstance(value, list) and index is not None:
        value = value[index] if index < len(value) else None
    return _single_reference(value)


def _member_by_schema_name(value: Any, part: str) -> Any:
    """Return a field of an input by its name in the schema, or an item of a list."""
    if isinstance(value, list):
        nth = int(part) if part.isdecimal() else len(value)
        return _without_some(value[nth]) if nth < len(value) else None
    return _input_fields(value).get(part)


def _input_fields(value: Any) -> dict[str, Any]:
    if not has_object_definition(type(value)):
        return {}
    fields = get_object_definition(type(value), strict=True).fields
    return {
        field.graphql_name or to_camel_case(field.python_name): _without_some(
            getattr(value, field.python_name)
        )
        for field in fields
    }


def _without_some(value: Any) -> Any:
    return value.value if isinstance(value, Some) else value


def _single_reference(value: Any) -> str:
    """Return a string, or the only string field of an input; "" if there is none."""
    if isinstance(value, str):
        return str(value)
    names = [one for one in _input_fields(value).values() if isinstance(one, str)]
    return names[0] if len(names) == 1 else ""
