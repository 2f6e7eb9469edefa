"""Create many filters: all or none of a list, or as many as possible of a part of a file."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import InvalidInput, RequestError
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers import list_errors
from resolvers.access import require_user_id
from resolvers.context import Context
from resolvers.filters import loaders as filter_loaders
from resolvers.filters import mutations as filter_mutations
from resolvers.filters.mutations import FilterInputValues, ValidatedFilter
from resolvers.users.selection import require_managed_user

MAX_FILTERS = 250  # of one call
INPUT_PATH = "filters"


@dataclass(frozen=True, slots=True)
class NewFilter:
    """A filter to create, with its values by column."""

    user_id: int | None  # None: of the viewer
    values: FilterInputValues


@dataclass(slots=True)
class FilterOwner:
    """A user who gets new filters: the stored ones, and those that are stored together."""

    user: ColumnRow
    stored_count: int
    next_position: int
    new_filters: list[ValidatedFilter] = field(default_factory=list)

    def require_capacity(self, ctx: Context) -> None:
        """Raise LimitReached if the user can't have another filter."""
        used = self.stored_count + len(self.new_filters)
        filter_loaders.require_room_for_filters(ctx, used)

    def add(self, new_filter: ValidatedFilter) -> None:
        """Add a filter. Without a position it runs after all others."""
        position = new_filter.row.setdefault("position", self.next_position)
        self.next_position = max(self.next_position, filter_mutations.position_after(int(position)))
        self.new_filters.append(new_filter)


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
        list_errors.raise_errors_with_list_paths([INPUT_PATH], errors)
    return list(created.ids.values())


def owner_ids(ctx: Context, new_filters: Iterable[NewFilter]) -> Collection[int]:
    """Return the IDs of the owners, whose streams a transaction that creates filters locks."""
    user_ids = {new_filter.user_id or ctx.viewer.user_id for new_filter in new_filters}
    return {user_id for user_id in user_ids if user_id}


async def create_filters_and_return_errors(
    ctx: Context, new_filters: Mapping[int, NewFilter], *, mutation: str
) -> CreatedFilters:
    """Create the filters that can be created; return their IDs and the errors of the others.

    Must run in a transaction that locks the owners. A filter sees the ones before it. The filters
    of an owner are stored together. The audit log has the name of the `mutation`.
    """
    created, owners = CreatedFilters({}, {}), dict[int, FilterOwner | RequestError]()
    async with ctx.write_session() as session:
        for index, new_filter in new_filters.items():
            try:
                owner_id = new_filter.user_id or require_user_id(ctx)
                if owner_id not in owners:
                    owners[owner_id] = await _load_owner_or_error(ctx, owner_id)
                owner = owners[owner_id]
                if isinstance(owner, RequestError):
                    raise owner
                created.ids[index] = await _add_validated_filter(ctx, session, owner, new_filter)
            except RequestError as refusal:
                created.errors[index] = refusal.all_errors
        for owner in owners.values():
            if isinstance(owner, FilterOwner):
                await filter_mutations.insert_filters(
                    ctx, session, owner.user, owner.new_filters, mutation
                )
    return created


async def _load_owner_or_error(ctx: Context, owner_id: int) -> FilterOwner | RequestError:
    """Return the owner of new filters, or why the viewer can't create filters for it."""
    try:
        filter_mutations.require_permission_for_others_filters(ctx, [owner_id])
        user = await require_managed_user(ctx, owner_id)
    except RequestError as refusal:
        return refusal
    return FilterOwner(
        user,
        await filter_loaders.count_filters(ctx, owner_id),
        await filter_mutations.position_after_all_filters(ctx, owner_id),
    )


async def _add_validated_filter(
    ctx: Context, session: AsyncSession, owner: FilterOwner, new_filter: NewFilter
) -> int:
    """Add a filter to those that are stored for its owner; return its ID.

    Raises InvalidInput, LimitReached, NotFound or OverQuota.
    """
    owner.require_capacity(ctx)
    validated = await filter_mutations.validate_new_filter(ctx, owner.user.id, new_filter.values)
    if validated.row["public_metadata"] is not None:
        await filter_mutations.require_quota_for_new_filters(
            ctx, session, owner.user.id, [*owner.new_filters, validated]
        )
    owner.add(validated)
    return int(validated.row["id"])
