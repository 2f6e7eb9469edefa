"""Create many filters: all or none of a list, or as many as possible of a part of a file."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from models.errors import InvalidInput, RequestError
from models.validation_constraints import ValidationConstraint
from resolvers import list_errors
from resolvers.context import Context
from resolvers.filters import mutations as filter_mutations
from resolvers.filters.mutations import FilterInputValues

MAX_FILTERS = 250  # of one call
INPUT_PATH = "filters"


@dataclass(frozen=True, slots=True)
class NewFilter:
    """A filter to create, with its values by column."""

    user_id: int | None  # None: of the viewer
    values: FilterInputValues


class CreatedFilters(NamedTuple):
    """The IDs of the created filters, and the errors of the others, by key."""

    ids: dict[int, int]
    errors: dict[int, list[RequestError]]


def require_filter_count_within_limit(filter_count: int) -> None:
    """Raise InvalidInput for too many filters, or none, in one call."""
    if not 0 < filter_count <= MAX_FILTERS:
        raise InvalidInput(
            f"From 1 to {MAX_FILTERS:,} filters are required.",
            constraint=ValidationConstraint.MAX,
            path=[INPUT_PATH],
        )


async def create_filters(
    ctx: Context, new_filters: Mapping[int, NewFilter], known_errors: Mapping[int, RequestError]
) -> list[int]:
    """Create all of these filters in one transaction, in this order; return their IDs.

    The keys are the positions in the input. `known_errors` are errors found before. Raises
    MultipleErrors with all errors: the path of each begins with the position of its filter.
    """
    async with ctx.write_session(*owner_ids(ctx, new_filters.values())):
        created = await create_filters_and_return_errors(ctx, new_filters, mutation="filtersCreate")
        errors = created.errors | list_errors.error_lists(known_errors)
        list_errors.raise_errors_with_list_paths(INPUT_PATH, errors)
    return list(created.ids.values())


def owner_ids(ctx: Context, new_filters: Iterable[NewFilter]) -> Collection[int]:
    """Return the IDs of the owners, whose streams a transaction that creates filters locks."""
    user_ids = {new_filter.user_id or ctx.viewer.user_id for new_filter in new_filters}
    return {user_id for user_id in user_ids if user_id}


async def create_filters_and_return_errors(
    ctx: Context, new_filters: Mapping[int, NewFilter], *, mutation: str
) -> CreatedFilters:
    """Create the filters that can be created; return their IDs and the errors of the others.

    Must run in a transaction: each filter is stored in a savepoint of its own, and sees the ones
    before it. The audit log has the name of the `mutation`.
    """
    ids, errors = dict[int, int](), dict[int, list[RequestError]]()
    for index, new_filter in new_filters.items():
        try:
            ids[index] = await filter_mutations.create_filter(
                ctx, new_filter.user_id, new_filter.values, mutation
            )
        except RequestError as refusal:
            errors[index] = refusal.all_errors
            ctx.clear_loaded()  # rows of the savepoint, which was rolled back
    return CreatedFilters(ids, errors)
