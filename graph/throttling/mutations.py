"""Mutations of the ban policy and of bans of networks."""

from typing import Any

import strawberry
from strawberry import UNSET, Some

from graph.throttling.types import BanPolicy, NetworkBan
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import value_or_none
from graph.types.scalars import CIDR, Duration
from models.users.roles import Role, Scope
from resolvers.throttling import bans, loaders, update

WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}
BAN_CHANGE_COST = 200  # points: all processes read the bans again
LIST_LIMITS = (
    "At most 5,000 entries, of which at most 200 are host names. The new list replaces the old; an "
    "empty list removes all entries."
)
REASON_DESCRIPTION = (
    "Reason for the audit log, at most 255 printable characters. A reason in `options` "
    "precedes it. Default: none."
)


@strawberry.input(
    description=(
        "New values of the ban policy. An absent field stays, and null is refused. At least one "
        "field is required."
    )
)
class BanPolicyPatch:
    ban_time: strawberry.Maybe[Duration] = attribute_field(
        "Duration of the first ban of a network, from PT1M to P30D. Initially PT30M."
    )
    ban_time_increment: strawberry.Maybe[bool] = attribute_field(
        "True doubles the duration of each further ban of a network, up to 30 days. Initially true."
    )
    max_attempts: strawberry.Maybe[int] = attribute_field(
        "Number of failures of a network within `retryWindow` that leads to a ban, from 1 to "
        "10,000. Initially 20."
    )
    retry_window: strawberry.Maybe[Duration] = attribute_field(
        "Time window in which failures of a network are counted, from PT1M to P7D. The first "
        "failure begins it. Initially PT10M."
    )
    netmask_ipv4: strawberry.Maybe[int] = attribute_field(
        "Prefix length of the IPv4 networks that are counted and banned, from 8 to 32. Initially "
        "32: single addresses."
    )
    netmask_ipv6: strawberry.Maybe[int] = attribute_field(
        "Prefix length of the IPv6 networks whose failures are counted and which are banned, from "
        "16 to 128. Initially 64."
    )
    allowlist: strawberry.Maybe[list[str]] = attribute_field(
        "IP addresses, networks and host names that are never refused, and whose failures are not "
        f"counted. {LIST_LIMITS}"
    )
    denylist: strawberry.Maybe[list[str]] = attribute_field(
        "IP addresses, networks and host names that are always refused. The prefix length of a "
        f"network is at least 8 for IPv4 and 16 for IPv6. {LIST_LIMITS}"
    )


@strawberry.input(description="Input of banPolicyUpdate.")
class BanPolicyUpdateInput(Options):
    set: BanPolicyPatch = attribute_field(
        "New values of the policy. At least one value is required."
    )


@strawberry.input(description="Input of banAdd.")
class BanAddInput(Options):
    networks: list[CIDR] = attribute_field(
        "Networks to ban, 1 to 1,000, also IP addresses. The prefix length is at least 8 for IPv4 "
        "and 16 for IPv6."
    )
    duration: Duration | None = attribute_field(
        "Duration of the bans, from PT1M to P30D. Default: the duration of each network's next "
        "ban by the policy. To refuse a network permanently, add it to the deny list.",
        default=UNSET,
    )
    reason: str | None = attribute_field(
        f"{REASON_DESCRIPTION} The ban also shows this reason.", default=UNSET
    )


@strawberry.input(description="Input of banLift.")
class BanLiftInput(Options):
    networks: list[CIDR] = attribute_field(
        "Networks to accept again, 1 to 1,000, also IP addresses. The mutation ends the bans and "
        "delays of all networks that contain one of them or are inside one of them."
    )
    reason: str | None = attribute_field(REASON_DESCRIPTION, default=UNSET)


@strawberry.type(description="Payload of banPolicyUpdate.")
class BanPolicyPayload(MutationPayload):
    ban_policy: BanPolicy | None = attribute_field(
        "Ban policy after the change. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of banAdd.")
class NetworkBansPayload(MutationPayload):
    network_bans: list[NetworkBan] = attribute_field(
        "Bans of the networks, each once, in the order of the input. Empty if the mutation failed.",
        default_factory=list,
    )


@strawberry.type(description="Payload of banLift.")
class BanLiftPayload(MutationPayload):
    network_bans: list[NetworkBan] = attribute_field(
        "Bans that were lifted, at most the first 1,000.", default_factory=list
    )
    ban_count: int = attribute_field("Number of bans that were lifted.", default=0)
    penalty_count: int = attribute_field(
        "Number of deleted counters of failed sign-ins. There is a counter for each pair of "
        "account and network, and one for each network. A counter that has reached its limit "
        "delays further sign-ins. Failures that were counted toward a ban are not included.",
        default=0,
    )


async def _load_bans(info: Info, ban_ids: list[int]) -> list[NetworkBan]:
    rows = await info.context.load_many(loaders.load_bans_by_id, ban_ids)
    return [NetworkBan.from_row(row) for row in rows if row]


@strawberry.type
class ThrottlingMutation:
    @mutation(
        "Changes the policy of bans of networks. All processes apply it within one second. Bans "
        "in force keep their end. FORBIDDEN if the new allow list or deny list would refuse the "
        "caller's own IP address, and it was accepted before. The audit log records the change.",
        **WRITE_GUARD,
    )
    async def ban_policy_update(self, info: Info, input: BanPolicyUpdateInput) -> BanPolicyPayload:
        changes = {
            name: value.value for name, value in vars(input.set).items() if isinstance(value, Some)
        }
        policy = await update.update_policy(info.context, changes)
        return BanPolicyPayload(ban_policy=BanPolicy.from_row(policy))

    @mutation(
        "Bans (blocks) networks, all or none. Within one second all processes refuse connections "
        "from them. If exactly the same network is banned already, the new ban replaces that ban: "
        "it begins now, with the new duration and reason. Addresses on the allow list are still "
        "accepted. FORBIDDEN if the caller's own IP address would be refused, which was accepted "
        "before. VALIDATION for a network inside loopback or a trusted proxy, and for addresses "
        "of the platform's own servers. If more than 100,000 bans are in force, the server ends "
        "the oldest ones.",
        cost=BAN_CHANGE_COST,
        **WRITE_GUARD,
    )
    async def ban_add(self, info: Info, input: BanAddInput) -> NetworkBansPayload:
        ids = await bans.add_bans(
            info.context,
            input.networks,
            value_or_none(input.duration),
            value_or_none(input.reason),
        )
        return NetworkBansPayload(network_bans=await _load_bans(info, ids))

    @mutation(
        "Ends bans of networks and their delays after failed sign-ins, within one second in all "
        "processes. Delays that protect an account against all networks, and the deny list, stay. "
        "Failures that were counted no longer count. The next ban of each network is as long as a "
        "first ban. This is also true of networks whose last ban has already ended. A network "
        "without bans and delays is no error.",
        cost=BAN_CHANGE_COST,
        **WRITE_GUARD,
    )
    async def ban_lift(self, info: Info, input: BanLiftInput) -> BanLiftPayload:
        lifted = await bans.lift_bans(info.context, input.networks, value_or_none(input.reason))
        shown_ids = lifted.ban_ids[: bans.MAX_SHOWN_BANS]
        return BanLiftPayload(
            network_bans=await _load_bans(info, shown_ids),
            ban_count=len(lifted.ban_ids),
            penalty_count=lifted.penalty_count,
        )
