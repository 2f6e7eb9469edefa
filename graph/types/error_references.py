"""Errors as clients see them: the path to the wrong value, and the object that was not found."""

import re
from collections.abc import Sequence
from typing import Any

from strawberry import Some
from strawberry.types import get_object_definition, has_object_definition
from strawberry.types.base import StrawberryOptional
from strawberry.utils.str_converters import to_camel_case

from graph.types import global_ids
from graph.types.list_inputs import reference_list_fields
from models.errors import (
    CredentialWithoutUser,
    NotFound,
    RequestError,
    not_found_text_without_numeric_ref,
)

WORD_START = re.compile(r"(?<=[a-z])[A-Z]")
# Fields whose members are checked by code that does not know in which input they are.
PARENT_FIELDS = ("set", "select", "filter")
# Optional fields of inputs whose default is the signed-in user, or that user's objects.
USER_FIELDS = ("user", "users")
IDS_PART = "ids"  # the objects, for code that does not know the name of the list of references
# Fields of inputs that name an object by another text than its global ID.
TYPE_NAME_BY_FIELD = {
    "keys": "Setting",
    "paths": "Mailbox",
    "upload": "Upload",
    "usernames": "User",
}
# Parts of paths that say how an object is named, not of which type it is.
REFERENCE_PARTS = ("by", "filter", "id", IDS_PART, "name", "select", "set")


def _words_of_type_name(type_name: str) -> str:
    """Return the name of a type in words, such as "Relay host"."""
    return WORD_START.sub(lambda match: f" {match[0].lower()}", type_name)


NOUNS = frozenset(map(_words_of_type_name, global_ids.TYPE_NAMES.values()))


def error_with_public_reference(error: RequestError, input_value: Any) -> RequestError:
    """Return the error, with a row key in NotFound replaced by the reference in the input.

    The message names the type of the object if the input shows it. The reference is "" if the
    input doesn't name the object.
    """
    if not isinstance(error, NotFound):
        return error
    ref, prefix = error.ref, ""
    if ref.endswith(": "):  # the user of an object that was named by ID
        ref, prefix = "", ref
    value = _value_at_path(input_value, path_in_input(error, input_value))
    if ref.isdecimal() or not ref:
        ref = f"{prefix}{_single_reference_or_empty(value)}"
    public_error = NotFound(ref, path=error.path, index=error.index)
    public_error.message = error.message
    if error.message == NotFound(error.ref).message:  # no text that says more
        noun = _noun_of_reference(value, error.path)
        public_error.message = not_found_text_without_numeric_ref(
            noun, "" if ref == prefix else ref
        )
    return public_error


def not_found_error_with_noun(error: NotFound) -> NotFound:
    """Return the error of a query, with the type of the object that its path names.

    `["users", "ids", "0"]` names a user. A query has no input that an error can be compared with.
    """
    if error.message != NotFound(error.ref).message:  # the text says more
        return error
    words = [part for part in error.path if not part.isdecimal() and part not in REFERENCE_PARTS]
    noun = _noun_from_field_name(words[-1]) if words else "Object"
    return NotFound(error.ref, path=error.path, index=error.index, noun=noun)


def _noun_from_field_name(name: str) -> str:
    """Return the words for the type of object that an argument or field is named after."""
    words = _words_of_type_name(name[0].upper() + name[1:])
    return next((noun for noun in NOUNS if words in (noun, f"{noun}s")), "Object")


def path_in_input(error: RequestError, input_value: Any) -> list[str]:
    """Return the path from the input to the wrong value, such as `["select", "ids", "0"]`.

    Create and update mutations share checks. The path of their errors begins inside the patch;
    this function adds the field of the patch or of the selection in front of it. `ids` becomes
    the list of references if the input has no field `ids`. The index of the error is inserted
    after the first list on the path that is not followed by an index. Without such a list, the
    index is omitted.
    """
    if isinstance(error, CredentialWithoutUser) and not error.path:
        return _path_to_default_user(input_value)
    value, path, missing_index = input_value, list[str](), error.index
    for part in _complete_path(error.path, input_value):
        if missing_index is not None and isinstance(value, list) and not part.isdecimal():
            path.append(str(missing_index))
            value, missing_index = _member_by_schema_name(value, path[-1]), None
        path.append(part)
        value = _member_by_schema_name(value, part)
    if missing_index is not None and isinstance(value, list):
        path.append(str(missing_index))
    return path


def _path_to_default_user(input_value: Any) -> list[str]:
    """Return the path to the omitted field of an input whose default is the signed-in user."""
    definition = get_object_definition(type(input_value))
    for field in definition.fields if definition else ():
        if (
            field.python_name in USER_FIELDS
            and isinstance(field.type, StrawberryOptional)
            and not getattr(input_value, field.python_name)
        ):
            return [field.python_name]
    return []


def _complete_path(path: Sequence[str], input_value: Any) -> Sequence[str]:
    """Return a path that begins at a field of the input."""
    fields = _values_by_graphql_field_name(input_value)
    if not path or path[0] in fields:
        return path
    if path[0] == IDS_PART and (list_name := _reference_list_name(input_value)):
        return [list_name, *path[1:]]
    for name in PARENT_FIELDS:
        if path[0] in _values_by_graphql_field_name(fields.get(name)):
            return [name, *path]
    return path


def _reference_list_name(input_value: Any) -> str | None:
    """Return the name of the field with the references of the objects; None if there is none."""
    fields = reference_list_fields(input_value)
    return fields[0].graphql_name if fields else None


def _noun_of_reference(value: Any, path: Sequence[str]) -> str:
    """Return the words for the type of object that a value names, such as "Relay host"."""
    text = _single_reference_or_empty(value)
    type_name = global_ids.TYPE_NAMES.get(text.partition("_")[0])
    if type_name is None and has_object_definition(type(value)):
        name = type(value).__name__
        type_name = name.removesuffix("Ref") if name.endswith("Ref") else None
    if type_name is None:
        names = [part for part in path if not part.isdecimal()]
        type_name = TYPE_NAME_BY_FIELD.get(names[-1]) if names else None
    return _words_of_type_name(type_name or "Object")


def _value_at_path(input_value: Any, path: Sequence[str]) -> Any:
    value = input_value
    for part in path:
        value = _member_by_schema_name(value, part)
    return value


def _member_by_schema_name(value: Any, part: str) -> Any:
    """Return a field of an input by its name in the schema, or an item of a list."""
    if isinstance(value, list):
        nth = int(part) if part.isdecimal() else len(value)
        return _without_some(value[nth]) if nth < len(value) else None
    return _values_by_graphql_field_name(value).get(part)


def _values_by_graphql_field_name(value: Any) -> dict[str, Any]:
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


def _single_reference_or_empty(value: Any) -> str:
    """Return a string, or the only string field of an input; "" if there is none."""
    if isinstance(value, str):
        return str(value)
    names = [
        value for value in _values_by_graphql_field_name(value).values() if isinstance(value, str)
    ]
    return names[0] if len(names) == 1 else ""
