"""Mutations that create, change, rename and delete domains and alias domains."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.auth import password_policy
from graph.auth.password_policy import PasswordPolicyInput
from graph.domains.types import Domain, DomainAlias
from graph.queue.rate_limits import RateLimitInput
from graph.types import global_ids
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import DomainRef, domain_named
from graph.types.scalars import ByteSize
from models.errors import Invalid
from models.users.roles import AdminPermission, Role, Scope
from resolvers.domains import aliases, rename
from resolvers.domains import mutations as domain_mutations
from resolvers.domains.aliases import NewAlias
from resolvers.domains.mutations import Values

ADMIN: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.MASTER}
DELEGATED: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "scope": Scope.MASTER}
ALIASES: dict[str, Any] = {**DELEGATED, "admin_permission": AdminPermission.ALIAS_DOMAINS}
POLICY = "What passwords must have that are set from then on; null = what the platform says."
RELAY = "Relay host by which mail of its senders leaves; null = none."
RATE = "What its users may send together; null = what the settings say."
DEFAULT = "For users without a quota of their own, 0 = unlimited; null = the platform's."


def _set(given: Any, *within: str, without: frozenset[str] = frozenset()) -> Values:
    """Return the column values that an input sets. Absent fields are left out.

    `error_path` is the path of the input, for errors. Raises Invalid if the relay host has no
    valid ID.
    """
    given_fields = {name: value for name, value in vars(given).items() if value is not UNSET}
    columns = {name: value for name, value in given_fields.items() if name not in without}
    if "password_policy" in columns:
        columns |= password_policy.columns(columns.pop("password_policy"))
    if "relay_host" in columns:
        columns["relay_host_id"] = _relay(columns.pop("relay_host"), *within)
    if rate := columns.get("rate_limit"):
        columns["rate_limit"] = rate.rate()
    return Values(columns, within)


def _relay(id: str | None, *within: str) -> int | None:
    """Return the row id of a relay host; None stays None.

    Raises Invalid, below `error_path`, if it is not the ID of a relay host.
    """
    try:
        return None if id is None else global_ids.decode("RelayHost", id, path="relayHost")
    except Invalid as problem:
        problem.path = [*within, *problem.path]
        raise


@strawberry.input(description="Input of domainCreate.")
class DomainCreateInput(Options):
    name: str = leaf("Unicode or ASCII form.")
    active: bool = leaf("Takes mail.", default=True)
    description: str | None = leaf("Text for people.", default=UNSET)
    tags: list[str] | None = leaf("Labels.", default=UNSET)
    max_addresses: int | None = leaf(
        "Addresses, those of accounts among them; 0 or null: any number. Default: "
        "MERGANSER_DOMAIN_MAX_ADDRESSES, any number.",
        default=UNSET,
    )
    max_users: int | None = leaf(
        "Accounts; 0 or null: any number. Default: MERGANSER_DOMAIN_MAX_USERS, any number.",
        default=UNSET,
    )
    default_user_quota: ByteSize | None = leaf(
        "For users without a quota of their own; 0: unlimited, null: the platform's. Default: "
        "MERGANSER_DOMAIN_DEFAULT_USER_QUOTA, the platform's.",
        default=UNSET,
    )
    max_user_quota: ByteSize | None = leaf(
        "Highest per user; 0 or null: unlimited. Default: MERGANSER_DOMAIN_MAX_USER_QUOTA, "
        "unlimited.",
        default=UNSET,
    )
    quota: ByteSize | None = leaf(
        "For all users together; 0 or null: unlimited. Default: MERGANSER_DOMAIN_QUOTA, unlimited.",
        default=UNSET,
    )
    backup_mx: bool = leaf("Only relay to the primary server.", default=False)
    relay_all_recipients: bool = leaf("Also unknown ones; needs backupMx.", default=False)
    relay_unknown_only: bool = leaf(
        "Local users here, others relayed; needs relayAllRecipients.", default=False
    )
    relay_host: strawberry.ID | None = leaf(RELAY, default=UNSET)
    global_address_list: bool = leaf("Users see each other.", default=True)
    password_policy: PasswordPolicyInput | None = leaf(POLICY, default=UNSET)
    rate_limit: RateLimitInput | None = leaf(RATE, default=UNSET)
    create_dkim: bool = leaf(
        "With a new key of RSA, 2048 bits, selector dkim, which signs once DNS has its record.",
        default=True,
    )


@strawberry.input(description="What to set; absent = as it is, null = none.")
class DomainPatch:
    active: bool | None = leaf("Takes mail.", default=UNSET)
    description: str | None = leaf("Text for people; needs DOMAIN_DESC.", default=UNSET)
    tags: list[str] | None = leaf("Labels, in place of those there are.", default=UNSET)
    max_addresses: int | None = leaf("Addresses, 0 = any number.", default=UNSET)
    max_users: int | None = leaf("Accounts, 0 = any number.", default=UNSET)
    default_user_quota: ByteSize | None = leaf(DEFAULT, default=UNSET)
    max_user_quota: ByteSize | None = leaf("Highest per user, 0 = unlimited.", default=UNSET)
    quota: ByteSize | None = leaf("For all users together, 0 = unlimited.", default=UNSET)
    backup_mx: bool | None = leaf("Only relay to the primary server.", default=UNSET)
    relay_all_recipients: bool | None = leaf("Also unknown ones; needs backupMx.", default=UNSET)
    relay_unknown_only: bool | None = leaf(
        "Local users here, others relayed; needs relayAllRecipients.", default=UNSET
    )
    relay_host: strawberry.ID | None = leaf(RELAY, default=UNSET)
    global_address_list: bool | None = leaf("Users see each other.", default=UNSET)
    password_policy: PasswordPolicyInput | None = leaf(POLICY, default=UNSET)
    rate_limit: RateLimitInput | None = leaf(f"{RATE} Needs RATELIMIT.", default=UNSET)


@strawberry.input(description="Input of domainUpdate.")
class DomainUpdateInput(Options):
    domains: list[DomainRef] = leaf("Which ones, by their own names: an alias names none.")
    set: DomainPatch = leaf("The same for all.")


@strawberry.input(description="Input of domainDelete.")
class DomainDeleteInput(Options):
    domains: list[DomainRef] = leaf("Which ones, by their own names: an alias names none.")
    cascade: bool = leaf("With their users, addresses and aliases.", default=False)


@strawberry.input(description="Input of domainRename.")
class DomainRenameInput(Options):
    old_domain: str = leaf("Its name.")
    new_domain: str = leaf("Its new name, which nothing has yet.")


@strawberry.input(description="Input of domainAliasCreate.")
class DomainAliasCreateInput(Options):
    alias: str = leaf("The second name.")
    domain: str = leaf("What it stands for: the own name of a domain.")
    active: bool = leaf("Takes mail.", default=True)


@strawberry.type(description="Answer of domainCreate.")
class DomainPayload(MutationPayload):
    domain: Domain | None = leaf("The domain.", default=None)


@strawberry.type(description="Answer of domainUpdate.")
class DomainsPayload(MutationPayload):
    domains: list[Domain] = leaf("The domains.", default_factory=list)


@strawberry.type(description="Answer of domainRename.")
class DomainRenamePayload(MutationPayload):
    domain: Domain | None = leaf("The domain, with its new name.", default=None)
    addresses_updated: int = leaf("Addresses with the new name.", default=0)
    users_updated: int = leaf("Accounts with another user name or main address.", default=0)
    dkim_keys_updated: int = leaf("Keys that sign for the new name.", default=0)
    domain_aliases_updated: int = leaf("Aliases that stand for the new name.", default=0)


@strawberry.type(description="Answer of domainAliasCreate.")
class DomainAliasPayload(MutationPayload):
    domain_alias: DomainAlias | None = leaf("The alias.", default=None)


@strawberry.type
class DomainMutation:
    @mutation("With limits; the first address that an ADMIN makes does so without any.", **ADMIN)
    async def domain_create(self, info: Info, input: DomainCreateInput) -> DomainPayload:
        values = _set(input, without=frozenset({"name", "options", "create_dkim"}))
        with_key = input.create_dkim
        row = await domain_mutations.create(info.context, input.name, values, with_key=with_key)
        return DomainPayload(domain=Domain.of(row))

    @mutation(
        "Many at once, all or none. A DOMAIN_ADMIN changes the description, with DOMAIN_DESC, and "
        "the sending rate, with RATELIMIT.",
        **DELEGATED,
    )
    async def domain_update(self, info: Info, input: DomainUpdateInput) -> DomainsPayload:
        refs = [
            domain_named(ref, path="domains", index=index)
            for index, ref in enumerate(input.domains)
        ]
        rows = await domain_mutations.change(info.context, refs, _set(input.set, "set"))
        return DomainsPayload(domains=[Domain.of(row) for row in rows])

    @mutation(
        "Many at once, all or none. CONFLICT while users, addresses or aliases exist, unless "
        "cascade deletes them too: at most as many users as the setting bulk.max says.",
        **ADMIN,
    )
    async def domain_delete(self, info: Info, input: DomainDeleteInput) -> DeletePayload:
        refs = [
            domain_named(ref, path="domains", index=index)
            for index, ref in enumerate(input.domains)
        ]
        keys = await domain_mutations.remove(info.context, refs, cascade=input.cascade)
        return DeletePayload(deleted_ids=[global_ids.encode("Domain", key) for key in keys])

    @mutation(
        "With its addresses, main addresses, signing keys, and user names that are addresses "
        "there, in one transaction. validateOnly lists all that is in the way.",
        **ADMIN,
    )
    async def domain_rename(self, info: Info, input: DomainRenameInput) -> DomainRenamePayload:
        result = await rename.rename(info.context, input.old_domain, input.new_domain)
        return DomainRenamePayload(
            domain=Domain.of(result.domain),
            addresses_updated=result.addresses,
            users_updated=result.users,
            dkim_keys_updated=result.keys,
            domain_aliases_updated=result.aliases,
        )

    @mutation("A second name of a domain; an alias has none itself.", **ALIASES)
    async def domain_alias_create(
        self, info: Info, input: DomainAliasCreateInput
    ) -> DomainAliasPayload:
        new = NewAlias(input.alias, input.domain, active=input.active)
        row = await aliases.create(info.context, new)
        return DomainAliasPayload(domain_alias=DomainAlias.of(row))

    @mutation("All or none.", **ALIASES)
    async def domain_alias_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        keys = [
            global_ids.decode("DomainAlias", text, path="ids", index=index)
            for index, text in enumerate(input.ids)
        ]
        await aliases.remove(info.context, keys)
        return DeletePayload(deleted_ids=input.ids)
