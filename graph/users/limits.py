"""GraphQL types of the limits of users and their usage."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypeVar

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.object_views import View
from graph.types.references import is_true
from graph.types.scalars import BigInt, ByteSize
from models.errors import InvalidInput
from models.users.tables import LimitSource as LimitSource  # noqa: PLC0414 - known here
from models.users.tables import UsageLevel
from models.validation_constraints import ValidationConstraint
from resolvers.users.limit_values import LimitValue, Unlimited
from resolvers.users.quota import limits as quota_limits
from resolvers.users.quota.limits import UsageWindow

Limit = TypeVar("Limit")


@strawberry.type(
    description="Use of a limit on messages, recipients or forwards in a period. The period begins "
    "with the first of them, and at its end the count returns to 0. The storage limit has no "
    "period and is a QuotaUsage."
)
class Usage:
    limit: BigInt | None = attribute_field(
        "Highest number of messages, recipients or forwards in a period. Null: unlimited."
    )
    used: BigInt = attribute_field(
        "Number of messages, recipients or forwards in the running period."
    )
    resets_at: datetime | None = attribute_field(
        "End of the running period, when the count begins at 0 again. Null: no period is running."
    )
    source: LimitSource = attribute_field(
        "Level that sets the limit: the account or address itself, or else the platform."
    )
    level: UsageLevel = attribute_field(
        "Level of the used share of the limit. The settings `limits.warningPercent` and "
        "`limits.criticalPercent` set the thresholds. NORMAL if there is no limit."
    )

    @classmethod
    def from_window(cls, window: UsageWindow) -> "Usage":
        """Return the GraphQL object of the usage in a time window."""
        return cls(
            limit=None if window.limit is None else BigInt(window.limit),
            used=BigInt(window.used),
            resets_at=window.resets_at,
            source=window.source,
            level=window.level,
        )


@strawberry.type(
    description="Storage quota of an account and its use in bytes. It has no period: only deleting "
    "data lowers the use. Limits that count in a period are a Usage."
)
class QuotaUsage:
    limit: ByteSize | None = attribute_field("Quota in bytes. Null: unlimited.")
    used: ByteSize = attribute_field(
        "Bytes that the account's messages and custom data use. Custom data are metadata, "
        "annotations of mailboxes, and keys and values. Deleted messages that can be restored do "
        "not count."
    )
    source: LimitSource = attribute_field("Level that sets the quota: account, domain or platform.")
    level: UsageLevel = attribute_field(
        "Level of the used share of the quota. The settings `limits.warningPercent` and "
        "`limits.criticalPercent` set the thresholds. NORMAL if the quota is unlimited."
    )


@strawberry.type(description="Limits of an account and their use.")
class UserLimits(View):
    @field("Storage quota of the account, and the bytes in use.")
    async def quota(self, info: Info) -> QuotaUsage:
        usage = await quota_limits.load_storage_usage(info.context, self.row)
        return QuotaUsage(
            limit=None if usage.limit_bytes is None else ByteSize(usage.limit_bytes),
            used=ByteSize(usage.used_bytes),
            source=usage.source,
            level=usage.level,
        )

    @field(
        "Limit of recipients that the account writes to in 24 hours, and its use. The default of "
        "the platform is 2,000."
    )
    async def recipients_per_day(self, info: Info) -> Usage:
        return Usage.from_window(await quota_limits.load_recipient_usage(info.context, self.row))

    @field(
        "Limit of messages that the account forwards in 24 hours, and its use. A message counts "
        "once for each target. The default of the platform is 2,000."
    )
    async def forwards_per_day(self, info: Info) -> Usage:
        return Usage.from_window(await quota_limits.load_forward_usage(info.context, self.row))

    @field(
        "Limit of messages that the account receives in one hour, and its use. The default of the "
        "platform is 3,600."
    )
    async def received_per_hour(self, info: Info) -> Usage:
        return Usage.from_window(quota_limits.received_usage(info.context.environment, self.row))


LIMIT_COLUMNS = (
    "quota",
    "used",
    "domain_id",
    "recipients_per_day",
    "forwards_per_day",
    "received",
    "received_per_hour",
    "received_until",
)


def limit_value(limit: Limit | None) -> Limit | Unlimited:
    """Convert a limit of an input, where null is unlimited."""
    return Unlimited.UNLIMITED if limit is None else limit


@strawberry.input(
    description=(
        "Limits of an account. An absent field leaves the limit, or gives a new account that of "
        "the platform. Null makes the limit unlimited. Each number must be below 2^31."
    )
)
class UserLimitsInput:
    received_per_hour: strawberry.Maybe[int | None] = attribute_field(
        "Messages that the account can receive in an hour, at least 1. Null: unlimited."
    )
    recipients_per_day: strawberry.Maybe[int | None] = attribute_field(
        "Recipients that the account can write to in 24 hours, at least 1. Null: unlimited."
    )
    forwards_per_day: strawberry.Maybe[int | None] = attribute_field(
        "Messages that the account can forward in 24 hours, at least 1; a message counts once for "
        "each target. Null: unlimited."
    )

    def to_column_values(self) -> dict[str, LimitValue]:
        """Return the limits that the input sets, by column. Absent limits are left out."""
        return limit_columns(self)


@strawberry.input(
    description=(
        "Limits of a forwarding address. An absent field leaves the limit, or gives a new address "
        "that of the platform."
    )
)
class AddressLimitsInput:
    forwards_per_day: strawberry.Maybe[int | None] = attribute_field(
        "Messages that the address can forward in 24 hours, from 1 to below 2^31; a message counts "
        "once for each target. Null: unlimited."
    )

    def to_column_values(self) -> dict[str, LimitValue]:
        """Return the limits that the input sets, by column. Absent limits are left out."""
        return limit_columns(self)


def limit_columns(limits_input: UserLimitsInput | AddressLimitsInput) -> dict[str, LimitValue]:
    """Return the limits that an input sets, by column."""
    return {
        name: limit_value(change.value) for name, change in vars(limits_input).items() if change
    }


def validated_limit_columns_of_patch(patch: Any, columns: Iterable[str]) -> dict[str, LimitValue]:
    """Return the limits that `limits` or `inheritLimits` of a patch sets, by column.

    Raises InvalidInput if both are given.
    """
    if not is_true(patch.inherit_limits):
        values: dict[str, LimitValue] = (
            patch.limits.value.to_column_values() if patch.limits else {}
        )
        return values
    if patch.limits:
        text = "`inheritLimits` can't be combined with limits."
        raise InvalidInput(
            text, constraint=ValidationConstraint.EXCLUSIVE, path=["set", "inheritLimits"]
        )
    return dict.fromkeys(columns)
