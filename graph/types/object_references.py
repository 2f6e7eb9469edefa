"""References to objects of one type in inputs, and the IDs of the rows that they name.

Each type has one reference input, used by every mutation. A type with another unique name has a
field for it in its own reference, such as `DomainRef.name`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import strawberry

from graph.types import global_ids
from graph.types.errors import attribute_field
from graph.types.fields import Info
from models.errors import NotFound, require_within_limit
from resolvers.context import Context

ID_DESCRIPTION = "Global ID of the object."  # schema.py names the object
IdsByName = Callable[[Context, Sequence[str]], Awaitable[Mapping[str, int]]]


@strawberry.input
class ObjectRef:
    """Base of the reference inputs. The class name is the type's name and `Ref`."""

    id: strawberry.Maybe[strawberry.ID] = attribute_field(ID_DESCRIPTION)


def id_from_ref(ref: ObjectRef, *path: str) -> int:
    """Return the row ID that a reference names, which need not exist or be visible.

    `path` is the path of the reference in the input. Raises InvalidInput if the ID is malformed.
    """
    type_name = type(ref).__name__.removesuffix("Ref")
    text = ref.id.value if ref.id else ""
    return global_ids.decode(type_name, text, path=[*path, "id"])


def ids_from_refs(info: Info, refs: Sequence[ObjectRef], *path: str) -> list[int]:
    """Return the row IDs that references name, in their order.

    Raises InvalidInput if an ID is malformed, LimitReached if there are too many references.
    """
    require_few_references(info, refs, path)
    return [id_from_ref(ref, *path, str(nth)) for nth, ref in enumerate(refs)]


async def resolve_ids_from_refs_or_raise(
    info: Info, refs: Sequence[ObjectRef], *path: str, name_field: str, load_ids: IdsByName
) -> list[int]:
    """Return the row IDs of references by ID or by another unique key, in their order.

    `name_field` is the Python name of the field with that key. `load_ids` loads the row IDs of the
    keys of visible rows with one statement. Raises InvalidInput if an ID is malformed, NotFound if
    no visible row has a key, and LimitReached if there are too many references.
    """
    require_few_references(info, refs, path)
    names = [_name_from_ref(ref, name_field) for ref in refs]
    given_names = [name for name in names if name is not None]
    ids_by_name = await load_ids(info.context, given_names) if given_names else {}
    return [
        id_from_ref(ref, *path, str(nth))
        if name is None
        else _id_of_name(ids_by_name, name, [*path, str(nth)])
        for nth, (ref, name) in enumerate(zip(refs, names, strict=True))
    ]


async def resolve_id_from_ref_or_raise(
    info: Info, ref: ObjectRef, *path: str, name_field: str, load_ids: IdsByName
) -> int:
    """Return the row ID of one reference, as `resolve_ids_from_refs_or_raise` does for several."""
    name = _name_from_ref(ref, name_field)
    if name is None:
        return id_from_ref(ref, *path)
    return _id_of_name(await load_ids(info.context, [name]), name, path)


def _id_of_name(ids_by_name: Mapping[str, int], name: str, path: Sequence[str]) -> int:
    if name in ids_by_name:
        return ids_by_name[name]
    raise NotFound(name, path=path)


def require_few_references(info: Info, refs: Sequence[ObjectRef], path: Sequence[str]) -> None:
    """Raise LimitReached if the list names more objects than a mutation changes at once."""
    max_count = info.context.environment.options.bulk_max_items
    require_within_limit(
        len(refs), max_count, f"At most {max_count} objects can be selected at once.", path=path
    )


def _name_from_ref(ref: ObjectRef, name_field: str) -> str | None:
    name: Any = getattr(ref, name_field)
    return None if name is None else str(name.value)
