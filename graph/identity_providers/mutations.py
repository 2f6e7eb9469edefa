"""Mutations that set, delete and test identity providers of domains."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.domains.mutations import DomainPayload, DomainsPayload
from graph.domains.types import Domain
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import (
    DomainRef,
    UserSelection,
    domain_selector_from_ref,
    domain_selectors_from_refs,
    user_selector_from_selection,
    value_or_none,
)
from graph.users.payloads import UsersPayload, load_users_payload
from models.identity_providers import (
    DEFAULT_GROUPS_CLAIM,
    DEFAULT_SCOPES,
    DEFAULT_USERNAME_CLAIM,
)
from models.users.roles import Role, Scope
from resolvers.domains import loaders as domain_loaders
from resolvers.identity_providers import account_unlink, provider_changes, provider_check
from resolvers.identity_providers.provider_changes import GivenSecret, ProviderValues
from resolvers.identity_providers.provider_check import IdentityProviderTestStepKind

WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}
TEST_COST = 100


@strawberry.input(
    description="Input of identityProviderSet. It replaces all values but the client secret."
)
class IdentityProviderSetInput(Options):
    domain: DomainRef = attribute_field("Domain whose users sign in at the provider.")
    issuer: str = attribute_field(
        "Issuer of the provider, an https URL without a query, as in its discovery document. "
        "Private networks and http require the setting `identityProviders.allowPrivateNetworks`."
    )
    client_id: str = attribute_field(
        "Identifier that the provider gave this server: 1 to 512 printable characters."
    )
    client_secret: strawberry.Maybe[str | None] = attribute_field(
        "Secret that the provider gave this server: 1 to 512 printable characters. It is stored "
        "encrypted. Null: a public client. Default: the stored secret, but VALIDATION for a new "
        "provider, or another issuer or client."
    )
    scopes: list[str] = attribute_field(
        "OAuth scopes to request from the provider, at most 20, with `openid`. With "
        "`offline_access` the server can check every hour (by default) whether the account still "
        "exists. Default: openid, profile and email.",
        default_factory=lambda: list(DEFAULT_SCOPES),
    )
    username_claim: str = attribute_field(
        "Claim that names the account by an address in the domain, or by a local part: 1 to 128 "
        "characters. Its value must be under the control of the organization, not of the user. "
        "Default: email, which counts only if `email_verified` is true.",
        default=DEFAULT_USERNAME_CLAIM,
    )
    groups_claim: str = attribute_field(
        "Claim with the groups of a user: 1 to 128 characters. It is read only if `adminGroups` "
        "has a group. Default: groups.",
        default=DEFAULT_GROUPS_CLAIM,
    )
    admin_groups: list[str] = attribute_field(
        "Groups whose members get the role DOMAIN_ADMIN for the domain, at most 100, each of 1 to "
        "256 characters. The role follows the groups at each sign-in. A role that an "
        "administrator gave stays. Default: none.",
        default_factory=list,
    )
    active_claim: str | None = attribute_field(
        "Claim that suspends an account if its value is false: at most 128 characters. "
        "Application passwords, API keys and tokens of the account are then deleted. A later "
        "sign-in does not end the suspension. A sign-in without the claim fails. Default: none.",
        default=UNSET,
    )
    user_creation_allowed: bool = attribute_field(
        "True: a user of the provider without an account gets one without a password, within the "
        "limits of the domain. False: the sign-in of such a user is refused. Default: false.",
        default=False,
    )
    password_sign_in_allowed: bool = attribute_field(
        "False: users of the domain can't sign in with the main or a temporary password of the "
        "account. Application passwords still work. Accounts with `allowLocal`, and those with "
        "the role ADMIN or ROOT, are not affected. Default: true.",
        default=True,
    )


@strawberry.input(description="Input of identityProviderDelete.")
class IdentityProviderDeleteInput(Options):
    domains: list[DomainRef] = attribute_field(
        "Domains whose providers are deleted: 1 to 1,000 by default."
    )


@strawberry.input(description="Input of identityLinkDelete.")
class IdentityLinkDeleteInput(Options):
    users: UserSelection = attribute_field(
        "Accounts to unlink. Those without a link stay unchanged."
    )


@strawberry.input(description="Input of identityProviderTest.")
class IdentityProviderTestInput(Options):
    domain: DomainRef = attribute_field("Domain whose provider is tested.")


@strawberry.type(description="One step of identityProviderTest.")
class IdentityProviderTestStep:
    kind: IdentityProviderTestStepKind = attribute_field(
        "Part of the provider that the step tested."
    )
    succeeded: bool = attribute_field(
        "True if the identity provider passed this step of the test. Steps that were not reached "
        "are not listed."
    )
    message: str | None = attribute_field("Reason of the failure. Null: the step succeeded.")


@strawberry.type(description="Payload of identityProviderTest.")
class IdentityProviderTestPayload(MutationPayload):
    succeeded: bool = attribute_field(
        "True if users can sign in: all steps but LOGOUT succeeded. A failed step is no error of "
        "the mutation.",
        default=False,
    )
    steps: list[IdentityProviderTestStep] = attribute_field(
        "Steps that were reached, in the order DISCOVERY, PKCE, CLIENT, LOGOUT. After a failure "
        "of DISCOVERY, the other steps are not reached.",
        default_factory=list,
    )


@strawberry.type
class IdentityProviderMutation:
    @mutation(
        "Sets or replaces the OpenID Connect provider of a domain. Accounts of the domain with "
        "the role USER or DOMAIN_ADMIN can then sign in at the provider, unless `allowLocal` is "
        "true. They do so on the OAuth sign-in page of this server. At the first such sign-in, "
        "the address in the claim `usernameClaim` selects the account of this server. The account "
        "stays linked to the account of the provider. Tokens and sessions stay. The provider is "
        "not contacted: `identityProviderTest` tests it.",
        **WRITE_GUARD,
    )
    async def identity_provider_set(
        self, info: Info, input: IdentityProviderSetInput
    ) -> DomainPayload:
        secret = GivenSecret(input.client_secret.value) if input.client_secret else None
        values = ProviderValues(
            input.issuer,
            input.client_id,
            secret,
            input.scopes,
            input.username_claim,
            input.groups_claim,
            input.admin_groups,
            value_or_none(input.active_claim),
            input.user_creation_allowed,
            input.password_sign_in_allowed,
        )
        domain = domain_selector_from_ref(input.domain, path="domain")
        domain_id = await provider_changes.set_provider_and_return_domain_id(
            info.context, domain, values
        )
        row = await info.context.load(domain_loaders.load_visible_domains_by_id, domain_id)
        return DomainPayload(domain=Domain.from_row_or_none(row))

    @mutation(
        "Deletes the identity providers of domains with the links of their accounts, all or none. "
        "NOT_FOUND if a domain has no provider. Present tokens stay. A user to whom groups of the "
        "provider gave the role DOMAIN_ADMIN loses the domain, and the role unless other domains "
        "remain. Passwords that the provider had blocked are accepted again. Accounts without a "
        "password need a new password. LIMIT_REACHED for more than 1,000 domains (by default).",
        **WRITE_GUARD,
    )
    async def identity_provider_delete(
        self, info: Info, input: IdentityProviderDeleteInput
    ) -> DomainsPayload:
        refs = domain_selectors_from_refs(input.domains)
        domain_ids = await provider_changes.delete_providers(info.context, refs)
        rows = await info.context.load_many(domain_loaders.load_visible_domains_by_id, domain_ids)
        return DomainsPayload(domains=[Domain.from_row(row) for row in rows if row])

    @mutation(
        "Tests the identity provider of a domain: reads its metadata and keys, and checks the "
        "client with a code that can't be valid. Nothing is stored. The payload has the result of "
        "each step. NOT_FOUND if the domain has no provider. RATE_LIMITED if too many tests are "
        "running: retry.",
        **WRITE_GUARD,
        cost=TEST_COST,
    )
    async def identity_provider_test(
        self, info: Info, input: IdentityProviderTestInput
    ) -> IdentityProviderTestPayload:
        domain = domain_selector_from_ref(input.domain, path="domain")
        results = await provider_check.check_provider(info.context, domain)
        reached = [
            IdentityProviderTestStep(
                kind=result.kind, succeeded=result.problem is None, message=result.problem
            )
            for result in results
        ]
        succeeded = all(
            step.succeeded or step.kind is IdentityProviderTestStepKind.LOGOUT for step in reached
        )
        return IdentityProviderTestPayload(succeeded=succeeded, steps=reached)

    @mutation(
        "Unlinks accounts from their accounts at the identity provider, all or none. Their tokens "
        "and sessions end; application passwords and API keys stay. If the provider has ended the "
        "access of an account, the server refuses its password. After this mutation it accepts "
        "the password again. A suspended account stays suspended. A user to whom groups of the "
        "provider gave the role DOMAIN_ADMIN loses the domain, and the role unless other domains "
        "remain. The next sign-in links an account again by its address, such as after the "
        "provider has created the account of a person again. CONFLICT if a user moves to another "
        "domain at the same time: retry. LIMIT_REACHED for more than 1,000 users (by default).",
        **WRITE_GUARD,
        access=MANAGED,
    )
    async def identity_link_delete(
        self, info: Info, input: IdentityLinkDeleteInput
    ) -> UsersPayload:
        selector = user_selector_from_selection(input.users)
        user_ids = await account_unlink.delete_links_and_sign_out(info.context, selector)
        return await load_users_payload(info, user_ids)
