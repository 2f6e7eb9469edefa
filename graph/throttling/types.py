"""GraphQL types and queries of bans of networks and of delays after failures."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField
from graph.types.references import value_or_none
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from graph.types.scalars import CIDR, Duration, IPAddress
from models.store.columns import ColumnRow
from models.store.keyset_pages import ordering_name
from models.throttling.policy import BanCause, BanPolicyValues
from models.throttling.refused_networks import networks_of_list_entries
from models.users.roles import Role, Scope
from resolvers.throttling import loaders
from resolvers.throttling.loaders import LoginPenaltyOrder, NetworkBanOrder, NetworkConditions

READ_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.READ}
LIST_ENTRIES_DESCRIPTION = "IP addresses, networks and host names"


@strawberry.type(
    description="Ban of a network: the server refuses its connections until `endsAt`.",
    directives=[Auth(role=Role.ADMIN)],
)
class NetworkBan(NodeView):
    network: CIDR = attribute_field("Banned network.")
    cause: BanCause = attribute_field(
        "Cause of the ban: the kind of the last failure, or MANUAL for a ban by an administrator."
    )
    reason: str | None = attribute_field(
        "Reason that the administrator gave for the ban. Null: none was given, or a failure caused "
        "the ban."
    )
    failure_count: int = attribute_field(
        "Number of failures in the network that led to the ban, such as failed sign-ins, within "
        "the `retryWindow` of the policy. It is 0 for a ban by an administrator."
    )
    ban_count: int = attribute_field(
        "Number of successive bans of the network, including this one. The count starts at 1 again "
        "if the previous ban ended more than 30 days before this one began. `banLift` sets it to "
        "0, so that the next ban has the count 1."
    )
    started_at: datetime = attribute_field("Time when the ban of the network began.")
    ends_at: datetime = attribute_field("Time when the ban of the network ends or has ended.")

    load_batch = staticmethod(loaders.load_bans_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("NetworkBan"),
        "cause": DerivedField(("cause",), BanCause),
    }


@strawberry.type(
    description="Delay after failed sign-ins: further attempts are refused until it expires.",
    directives=[Auth(role=Role.ADMIN)],
)
class LoginPenalty(NodeView):
    network: CIDR | None = attribute_field(
        "Network whose attempts are delayed. Null: the delay applies to an account or a link. "
        "After failed sign-ins to an account, it applies to all networks that the user has not "
        "signed in from. After other failures it applies to all networks."
    )
    penalty: Duration = attribute_field(
        "Duration of the delay, from `lastPenaltyAt` to `expiresAt`."
    )
    failure_count: int = attribute_field("Number of failed attempts that led to the delay.")
    last_penalty_at: datetime = attribute_field(
        "Time when the limit of failures was reached and the delay began."
    )
    expires_at: datetime = attribute_field("Time when the delay after failed sign-ins ends.")

    load_batch = staticmethod(loaders.load_penalties_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("LoginPenalty"),
        "penalty": DerivedField(("until", "wait_since"), lambda until, since: until - since),
        "failure_count": DerivedField(("failures",), lambda failures: failures),
        "last_penalty_at": DerivedField(("wait_since",), lambda since: since),
        "expires_at": DerivedField(("until",), lambda until: until),
    }


@strawberry.type(
    description="Host name of the allow list or the deny list, with its addresses from DNS."
)
class BanListHost:
    name: str = attribute_field("Host name in one of the lists.")
    addresses: list[IPAddress] = attribute_field(
        "IP addresses of the last usable answer, at most 64. The list has these addresses."
    )
    resolved_at: datetime | None = attribute_field(
        "Time of the last usable answer. Null: there was none yet."
    )
    checked_at: datetime = attribute_field(
        "Time of the last DNS query of the host name. The server queries it every 5 minutes."
    )
    problem: str | None = attribute_field(
        "Reason why the last query gave no usable answer, so that the addresses of an earlier one "
        "are kept. Null: it gave one."
    )

    @classmethod
    def from_host_row(cls, row: ColumnRow) -> "BanListHost":
        """Return the GraphQL object of a host name."""
        return cls(
            name=row.name,
            addresses=row.addresses,
            resolved_at=row.resolved_at,
            checked_at=row.checked_at,
            problem=row.problem,
        )


@strawberry.input(description="Conditions on bans.")
class NetworkBanFilter(ConditionsInput):
    networks: list[CIDR] | None = attribute_field(
        "Returns only bans of networks that contain one of these networks or are inside one of "
        "them. 1 to 100 networks; another number is an error.",
        default=UNSET,
    )


@strawberry.input(description="Conditions on delays after failed sign-ins.")
class LoginPenaltyFilter(ConditionsInput):
    networks: list[CIDR] | None = attribute_field(
        "Returns only delays of networks that contain one of these networks or are inside one of "
        "them. 1 to 100 networks; another number is an error. Delays without a network are left "
        "out.",
        default=UNSET,
    )


def _conditions(
    list_filter: NetworkBanFilter | LoginPenaltyFilter | None,
) -> NetworkConditions:
    networks = value_or_none(list_filter.networks) if list_filter else None
    return NetworkConditions(None if networks is None else tuple(networks))


@strawberry.type(
    description="Policy of bans: when the network of a client is refused, and which networks are "
    "always or never refused. Loopback, trusted proxies and the servers of the platform are never "
    "refused. The allow list precedes the deny list, which precedes bans.",
    directives=[Auth(role=Role.ADMIN)],
)
class BanPolicy(NodeView):
    ban_time: Duration = attribute_field(
        "Duration of the first ban of a network, from PT1M to P30D. Initially PT30M."
    )
    ban_time_increment: bool = attribute_field(
        "True if each further ban of a network lasts twice as long as the one before it, up to 30 "
        "days. The next ban lasts `banTime` again 30 days after the end of the last one, or after "
        "banLift. If false, every ban lasts `banTime`. A `duration` of banAdd has precedence."
    )
    max_attempts: int = attribute_field(
        "Number of failures of a network within `retryWindow` that leads to a ban, from 1 to "
        "10,000. Initially 20."
    )
    retry_window: Duration = attribute_field(
        "Time window in which failures of a network are counted, from PT1M to P7D. The first "
        "failure begins it. Initially PT10M."
    )
    netmask_ipv4: int = attribute_field(
        "Prefix length of the IPv4 networks that are counted and banned, from 8 to 32. Initially "
        "32."
    )
    netmask_ipv6: int = attribute_field(
        "Prefix length of the IPv6 networks whose failures are counted and which are banned, from "
        "16 to 128. Initially 64."
    )
    allowlist: list[str] = attribute_field(
        f"{LIST_ENTRIES_DESCRIPTION} that are never refused, and whose failures are not counted. "
        "At most 5,000."
    )
    denylist: list[str] = attribute_field(
        f"{LIST_ENTRIES_DESCRIPTION} that are always refused. At most 5,000."
    )

    load_batch = staticmethod(loaders.load_policies_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("BanPolicy"),
        "allowlist": DerivedField(("allowlist",), list),
        "denylist": DerivedField(("denylist",), list),
    }

    @field("Host names of both lists with their addresses, in the order of names. At most 400.")
    async def hosts(self, info: Info) -> list[BanListHost]:
        rows = await info.context.load(loaders.load_list_hosts, "")
        return [BanListHost.from_host_row(row) for row in rows]

    @field(
        "Networks of the deny list, with the addresses of its host names. Networks of the allow "
        "list precede them. At most 17,600.",
        "denylist",
    )
    async def permanent_bans(self, info: Info) -> list[CIDR]:
        rows = await info.context.load(loaders.load_list_hosts, "")
        policy: BanPolicyValues = self.row
        networks = networks_of_list_entries(
            policy.denylist, {row.name: row.addresses for row in rows}
        )
        return [CIDR(network) for network in networks]

    @field(
        "Bans of networks that are in force. Bans that have ended or were lifted, and the deny "
        "list, are left out."
    )
    async def active_bans(
        self,
        info: Info,
        filter: NetworkBanFilter | None = UNSET,
        order_by: NetworkBanOrder = NetworkBanOrder.STARTED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[NetworkBan]:
        conditions = _conditions(value_or_none(filter))
        ordering = ordering_name(f"network-bans-{order_by}", conditions)
        requested_page = page_request(ordering, first, after, last, before)
        return await connection_of_page(
            info,
            NetworkBan,
            await loaders.read_ban_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, NetworkBan),
                order_by,
            ),
            lambda row: loaders.BAN_ORDERS[order_by].cursor_of_row(row, ordering),
            lambda: loaders.count_bans(info.context, conditions),
        )


@strawberry.type
class ThrottlingQuery:
    @query(
        (
            "Returns the platform's policy of bans of networks, with the bans that are in force. "
            "Without a change by `banPolicyUpdate` it has the initial values."
        ),
        **READ_GUARD,
    )
    async def ban_policy(self, info: Info) -> BanPolicy:
        return BanPolicy.from_row(await loaders.load_policy(info.context))

    @query(
        "Returns the delays after failed sign-ins that are in force. Wrong proofs of a second "
        "factor, wrong existing passwords and wrong passwords of links also cause such delays. "
        "During a delay, the server refuses further attempts (RATE_LIMITED). A delay of a network "
        "applies to one account, to one link with a password, or to all accounts and links. A "
        "delay without a network applies to one account or link. After failed sign-ins to an "
        "account, it applies to all networks that the user has not signed in from. In the other "
        "cases it applies to all networks. Further failures can lead to a ban of the network.",
        **READ_GUARD,
    )
    async def login_penalties(
        self,
        info: Info,
        filter: LoginPenaltyFilter | None = UNSET,
        order_by: LoginPenaltyOrder = LoginPenaltyOrder.LAST_PENALTY_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[LoginPenalty]:
        conditions = _conditions(value_or_none(filter))
        ordering = ordering_name(f"login-penalties-{order_by}", conditions)
        requested_page = page_request(ordering, first, after, last, before)
        return await connection_of_page(
            info,
            LoginPenalty,
            await loaders.read_penalty_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, LoginPenalty),
                order_by,
            ),
            lambda row: loaders.PENALTY_ORDERS[order_by].cursor_of_row(row, ordering),
            lambda: loaders.count_penalties(info.context, conditions),
        )
