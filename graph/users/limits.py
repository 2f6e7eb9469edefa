"""GraphQL types of the limits of users and their usage."""

from datetime import datetime

import strawberry

from graph.types.errors import leaf
from graph.types.fields import Info, field
from graph.types.object_views import View
from graph.types.scalars import BigInt, ByteSize, Duration
from models.users.tables import LimitSource as LimitSource  # noqa: PLC0414 - known here
from models.users.tables import UsageLevel
from resolvers.users.quota import limits as quota_limits
from resolvers.users.quota.limits import Window


@strawberry.type(description="Counter that refills.")
class Usage:
    allowed: BigInt = leaf("Limit, 0 = unlimited.")
    used: BigInt = leaf("In the running period.")
    ttl: Duration | None = leaf("Until the period ends; null = none is running.")
    resets_at: datetime | None = leaf("When the period ends; null = none is running.")
    source: LimitSource = leaf("Who has set the limit.")
    level: UsageLevel = leaf("How far it is used up.")

    @classmethod
    def of(cls, window: Window) -> "Usage":
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
    allowed: ByteSize = leaf("Quota in bytes, 0 = unlimited.")
    used: ByteSize = leaf("In use.")
    source: LimitSource = leaf("Who has set the quota.")
    level: UsageLevel = leaf("How far it is used up.")


@strawberry.type(description="Limits with what is used of them.")
class UserLimits(View):
    @field("Storage.")
    async def quota(self, info: Info) -> QuotaUsage:
        usage = await quota_limits.storage(info.context, self.row)
        return QuotaUsage(
            allowed=ByteSize(usage.allowed),
            used=ByteSize(usage.used),
            source=usage.source,
            level=usage.level,
        )

    @field("Recipients written to per 24 h.")
    async def recipients(self, info: Info) -> Usage:
        return Usage.of(await quota_limits.recipients(info.context, self.row))

    @field("Messages sent on to targets per 24 h, each counted once for each target.")
    async def forwards(self, info: Info) -> Usage:
        return Usage.of(await quota_limits.sent_on(info.context, self.row))

    @field("Messages received per hour.")
    async def received(self, info: Info) -> Usage:
        return Usage.of(quota_limits.received(info.context.world, self.row))


COLUMNS = (
    "quota",
    "used",
    "domain_id",
    "recipients",
    "forwards",
    "received",
    "received_max",
    "received_until",
)
