"""Tables of resources and their bookings."""

from datetime import timedelta
from enum import StrEnum

from sqlalchemy import Index
from sqlmodel import Field

from models.store.columns import (
    BYTEWISE_TEXT,
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    enum_column,
    foreign_key,
    partial_index,
)


class ResourceKind(StrEnum):
    """The kind of a resource."""

    LOCATION = "LOCATION"
    THING = "THING"
    GROUP = "GROUP"


class BookingPolicy(StrEnum):
    """The rule that decides which invitations a resource accepts."""

    ALWAYS_FREE = "ALWAYS_FREE"
    UNLIMITED_SHOW_BUSY = "UNLIMITED_SHOW_BUSY"
    LIMITED = "LIMITED"


class BookingState(StrEnum):
    """The state of a booking."""

    BOOKED = "BOOKED"
    # The row takes no time. It keeps the sequence number of a series, or of what was cancelled
    # or declined, so that an older invitation that arrives late changes nothing.
    RELEASED = "RELEASED"


BOOKING_RETENTION = timedelta(days=400)  # after the end of a booking
IS_BOOKED = "state = 'BOOKED'"  # the conditions of the partial indexes
IS_RELEASED = "state = 'RELEASED'"


class Resource(RowWithId, table=True):
    """A room, thing or group that people book by invitations to its address."""

    __tablename__ = "resources"
    __table_args__ = (
        Index("resources_by_name", "folded_name", "id"),
        Index("resources_by_age", "created_at", "id"),
        Index("resources_of_domain_by_name", "domain_id", "folded_name", "id"),
        Index("resources_of_domain_by_age", "domain_id", "created_at", "id"),
    )

    domain_id: int = foreign_key("domains.id", index=False)
    address_id: int = foreign_key("addresses.id", unique=True, index=False)  # kind RESOURCE
    local: str  # local part of the address as it is shown
    name: str
    folded_name: str = Field(sa_type=BYTEWISE_TEXT)  # without case and accents
    kind: ResourceKind = enum_column(ResourceKind)
    booking_policy: BookingPolicy = enum_column(BookingPolicy)
    booking_limit: OptionalInt64 = None  # of LIMITED: bookings at the same time
    active: bool = True  # as of the address
    created_at: Timestamp
    updated_at: Timestamp


class Booking(RowWithId, table=True):
    """An occurrence of an event that a resource is booked for, or a record of one that it isn't."""

    __tablename__ = "bookings"
    __table_args__ = (
        Index("bookings_of_series", "resource_id", "series_key", "occurrence_at"),
        Index("bookings_by_end", "resource_id", "ends_at", "id"),
        Index("bookings_by_age", "ends_at"),
        partial_index("bookings_by_start", IS_BOOKED, "resource_id", "starts_at", "id"),
        partial_index("bookings_released", IS_RELEASED, "resource_id", "organizer", "id"),
    )

    resource_id: int = foreign_key("resources.id", index=False)
    series_key: str  # digest of UID and organizer
    uid: str  # UID of the event (RFC 5545)
    # RECURRENCE-ID: the planned start of an occurrence; null for an event without recurrence,
    # and for the row that keeps the sequence number of a series
    occurrence_at: OptionalTimestamp = None
    sequence: Int64 = 0  # SEQUENCE of the invitation
    stamped_at: Timestamp  # DTSTAMP of the invitation
    state: BookingState = enum_column(BookingState)
    starts_at: Timestamp
    ends_at: Timestamp
    organizer: str  # address in normal form
    organizer_name: str | None = None
    organizer_user_id: OptionalInt64 = None  # the local user; kept after that user is deleted
    summary: str | None = None
    created_at: Timestamp
