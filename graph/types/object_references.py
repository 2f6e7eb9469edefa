"""References to objects of one type in inputs, and the IDs of the rows that they name.

Each type has one reference input, used by every mutation. A type with another unique name has a
field for it in its own reference, such as `DomainRef.name`.
"""

from collections.abc import Sequence

import strawberry

from graph.types import global_ids
from graph.types.errors import attribute_field
from graph.types.fields import Info
from models.errors import check_limit


@strawberry.input
class ObjectRef:
    """Base of the reference inputs. The class name is the type's name and `Ref`."""

    id: strawberry.Maybe[strawberry.ID] = attribute_field("Global ID.")


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
    max_count = info.context.environment.options.bulk_max_items
    check_limit(len(refs), max_count, f"at most {max_count} at once", path=path)
    return [id_from_ref(ref, *path, str(nth)) for nth, ref in enumerate(refs)]
