"""Mutations that create, change, rename and delete domains and alias domains."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.auth import password_policy
from graph.auth.password_policy import PasswordPolicyInput
from graph.domains.types import Domain, DomainAlias
from graph.queue.rate_limits import RateLimitInput
from graph.routing.references import RelayHostRef
from graph.types import global_ids
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_references import id_from_ref, load_ids_from_refs
from graph.types.references import DomainAliasRef, DomainRef, domain_selector_from_ref
from graph.types.scalars import ByteSize
from graph.users.limits import limit_value
from models.errors import InvalidInput
from models.users.roles import AdminPermission, Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.domains import aliases, rename
from resolvers.domains import mutations as domain_mutations
from resolvers.domains.aliases import NewAliasDomain
from resolvers.domains.mutations import DomainValues

ADMIN_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}
DOMAIN_ADMIN_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "scope": Scope.FULL}
ALIAS_GUARD: dict[str, Any] = {
    **DOMAIN_ADMIN_GUARD,
    "admin_permission": AdminPermission.DOMAIN_ALIASES,
}
POLICY_DESCRIPTION = (
    "What passwords must have that are set from then on; null = what the platform says."
)
RELAY_HOST_DESCRIPTION = "Relay host by which mail of its senders leaves; null = none."
RATE_LIMIT_DESCRIPTION = "What its users may send together; null = what the settings say."
DEFAULT_QUOTA_DESCRIPTION = (
    "Quota of accounts without their own quota, in bytes, at least 1. Null: unlimited."
)
INHERIT_QUOTA_DESCRIPTION = (
    "True: accounts without their own quota have the default quota of the platform. Excludes "
    "`defaultUserQuota`."
)
MAX_ADDRESSES_DESCRIPTION = (
    "Highest number of addresses, including those of accounts, at least 1. Null: unlimited."
)
MAX_USERS_DESCRIPTION = "Highest number of accounts, at least 1. Null: unlimited."
MAX_USER_QUOTA_DESCRIPTION = "Highest quota of an account, in bytes, at least 1. Null: unlimited."
QUOTA_DESCRIPTION = (
    "Quota of all accounts of the domain together, in bytes, at least 1. Null: unlimited."
)
LIMIT_COLUMNS = ("max_addresses", "max_users", "default_user_quota", "max_user_quota", "quota")


def _column_values(
    domain_input: Any, *error_path: str, ignored_fields: frozenset[str] = frozenset()
) -> DomainValues:
    """Return the column values that an input sets. Absent fields are left out.

    `error_path` is the path of the input, for errors. Raises InvalidInput if the relay host has
    no valid ID, or if the default quota is both set and inherited.
    """
    given_fields = {name: value for name, value in vars(domain_input).items() if value is not UNSET}
    columns = {name: value for name, value in given_fields.items() if name not in ignored_fields}
    for name in LIMIT_COLUMNS:
        if name in columns:
            columns[name] = limit_value(columns[name])
    if columns.pop("inherit_default_user_quota", False):
        if "default_user_quota" in columns:
            text = "inheritDefaultUserQuota excludes a default quota of the domain"
            path = [*error_path, "inheritDefaultUserQuota"]
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=path)
        columns["default_user_quota"] = None
    if "password_policy" in columns:
        columns |= password_policy.policy_column_values(columns.pop("password_policy"))
    if "relay_host" in columns:
        relay_host = columns.pop("relay_host")
        columns["relay_host_id"] = (
            None if relay_host is None else id_from_ref(relay_host, *error_path, "relayHost")
        )
    if rate := columns.get("rate_limit"):
        columns["rate_limit"] = rate.to_rate()
    return DomainValues(columns, error_path)


@strawberry.input(description="Input of domainCreate.")
class DomainCreateInput(Options):
    name: str = attribute_field("Unicode or ASCII form.")
    active: bool = attribute_field("Takes mail.", default=True)
    description: str | None = attribute_field("Text for people.", default=UNSET)
    tags: list[str] | None = attribute_field("Labels.", default=UNSET)
    max_addresses: int | None = attribute_field(
        f"{MAX_ADDRESSES_DESCRIPTION} Default: the setting MERGANSER_NEW_DOMAIN_MAX_ADDRESSES.",
        default=UNSET,
    )
    max_users: int | None = attribute_field(
        f"{MAX_USERS_DESCRIPTION} Default: the setting MERGANSER_NEW_DOMAIN_MAX_USERS.",
        default=UNSET,
    )
    default_user_quota: ByteSize | None = attribute_field(
        f"{DEFAULT_QUOTA_DESCRIPTION} Default: the setting "
        "MERGANSER_NEW_DOMAIN_DEFAULT_USER_QUOTA, or else inherited from the platform.",
        default=UNSET,
    )
    inherit_default_user_quota: bool = attribute_field(INHERIT_QUOTA_DESCRIPTION, default=False)
    max_user_quota: ByteSize | None = attribute_field(
        f"{MAX_USER_QUOTA_DESCRIPTION} Default: the setting MERGANSER_NEW_DOMAIN_MAX_USER_QUOTA.",
        default=UNSET,
    )
    quota: ByteSize | None = attribute_field(
        f"{QUOTA_DESCRIPTION} Default: the setting MERGANSER_NEW_DOMAIN_QUOTA.",
        default=UNSET,
    )
    backup_mx: bool = attribute_field("Only relay to the primary server.", default=False)
    relay_all_recipients: bool = attribute_field(
        "Also unknown ones; needs backupMx.", default=False
    )
    relay_unknown_only: bool = attribute_field(
        "Local users here, others relayed; needs relayAllRecipients.", default=False
    )
    relay_host: RelayHostRef | None = attribute_field(RELAY_HOST_DESCRIPTION, default=UNSET)
    global_address_list: bool = attribute_field("Users see each other.", default=True)
    password_policy: PasswordPolicyInput | None = attribute_field(POLICY_DESCRIPTION, default=UNSET)
    rate_limit: RateLimitInput | None = attribute_field(RATE_LIMIT_DESCRIPTION, default=UNSET)
    create_dkim: bool = attribute_field(
        "With a new key of RSA, 2048 bits, selector dkim, which signs once DNS has its record.",
        default=True,
    )


@strawberry.input(description="What to set; absent = as it is, null = none.")
class DomainPatch:
    active: bool | None = attribute_field("Takes mail.", default=UNSET)
    description: str | None = attribute_field(
        "Text for people; needs DOMAIN_DESCRIPTION.", default=UNSET
    )
    tags: list[str] | None = attribute_field("Labels, in place of those there are.", default=UNSET)
    max_addresses: int | None = attribute_field(MAX_ADDRESSES_DESCRIPTION, default=UNSET)
    max_users: int | None = attribute_field(MAX_USERS_DESCRIPTION, default=UNSET)
    default_user_quota: ByteSize | None = attribute_field(DEFAULT_QUOTA_DESCRIPTION, default=UNSET)
    inherit_default_user_quota: bool = attribute_field(INHERIT_QUOTA_DESCRIPTION, default=False)
    max_user_quota: ByteSize | None = attribute_field(MAX_USER_QUOTA_DESCRIPTION, default=UNSET)
    quota: ByteSize | None = attribute_field(QUOTA_DESCRIPTION, default=UNSET)
    backup_mx: bool | None = attribute_field("Only relay to the primary server.", default=UNSET)
    relay_all_recipients: bool | None = attribute_field(
        "Also unknown ones; needs backupMx.", default=UNSET
    )
    relay_unknown_only: bool | None = attribute_field(
        "Local users here, others relayed; needs relayAllRecipients.", default=UNSET
    )
    relay_host: RelayHostRef | None = attribute_field(RELAY_HOST_DESCRIPTION, default=UNSET)
    global_address_list: bool | None = attribute_field("Users see each other.", default=UNSET)
    password_policy: PasswordPolicyInput | None = attribute_field(POLICY_DESCRIPTION, default=UNSET)
    rate_limit: RateLimitInput | None = attribute_field(
        f"{RATE_LIMIT_DESCRIPTION} Needs RATE_LIMITS.", default=UNSET
    )


@strawberry.input(description="Input of domainUpdate.")
class DomainUpdateInput(Options):
    domains: list[DomainRef] = attribute_field(
        "Which ones, by their own names: an alias names none."
    )
    set: DomainPatch = attribute_field("The same for all.")


@strawberry.input(description="Input of domainDelete.")
class DomainDeleteInput(Options):
    domains: list[DomainRef] = attribute_field(
        "Which ones, by their own names: an alias names none."
    )
    cascade: bool = attribute_field("With their users, addresses and aliases.", default=False)


@strawberry.input(description="Input of domainRename.")
class DomainRenameInput(Options):
    domain: DomainRef = attribute_field("The domain to rename.")
    new_name: str = attribute_field(
        "The new name, in Unicode or ASCII form. No domain and no alias domain can have it."
    )


@strawberry.input(description="Input of domainAliasCreate.")
class DomainAliasCreateInput(Options):
    alias: str = attribute_field("The second name.")
    domain: DomainRef = attribute_field("The domain that the alias stands for.")
    active: bool = attribute_field("Takes mail.", default=True)


@strawberry.input(description="Input of domainAliasDelete.")
class DomainAliasDeleteInput(Options):
    domain_aliases: list[DomainAliasRef] = attribute_field("The alias domains to delete.")


@strawberry.type(description="Answer of domainCreate.")
class DomainPayload(MutationPayload):
    domain: Domain | None = attribute_field("The domain.", default=None)


@strawberry.type(description="Answer of domainUpdate.")
class DomainsPayload(MutationPayload):
    domains: list[Domain] = attribute_field("The domains.", default_factory=list)


@strawberry.type(description="Answer of domainRename.")
class DomainRenamePayload(MutationPayload):
    domain: Domain | None = attribute_field("The domain, with its new name.", default=None)
    address_count: int = attribute_field("The number of addresses in the domain.", default=0)
    user_count: int = attribute_field(
        "The number of accounts whose user name or main address has changed.", default=0
    )
    dkim_key_count: int = attribute_field("The number of DKIM keys of the domain.", default=0)
    domain_alias_count: int = attribute_field("The number of aliases of the domain.", default=0)


@strawberry.type(description="Answer of domainAliasCreate.")
class DomainAliasPayload(MutationPayload):
    domain_alias: DomainAlias | None = attribute_field("The alias.", default=None)


@strawberry.type
class DomainMutation:
    @mutation(
        "With limits; the first address that an ADMIN makes does so without any.", **ADMIN_GUARD
    )
    async def domain_create(self, info: Info, input: DomainCreateInput) -> DomainPayload:
        values = _column_values(input, ignored_fields=frozenset({"name", "options", "create_dkim"}))
        with_key = input.create_dkim
        row = await domain_mutations.create_domain(
            info.context, input.name, values, with_dkim_key=with_key
        )
        return DomainPayload(domain=Domain.from_row(row))

    @mutation(
        "Many at once, all or none. A DOMAIN_ADMIN changes the description, with "
        "DOMAIN_DESCRIPTION, and "
        "the sending rate, with RATE_LIMITS.",
        **DOMAIN_ADMIN_GUARD,
    )
    async def domain_update(self, info: Info, input: DomainUpdateInput) -> DomainsPayload:
        refs = [
            domain_selector_from_ref(ref, path="domains", index=index)
            for index, ref in enumerate(input.domains)
        ]
        rows = await domain_mutations.update_domains(
            info.context, refs, _column_values(input.set, "set")
        )
        return DomainsPayload(domains=[Domain.from_row(row) for row in rows])

    @mutation(
        "Many at once, all or none. CONFLICT while users, addresses or aliases exist, unless "
        "cascade deletes them too: at most as many users as the setting bulk.maxItems says.",
        **ADMIN_GUARD,
    )
    async def domain_delete(self, info: Info, input: DomainDeleteInput) -> DeletePayload:
        refs = [
            domain_selector_from_ref(ref, path="domains", index=index)
            for index, ref in enumerate(input.domains)
        ]
        keys = await domain_mutations.delete_domains(info.context, refs, cascade=input.cascade)
        return DeletePayload(deleted_ids=[global_ids.encode("Domain", key) for key in keys])

    @mutation(
        "With its addresses, main addresses, signing keys, and user names that are addresses "
        "there, in one transaction. validateOnly lists all that is in the way.",
        **ADMIN_GUARD,
    )
    async def domain_rename(self, info: Info, input: DomainRenameInput) -> DomainRenamePayload:
        ref = domain_selector_from_ref(input.domain, path="domain")
        result = await rename.rename_domain(info.context, ref, input.new_name)
        return DomainRenamePayload(
            domain=Domain.from_row(result.domain),
            address_count=result.address_count,
            user_count=result.user_count,
            dkim_key_count=result.key_count,
            domain_alias_count=result.alias_count,
        )

    @mutation("A second name of a domain; an alias has none itself.", **ALIAS_GUARD)
    async def domain_alias_create(
        self, info: Info, input: DomainAliasCreateInput
    ) -> DomainAliasPayload:
        domain = domain_selector_from_ref(input.domain, path="domain")
        new = NewAliasDomain(input.alias, domain, active=input.active)
        row = await aliases.create_alias(info.context, new)
        return DomainAliasPayload(domain_alias=DomainAlias.from_row(row))

    @mutation("All or none.", **ALIAS_GUARD)
    async def domain_alias_delete(self, info: Info, input: DomainAliasDeleteInput) -> DeletePayload:
        keys = await load_ids_from_refs(
            info,
            input.domain_aliases,
            "domainAliases",
            name_field="alias",
            load_ids=aliases.load_alias_ids_by_name,
        )
        await aliases.delete_aliases_with_dkim_keys(info.context, keys)
        return DeletePayload(deleted_ids=[global_ids.encode("DomainAlias", key) for key in keys])
