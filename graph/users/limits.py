"""GraphQL types of the limits of users and their usage."""

from datetime import datetime

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.object_views import View
from graph.types.scalars import BigInt, ByteSize, Duration
from models.users.tables import LimitSource as LimitSource  # noqa: PLC0414 - known here
from models.users.tables import UsageLevel
from resolvers.users.quota import limits as quota_limits
from resolvers.users.quota.limits import UsageWindow


@strawberry.type(description="Counter that refills.")
class Usage:
    allowed: BigInt = attribute_field("Limit, 0 = unlimited.")
    used: BigInt = attribute_field("In the running period.")
    ttl: Duration | None = attribute_field("Until the period ends; null = none is running.")
    resets_at: datetime | None = attribute_field("When the period ends; null = none is running.")
    source: LimitSource = attribute_field("Who has set the limit.")
    level: UsageLevel = attribute_field("How far it is used up.")

    @classmethod
    def from_window(cls, window: UsageWindow) -> "Usage":
        """Return the GraphQL object of the usage in a time window."""
        return cls(
            allowed=BigInt(window.allowed),
            used=BigInt(window.used),
            ttl=None if window.ttl is None else Duration(window.ttl),
            resets_at=window.resets_at,
            source=window.source,
            level=window.level,
        )


@strawberry.type(description="Storage.")
class QuotaUsage:
    allowed: ByteSize = attribute_field("Quota in bytes, 0 = unlimited.")
    used: ByteSize = attribute_field("In use.")
    source: LimitSource = attribute_field("Who has set the quota.")
    level: UsageLevel = attribute_field("How far it is used up.")


@strawberry.type(description="Limits with what is used of them.")
class UserLimits(View):
    @field("Storage.")
    async def quota(self, info: Info) -> QuotaUsage:
        usage = await quota_limits.load_storage_usage(info.context, self.row)
        return QuotaUsage(
            allowed=ByteSize(usage.allowed_bytes),
            used=ByteSize(usage.used_bytes),
            source=usage.source,
            level=usage.level,
        )

    @field("Recipients written to per 24 h.")
    async def recipients(self, info: Info) -> Usage:
        return Usage.from_window(await quota_limits.load_recipient_usage(info.context, self.row))

    @field("Messages sent on to targets per 24 h, each counted once for each target.")
    async def forwards(self, info: Info) -> Usage:
        return Usage.from_window(await quota_limits.load_forward_usage(info.context, self.row))

    @field("Messages received per hour.")
    async def received(self, info: Info) -> Usage:
        return Usage.from_window(quota_limits.received_usage(info.context.environment, self.row))


LIMIT_COLUMNS = (
    "quota",
    "used",
    "domain_id",
    "recipients",
    "forwards",
    "received",
    "received_max",
    "received_until",
)
