"""Mutations of relay hosts, transports, TLS policies and forwarding hosts."""

from collections.abc import Sequence
from typing import Any

import strawberry
from strawberry import UNSET

from graph.routing.input_descriptions import (
    CHANGED_CREDENTIAL_DESCRIPTION,
    DESTINATION_DESCRIPTION,
    HOST_DESCRIPTION,
    LOOKUP_MX_DESCRIPTION,
    NEXT_HOP_DESCRIPTION,
    NULLABLE_USERNAME_DESCRIPTION,
    PARAMETERS_DESCRIPTION,
    PASSWORD_DESCRIPTION,
    TLS_DESCRIPTION,
    USERNAME_DESCRIPTION,
)
from graph.routing.references import (
    ForwardingHostRef,
    RelayHostRef,
    TlsPolicyRef,
    TransportRef,
    resolve_routing_ids_or_raise,
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
NON_COLUMN_FIELDS = frozenset({"options", "password"})
NULLABLE_FIELDS = frozenset({"username", "parameters"})


def _needs_dns_lookup(host_input: Any) -> bool:
    """True if the input names a host that must be looked up in DNS."""
    try:
        return forwarding_hosts.parse_network_or_none(host_input.hostname) is None
    except InvalidInput:
        return False


NOT_ATOMIC = AtomicExclusion(
    "A DNS query", "For a host name or domain", applies_to=_needs_dns_lookup
)


def _routing_column_values_from_input(record_input: Any) -> dict[str, Any]:
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
        "TCP port of the relay host, 1 to 65535. Port 465 uses implicit TLS. Default: the port in "
        "`host`, else 25.",
        default=UNSET,
    )
    username: str | None = attribute_field(USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(PASSWORD_DESCRIPTION, default=UNSET)
    tls: bool = attribute_field(TLS_DESCRIPTION + " Default: true.", default=True)
    active: bool = attribute_field(
        "True uses the relay host. False: the mail of domains that have the relay host is sent "
        "by the default route. Default: true.",
        default=True,
    )


@strawberry.input(
    description=(
        "New values of relay hosts. An absent field leaves the value unchanged. Null is refused, "
        "except for `username` and `password`. At least one field is required."
    )
)
class RelayHostPatch:
    host: strawberry.Maybe[str] = attribute_field(HOST_DESCRIPTION)
    port: strawberry.Maybe[int] = attribute_field(
        "TCP port of the relay hosts, 1 to 65535. Port 465 uses implicit TLS. Default: the port in "
        "a given `host`, else unchanged."
    )
    username: str | None = attribute_field(NULLABLE_USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(CHANGED_CREDENTIAL_DESCRIPTION, default=UNSET)
    tls: strawberry.Maybe[bool] = attribute_field(TLS_DESCRIPTION)
    active: strawberry.Maybe[bool] = attribute_field(
        "True if the relay hosts are used. False: mail of their domains is sent by the default "
        "route."
    )


@strawberry.input(description="Input of relayHostUpdate.")
class RelayHostUpdateInput(Options):
    relay_hosts: list[RelayHostRef] = attribute_field(
        "Relay hosts to change, 1 to 1,000 by default."
    )
    set: RelayHostPatch = attribute_field(
        "New values, the same for all relay hosts. At least one value is required."
    )


@strawberry.input(description="Input of relayHostDelete.")
class RelayHostDeleteInput(Options):
    relay_hosts: list[RelayHostRef] = attribute_field(
        "Relay hosts to delete, 1 to 1,000 by default."
    )


@strawberry.input(description="Input of transportCreate.")
class TransportCreateInput(Options):
    destination: str = attribute_field(DESTINATION_DESCRIPTION)
    next_hop: str = attribute_field(NEXT_HOP_DESCRIPTION)
    lookup_mx: bool = attribute_field(LOOKUP_MX_DESCRIPTION, default=False)
    username: str | None = attribute_field(USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(PASSWORD_DESCRIPTION, default=UNSET)
    active: bool = attribute_field(
        "True uses the transport. False stores it unused. Default: true.", default=True
    )


@strawberry.input(
    description=(
        "New values of transports. An absent field leaves the value unchanged. Null is refused, "
        "except for `username` and `password`. At least one field is required."
    )
)
class TransportPatch:
    destination: strawberry.Maybe[str] = attribute_field(DESTINATION_DESCRIPTION)
    next_hop: strawberry.Maybe[str] = attribute_field(NEXT_HOP_DESCRIPTION)
    lookup_mx: strawberry.Maybe[bool] = attribute_field(LOOKUP_MX_DESCRIPTION)
    username: str | None = attribute_field(NULLABLE_USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(CHANGED_CREDENTIAL_DESCRIPTION, default=UNSET)
    active: strawberry.Maybe[bool] = attribute_field("False: the transports are not used.")


@strawberry.input(description="Input of transportUpdate.")
class TransportUpdateInput(Options):
    transports: list[TransportRef] = attribute_field(
        "Transports to change, 1 to 1,000 by default. Only one, if `set` has a destination."
    )
    set: TransportPatch = attribute_field(
        "New values, the same for all transports. At least one value is required."
    )


@strawberry.input(description="Input of transportDelete.")
class TransportDeleteInput(Options):
    transports: list[TransportRef] = attribute_field("Transports to delete, 1 to 1,000 by default.")


@strawberry.input(description="Input of tlsPolicyCreate.")
class TlsPolicyCreateInput(Options):
    destination: str = attribute_field(
        "Destination that the policy is for: a recipient domain, .domain for all its subdomains, "
        "or a relay host or next hop of a transport as [host] or [host]:port. It can't be changed "
        "later."
    )
    level: TlsPolicyLevel = attribute_field(
        "TLS level and certificate check that the server requires when it sends mail to the "
        "destination."
    )
    parameters: str | None = attribute_field(
        f"{PARAMETERS_DESCRIPTION} Default: no parameters.", default=UNSET
    )
    active: bool = attribute_field(
        "True applies the TLS policy. False stores it unused. Default: true.", default=True
    )


@strawberry.input(
    description=(
        "New values of TLS policies. An absent field leaves the value unchanged. Null is refused, "
        "except for `parameters`. At least one field is required."
    )
)
class TlsPolicyPatch:
    level: strawberry.Maybe[TlsPolicyLevel] = attribute_field(
        "TLS level and certificate check that the server requires when it sends mail to the "
        "destinations."
    )
    parameters: str | None = attribute_field(
        f"{PARAMETERS_DESCRIPTION} Null: no parameters. Default: unchanged.", default=UNSET
    )
    active: strawberry.Maybe[bool] = attribute_field("False: the TLS policies are not applied.")


@strawberry.input(description="Input of tlsPolicyUpdate.")
class TlsPolicyUpdateInput(Options):
    tls_policies: list[TlsPolicyRef] = attribute_field(
        "TLS policies to change, 1 to 1,000 by default."
    )
    set: TlsPolicyPatch = attribute_field(
        "New values, the same for all TLS policies. At least one value is required."
    )


@strawberry.input(description="Input of tlsPolicyDelete.")
class TlsPolicyDeleteInput(Options):
    tls_policies: list[TlsPolicyRef] = attribute_field(
        "TLS policies to delete, 1 to 1,000 by default."
    )


@strawberry.input(description="Input of forwardingHostCreate.")
class ForwardingHostCreateInput(Options):
    hostname: str = attribute_field(
        "Host name, domain, IP address or network (at least /8 for IPv4, /16 for IPv6). The "
        "mutation looks a name up in DNS: its SPF record, else its MX hosts, else its addresses. "
        "It is not looked up again, so later changes in DNS have no effect."
    )
    filter_spam: bool = attribute_field(
        "True runs the spam filter on mail from the host. False: mail from the host "
        "skips the spam filter, but not the virus scanner and the sender rules. Default: "
        "false.",
        default=False,
    )


@strawberry.input(description="Input of forwardingHostDelete.")
class ForwardingHostDeleteInput(Options):
    forwarding_hosts: list[ForwardingHostRef] = attribute_field(
        "Forwarding hosts to delete, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of relayHostCreate.")
class RelayHostPayload(MutationPayload):
    relay_host: RelayHost | None = attribute_field(
        "Created relay host. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of relayHostUpdate.")
class RelayHostsPayload(MutationPayload):
    relay_hosts: list[RelayHost] = attribute_field(
        "Changed relay hosts, in the order of the references.", default_factory=list
    )


@strawberry.type(description="Payload of transportCreate.")
class TransportPayload(MutationPayload):
    transport: Transport | None = attribute_field(
        "Created transport. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of transportUpdate.")
class TransportsPayload(MutationPayload):
    transports: list[Transport] = attribute_field(
        "Changed transports, in the order of the references.", default_factory=list
    )


@strawberry.type(description="Payload of tlsPolicyCreate.")
class TlsPolicyPayload(MutationPayload):
    tls_policy: TlsPolicy | None = attribute_field(
        "Created TLS policy. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of tlsPolicyUpdate.")
class TlsPoliciesPayload(MutationPayload):
    tls_policies: list[TlsPolicy] = attribute_field(
        "Changed TLS policies, in the order of the references.", default_factory=list
    )


@strawberry.type(description="Payload of forwardingHostCreate.")
class ForwardingHostsPayload(MutationPayload):
    forwarding_hosts: list[ForwardingHost] = attribute_field(
        "Created, changed and existing forwarding hosts: one for each address or network that "
        "`hostname` has.",
        default_factory=list,
    )


@strawberry.type
class RoutingMutation:
    @mutation(
        "Creates a relay host (smarthost). It sends the outgoing mail of the domains that refer "
        "to it, except to recipients with a transport. The relay host is not contacted, and can "
        "exist several times. LIMIT_REACHED above 1,000 relay hosts.",
        **WRITE_GUARD,
    )
    async def relay_host_create(self, info: Info, input: RelayHostCreateInput) -> RelayHostPayload:
        return RelayHostPayload(
            relay_host=await _create_routing_record(info, RELAYS, RelayHost, input)
        )

    @mutation(
        "Changes relay hosts, all or none. The next attempts of messages that are already in the "
        "queue use the new values. LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def relay_host_update(self, info: Info, input: RelayHostUpdateInput) -> RelayHostsPayload:
        records = await _update_routing_records(
            info, RELAYS, RelayHost, "relayHosts", input.relay_hosts, input.set
        )
        return RelayHostsPayload(relay_hosts=records)

    @mutation(
        "Deletes the given relay hosts, or none of them if one can't be deleted. Domains that used "
        "a deleted relay host then have none, and their mail is sent by the default route. "
        "UNAVAILABLE if a domain begins to use a relay host at the same time: retry. LIMIT_REACHED "
        "for more than 1,000 relay hosts (by default).",
        **WRITE_GUARD,
    )
    async def relay_host_delete(self, info: Info, input: RelayHostDeleteInput) -> DeletePayload:
        return await _delete_records(info, RELAYS, "relayHosts", input.relay_hosts)

    @mutation(
        "Creates a transport, which sets the next hop for outgoing mail to a destination. The "
        "next hop is not contacted. CONFLICT if the destination has a transport already, active "
        "or not. LIMIT_REACHED above 5,000 transports.",
        **WRITE_GUARD,
    )
    async def transport_create(self, info: Info, input: TransportCreateInput) -> TransportPayload:
        return TransportPayload(
            transport=await _create_routing_record(info, TRANSPORTS, Transport, input)
        )

    @mutation(
        "Changes transports, all or none. The next attempts of messages in the queue use the new "
        "values. CONFLICT if another transport has the new destination, or if it is given for "
        "several transports. LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def transport_update(self, info: Info, input: TransportUpdateInput) -> TransportsPayload:
        records = await _update_routing_records(
            info, TRANSPORTS, Transport, "transports", input.transports, input.set
        )
        return TransportsPayload(transports=records)

    @mutation(
        "Deletes transports, all or none. Mail to their destinations is then sent by another "
        "matching transport, else by the relay host of the sender's domain, else by the default "
        "route. LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def transport_delete(self, info: Info, input: TransportDeleteInput) -> DeletePayload:
        return await _delete_records(info, TRANSPORTS, "transports", input.transports)

    @mutation(
        "Creates a TLS policy, which sets the required TLS for outgoing mail to a destination. "
        "CONFLICT if the destination has a policy already, active or not. LIMIT_REACHED above "
        "5,000 TLS policies.",
        **WRITE_GUARD,
    )
    async def tls_policy_create(self, info: Info, input: TlsPolicyCreateInput) -> TlsPolicyPayload:
        return TlsPolicyPayload(
            tls_policy=await _create_routing_record(info, POLICIES, TlsPolicy, input)
        )

    @mutation(
        "Changes TLS policies, all or none. A new `level` is refused with VALIDATION if it does "
        "not allow the stored `parameters`: set both together then. LIMIT_REACHED for more than "
        "1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def tls_policy_update(
        self, info: Info, input: TlsPolicyUpdateInput
    ) -> TlsPoliciesPayload:
        records = await _update_routing_records(
            info, POLICIES, TlsPolicy, "tlsPolicies", input.tls_policies, input.set
        )
        return TlsPoliciesPayload(tls_policies=records)

    @mutation(
        "Deletes TLS policies, all or none. For mail to MX hosts the policy of a parent domain "
        "then applies, else DANE, else MTA-STS, else TLS is opportunistic. For mail to a relay "
        "host or the next hop of a transport, another policy that matches this host applies. "
        "Examples are `[host]`, `[host]:port` and a parent domain of the host. Without one, the "
        "policy of the recipient's domain applies, else the TLS of this host's configuration. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def tls_policy_delete(self, info: Info, input: TlsPolicyDeleteInput) -> DeletePayload:
        return await _delete_records(info, POLICIES, "tlsPolicies", input.tls_policies)

    @mutation(
        "Creates a forwarding host for an IP address or network. For a name (host name or "
        "domain), it creates one for each address or network in the SPF record of the name. If "
        "the name has no SPF record, or the record names no network, it takes the addresses of "
        "the MX hosts. Without MX hosts it takes those of the name. DNS is asked only now, so "
        "later changes have no effect. Mail from a forwarding host is not refused or deferred "
        "because of SPF, DMARC or greylisting. It skips the spam filter, unless `filterSpam` is "
        "true. An existing forwarding host with such an address gets the new `source` and "
        "`filterSpam`. CONFLICT if nothing changes. LIMIT_REACHED above 10,000 forwarding hosts. "
        "For a name: UNAVAILABLE if DNS does not answer, and VALIDATION if DNS has no address or "
        "more than 200. VALIDATION also if the SPF record is invalid, allows every server or "
        "names a network that is too large.",
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

    @mutation(
        "Deletes forwarding hosts, all or none. Mail from their addresses can then be refused or "
        "deferred because of SPF, DMARC and greylisting again. If `filterSpam` of a deleted host "
        "was false, its mail passes through the spam filter again. A remaining forwarding host can "
        "be a network that contains these addresses; its rules then apply to them. LIMIT_REACHED "
        "for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def forwarding_host_delete(
        self, info: Info, input: ForwardingHostDeleteInput
    ) -> DeletePayload:
        keys = await resolve_routing_ids_or_raise(info, input.forwarding_hosts, "forwardingHosts")
        deleted_keys = await forwarding_hosts.delete_forwarding_hosts(info.context, keys)
        return DeletePayload.of_keys("ForwardingHost", deleted_keys)


async def _create_routing_record(
    info: Info, record_kind: RoutingTable, record_type: type[NodeView], record_input: Any
) -> Any:
    """Create a record of routing and return it as a GraphQL object."""
    key = await routing_mutations.create_routing_row(
        info.context,
        record_kind,
        _routing_column_values_from_input(record_input),
        _password_from_input(record_input),
    )
    (record,) = await _load_records(info, record_type, [key])
    return record


async def _update_routing_records(
    info: Info,
    record_kind: RoutingTable,
    record_type: type[NodeView],
    refs_input_field: str,
    refs: Sequence[ObjectRef],
    patch: Any,
) -> list[Any]:
    """Change records of routing, all or none, and return them as GraphQL objects."""
    keys = await resolve_routing_ids_or_raise(info, refs, refs_input_field)
    await routing_mutations.update_routing_rows(
        info.context,
        record_kind,
        keys,
        _routing_column_values_from_input(patch),
        _password_from_input(patch),
    )
    return await _load_records(info, record_type, keys)


async def _delete_records(
    info: Info, record_kind: RoutingTable, list_field: str, refs: Sequence[ObjectRef]
) -> DeletePayload:
    """Delete records of routing, all or none."""
    keys = await resolve_routing_ids_or_raise(info, refs, list_field)
    await routing_mutations.delete_routing_rows(info.context, record_kind, keys)
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
