"""Mutations of relay hosts, transports, TLS policies and forwarding hosts."""

from collections.abc import Sequence
from typing import Any

import strawberry
from strawberry import UNSET

from graph.routing.references import (
    ForwardingHostRef,
    RelayHostRef,
    TlsPolicyRef,
    TransportRef,
    load_routing_ids,
)
from graph.routing.types import ForwardingHost, RelayHost, TlsPolicy, Transport
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_references import ObjectRef
from graph.types.references import value_or_none
from graph.types.row_mapping import NodeView
from models.errors import InvalidInput
from models.routing.tables import TlsPolicyLevel
from models.users.roles import Role, Scope
from resolvers.routing import forwarding_hosts
from resolvers.routing import mutations as routing_mutations
from resolvers.routing.loaders import POLICIES, RELAYS, TRANSPORTS, RoutingTable

WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}
HOST_DESCRIPTION = "Host name or IP address of the relay host, or host:port."
TLS_DESCRIPTION = (
    "Requires TLS with a verified certificate. If false, TLS is opportunistic; "
    "with a user name it is always required."
)
USERNAME_DESCRIPTION = (
    "User name to authenticate with (SMTP AUTH), at most 255 printable "
    "characters; it requires a password. Default: no authentication."
)
PASSWORD_DESCRIPTION = "Password for SMTP AUTH. It is stored encrypted, never returned."  # noqa: S105 - words
CHANGED_CREDENTIAL_DESCRIPTION = (
    "New password to authenticate with (SMTP AUTH). It is required if another "
    "server than before would receive the stored one. It is stored encrypted "
    "and never returned."
)
NULLABLE_USERNAME_DESCRIPTION = (
    "User name to authenticate with (SMTP AUTH). Null: no authentication, and "
    "the stored password is deleted."
)
DESTINATION_DESCRIPTION = (
    "Recipients that the transport is for: a domain, .domain for all its "
    "subdomains, an address, or a /regular expression/."
)
NEXT_HOP_DESCRIPTION = (
    "Server that receives the mail: host:port or [host]:port, by default port "
    "25. With lookupMx: a domain."
)
LOOKUP_MX_DESCRIPTION = "Sends to the MX hosts of the next hop, which is a domain."
PARAMETERS_DESCRIPTION = (
    "Parameters in the syntax of Postfix, with spaces between them: "
    "`protocols=>=TLSv1.2` for every level with TLS; `match=a.example:.example` "
    "for VERIFY and SECURE; `match=` and SHA-256 fingerprints with | between "
    "them for FINGERPRINT. At most 2,000 ASCII characters."
)
NON_COLUMN_FIELDS = frozenset({"options", "password"})
NULLABLE_FIELDS = frozenset({"username", "parameters"})


def _needs_dns_lookup(host_input: Any) -> bool:
    """True if the input names a host that must be looked up in DNS."""
    try:
        return forwarding_hosts.parse_network(host_input.hostname) is None
    except InvalidInput:
        return False


NOT_ATOMIC = AtomicExclusion("a look-up in DNS", applies_to=_needs_dns_lookup)


def _column_values(record_input: Any) -> dict[str, Any]:
    """Return the values that an input sets, by column. Absent fields are left out."""
    values = {}
    for name, value in vars(record_input).items():
        if name not in NON_COLUMN_FIELDS and value is not UNSET:
            if isinstance(value, strawberry.Some):
                values[name] = value.value
            elif value is not None or name in NULLABLE_FIELDS:
                values[name] = value
    return values


