"""What accounts may use and have used, as the API shows it."""

import strawberry

from graph.errors import leaf
from graph.fields import Info, field
from graph.scalars import BigInt, ByteSize, Duration
from graph.views import View
from resolvers import userlimits
from resolvers.userlimits import Window


@strawberry.type(description="Counter that refills.")
class Usage:
    allowed: BigInt = leaf("Limit, 0 = unlimited.")
    used: BigInt = leaf("In the running period.")
    ttl: Duration | None = leaf("Until the period ends; null = none is running.")

    @classmethod
    def of(cls, window: Window) -> "Usage":
        ttl = None if window.ttl is None else Duration(window.ttl)
        return cls(allowed=BigInt(window.allowed), used=BigInt(window.used), ttl=ttl)


@strawberry.type(description="Storage.")
class QuotaUsage:
    allowed: ByteSize = leaf("Quota in bytes, 0 = unlimited.")
    used: ByteSize = leaf("In use.")


@strawberry.type(description="Limits with what is used of them.")
class UserLimits(View):
    @field("Storage.")
    async def quota(self, info: Info) -> QuotaUsage:
        allowed = await userlimits.allowed(info.context, self.row)
        return QuotaUsage(allowed=ByteSize(allowed), used=ByteSize(max(self.row.used, 0)))

    @field("Recipients written to per 24 h.")
    async def recipients(self, info: Info) -> Usage:
        return Usage.of(await userlimits.recipients(info.context, self.row))

    @field("Messages received per hour.")
    async def received(self, info: Info) -> Usage:
        return Usage.of(userlimits.received(info.context.world, self.row))


COLUMNS = (
    "quota",
    "used",
    "domain_id",
    "recipients",
    "received",
    "received_max",
    "received_until",
)
