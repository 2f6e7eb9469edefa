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

from models.errors import Invalid

NOT = "not"  # the field of a filter whose condition must not hold


class Conditions:
    """Base of the inputs that select things by conditions."""

    texts_may_be_empty: ClassVar[frozenset[str]] = frozenset()


class Restrictions:
    """Base of inputs with lists that restrict something; a missing list restricts nothing.

    An empty list is refused: a client that sends the items which its user has ticked must not
    grant everything if no item is ticked.
    """

    restrictions: ClassVar[frozenset[str]] = frozenset()


def check_conditions(given: Any, path: tuple[str, ...] = (), *, negated: bool = False) -> None:
    """Check the conditions of an input and of all nested inputs.

    Raises InvalidInput with the path of the field if a filter or selection has no condition, an
    empty text, or an empty list below `not` (`is_negated`), or if a restriction is an empty list.
    """
    if isinstance(given, Some):
        given = given.value
    if not has_object_definition(type(given)):
        return
    _check_restrictions(given, path)
    values = [(name, shown, getattr(given, name)) for name, shown in _fields(type(given))]
    is_checked = isinstance(given, Conditions)
    if is_checked and all(value is UNSET or value is None for _, _, value in values):
        text = "name at least one condition, and all: true for everything where that is a field"
        raise Invalid(text, constraint="required", path=list(path))
    for name, shown, value in values:
        at = (*path, shown)
        if is_checked and name not in given.texts_may_be_empty:
            _check_texts(value, at)
        if is_checked and negated and value == []:
            text = "an empty list below `not` would select everything: leave the field out"
            raise Invalid(text, constraint="required", path=list(at))
        below = negated or shown == NOT
        if isinstance(value, list):
            for index, one in enumerate(value):
                if isinstance(one, str):
                    break
                check_conditions(one, (*at, str(index)), negated=below)
        else:
            check_conditions(value, at, negated=below)


def _check_restrictions(given: Any, path: tuple[str, ...]) -> None:
    """Refuse an empty list in a field of `Restrictions`."""
    if not isinstance(given, Restrictions):
        return
    for name, shown in _fields(type(given)):
        value = getattr(given, name)
        if name in given.restrictions and (value.value if isinstance(value, Some) else value) == []:
            text = "an empty list would restrict nothing: say null, or leave the field out"
            raise Invalid(text, constraint="required", path=[*path, shown])


def _check_texts(value: Any, path: tuple[str, ...]) -> None:
    text = "at least 1 character; leave the field out to ask for nothing"
    if value == "":
        raise Invalid(text, constraint="length", path=list(path))
    if isinstance(value, list) and "" in value:
        raise Invalid(text, constraint="length", path=list(path), index=value.index(""))


_FIELDS: dict[type, list[tuple[str, str]]] = {}  # by input


def _fields(kind: type) -> list[tuple[str, str]]:
    """Return the fields of an input: their names in Python and in the schema."""
    if kind not in _FIELDS:
        fields = get_object_definition(kind, strict=True).fields
        _FIELDS[kind] = [
            (one.python_name, one.graphql_name or to_camel_case(one.python_name)) for one in fields
        ]
    return _FIELDS[kind]


class CheckConditions(FieldExtension):
    """Check the filters and selections among the arguments of a field."""

    async def resolve_async(self, next_: Any, source: Any, info: Any, **given: Any) -> Any:
        for name, value in given.items():
            check_conditions(value, (to_camel_case(name),))
        return await next_(source, info, **given)


def has_conditions(resolver: Any) -> bool:
    """True if a resolver has a filter or a selection among its arguments."""
    return any(map(_selects, _kinds(resolver)))


def _kinds(resolver: Any) -> Iterator[Any]:
    for one in signature(resolver).parameters.values():
        yield from (one.annotation, *get_args(one.annotation))


def _selects(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Conditions)
