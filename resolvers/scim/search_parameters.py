"""The parameters of a SCIM query (RFC 7644, section 3.4.2)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

MAX_PAGE_SIZE = 250
DEFAULT_PAGE_SIZE = 100
MAX_START_INDEX = 1 << 53


@dataclass(frozen=True, slots=True)
class ScimSearch:
    """A query: which resources, in which order, and which part of them."""

    filter: str | None = None
    sort_by: str | None = None
    is_descending: bool = False
    start_index: int = 1
    count: int = DEFAULT_PAGE_SIZE
    # of all resource types: attributes of another type are absent (RFC 7644, section 3.4.2.1)
    of_all_types: bool = False


@dataclass(frozen=True, slots=True)
class ScimIds:
    """How clients write the IDs of users and groups. The functions return None for other texts."""

    decode_user_id: Callable[[str], int | None]
    decode_group_id: Callable[[str], int | None]


def next_type_search(search: ScimSearch, preceding_count: int, taken_count: int) -> ScimSearch:
    """Return the query of a second resource type: its resources follow those of the first one.

    `preceding_count` resources of the first type match, and the page has `taken_count` of them.
    """
    start_index = max(1, search.start_index - preceding_count)
    return replace(search, start_index=start_index, count=search.count - taken_count)
