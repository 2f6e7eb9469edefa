"""Mutations that create, change, rename and delete domains and alias domains."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.auth import password_policy
from graph.auth.password_policy import PasswordPolicyInput
from graph.domains.types import AliasDomain, Domain
from graph.queue.rate_limits import RateLimitInput, validated_rate_limit_or_none
from graph.routing.references import RelayHostRef
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import DOMAINS
from graph.types.object_references import id_from_ref, resolve_ids_from_refs_or_raise
from graph.types.references import (
    AliasDomainRef,
    DomainRef,
    domain_selector_from_ref,
    domain_selectors_from_refs,
    is_true,
)
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
    "admin_permission": AdminPermission.ALIAS_DOMAINS,
}
POLICY_DESCRIPTION = (
    "Rules for new passwords of the accounts of the domain. Null: those of the platform."
)
RELAY_HOST_DESCRIPTION = (
    "Relay host for outgoing mail whose envelope sender is in the domain, unless a transport "
    "matches the recipient. It is not used for senders in alias domains. NOT_FOUND if it does not "
    "exist. Null: the default route, which is the configured next hop or else the MX hosts of the "
    "recipient."
)
RATE_LIMIT_DESCRIPTION = "Messages that all accounts of the domain together can send in a period."
INHERIT_RATE_DESCRIPTION = (
    "True: the domain has no rate limit of its own, and inherits that of the settings. Not allowed "
    "with `rateLimit`."
)
DEFAULT_QUOTA_DESCRIPTION = (
    "Quota of accounts of the domain without their own quota, in bytes, at least 1. Null: "
    "unlimited. It can't exceed `maxUserQuota` or `quota`, nor be unlimited if one of these is set."
)
INHERIT_QUOTA_DESCRIPTION = (
    "True: accounts of the domain without their own quota have the default quota of the platform. "
    "The limits of `defaultUserQuota` apply to it. Not allowed with `defaultUserQuota`."
)
MAX_ADDRESSES_DESCRIPTION = (
    "Highest number of addresses in the domain, including those of accounts, at least 1. Null: "
    "unlimited."
)
MAX_USERS_DESCRIPTION = (
    "Highest number of accounts with the main address in the domain, at least 1. Null: unlimited."
)
MAX_USER_QUOTA_DESCRIPTION = (
    "Highest quota of an account of the domain, in bytes, at least 1. Null: unlimited. It can't "
    "exceed `quota`, nor be below the default quota of accounts."
)
QUOTA_DESCRIPTION = (
    "Quota for all accounts of the domain together, in bytes, at least 1. Null: unlimited. It "
    "can't be below `maxUserQuota` or the default quota of accounts."
)
LIMIT_COLUMNS = ("max_addresses", "max_users", "default_user_quota", "max_user_quota", "quota")


def _validated_domain_values_from_input(
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
    if is_true(columns.pop("inherit_default_user_quota", None)):
        if "default_user_quota" in columns:
            text = "`inheritDefaultUserQuota` can't be combined with a default quota of the domain."
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
    rate_limit = validated_rate_limit_or_none(domain_input, *error_path)
    inherits_rate_limit = is_true(columns.pop("inherit_rate_limit", None))
    columns.pop("rate_limit", None)
    if rate_limit or inherits_rate_limit:
        columns["rate_limit"] = rate_limit
    return DomainValues(columns, error_path)


@strawberry.input(description="Input of domainCreate.")
class DomainCreateInput(Options):
    name: str = attribute_field(
        "Name of the domain, in Unicode or ASCII form. A part between dots must not mix scripts "
        "that are not written together. Below an ASCII top-level domain it must not consist of "
        "characters that look like Latin ones."
    )
    active: bool = attribute_field(
        "False: mail to the domain and its alias domains is refused, and its addresses give no "
        "right to send. Its users can sign in.",
        default=True,
    )
    description: str | None = attribute_field(
        "Note about the domain, which its users can read too, at most 1,000 characters. Default: "
        "none.",
        default=UNSET,
    )
    tags: list[str] | None = attribute_field(
        (
            "Tags of the domain, at most 100, each of 1 to 128 characters. Tags that differ only "
            "in case count once. Default: none."
        ),
        default=UNSET,
    )
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
        "MERGANSER_NEW_DOMAIN_DEFAULT_USER_QUOTA, or the default quota of the platform without it.",
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
    backup_mx: bool = attribute_field(
        "True: the server is a backup MX of the domain. Mail for accounts is not stored, but "
        "relayed by a transport, the configured next hop, or else to the preferred MX hosts. If "
        "`relayUnknownOnly` is true, it is stored. Forwarding, discarding, training and resource "
        "addresses work as usual.",
        default=False,
    )
    relay_all_recipients: bool = attribute_field(
        "True: the backup MX also relays mail for recipients that the server does not know. "
        "False: such mail is refused. Requires `backupMx`.",
        default=False,
    )
    relay_unknown_only: bool = attribute_field(
        "True: the backup MX stores mail for known recipients and relays only the rest. Requires "
        "`relayAllRecipients`.",
        default=False,
    )
    relay_host: RelayHostRef | None = attribute_field(RELAY_HOST_DESCRIPTION, default=UNSET)
    global_address_list: bool = attribute_field(
        "True: contact suggestions of accounts with the main address in the domain contain the "
        "other active ones.",
        default=True,
    )
    password_policy: PasswordPolicyInput | None = attribute_field(POLICY_DESCRIPTION, default=UNSET)
    rate_limit: strawberry.Maybe[RateLimitInput] = attribute_field(
        f"{RATE_LIMIT_DESCRIPTION} Default: inherited from the settings."
    )
    inherit_rate_limit: bool = attribute_field(INHERIT_RATE_DESCRIPTION, default=False)
    create_dkim: bool = attribute_field(
        "True generates a pending DKIM key (RSA, 2048 bits, selector `dkim`), which signs as soon "
        "as DNS has its record. False generates none.",
        default=True,
    )


@strawberry.input(
    description=(
        "New values of domains. An absent field leaves the value. Null clears a text, the tags, "
        "the relay host or the password policy, and makes a limit unlimited. For a Boolean and for "
        "`rateLimit` null is an error. At least one field is required."
    )
)
class DomainPatch:
    active: bool | None = attribute_field(
        "False: mail to the domains and their alias domains is refused, and their addresses give "
        "no right to send. Their users can sign in. Null is refused.",
        default=UNSET,
    )
    description: str | None = attribute_field(
        "Note about the domain, which its users can read too, at most 1,000 characters. Null: "
        "none. A DOMAIN_ADMIN needs the permission DOMAIN_DESCRIPTION.",
        default=UNSET,
    )
    tags: list[str] | None = attribute_field(
        "Tags of the domain, at most 100, each of 1 to 128 characters. Tags that differ only in "
        "case count once. The list replaces the stored one. Null or an empty list: none.",
        default=UNSET,
    )
    max_addresses: int | None = attribute_field(MAX_ADDRESSES_DESCRIPTION, default=UNSET)
    max_users: int | None = attribute_field(MAX_USERS_DESCRIPTION, default=UNSET)
    default_user_quota: ByteSize | None = attribute_field(DEFAULT_QUOTA_DESCRIPTION, default=UNSET)
    inherit_default_user_quota: strawberry.Maybe[bool] = attribute_field(
        f"{INHERIT_QUOTA_DESCRIPTION} False changes nothing."
    )
    max_user_quota: ByteSize | None = attribute_field(MAX_USER_QUOTA_DESCRIPTION, default=UNSET)
    quota: ByteSize | None = attribute_field(QUOTA_DESCRIPTION, default=UNSET)
    backup_mx: bool | None = attribute_field(
        "True: the server is a backup MX of the domain. Mail for accounts is not stored, but "
        "relayed by a transport, the configured next hop, or else to the preferred MX hosts. If "
        "`relayUnknownOnly` is true, it is stored. Forwarding, discarding, training and resource "
        "addresses work as usual. Null is refused.",
        default=UNSET,
    )
    relay_all_recipients: bool | None = attribute_field(
        "True: the backup MX also relays mail for recipients that the server does not know. "
        "False: such mail is refused. Requires `backupMx`. Null is refused.",
        default=UNSET,
    )
    relay_unknown_only: bool | None = attribute_field(
        "True: the backup MX stores mail for known recipients and relays only the rest. Requires "
        "`relayAllRecipients`. Null is refused.",
        default=UNSET,
    )
    relay_host: RelayHostRef | None = attribute_field(RELAY_HOST_DESCRIPTION, default=UNSET)
    global_address_list: bool | None = attribute_field(
        "True: contact suggestions of accounts with the main address in the domain contain the "
        "other active ones. Null is refused.",
        default=UNSET,
    )
    password_policy: PasswordPolicyInput | None = attribute_field(POLICY_DESCRIPTION, default=UNSET)
    rate_limit: strawberry.Maybe[RateLimitInput] = attribute_field(
        f"{RATE_LIMIT_DESCRIPTION} A DOMAIN_ADMIN needs the permission RATE_LIMITS."
    )
    inherit_rate_limit: strawberry.Maybe[bool] = attribute_field(
        f"{INHERIT_RATE_DESCRIPTION} False changes nothing. A DOMAIN_ADMIN needs the permission "
        "RATE_LIMITS."
    )


@strawberry.input(description="Input of domainUpdate.")
class DomainUpdateInput(Options):
    domains: list[DomainRef] = attribute_field("Domains to change, 1 to 1,000 by default.")
    set: DomainPatch = attribute_field(
        "New values, the same for all domains. At least one value is required."
    )


@strawberry.input(description="Input of domainDelete.")
class DomainDeleteInput(Options):
    domains: list[DomainRef] = attribute_field("Domains to delete, 1 to 1,000 by default.")
    cascade: bool = attribute_field(
        "True also deletes the accounts with the main address in the domains, and the addresses, "
        "resources and alias domains of the domains. Background tasks remove the data of the "
        "accounts, without a grace period. FORBIDDEN_OPERATION if the signed-in user is one of "
        "them. FORBIDDEN if one of them is a ROOT and the caller is not. The setting "
        "MERGANSER_BULK_MAX_ITEMS limits the number of accounts (1,000 if not set).",
        default=False,
    )


@strawberry.input(description="Input of domainRename.")
class DomainRenameInput(Options):
    domain: DomainRef = attribute_field("Domain to rename.")
    new_name: str = attribute_field(
        "New name of the domain, in Unicode or ASCII form. It is refused if it is the current "
        "name, or if a domain, alias domain or recipient rewrite uses it. The rules of "
        "`domainCreate` apply."
    )


@strawberry.input(description="Input of aliasDomainCreate.")
class AliasDomainCreateInput(Options):
    alias: str = attribute_field(
        "Name of the new alias domain, in Unicode or ASCII form. It can't be changed later."
    )
    domain: DomainRef = attribute_field(
        "Domain that gets the mail of the alias domain. An alias domain is refused."
    )
    active: bool = attribute_field("False: mail to the alias domain is refused.", default=True)


@strawberry.input(description="Input of aliasDomainDelete.")
class AliasDomainDeleteInput(Options):
    alias_domains: list[AliasDomainRef] = attribute_field(
        "Alias domains to delete, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of domainCreate and identityProviderSet.")
class DomainPayload(MutationPayload):
    domain: Domain | None = attribute_field(
        "Created or changed domain. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of domainUpdate and identityProviderDelete.")
class DomainsPayload(MutationPayload):
    domains: list[Domain] = attribute_field(
        "Changed domains, each once, in the order of the references.", default_factory=list
    )


@strawberry.type(description="Payload of domainRename.")
class DomainRenamePayload(MutationPayload):
    domain: Domain | None = attribute_field(
        "Renamed domain. Null if the mutation failed.", default=None
    )
    address_count: int = attribute_field(
        "Number of addresses in the renamed domain. All of them were renamed.", default=0
    )
    user_count: int = attribute_field(
        "Number of accounts whose username or main address has changed.", default=0
    )
    dkim_key_count: int = attribute_field(
        "Number of DKIM keys of the renamed domain, in any state. They keep their states, so "
        "their DNS records must be published under the new name.",
        default=0,
    )
    alias_domain_count: int = attribute_field(
        "Number of alias domains of the renamed domain, which keep their names.", default=0
    )


@strawberry.type(description="Payload of aliasDomainCreate.")
class AliasDomainPayload(MutationPayload):
    alias_domain: AliasDomain | None = attribute_field(
        "Created alias domain. Null if the mutation failed.", default=None
    )


@strawberry.type
class DomainMutation:
    @mutation(
        "Creates a mail domain, by default with a pending DKIM key (`createDkim`). DNS is not "
        "checked. Limits that are not given have the platform's defaults: unlimited unless "
        "configured, except `defaultUserQuota`, which is 1 GiB unless configured. CONFLICT if a "
        "domain or alias domain has the name.",
        **ADMIN_GUARD,
    )
    async def domain_create(self, info: Info, input: DomainCreateInput) -> DomainPayload:
        values = _validated_domain_values_from_input(
            input, ignored_fields=frozenset({"name", "options", "create_dkim"})
        )
        with_key = input.create_dkim
        row = await domain_mutations.create_domain(
            info.context, input.name, values, with_dkim_key=with_key
        )
        return DomainPayload(domain=Domain.from_row(row))

    @mutation(
        "Changes domains, all or none. An ADMIN can change all values of `set` in any domain. A "
        "DOMAIN_ADMIN can change two values of administered domains: the description, with the "
        "permission DOMAIN_DESCRIPTION, and the sending rate, with the permission RATE_LIMITS. "
        "LIMIT_REACHED if a domain already uses more than a new limit allows, or for more than "
        "1,000 domains (by default). LIMIT_REACHED also for a new quota if an account has "
        "unlimited storage.",
        **DOMAIN_ADMIN_GUARD,
    )
    async def domain_update(self, info: Info, input: DomainUpdateInput) -> DomainsPayload:
        refs = domain_selectors_from_refs(input.domains)
        rows = await domain_mutations.update_domains(
            info.context, refs, _validated_domain_values_from_input(input.set, "set")
        )
        return DomainsPayload(domains=[Domain.from_row(row) for row in rows])

    @mutation(
        "Deletes domains with their DKIM keys, BCC rules and recipient rewrites, all or none. API "
        "keys that are restricted to these domains alone are deleted too. An API key that is also "
        "restricted to other domains stays valid for the other domains. CONFLICT if a domain has "
        "accounts, addresses, resources or alias domains, unless `cascade` is true. With "
        "`cascade`, these are deleted too. Background tasks then remove the data of the accounts, "
        "without a grace period. FORBIDDEN_OPERATION if one of these accounts is that of the "
        "signed-in user. LIMIT_REACHED for more than 1,000 domains, or 1,000 accounts to delete "
        "(by default).",
        **ADMIN_GUARD,
    )
    async def domain_delete(self, info: Info, input: DomainDeleteInput) -> DeletePayload:
        refs = domain_selectors_from_refs(input.domains)
        keys = await domain_mutations.delete_domains(info.context, refs, cascade=input.cascade)
        return DeletePayload.of_keys("Domain", keys)

    @mutation(
        "Renames a domain in one transaction, with its addresses, its DKIM keys, and the "
        "usernames that are addresses in it. Forwarding targets, allowed senders, recipient "
        "rewrites and BCC targets that name it change too. Other records, such as transports and "
        "TLS policies, keep the old name. Mail to the old name is then refused. If a new name is "
        "taken, nothing is renamed. `errors` then has a CONFLICT for each taken domain name or "
        "username, of usernames at most 100. `validateOnly` only returns the conflicts.",
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
            alias_domain_count=result.alias_count,
        )

    @mutation(
        "Creates an alias domain. Mail to an address in the alias domain is delivered as mail to "
        "the same local part in `domain`. CONFLICT if a domain or alias domain has the name "
        "already, or if `domain` is an alias domain. LIMIT_REACHED if `domain` already has 1,000 "
        "alias domains. No DKIM key is created.",
        **ALIAS_GUARD,
        access=DOMAINS,
    )
    async def alias_domain_create(
        self, info: Info, input: AliasDomainCreateInput
    ) -> AliasDomainPayload:
        domain = domain_selector_from_ref(input.domain, path="domain")
        new = NewAliasDomain(input.alias, domain, active=input.active)
        row = await aliases.create_alias(info.context, new)
        return AliasDomainPayload(alias_domain=AliasDomain.from_row(row))

    @mutation(
        "Deletes alias domains with their DKIM keys, all or none. Their domains, which stay, no "
        "longer receive mail for them. LIMIT_REACHED for more than 1,000 references (by default).",
        **ALIAS_GUARD,
        access=DOMAINS,
    )
    async def alias_domain_delete(self, info: Info, input: AliasDomainDeleteInput) -> DeletePayload:
        keys = await resolve_ids_from_refs_or_raise(
            info,
            input.alias_domains,
            "aliasDomains",
            name_field="alias",
            load_ids=aliases.load_visible_alias_ids_by_name,
        )
        await aliases.delete_aliases_with_dkim_keys(info.context, keys)
        return DeletePayload.of_keys("AliasDomain", keys)
