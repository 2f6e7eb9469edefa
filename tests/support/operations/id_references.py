"""References to objects by their global IDs, as inputs of mutations have them."""

from collections.abc import Iterable


def id_refs(ids: Iterable[str]) -> list[dict[str, str]]:
    """Return a reference by ID for each global ID."""
    return [{"id": one} for one in ids]
