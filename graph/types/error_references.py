"""References in NotFound errors: the client's own reference in place of a row key."""

from collections.abc import Sequence
from typing import Any

from strawberry import Some
from strawberry.types import get_object_definition, has_object_definition
from strawberry.utils.str_converters import to_camel_case

from models.errors import NotFound, Refused


def public(refusal: Refused, given: Any) -> Refused:
    """Return the error, with a row key in NotFound replaced by the reference in the input.

    The reference is "" if the input doesn't name the object.
    """
    if not isinstance(refusal, NotFound):
        return refusal
    ref, whose = refusal.ref, ""
    if ref.endswith(": "):  # the user of an object that was named by ID
        ref, whose = "", ref
    if ref.isdecimal() or not ref:
        made = NotFound(
            f"{whose}{_at(given, refusal.path, refusal.index)}",
            path=refusal.path,
            index=refusal.index,
        )
        made.message = refusal.message
        return made
    return refusal


def _at(given: Any, path: Sequence[str], index: int | None) -> str:
    value = given
    for part in path:
        value = _member(value, part)
    if isinstance(value, list) and index is not None:
        value = value[index] if index < len(value) else None
    return _text(value)


def _member(value: Any, part: str) -> Any:
    """Return a field of an input by its name in the schema, or an item of a list."""
    if isinstance(value, list):
        nth = int(part) if part.isdecimal() else len(value)
        return _plain(value[nth]) if nth < len(value) else None
    return _fields(value).get(part)


def _fields(value: Any) -> dict[str, Any]:
    if not has_object_definition(type(value)):
        return {}
    fields = get_object_definition(type(value), strict=True).fields
    return {
        field.graphql_name or to_camel_case(field.python_name): _plain(
            getattr(value, field.python_name)
        )
        for field in fields
    }


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Some) else value


def _text(value: Any) -> str:
    """Return a string, or the only string field of an input; "" if there is none."""
    if isinstance(value, str):
        return str(value)
    names = [one for one in _fields(value).values() if isinstance(one, str)]
    return names[0] if len(names) == 1 else ""
