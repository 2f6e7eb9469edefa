"""The rule of filters and selections: an input without conditions is refused.

An empty list is a condition that nothing meets. A client that sends the items which its user has
ticked changes nothing if no item is ticked. Below `not` an empty list would select everything, so
it is refused. Only `all: true` selects everything.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, get_args

from graphql import (
    GraphQLResolveInfo,
    ListValueNode,
    ObjectValueNode,
    ValueNode,
    VariableNode,
)
from strawberry import UNSET, Some
from strawberry.extensions import FieldExtension
from strawberry.types import get_object_definition, has_object_definition
from strawberry.types.base import StrawberryOptional
from strawberry.types.field import StrawberryField
from strawberry.types.nodes import get_variable_values
from strawberry.utils.str_converters import to_camel_case

from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

NOT_FIELD = "not"  # the field of a filter whose condition must not hold
OR_FIELD = "or"  # the field of a filter with conditions of which one must hold


class ConditionsInput:
    """Base of the inputs that select things by conditions."""

    fields_with_empty_texts: ClassVar[frozenset[str]] = frozenset()
    max_part_count: ClassVar[int | None] = None  # of an input that contains others of its type


class RestrictionsInput:
    """Base of inputs with lists that restrict something; a missing list restricts nothing.

    An empty list is refused: a client that sends the items which its user has ticked must not
    grant everything if no item is ticked.
    """

    restriction_fields: ClassVar[frozenset[str]] = frozenset()


def require_valid_conditions(input_value: Any, path: tuple[str, ...] = ()) -> None:
    """Check the conditions of an input and of all nested inputs.

    Raises InvalidInput with the path of the field if a filter or selection has no condition, too
    many parts, an empty text, or an empty list below `not`, or if a restriction is an empty list.
    """
    _require_valid_parts(input_value, path, None, is_negated=False)


@dataclass(slots=True)
class _PartCounter:
    """The number of parts of a filter, counted while the filter is read.

    `path` is that of the filter.
    """

    path: tuple[str, ...]
    part_count: int = 0

    def count_part(self, max_part_count: int) -> None:
        """Count a part. Raises InvalidInput above the limit."""
        self.part_count += 1
        if self.part_count > max_part_count:
            raise InvalidInput(
                f"A filter has at most {max_part_count} parts.",
                constraint=ValidationConstraint.MAX,
                path=list(self.path),
            )


def _require_valid_parts(
    input_value: Any, path: tuple[str, ...], counter: _PartCounter | None, *, is_negated: bool
) -> None:
    """Check an input. `counter` is that of the filter which contains it."""
    if isinstance(input_value, Some):
        input_value = input_value.value
    if not has_object_definition(type(input_value)):
        return
    _require_no_empty_restrictions(input_value, path)
    values = [
        (name, input_name, value)
        for name, input_name in _input_field_names(type(input_value))
        if (value := getattr(input_value, name)) is not UNSET and value is not None
    ]
    if isinstance(input_value, ConditionsInput):
        if input_value.max_part_count is not None:
            counter = counter or _PartCounter(path)
            counter.count_part(input_value.max_part_count)
        if not values:
            raise _missing_condition_error(type(input_value), path)
        _require_no_empty_values(input_value, values, path, is_negated=is_negated)
    for _, input_name, value in values:
        at = (*path, input_name)
        below = is_negated or input_name == NOT_FIELD
        if isinstance(value, list):
            for index, condition in enumerate(value):
                if isinstance(condition, str):
                    break
                _require_valid_parts(condition, (*at, str(index)), counter, is_negated=below)
        else:
            _require_valid_parts(value, at, counter, is_negated=below)


def _missing_condition_error(kind: type, path: tuple[str, ...]) -> InvalidInput:
    """Return the error of an input without conditions. It names `all` if the input has it."""
    if any(input_name == "all" for _, input_name in _input_field_names(kind)):
        return InvalidInput(
            "At least one condition is required. To select everything, set `all: true`.",
            constraint=ValidationConstraint.REQUIRED,
            path=list(path),
        )
    return InvalidInput(
        "At least one condition is required. Omit the input for no condition.",
        constraint=ValidationConstraint.REQUIRED,
        path=list(path),
    )


def _require_no_empty_values(
    input_value: ConditionsInput,
    values: list[tuple[str, str, Any]],
    path: tuple[str, ...],
    *,
    is_negated: bool,
) -> None:
    """Refuse empty texts, and empty lists below `not`."""
    for name, input_name, value in values:
        if name not in input_value.fields_with_empty_texts:
            _require_not_empty_text(value, (*path, input_name))
        if is_negated and value == []:
            text = "An empty list below `not` would select everything: omit the field."
            raise InvalidInput(
                text, constraint=ValidationConstraint.REQUIRED, path=[*path, input_name]
            )


def drop_absent_conditions(
    arguments: dict[str, Any],
    names: Mapping[str, str],
    raw_info: GraphQLResolveInfo[Any],  # ty: ignore[invalid-type-form]
) -> None:
    """Remove the filters and selections that have only absent variables, as if they were omitted.

    `filter: {seen: $seen}` is no filter if the request has no value for `$seen`. `names` are the
    names of the optional arguments in Python, by those in the schema.
    """
    present = get_variable_values(raw_info)
    for node in raw_info.field_nodes[0].arguments or ():
        name = names.get(node.name.value)
        if name in arguments and _has_only_absent_variables(arguments[name], node.value, present):
            del arguments[name]


def _has_only_absent_variables(
    input_value: Any, node: ValueNode, present: Mapping[str, Any]
) -> bool:
    """True if all members of a literal are variables without a value.

    Such inputs inside the literal are unset. In `or` and `not` they stay, and are refused: without
    a condition they would select everything.
    """
    if not isinstance(input_value, ConditionsInput) or not isinstance(node, ObjectValueNode):
        return False
    names = {input_name: name for name, input_name in _input_field_names(type(input_value))}
    absent_count = 0
    for member in node.fields:
        input_name, literal = member.name.value, member.value
        if isinstance(literal, VariableNode):
            absent_count += literal.name.value not in present
        elif input_name not in (NOT_FIELD, OR_FIELD) and _unset_if_absent(
            input_value, names[input_name], literal, present
        ):
            absent_count += 1
    return 0 < absent_count == len(node.fields)


def _unset_if_absent(
    input_value: Any, name: str, node: ValueNode, present: Mapping[str, Any]
) -> bool:
    """Unset a member, or the items of a list, with absent variables only. True if it is unset."""
    value = getattr(input_value, name)
    if isinstance(value, list) and isinstance(node, ListValueNode):
        kept_items = [
            item
            for item, literal in zip(value, node.values, strict=True)
            if not _has_only_absent_variables(item, literal, present)
        ]
        is_absent = bool(value) and not kept_items
        if len(kept_items) < len(value):
            setattr(input_value, name, UNSET if is_absent else kept_items)
        return is_absent
    is_absent = _has_only_absent_variables(value, node, present)
    if is_absent:
        setattr(input_value, name, UNSET)
    return is_absent


def optional_condition_arguments(field: StrawberryField) -> dict[str, str]:
    """Return the optional filters and selections of a field: Python names by schema names."""
    return {
        argument.graphql_name or to_camel_case(argument.python_name): argument.python_name
        for argument in field.arguments
        if isinstance(argument.type, StrawberryOptional)
        and _is_conditions_input(argument.type.of_type)
    }


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


class OmitAbsentConditions(FieldExtension):
    """Omit the filters of a field whose variables are all absent."""

    def __init__(self) -> None:
        self._optional_names: dict[str, str] | None = None  # the types are known at the first call

    async def resolve_async(self, next_: Any, source: Any, info: Any, **arguments: Any) -> Any:
        if self._optional_names is None:
            self._optional_names = optional_condition_arguments(info._field)  # noqa: SLF001
        if self._optional_names:
            drop_absent_conditions(arguments, self._optional_names, info._raw_info)  # noqa: SLF001
        return await next_(source, info, **arguments)


class CheckConditions(FieldExtension):
    """Check the filters and selections of a field."""

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
