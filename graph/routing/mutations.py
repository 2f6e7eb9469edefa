"""Mutations of relay hosts, transports, TLS policies and forwarding hosts."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.routing.types import ForwardingHost, RelayHost, TlsPolicy, Transport
from graph.types import global_ids
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import Alone, mutation
from graph.types.references import keys_of, plain
from graph.types.row_mapping import Shape
from graph.types.scalars import CIDR
from models.errors import Invalid
from models.routing.tables import TlsPolicyLevel
from models.users.roles import Role, Scope
from resolvers.routing import forwarding_hosts
from resolvers.routing import mutations as routing_mutations
from resolvers.routing.loaders import POLICIES, RELAYS, TRANSPORTS, Sort

WRITES: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.MASTER}
HOST = "Its name or address; name:port says both."
TLS = "Nothing goes there without TLS, and its certificate is checked."
USERNAME = "Whom we sign in as, with a password."
PASSWORD = "Sealed, and never told."  # noqa: S105 - words
ANEW = "Given once more where the way leads to another server. Sealed, and never told."
WITHOUT = "Whom we sign in as; null = nobody, and the password is forgotten."
DESTINATION = "Domain, .domain for all below it, address, or /regular expression/."
NEXT_HOP = "host:port, [host]:port, or with lookupMx a domain; the usual port is 25."
LOOKUP = "Next hop is a domain, whose mail servers are looked up."
PARAMETERS = (
    "protocols=>=TLSv1.2; of VERIFY and SECURE match=a.example:.example; of FINGERPRINT "
    "match= and fingerprints of SHA-256 with | between them."
)
BEYOND = frozenset({"ids", "options", "password"})
NULLABLE = frozenset({"username", "parameters"})


def _looked_up(given: Any) -> bool:
    """True if the input names a host that must be looked up in DNS."""
    try:
        return forwarding_hosts.literal(given.hostname) is None
    except Invalid:
        return False


ASKS = Alone("a look-up in DNS", when=_looked_up)


def _said(given: Any) -> dict[str, Any]:
    """Return the values that an input sets, by column. Absent fields are left out."""
    values = {}
    for name, value in vars(given).items():
        if name not in BEYOND and value is not UNSET:
            if isinstance(value, strawberry.Some):
                values[name] = value.value
            elif value is not None or name in NULLABLE:
                values[name] = value
    return values


@strawberry.input(description="Input of relayHostCreate.")
class RelayHostCreateInput(Options):
    host: str = leaf(HOST)
    port: int | None = leaf("TCP port; 25 where neither it nor host says one.", default=UNSET)
    username: str | None = leaf(USERNAME, default=UNSET)
    password: str | None = leaf(PASSWORD, default=UNSET)
    tls: bool = leaf(TLS, default=True)
    active: bool = leaf("In force.", default=True)


@strawberry.input(description="Input of relayHostUpdate; absent = unchanged.")
class RelayHostUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    host: strawberry.Maybe[str] = leaf(HOST)
    port: strawberry.Maybe[int] = leaf("TCP port.")
    username: str | None = leaf(WITHOUT, default=UNSET)
    password: str | None = leaf(ANEW, default=UNSET)
    tls: strawberry.Maybe[bool] = leaf(TLS)
    active: strawberry.Maybe[bool] = leaf("In force.")


@strawberry.input(description="Input of transportCreate.")
class TransportCreateInput(Options):
    destination: str = leaf(DESTINATION)
    next_hop: str = leaf(NEXT_HOP)
    lookup_mx: bool = leaf(LOOKUP, default=False)
    username: str | None = leaf(USERNAME, default=UNSET)
    password: str | None = leaf(PASSWORD, default=UNSET)
    active: bool = leaf("In force.", default=True)


@strawberry.input(description="Input of transportUpdate; absent = unchanged.")
class TransportUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    destination: strawberry.Maybe[str] = leaf(DESTINATION)
    next_hop: strawberry.Maybe[str] = leaf(NEXT_HOP)
    lookup_mx: strawberry.Maybe[bool] = leaf(LOOKUP)
    username: str | None = leaf(WITHOUT, default=UNSET)
    password: str | None = leaf(ANEW, default=UNSET)
    active: strawberry.Maybe[bool] = leaf("In force.")


@strawberry.input(description="Input of tlsPolicyCreate.")
class TlsPolicyCreateInput(Options):
    destination: str = leaf("Domain, .domain for all below it, or [host]:port of a next hop.")
    policy: TlsPolicyLevel = leaf("How much encryption.")
    parameters: str | None = leaf(PARAMETERS, default=UNSET)
    active: bool = leaf("In force.", default=True)


@strawberry.input(description="Input of tlsPolicyUpdate; absent = unchanged.")
class TlsPolicyUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    policy: strawberry.Maybe[TlsPolicyLevel] = leaf("How much encryption.")
    parameters: str | None = leaf(f"{PARAMETERS} Null = none.", default=UNSET)
    active: strawberry.Maybe[bool] = leaf("In force.")


@strawberry.input(description="Input of forwardingHostCreate.")
class ForwardingHostCreateInput(Options):
    hostname: str = leaf(
        "Name, resolved at once: what its SPF record lets send, else its mail servers, else its "
        "own addresses. Or an address or network."
    )
    filter_spam: bool = leaf(
        "Filter its spam; false: its mail is never taken for spam.", default=False
    )


@strawberry.input(description="Input of forwardingHostDelete; both together are allowed.")
class ForwardingHostDeleteInput(Options):
    ids: list[strawberry.ID] | None = leaf("Global ids.", default=UNSET)
    hosts: list[CIDR] | None = leaf("Addresses and networks, as they are listed.", default=UNSET)


@strawberry.type(description="Answer of relayHostCreate and relayHostUpdate.")
class RelayHostPayload(MutationPayload):
    relay_host: RelayHost | None = leaf("The relay host, where it is one.", default=None)
    relay_hosts: list[RelayHost] = leaf("All of them, in the order of ids.", default_factory=list)


@strawberry.type(description="Answer of transportCreate and transportUpdate.")
class TransportPayload(MutationPayload):
    transport: Transport | None = leaf("The transport, where it is one.", default=None)
    transports: list[Transport] = leaf("All of them, in the order of ids.", default_factory=list)


@strawberry.type(description="Answer of tlsPolicyCreate and tlsPolicyUpdate.")
class TlsPolicyPayload(MutationPayload):
    tls_policy: TlsPolicy | None = leaf("The policy, where it is one.", default=None)
    tls_policies: list[TlsPolicy] = leaf("All of them, in the order of ids.", default_factory=list)


@strawberry.type(description="Answer of forwardingHostCreate.")
class ForwardingHostPayload(MutationPayload):
    hosts: list[ForwardingHost] = leaf("One for each address or network.", default_factory=list)


@strawberry.type
class RoutingMutation:
    @mutation("A way out that domains may name, as relayHost of domainUpdate.", **WRITES)
    async def relay_host_create(self, info: Info, input: RelayHostCreateInput) -> RelayHostPayload:
        return _relays(await _create(info, RELAYS, RelayHost, input))

    @mutation("Changes relay hosts, all or none.", **WRITES)
    async def relay_host_update(self, info: Info, input: RelayHostUpdateInput) -> RelayHostPayload:
        return _relays(await _change(info, RELAYS, RelayHost, input))

    @mutation("All or none. Mail of domains that used one leaves by itself from then on.", **WRITES)
    async def relay_host_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        return await _remove(info, RELAYS, input)

    @mutation("A way to a destination, which no other transport is for.", **WRITES)
    async def transport_create(self, info: Info, input: TransportCreateInput) -> TransportPayload:
        return _transports(await _create(info, TRANSPORTS, Transport, input))

    @mutation("Changes transports, all or none.", **WRITES)
    async def transport_update(self, info: Info, input: TransportUpdateInput) -> TransportPayload:
        return _transports(await _change(info, TRANSPORTS, Transport, input))

    @mutation("All or none.", **WRITES)
    async def transport_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        return await _remove(info, TRANSPORTS, input)

    @mutation("How much encryption a destination asks for; one policy for each.", **WRITES)
    async def tls_policy_create(self, info: Info, input: TlsPolicyCreateInput) -> TlsPolicyPayload:
        return _policies(await _create(info, POLICIES, TlsPolicy, input))

    @mutation(
        "Changes TLS policies, all or none. Another level with other parameters says both.",
        **WRITES,
    )
    async def tls_policy_update(self, info: Info, input: TlsPolicyUpdateInput) -> TlsPolicyPayload:
        return _policies(await _change(info, POLICIES, TlsPolicy, input))

    @mutation("All or none.", **WRITES)
    async def tls_policy_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        return await _remove(info, POLICIES, input)

    @mutation(
        "Mail that comes from there is not refused for SPF and DMARC. Addresses that are there "
        "already are this name's from then on.",
        alone=ASKS,
        **WRITES,
    )
    async def forwarding_host_create(
        self, info: Info, input: ForwardingHostCreateInput
    ) -> ForwardingHostPayload:
        keys = await forwarding_hosts.create(
            info.context, input.hostname, filter_spam=input.filter_spam
        )
        return ForwardingHostPayload(hosts=await _now(info, ForwardingHost, keys))

    @mutation("By ids or by addresses, all or none.", **WRITES)
    async def forwarding_host_delete(
        self, info: Info, input: ForwardingHostDeleteInput
    ) -> DeletePayload:
        keys = keys_of(info, "ForwardingHost", input.ids or ())
        hosts = [forwarding_hosts.kept(host) for host in input.hosts or ()]
        deleted_keys = await forwarding_hosts.remove(info.context, keys, hosts)
        return DeletePayload(
            deleted_ids=[global_ids.encode("ForwardingHost", key) for key in deleted_keys]
        )


async def _create(info: Info, sort: Sort, shape: type[Shape], given: Any) -> list[Any]:
    """Create a record of routing and return it as a list of one GraphQL object."""
    key = await routing_mutations.create(info.context, sort, _said(given), _word(given))
    return await _now(info, shape, [key])


async def _change(info: Info, sort: Sort, shape: type[Shape], given: Any) -> list[Any]:
    """Change records of routing, all or none, and return them as GraphQL objects."""
    keys = keys_of(info, sort.name, given.ids)
    await routing_mutations.change(info.context, sort, keys, _said(given), _word(given))
    return await _now(info, shape, keys)


async def _remove(info: Info, sort: Sort, given: IdsInput) -> DeletePayload:
    """Delete records of routing, all or none."""
    await routing_mutations.remove(info.context, sort, keys_of(info, sort.name, given.ids))
    return DeletePayload(deleted_ids=given.ids)


def _word(given: Any) -> str | None:
    """Return the password of an input; None if it has none."""
    password: str | None = plain(getattr(given, "password", None))
    return password


async def _now(info: Info, shape: type[Shape], keys: list[int]) -> list[Any]:
    """Load records of routing as GraphQL objects."""
    rows = await info.context.load_all(shape.batch, keys)
    return [shape.of(row) for row in rows if row]


def _relays(made: list[RelayHost]) -> RelayHostPayload:
    return RelayHostPayload(relay_host=made[0] if len(made) == 1 else None, relay_hosts=made)


def _transports(made: list[Transport]) -> TransportPayload:
    return TransportPayload(transport=made[0] if len(made) == 1 else None, transports=made)


def _policies(made: list[TlsPolicy]) -> TlsPolicyPayload:
    return TlsPolicyPayload(tls_policy=made[0] if len(made) == 1 else None, tls_policies=made)
