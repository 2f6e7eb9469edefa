"""Storage of payloads for an idempotency key.

Objects with a row are stored by type and ID and loaded again. Views of a dataclass are stored with
its values. All other values are stored.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields as dataclass_fields
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from strawberry.types import get_object_definition, has_object_definition
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.enum import StrawberryEnumDefinition

from graph.types.errors import MutationPayload
from graph.types.fields import Info
from graph.types.object_views import View
from graph.types.row_mapping import NodeView
from graph.types.scalars import Cursor

TYPE_MARK = "$"
# Of a field of a payload with a secret that is returned once: it is not stored with the
# idempotency key, and a dry run does not return it.
SECRET_METADATA = {"secret": True}


def payload_as_json_without_secrets(payload: MutationPayload) -> dict[str, Any]:
    """Return the JSON value to store for a successful payload, without secrets."""
    secret = secret_field_names(payload)
    values = {name: value for name, value in vars(payload).items() if name not in secret}
    return {name: _value_as_json(value) for name, value in values.items() if value}


def secret_field_names(payload: MutationPayload) -> set[str]:
    """Return the fields of a payload with SECRET_METADATA, which are returned once."""
    return {
        field.python_name
        for field in get_object_definition(type(payload), strict=True).fields
        if field.metadata.get("secret")
    }


def _value_as_json(value: Any) -> Any:  # noqa: PLR0911 - a table, in words
    match value:
        case list():
            return [_value_as_json(item) for item in value]
        case dict():  # positions by stream: JSON names are strings
            return {str(name): _value_as_json(item) for name, item in value.items()}
        case NodeView():
            return {TYPE_MARK: "row", "of": _type_name(value), "id": value.row.id}
        case View() if value.row_type is not None:
            names = [field.name for field in dataclass_fields(value.row_type)]
            members = {name: _value_as_json(getattr(value.row, name)) for name in names}
            return {TYPE_MARK: "view", "of": _type_name(value), "is": members}
        case Enum():
            return {TYPE_MARK: "enum", "of": type(value).__name__, "is": value.value}
        case datetime():
            return {TYPE_MARK: "at", "is": value.isoformat()}
        case timedelta():
            return {TYPE_MARK: "for", "is": value.total_seconds()}
        case _ if has_object_definition(type(value)):
            fields = {name: _value_as_json(item) for name, item in vars(value).items()}
            return {TYPE_MARK: "object", "of": _type_name(value), "is": fields}
        case _:
            return value


def _type_name(value: Any) -> str:
    return get_object_definition(type(value), strict=True).name


async def restore_payload(
    info: Info, payload_type: type[MutationPayload], stored_payload: dict[str, Any]
) -> MutationPayload:
    """Rebuild a stored payload with the current rows of its objects, without deleted objects."""
    ids_by_type: defaultdict[str, set[int]] = defaultdict(set)
    _collect_row_ids(stored_payload, ids_by_type)
    rows: dict[tuple[str, int], Any] = {}
    for name, keys in ids_by_type.items():
        shape = _class_by_type_name(info, name)
        listed = sorted(keys)
        for key, row in zip(
            listed, await info.context.load_many(shape.load_batch, listed), strict=True
        ):
            rows[name, key] = shape.from_row_or_none(row)

    def restore_value(value: Any) -> Any:
        return _payload_value_from_stored_json(info, value, lambda name, key: rows[name, key])

    payload = payload_type(replayed=True)
    for name, value in stored_payload.items():
        if name not in ("journal_cursor", "replayed"):
            setattr(payload, name, restore_value(value))
    if position := stored_payload.get("journal_cursor"):
        payload.journal_cursor = Cursor({int(key): number for key, number in position.items()})
    return payload


def _collect_row_ids(value: Any, ids_by_type: defaultdict[str, set[int]]) -> None:
    if isinstance(value, list):
        for item in value:
            _collect_row_ids(item, ids_by_type)
    elif isinstance(value, dict):
        if value.get(TYPE_MARK) == "row":
            ids_by_type[value["of"]].add(value["id"])
        else:
            for item in value.values():
                _collect_row_ids(item, ids_by_type)


def _payload_value_from_stored_json(  # noqa: PLR0911 - a table, in words
    info: Info, value: Any, row_object: Callable[[str, int], Any]
) -> Any:
    if isinstance(value, list):
        items = [_payload_value_from_stored_json(info, item, row_object) for item in value]
        return [item for item in items if item is not None]
    if not isinstance(value, dict):
        return value
    match value.get(TYPE_MARK):
        case "row":
            return row_object(value["of"], value["id"])
        case "enum":
            return _enum_by_name(info, value["of"])(value["is"])
        case "at":
            return datetime.fromisoformat(value["is"])
        case "for":
            return timedelta(seconds=value["is"])
        case "view":
            view = _class_by_type_name(info, value["of"])
            members = {
                name: _payload_value_from_stored_json(info, item, row_object)
                for name, item in value["is"].items()
            }
            return view.from_row(view.row_type(**members))
        case "object":
            type_class = _class_by_type_name(info, value["of"])
            payload_value = type_class.__new__(type_class)
            for name, item in value["is"].items():
                setattr(
                    payload_value, name, _payload_value_from_stored_json(info, item, row_object)
                )
            return payload_value
        case _:
            return value


def _class_by_type_name(info: Info, name: str) -> Any:
    definition = info.schema.get_type_by_name(name)
    assert isinstance(definition, StrawberryObjectDefinition)  # noqa: S101 - an object was stored
    return definition.origin


def _enum_by_name(info: Info, name: str) -> Any:
    definition = info.schema.get_type_by_name(name)
    assert isinstance(definition, StrawberryEnumDefinition)  # noqa: S101 - an enum was stored
    return definition.wrapped_cls
