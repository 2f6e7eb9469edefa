"""Load and count the bookings of resources."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, case, null, select, text
from sqlmodel import col

from mail.resources.occurrences import MAX_DURATION
from models.resources.tables import IS_BOOKED, Booking, BookingPolicy, Resource
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from resolvers import pagination
from resolvers.context import Context
from resolvers.domains.loaders import is_in_administered_domain
from resolvers.list_orders import ListOrder, SortColumn, list_orders
from resolvers.pagination import PageScan
from resolvers.resources.loaders import is_visible_resource

# Columns that only the organizer and administrators of the domain see
_PRIVATE_COLUMNS = ("uid", "summary", "organizer", "organizer_name")


class BookingOrder(StrEnum):
    """The order of a list of bookings; ties by id."""

    STARTS_AT_ASC = "STARTS_AT_ASC"
    STARTS_AT_DESC = "STARTS_AT_DESC"


LIST_ORDERS = list_orders(BookingOrder, {"STARTS_AT": SortColumn("starts_at", datetime)})


@dataclass(frozen=True, slots=True)
class BookingConditions:
    """Conditions of a list of bookings; all must hold."""

    ends_after: datetime | None = None
    starts_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class BookingPageKey:
    """A page of the bookings of a resource."""

    resource_id: int
    conditions: BookingConditions
    page_request: PageRequest
    order: ListOrder


async def load_visible_booking_pages(
    ctx: Context, page_keys: list[BookingPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the bookings of resources, each in reading order.

    Of a booking whose details the viewer can't see, the private columns are None. Raises
    InvalidInput for a cursor of another order.
    """
    scans = []
    for key in page_keys:
        key.order.require_fitting_cursor(key.page_request)
        scans.append(
            PageScan(
                _select_bookings(ctx, key),
                key.page_request,
                key.order.sort_key(Booking),
                is_descending=key.order.is_descending,
            )
        )
    return await pagination.read_pages(ctx, scans)


async def count_visible_bookings(ctx: Context, page_keys: list[BookingPageKey]) -> list[int]:
    """Count the bookings of each list, in the given order."""
    selects = [_select_bookings(ctx, key, [col(Booking.id)]) for key in page_keys]
    return await pagination.count_rows(ctx, selects)


def _select_bookings(
    ctx: Context, page_key: BookingPageKey, columns: Sequence[Any] | None = None
) -> Select[*tuple[Any, ...]]:
    """Select the bookings that make a resource busy. One that is always free has none."""
    statement: Select[*tuple[Any, ...]] = (
        select(*(_visible_booking_columns(ctx) if columns is None else columns))
        .join(Resource, col(Resource.id) == col(Booking.resource_id))
        .where(
            col(Booking.resource_id) == page_key.resource_id,
            text(f"bookings.{IS_BOOKED}"),  # as in the partial index
            col(Resource.booking_policy) != BookingPolicy.ALWAYS_FREE,
            is_visible_resource(ctx),
        )
    )
    conditions = page_key.conditions
    if conditions.ends_after is not None:
        # the second condition bounds the range of the index
        statement = statement.where(
            col(Booking.ends_at) > conditions.ends_after,
            col(Booking.starts_at) > _time_before_longest_booking(conditions.ends_after),
        )
    if conditions.starts_before is not None:
        statement = statement.where(col(Booking.starts_at) < conditions.starts_before)
    return statement


def _time_before_longest_booking(at: datetime) -> datetime:
    """Return a time that every booking which ends after `at` starts after."""
    earliest = datetime.min.replace(tzinfo=at.tzinfo)
    return at - MAX_DURATION if at - earliest > MAX_DURATION else earliest


def _visible_booking_columns(ctx: Context) -> list[Any]:
    """Return the columns of bookings. Private ones are null unless the viewer may see them."""
    can_see_details: ColumnElement[bool] = is_in_administered_domain(ctx, col(Resource.domain_id))
    if ctx.viewer.user_id:
        can_see_details |= col(Booking.organizer_user_id) == ctx.viewer.user_id
    private_columns = [
        case((can_see_details, getattr(Booking, name)), else_=null()).label(name)
        for name in _PRIVATE_COLUMNS
    ]
    return [*select_columns(Booking, ("id", "starts_at", "ends_at")), *private_columns]
