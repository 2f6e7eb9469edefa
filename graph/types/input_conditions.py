"""The rule of filters and selections: an input without conditions is refused.

An empty list is a condition that nothing meets. A client that sends the items which its user has
ticked changes nothing if no item is ticked. Below `not` an empty list would select everything, so
it is refused. Only `all: true` selects everything.
"""

from collections.abc import Iterator
from inspect import signature
from typing import Any, ClassVar, get_args

from strawberry import UNSET, Some
from strawberry.extensions import FieldExtension
from strawberry.types import get_object_definition, has_object_definition
from strawberry.utils.str_converters import to_camel_case

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

NOT_FIELD = "not"  # the field of a filter whose condition must not hold


class ConditionsInput:
    """Base of the inputs that select things by conditions."""

    fields_with_empty_texts: ClassVar[frozenset[str]] = frozenset()


class RestrictionsInput:
    """Base of inputs with lists that restrict something; a missing list restricts nothing.

    An empty list is refused: a client that sends the items which its user has ticked must not
    grant everything if no item is ticked.
    """

    restriction_fields: ClassVar[frozenset[str]] = frozenset()


def require_valid_conditions(
    input_value: Any, path: tuple[str, ...] = (), *, is_negated: bool = False
) -> None:
    """Check the conditions of an input and of all nested inputs.

    Raises InvalidInput with the path of the field if a filter or selection has no condition, an
    empty text, or an empty list below `not` (`is_negated`), or if a restriction is an empty list.
    """
    if isinstance(input_value, Some):
        input_value = input_value.value
    if not has_object_definition(type(input_value)):
        return
    _require_no_empty_restrictions(input_value, path)
    values = [
        (name, input_name, getattr(input_value, name))
        for name, input_name in _input_field_names(type(input_value))
    ]
    is_checked = isinstance(input_value, ConditionsInput)
    if is_checked and all(value is UNSET or value is None for _, _, value in values):
        text = (
            "At least one condition is required. To select everything, set `all: "
            "true` if the input has it."
        )
        raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=list(path))
    for name, input_name, value in values:
        at = (*path, input_name)
        if is_checked and name not in input_value.fields_with_empty_texts:
            _require_not_empty_text(value, at)
        if is_checked and is_negated and value == []:
            text = "An empty list below `not` would select everything: omit the field."
            raise InvalidInput(text, constraint=ValidationConstraint.REQUIRED, path=list(at))
        below = is_negated or input_name == NOT_FIELD
        if isinstance(value, list):
            for index, condition in enumerate(value):
                if isinstance(condition, str):
                    break
                require_valid_conditions(condition, (*at, str(index)), is_negated=below)
        else:
            require_valid_conditions(value, at, is_negated=below)


def _require_no_empty_restrictions(input_value: Any, path: tuple[str, ...]) -> None:
    """Refuse an empty list in a field of `RestrictionsInput`."""
    if not isinstance(input_value, RestrictionsInput):
        return
    for name, input_name in _input_field_names(type(input_value)):
        value = getattr(input_value, name)
        if (
            name in input_value.restriction_fields
            and (value.value if isinstance(value, Some) else value) == []
        ):
            text = "An empty list would restrict nothing: use null or omit the field."
            raise InvalidInput(
                text, constraint=ValidationConstraint.REQUIRED, path=[*path, input_name]
            )


def _require_not_empty_text(condition: Any, path: tuple[str, ...]) -> None:
    text = "Must have at least 1 character. Omit the field for no condition."
    if condition == "":
        raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=list(path))
    if isinstance(condition, list) and "" in condition:
        raise InvalidInput(
            text, constraint=ValidationConstraint.LENGTH, path=list(path), index=condition.index("")
        )


_FIELDS: dict[type, list[tuple[str, str]]] = {}  # by input


def _input_field_names(kind: type) -> list[tuple[str, str]]:
    """Return the fields of an input: their names in Python and in the schema."""
    if kind not in _FIELDS:
        fields = get_object_definition(kind, strict=True).fields
        _FIELDS[kind] = [
            (field.python_name, field.graphql_name or to_camel_case(field.python_name))
            for field in fields
        ]
    return _FIELDS[kind]


class CheckConditions(FieldExtension):
    """Check the filters and selections among the arguments of a field."""

    async def resolve_async(self, next_: Any, source: Any, info: Any, **arguments: Any) -> Any:
        for name, value in arguments.items():
            require_valid_conditions(value, (to_camel_case(name),))
        return await next_(source, info, **arguments)


def has_conditions(resolver: Any) -> bool:
    """True if a resolver has a filter or a selection among its arguments."""
    return any(map(_is_conditions_input, _annotated_types(resolver)))


def _annotated_types(resolver: Any) -> Iterator[Any]:
    for parameter in signature(resolver).parameters.values():
        yield from _nested_types(parameter.annotation)


def _nested_types(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and its members, such as those of an optional type with a description."""
    yield annotation
    for member in get_args(annotation):
        yield from _nested_types(member)


def _is_conditions_input(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, ConditionsInput)