@strawberry.input(description="Input of relayHostCreate.")
class RelayHostCreateInput(Options):
    host: str = attribute_field(HOST_DESCRIPTION)
    port: int | None = attribute_field(
        "TCP port. Default: the port in host, else 25.", default=UNSET
    )
    username: str | None = attribute_field(USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(PASSWORD_DESCRIPTION, default=UNSET)
    tls: bool = attribute_field(TLS_DESCRIPTION, default=True)
    active: bool = attribute_field(
        "Uses the relay host for the mail of domains that have it.", default=True
    )


@strawberry.input(description="New values of relay hosts. An absent field leaves the value.")
class RelayHostPatch:
    host: strawberry.Maybe[str] = attribute_field(HOST_DESCRIPTION)
    port: strawberry.Maybe[int] = attribute_field("TCP port, 1 to 65535.")
    username: str | None = attribute_field(NULLABLE_USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(CHANGED_CREDENTIAL_DESCRIPTION, default=UNSET)
    tls: strawberry.Maybe[bool] = attribute_field(TLS_DESCRIPTION)
    active: strawberry.Maybe[bool] = attribute_field(
        "Uses the relay hosts for the mail of domains that have them."
    )


@strawberry.input(description="Input of relayHostUpdate.")
class RelayHostUpdateInput(Options):
    relay_hosts: list[RelayHostRef] = attribute_field("The relay hosts to change.")
    set: RelayHostPatch = attribute_field("Values to set on each of the relay hosts.")


@strawberry.input(description="Input of relayHostDelete.")
class RelayHostDeleteInput(Options):
    relay_hosts: list[RelayHostRef] = attribute_field("The relay hosts to delete.")


@strawberry.input(description="Input of transportCreate.")
class TransportCreateInput(Options):
    destination: str = attribute_field(DESTINATION_DESCRIPTION)
    next_hop: str = attribute_field(NEXT_HOP_DESCRIPTION)
    lookup_mx: bool = attribute_field(LOOKUP_MX_DESCRIPTION, default=False)
    username: str | None = attribute_field(USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(PASSWORD_DESCRIPTION, default=UNSET)
    active: bool = attribute_field("Uses the transport for mail to its destination.", default=True)


@strawberry.input(description="New values of transports. An absent field leaves the value.")
class TransportPatch:
    destination: strawberry.Maybe[str] = attribute_field(DESTINATION_DESCRIPTION)
    next_hop: strawberry.Maybe[str] = attribute_field(NEXT_HOP_DESCRIPTION)
    lookup_mx: strawberry.Maybe[bool] = attribute_field(LOOKUP_MX_DESCRIPTION)
    username: str | None = attribute_field(NULLABLE_USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(CHANGED_CREDENTIAL_DESCRIPTION, default=UNSET)
    active: strawberry.Maybe[bool] = attribute_field(
        "Uses the transports for mail to their destinations."
    )


@strawberry.input(description="Input of transportUpdate.")
class TransportUpdateInput(Options):
    transports: list[TransportRef] = attribute_field(
        "The transports to change. If the destination is changed: one."
    )
    set: TransportPatch = attribute_field("Values to set on each of the transports.")


@strawberry.input(description="Input of transportDelete.")
class TransportDeleteInput(Options):
    transports: list[TransportRef] = attribute_field("The transports to delete.")


@strawberry.input(description="Input of tlsPolicyCreate.")
class TlsPolicyCreateInput(Options):
    destination: str = attribute_field(
        "Destination that the policy is for: a domain, .domain for all its "
        "subdomains, or a next hop as [host] or [host]:port."
    )
    level: TlsPolicyLevel = attribute_field(
        "TLS level and certificate check that the destination requires."
    )
    parameters: str | None = attribute_field(PARAMETERS_DESCRIPTION, default=UNSET)
    active: bool = attribute_field("Applies the TLS policy.", default=True)


@strawberry.input(description="New values of TLS policies. An absent field leaves the value.")
class TlsPolicyPatch:
    level: strawberry.Maybe[TlsPolicyLevel] = attribute_field(
        "TLS level and certificate check that the destinations require."
    )
    parameters: str | None = attribute_field(f"{PARAMETERS_DESCRIPTION} Null: none.", default=UNSET)
    active: strawberry.Maybe[bool] = attribute_field("Applies the TLS policies.")


@strawberry.input(description="Input of tlsPolicyUpdate.")
class TlsPolicyUpdateInput(Options):
    tls_policies: list[TlsPolicyRef] = attribute_field("The TLS policies to change.")
    set: TlsPolicyPatch = attribute_field("Values to set on each of the TLS policies.")


@strawberry.input(description="Input of tlsPolicyDelete.")
class TlsPolicyDeleteInput(Options):
    tls_policies: list[TlsPolicyRef] = attribute_field("The TLS policies to delete.")


@strawberry.input(description="Input of forwardingHostCreate.")
class ForwardingHostCreateInput(Options):
    hostname: str = attribute_field(
        "Host name, domain, IP address or network. A name is looked up at once: its "
        "SPF record, else its MX hosts, else its addresses."
    )
    filter_spam: bool = attribute_field(
        "Runs the spam filter on mail from the host. If false, mail from the host "
        "skips the spam filter.",
        default=False,
    )


@strawberry.input(description="Input of forwardingHostDelete.")
class ForwardingHostDeleteInput(Options):
    forwarding_hosts: list[ForwardingHostRef] = attribute_field("The forwarding hosts to delete.")


@strawberry.type(description="Payload of relayHostCreate.")
class RelayHostPayload(MutationPayload):
    relay_host: RelayHost | None = attribute_field("The new relay host.", default=None)


@strawberry.type(description="Payload of relayHostUpdate.")
class RelayHostsPayload(MutationPayload):
    relay_hosts: list[RelayHost] = attribute_field(
        "The changed relay hosts, in the order of the references.", default_factory=list
    )


@strawberry.type(description="Payload of transportCreate.")
class TransportPayload(MutationPayload):
    transport: Transport | None = attribute_field("The new transport.", default=None)


@strawberry.type(description="Payload of transportUpdate.")
class TransportsPayload(MutationPayload):
    transports: list[Transport] = attribute_field(
        "The changed transports, in the order of the references.", default_factory=list
    )


@strawberry.type(description="Payload of tlsPolicyCreate.")
class TlsPolicyPayload(MutationPayload):
    tls_policy: TlsPolicy | None = attribute_field("The new TLS policy.", default=None)


@strawberry.type(description="Payload of tlsPolicyUpdate.")
class TlsPoliciesPayload(MutationPayload):
    tls_policies: list[TlsPolicy] = attribute_field(
        "The changed TLS policies, in the order of the references.", default_factory=list
    )


@strawberry.type(description="Payload of forwardingHostCreate.")
class ForwardingHostsPayload(MutationPayload):
    forwarding_hosts: list[ForwardingHost] = attribute_field(
        "One forwarding host for each address or network of the name.", default_factory=list
    )


@strawberry.type
class RoutingMutation:
    @mutation(
        "Creates a relay host, which sends the mail of the domains that have it.", **WRITE_GUARD
    )
    async def relay_host_create(self, info: Info, input: RelayHostCreateInput) -> RelayHostPayload:
        return RelayHostPayload(relay_host=await _create_record(info, RELAYS, RelayHost, input))

    @mutation("Updates relay hosts, all or none.", **WRITE_GUARD)
    async def relay_host_update(self, info: Info, input: RelayHostUpdateInput) -> RelayHostsPayload:
        records = await _update_records(
            info, RELAYS, RelayHost, "relayHosts", input.relay_hosts, input.set
        )
        return RelayHostsPayload(relay_hosts=records)

    @mutation(
        "Deletes relay hosts, all or none. Mail of domains that used one is sent "
        "directly to its destination afterwards.",
        **WRITE_GUARD,
    )
    async def relay_host_delete(self, info: Info, input: RelayHostDeleteInput) -> DeletePayload:
        return await _delete_records(info, RELAYS, "relayHosts", input.relay_hosts)

    @mutation("Creates a transport. A destination has one transport.", **WRITE_GUARD)
    async def transport_create(self, info: Info, input: TransportCreateInput) -> TransportPayload:
        return TransportPayload(transport=await _create_record(info, TRANSPORTS, Transport, input))

    @mutation("Updates transports, all or none.", **WRITE_GUARD)
    async def transport_update(self, info: Info, input: TransportUpdateInput) -> TransportsPayload:
        records = await _update_records(
            info, TRANSPORTS, Transport, "transports", input.transports, input.set
        )
        return TransportsPayload(transports=records)

    @mutation("Deletes transports, all or none.", **WRITE_GUARD)
    async def transport_delete(self, info: Info, input: TransportDeleteInput) -> DeletePayload:
        return await _delete_records(info, TRANSPORTS, "transports", input.transports)

    @mutation("Creates a TLS policy. A destination has one TLS policy.", **WRITE_GUARD)
    async def tls_policy_create(self, info: Info, input: TlsPolicyCreateInput) -> TlsPolicyPayload:
        return TlsPolicyPayload(tls_policy=await _create_record(info, POLICIES, TlsPolicy, input))

    @mutation(
        "Updates TLS policies, all or none. If the level needs other parameters, set both.",
        **WRITE_GUARD,
    )
    async def tls_policy_update(
        self, info: Info, input: TlsPolicyUpdateInput
    ) -> TlsPoliciesPayload:
        records = await _update_records(
            info, POLICIES, TlsPolicy, "tlsPolicies", input.tls_policies, input.set
        )
        return TlsPoliciesPayload(tls_policies=records)

    @mutation("Deletes TLS policies, all or none.", **WRITE_GUARD)
    async def tls_policy_delete(self, info: Info, input: TlsPolicyDeleteInput) -> DeletePayload:
        return await _delete_records(info, POLICIES, "tlsPolicies", input.tls_policies)

    @mutation(
        "Creates a forwarding host for each address that a host name or a domain "
        "sends from. Mail from these addresses is not refused for SPF and DMARC. "
        "Existing forwarding hosts with such an address get the new name as their "
        "source.",
        atomic_exclusion=NOT_ATOMIC,
        **WRITE_GUARD,
    )
    async def forwarding_host_create(
        self, info: Info, input: ForwardingHostCreateInput
    ) -> ForwardingHostsPayload:
        keys = await forwarding_hosts.create_or_update_forwarding_hosts(
            info.context, input.hostname, filter_spam=input.filter_spam
        )
        return ForwardingHostsPayload(
            forwarding_hosts=await _load_records(info, ForwardingHost, keys)
        )

    @mutation("Deletes forwarding hosts, all or none.", **WRITE_GUARD)
    async def forwarding_host_delete(
        self, info: Info, input: ForwardingHostDeleteInput
    ) -> DeletePayload:
        keys = await load_routing_ids(info, input.forwarding_hosts, "forwardingHosts")
        deleted_keys = await forwarding_hosts.delete_forwarding_hosts(info.context, keys)
        return DeletePayload.of_keys("ForwardingHost", deleted_keys)


async def _create_record(
    info: Info, record_kind: RoutingTable, record_type: type[NodeView], record_input: Any
) -> Any:
    """Create a record of routing and return it as a GraphQL object."""
    key = await routing_mutations.create_row(
        info.context, record_kind, _column_values(record_input), _password_from_input(record_input)
    )
    (record,) = await _load_records(info, record_type, [key])
    return record


async def _update_records(
    info: Info,
    record_kind: RoutingTable,
    record_type: type[NodeView],
    list_field: str,
    refs: Sequence[ObjectRef],
    patch: Any,
) -> list[Any]:
    """Change records of routing, all or none, and return them as GraphQL objects."""
    keys = await load_routing_ids(info, refs, list_field)
    await routing_mutations.update_rows(
        info.context, record_kind, keys, _column_values(patch), _password_from_input(patch)
    )
    return await _load_records(info, record_type, keys)


async def _delete_records(
    info: Info, record_kind: RoutingTable, list_field: str, refs: Sequence[ObjectRef]
) -> DeletePayload:
    """Delete records of routing, all or none."""
    keys = await load_routing_ids(info, refs, list_field)
    await routing_mutations.delete_rows(info.context, record_kind, keys)
    return DeletePayload.of_keys(record_kind.type_name, keys)


def _password_from_input(record_input: Any) -> str | None:
    """Return the password of an input; None if it has none."""
    password: str | None = value_or_none(getattr(record_input, "password", None))
    return password


async def _load_records(
    info: Info, record_type: type[NodeView], record_ids: list[int]
) -> list[Any]:
    """Load records of routing as GraphQL objects."""
    rows = await info.context.load_many(record_type.load_batch, record_ids)
    return [record_type.from_row(row) for row in rows if row]
