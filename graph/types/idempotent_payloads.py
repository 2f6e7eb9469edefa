"""Storage of payloads for an idempotency key.

Objects with a row are stored by type and ID and loaded again; all other values are stored.
"""

from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from strawberry.types import get_object_definition, has_object_definition
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.enum import StrawberryEnumDefinition

from graph.types.errors import MutationPayload
from graph.types.fields import Info
from graph.types.row_mapping import Shape
from graph.types.scalars import Cursor

MARK = "$"


def stored(payload: MutationPayload) -> dict[str, Any]:
    """Return the JSON value to store for a successful payload, without secrets."""
    secret = {
        field.python_name
        for field in get_object_definition(type(payload), strict=True).fields
        if field.metadata.get("secret")
    }
    kept = {name: value for name, value in vars(payload).items() if name not in secret}
    return {name: _stored(value) for name, value in kept.items() if value}


def _stored(value: Any) -> Any:  # noqa: PLR0911 - a table, in words
    match value:
        case list():
            return [_stored(item) for item in value]
        case dict():  # positions by stream: JSON names are strings
            return {str(name): _stored(item) for name, item in value.items()}
        case Shape():
            return {MARK: "row", "of": _name(value), "id": value.row.id}
        case Enum():
            return {MARK: "enum", "of": type(value).__name__, "is": value.value}
        case datetime():
            return {MARK: "at", "is": value.isoformat()}
        case timedelta():
            return {MARK: "for", "is": value.total_seconds()}
        case _ if has_object_definition(type(value)):
            fields = {name: _stored(item) for name, item in vars(value).items()}
            return {MARK: "object", "of": _name(value), "is": fields}
        case _:
            return value


def _name(value: Any) -> str:
    return get_object_definition(type(value), strict=True).name


async def restored(
    info: Info, kind: type[MutationPayload], answer: dict[str, Any]
) -> MutationPayload:
    """Rebuild a stored payload with the current rows of its objects, without deleted objects."""
    wanted: defaultdict[str, set[int]] = defaultdict(set)
    _collect(answer, wanted)
    rows: dict[tuple[str, int], Any] = {}
    for name, keys in wanted.items():
        shape = _class(info, name)
        listed = sorted(keys)
        for key, row in zip(listed, await info.context.load_all(shape.batch, listed), strict=True):
            rows[name, key] = shape.maybe(row)

    def made(value: Any) -> Any:
        return _restored(info, value, lambda name, key: rows[name, key])

    payload = kind(replayed=True)
    for name, value in answer.items():
        if name not in ("journal_cursor", "replayed"):
            setattr(payload, name, made(value))
    if position := answer.get("journal_cursor"):
        payload.journal_cursor = Cursor({int(key): number for key, number in position.items()})
    return payload


def _collect(value: Any, wanted: defaultdict[str, set[int]]) -> None:
    if isinstance(value, list):
        for item in value:
            _collect(item, wanted)
    elif isinstance(value, dict):
        if value.get(MARK) == "row":
            wanted[value["of"]].add(value["id"])
        else:
            for item in value.values():
                _collect(item, wanted)


def _restored(  # noqa: PLR0911 - a table, in words
    info: Info, value: Any, row: Callable[[str, int], Any]
) -> Any:
    if isinstance(value, list):
        items = [_restored(info, item, row) for item in value]
        return [item for item in items if item is not None]
    if not isinstance(value, dict):
        return value
    match value.get(MARK):
        case "row":
            return row(value["of"], value["id"])
        case "enum":
            return _enum(info, value["of"])(value["is"])
        case "at":
            return datetime.fromisoformat(value["is"])
        case "for":
            return timedelta(seconds=value["is"])
        case "object":
            made = _class(info, value["of"])
            one = made.__new__(made)
            for name, item in value["is"].items():
                setattr(one, name, _restored(info, item, row))
            return one
        case _:
            return value


def _class(info: Info, name: str) -> Any:
    definition = info.schema.get_type_by_name(name)
    assert isinstance(definition, StrawberryObjectDefinition)  # noqa: S101 - an object was stored
    return definition.origin


def _enum(info: Info, name: str) -> Any:
    definition = info.schema.get_type_by_name(name)
    assert isinstance(definition, StrawberryEnumDefinition)  # noqa: S101 - an enum was stored
    return definition.wrapped_cls
