"""Create many addresses: all or none of a list, or as many as possible of a part of a file."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col

from models.domains.tables import Domain
from models.errors import ErrorCollector, InvalidInput, RequestError
from models.events.journal import PLATFORM
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import list_errors
from resolvers.addresses.bulk_insert import INPUT_PATH, insert_addresses_and_return_errors
from resolvers.addresses.mutations import NewAddress, PreparedAddress, prepare_address
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders

MAX_ADDRESSES = 250  # of one call


class PreparedAddresses(NamedTuple):
    """The valid addresses, and the errors of the others, by key."""

    prepared: dict[int, PreparedAddress]
    errors: dict[int, list[RequestError]]


def require_address_count_within_limit(address_count: int) -> None:
    """Raise InvalidInput for too many addresses, or none, in one call."""
    if not 0 < address_count <= MAX_ADDRESSES:
        raise InvalidInput(
            f"From 1 to {MAX_ADDRESSES:,} addresses are required.",
            constraint=ValidationConstraint.MAX,
            path=[INPUT_PATH],
        )


async def create_addresses(
    ctx: Context,
    new_addresses: Mapping[int, NewAddress],
    known_errors: Mapping[int, RequestError],
) -> list[int]:
    """Create all of these addresses in one transaction, in this order; return their ids.

    The keys are the positions in the input. `known_errors` are errors found before. Raises
    MultipleErrors with all errors: the path of each begins with the position of its address.
    """
    prepared, errors = prepare_addresses(ctx, new_addresses, {})
    errors |= list_errors.error_lists(known_errors)
    async with ctx.write_session(*await stream_ids_to_lock(ctx, prepared.values())):
        errors |= await insert_addresses_and_return_errors(
            ctx, prepared, mutation="addressesCreate"
        )
        list_errors.raise_errors_with_list_paths([INPUT_PATH], errors)
    return [item.address.id for item in prepared.values()]


def prepare_addresses(
    ctx: Context,
    new_addresses: Mapping[int, NewAddress],
    problems: Mapping[int, ErrorCollector],
) -> PreparedAddresses:
    """Validate the fields of each address. `problems` are those that were found before."""
    prepared, errors = dict[int, PreparedAddress](), dict[int, list[RequestError]]()
    for index, new_address in new_addresses.items():
        try:
            prepared[index] = prepare_address(ctx, new_address, problems.get(index))
        except RequestError as refusal:
            errors[index] = refusal.all_errors
    return PreparedAddresses(prepared, errors)


async def stream_ids_to_lock(ctx: Context, prepared: Iterable[PreparedAddress]) -> set[int]:
    """Return the ids of the streams to lock for a transaction that stores these addresses.

    They are locked together, in the order of their ids, so that two calls can't deadlock.
    """
    prepared = list(prepared)
    user_ids = {item.address.user_id for item in prepared}
    stream_ids = {user_id or PLATFORM for user_id in user_ids}
    if user_ids - {None}:
        statement = select(col(User.domain_id)).where(col(User.id).in_(user_ids - {None}))
        stream_ids |= {row.domain_id or PLATFORM for row in await ctx.read(statement)}
    if domain_names := {item.domain_name for item in prepared}:
        rows = await ctx.read(
            select(col(Domain.id)).where(
                col(Domain.name).in_(domain_names), domain_loaders.is_administered_domain(ctx)
            )
        )
        stream_ids |= {row.id for row in rows}
        if len(rows) < len(domain_names):
            stream_ids.add(PLATFORM)
    return stream_ids
