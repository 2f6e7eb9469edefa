"""Mutations of relay hosts, transports, TLS policies and forwarding hosts."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.routing.types import ForwardingHost, RelayHost, TlsPolicy, Transport
from graph.types import global_ids
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.references import ids_from_global_ids, value_or_none
from graph.types.row_mapping import NodeView
from graph.types.scalars import CIDR
from models.errors import InvalidInput
from models.routing.tables import TlsPolicyLevel
from models.users.roles import Role, Scope
from resolvers.routing import forwarding_hosts
from resolvers.routing import mutations as routing_mutations
from resolvers.routing.loaders import POLICIES, RELAYS, TRANSPORTS, RoutingTable

WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}
HOST_DESCRIPTION = "Its name or address; name:port says both."
TLS_DESCRIPTION = "Nothing goes there without TLS, and its certificate is checked."
USERNAME_DESCRIPTION = "Whom we sign in as, with a password."
PASSWORD_DESCRIPTION = "Sealed, and never told."  # noqa: S105 - words
CHANGED_CREDENTIAL_DESCRIPTION = (
    "Given once more where the way leads to another server. Sealed, and never told."
)
NULLABLE_USERNAME_DESCRIPTION = "Whom we sign in as; null = nobody, and the password is forgotten."
DESTINATION_DESCRIPTION = "Domain, .domain for all below it, address, or /regular expression/."
NEXT_HOP_DESCRIPTION = "host:port, [host]:port, or with lookupMx a domain; the usual port is 25."
LOOKUP_MX_DESCRIPTION = "Next hop is a domain, whose mail servers are looked up."
PARAMETERS_DESCRIPTION = (
    "protocols=>=TLSv1.2; of VERIFY and SECURE match=a.example:.example; of FINGERPRINT "
    "match= and fingerprints of SHA-256 with | between them."
)
NON_COLUMN_FIELDS = frozenset({"ids", "options", "password"})
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
        "TCP port; 25 where neither it nor host says one.", default=UNSET
    )
    username: str | None = attribute_field(USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(PASSWORD_DESCRIPTION, default=UNSET)
    tls: bool = attribute_field(TLS_DESCRIPTION, default=True)
    active: bool = attribute_field("In force.", default=True)


@strawberry.input(description="Input of relayHostUpdate; absent = unchanged.")
class RelayHostUpdateInput(Options):
    ids: list[strawberry.ID] = attribute_field("Global ids.")
    host: strawberry.Maybe[str] = attribute_field(HOST_DESCRIPTION)
    port: strawberry.Maybe[int] = attribute_field("TCP port.")
    username: str | None = attribute_field(NULLABLE_USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(CHANGED_CREDENTIAL_DESCRIPTION, default=UNSET)
    tls: strawberry.Maybe[bool] = attribute_field(TLS_DESCRIPTION)
    active: strawberry.Maybe[bool] = attribute_field("In force.")


@strawberry.input(description="Input of transportCreate.")
class TransportCreateInput(Options):
    destination: str = attribute_field(DESTINATION_DESCRIPTION)
    next_hop: str = attribute_field(NEXT_HOP_DESCRIPTION)
    lookup_mx: bool = attribute_field(LOOKUP_MX_DESCRIPTION, default=False)
    username: str | None = attribute_field(USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(PASSWORD_DESCRIPTION, default=UNSET)
    active: bool = attribute_field("In force.", default=True)


@strawberry.input(description="Input of transportUpdate; absent = unchanged.")
class TransportUpdateInput(Options):
    ids: list[strawberry.ID] = attribute_field("Global ids.")
    destination: strawberry.Maybe[str] = attribute_field(DESTINATION_DESCRIPTION)
    next_hop: strawberry.Maybe[str] = attribute_field(NEXT_HOP_DESCRIPTION)
    lookup_mx: strawberry.Maybe[bool] = attribute_field(LOOKUP_MX_DESCRIPTION)
    username: str | None = attribute_field(NULLABLE_USERNAME_DESCRIPTION, default=UNSET)
    password: str | None = attribute_field(CHANGED_CREDENTIAL_DESCRIPTION, default=UNSET)
    active: strawberry.Maybe[bool] = attribute_field("In force.")


@strawberry.input(description="Input of tlsPolicyCreate.")
class TlsPolicyCreateInput(Options):
    destination: str = attribute_field(
        "Domain, .domain for all below it, or [host]:port of a next hop."
    )
    policy: TlsPolicyLevel = attribute_field("How much encryption.")
    parameters: str | None = attribute_field(PARAMETERS_DESCRIPTION, default=UNSET)
    active: bool = attribute_field("In force.", default=True)


@strawberry.input(description="Input of tlsPolicyUpdate; absent = unchanged.")
class TlsPolicyUpdateInput(Options):
    ids: list[strawberry.ID] = attribute_field("Global ids.")
    policy: strawberry.Maybe[TlsPolicyLevel] = attribute_field("How much encryption.")
    parameters: str | None = attribute_field(
        f"{PARAMETERS_DESCRIPTION} Null = none.", default=UNSET
    )
    active: strawberry.Maybe[bool] = attribute_field("In force.")


@strawberry.input(description="Input of forwardingHostCreate.")
class ForwardingHostCreateInput(Options):
    hostname: str = attribute_field(
        "Name, resolved at once: what its SPF record lets send, else its mail servers, else its "
        "own addresses. Or an address or network."
    )
    filter_spam: bool = attribute_field(
        "Filter its spam; false: its mail is never taken for spam.", default=False
    )


@strawberry.input(description="Input of forwardingHostDelete; both together are allowed.")
class ForwardingHostDeleteInput(Options):
    ids: list[strawberry.ID] | None = attribute_field("Global ids.", default=UNSET)
    hosts: list[CIDR] | None = attribute_field(
        "Addresses and networks, as they are listed.", default=UNSET
    )


@strawberry.type(description="Answer of relayHostCreate and relayHostUpdate.")
class RelayHostPayload(MutationPayload):
    relay_host: RelayHost | None = attribute_field("The relay host, where it is one.", default=None)
    relay_hosts: list[RelayHost] = attribute_field(
        "All of them, in the order of ids.", default_factory=list
    )


@strawberry.type(description="Answer of transportCreate and transportUpdate.")
class TransportPayload(MutationPayload):
    transport: Transport | None = attribute_field("The transport, where it is one.", default=None)
    transports: list[Transport] = attribute_field(
        "All of them, in the order of ids.", default_factory=list
    )


@strawberry.type(description="Answer of tlsPolicyCreate and tlsPolicyUpdate.")
class TlsPolicyPayload(MutationPayload):
    tls_policy: TlsPolicy | None = attribute_field("The policy, where it is one.", default=None)
    tls_policies: list[TlsPolicy] = attribute_field(
        "All of them, in the order of ids.", default_factory=list
    )


@strawberry.type(description="Answer of forwardingHostCreate.")
class ForwardingHostPayload(MutationPayload):
    hosts: list[ForwardingHost] = attribute_field(
        "One for each address or network.", default_factory=list
    )


@strawberry.type
class RoutingMutation:
    @mutation("A way out that domains may name, as relayHost of domainUpdate.", **WRITE_GUARD)
    async def relay_host_create(self, info: Info, input: RelayHostCreateInput) -> RelayHostPayload:
        return _relay_host_payload(await _create_record(info, RELAYS, RelayHost, input))

    @mutation("Changes relay hosts, all or none.", **WRITE_GUARD)
    async def relay_host_update(self, info: Info, input: RelayHostUpdateInput) -> RelayHostPayload:
        return _relay_host_payload(await _update_records(info, RELAYS, RelayHost, input))

    @mutation(
        "All or none. Mail of domains that used one leaves by itself from then on.", **WRITE_GUARD
    )
    async def relay_host_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        return await _delete_records(info, RELAYS, input)

    @mutation("A way to a destination, which no other transport is for.", **WRITE_GUARD)
    async def transport_create(self, info: Info, input: TransportCreateInput) -> TransportPayload:
        return _transport_payload(await _create_record(info, TRANSPORTS, Transport, input))

    @mutation("Changes transports, all or none.", **WRITE_GUARD)
    async def transport_update(self, info: Info, input: TransportUpdateInput) -> TransportPayload:
        return _transport_payload(await _update_records(info, TRANSPORTS, Transport, input))

    @mutation("All or none.", **WRITE_GUARD)
    async def transport_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        return await _delete_records(info, TRANSPORTS, input)

    @mutation("How much encryption a destination asks for; one policy for each.", **WRITE_GUARD)
    async def tls_policy_create(self, info: Info, input: TlsPolicyCreateInput) -> TlsPolicyPayload:
        return _tls_policy_payload(await _create_record(info, POLICIES, TlsPolicy, input))

    @mutation(
        "Changes TLS policies, all or none. Another level with other parameters says both.",
        **WRITE_GUARD,
    )
    async def tls_policy_update(self, info: Info, input: TlsPolicyUpdateInput) -> TlsPolicyPayload:
        return _tls_policy_payload(await _update_records(info, POLICIES, TlsPolicy, input))

    @mutation("All or none.", **WRITE_GUARD)
    async def tls_policy_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        return await _delete_records(info, POLICIES, input)

    @mutation(
        "Mail that comes from there is not refused for SPF and DMARC. Addresses that are there "
        "already are this name's from then on.",
        atomic_exclusion=NOT_ATOMIC,
        **WRITE_GUARD,
    )
    async def forwarding_host_create(
        self, info: Info, input: ForwardingHostCreateInput
    ) -> ForwardingHostPayload:
        keys = await forwarding_hosts.create_or_update_forwarding_hosts(
            info.context, input.hostname, filter_spam=input.filter_spam
        )
        return ForwardingHostPayload(hosts=await _load_records(info, ForwardingHost, keys))

    @mutation("By ids or by addresses, all or none.", **WRITE_GUARD)
    async def forwarding_host_delete(
        self, info: Info, input: ForwardingHostDeleteInput
    ) -> DeletePayload:
        keys = ids_from_global_ids(info, "ForwardingHost", input.ids or ())
        hosts = [forwarding_hosts.normalize_network(host) for host in input.hosts or ()]
        deleted_keys = await forwarding_hosts.delete_forwarding_hosts(info.context, keys, hosts)
        return DeletePayload(
            deleted_ids=[global_ids.encode("ForwardingHost", key) for key in deleted_keys]
        )


async def _create_record(
    info: Info, record_kind: RoutingTable, record_type: type[NodeView], record_input: Any
) -> list[Any]:
    """Create a record of routing and return it as a list of one GraphQL object."""
    key = await routing_mutations.create_row(
        info.context, record_kind, _column_values(record_input), _password_from_input(record_input)
    )
    return await _load_records(info, record_type, [key])


async def _update_records(
    info: Info, record_kind: RoutingTable, record_type: type[NodeView], record_input: Any
) -> list[Any]:
    """Change records of routing, all or none, and return them as GraphQL objects."""
    keys = ids_from_global_ids(info, record_kind.type_name, record_input.ids)
    await routing_mutations.update_rows(
        info.context,
        record_kind,
        keys,
        _column_values(record_input),
        _password_from_input(record_input),
    )
    return await _load_records(info, record_type, keys)


async def _delete_records(
    info: Info, record_kind: RoutingTable, record_input: IdsInput
) -> DeletePayload:
    """Delete records of routing, all or none."""
    await routing_mutations.delete_rows(
        info.context,
        record_kind,
        ids_from_global_ids(info, record_kind.type_name, record_input.ids),
    )
    return DeletePayload(deleted_ids=record_input.ids)


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


def _relay_host_payload(relay_hosts: list[RelayHost]) -> RelayHostPayload:
    return RelayHostPayload(
        relay_host=relay_hosts[0] if len(relay_hosts) == 1 else None, relay_hosts=relay_hosts
    )


def _transport_payload(transports: list[Transport]) -> TransportPayload:
    return TransportPayload(
        transport=transports[0] if len(transports) == 1 else None, transports=transports
    )


def _tls_policy_payload(tls_policies: list[TlsPolicy]) -> TlsPolicyPayload:
    return TlsPolicyPayload(
        tls_policy=tls_policies[0] if len(tls_policies) == 1 else None, tls_policies=tls_policies
    )
