"""GraphQL type of users."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.addresses import contacts
from graph.addresses.contacts import ContactSuggestion
from graph.addresses.filters import AddressFilter
from graph.addresses.types import (
    Address,
    load_address_page_of_user,
    load_temporary_address_page,
)
from graph.admin.key_values import KeyArgument, KeyValueEntry
from graph.auth.app_passwords import AppPassword, AppPasswordFilter, load_app_password_page
from graph.auth.password_policy import PasswordPolicy
from graph.auth.second_factors import TwoFactor, WebauthnKey
from graph.auth.security_log import SecurityEvent, SecurityLogFilter, load_event_page_of_user
from graph.domains.domain_lists import DomainListRequest, load_administered_domain_page
from graph.domains.filters import DomainFilter
from graph.domains.types import Domain
from graph.notifications.push_channels import PushChannel
from graph.queue.rate_limits import RateLimit
from graph.transfer.types import UserExport, authorize_and_load_export_page
from graph.types.connections import Connection, PageArguments
from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.object_access import OVERSEEN, OWN, OWN_OR_OVERSEEN, OWN_OR_ROOT
from graph.types.object_views import DerivedField
from graph.types.references import optional_tuple
from graph.types.row_mapping import link, objects_from_rows_with_links
from graph.types.scalars import CIDR, BigInt, ByteSize, Cursor, Duration
from graph.users import limits as user_limits
from graph.users.credential_fields import UserCredentialFields
from graph.users.derived_fields import USER_DERIVED_FIELDS
from graph.users.part_types import OpenpgpKey, ServiceSetting, SpamPolicy
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import Frequency, ProtocolScope, SubaddressAction
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses.loaders import AddressOrder
from resolvers.admin import key_values
from resolvers.admin.key_values import KeyValueNamespace
from resolvers.auth.app_password_pages import AppPasswordOrder
from resolvers.auth.passwords import password_policy
from resolvers.auth.second_factors import loaders as second_factor_loaders
from resolvers.auth.second_factors import recovery_codes, webauthn
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod
from resolvers.auth.security_event_pages import SecurityEventOrder
from resolvers.changes import stream_reader
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainOrder
from resolvers.notifications import push_channels
from resolvers.queue import rate_limits
from resolvers.transfer.exports import UserExportOrder
from resolvers.users import loaders as user_loaders
from resolvers.users import service_settings
from resolvers.users.quota import limits as quota_limits


@strawberry.type(description="Account of a user.")
class User(UserCredentialFields):
    username: str = attribute_field("Name to sign in with to the account, in lower case.")
    name: str | None = attribute_field("Display name of the account. Null: it has none.")
    role: Role = attribute_field("Role of the account, which decides what it can administer.")
    address: Address | None = link(
        "id",
        address_loaders.load_visible_main_addresses_by_user,
        Address.from_row_or_none,
        description="Main address of the account. Null: the account has no address.",
    )
    local_part: str | None = link(
        "id",
        address_loaders.load_visible_main_addresses_by_user,
        lambda row: row and row.display_address.rpartition("@")[0],
        description="Part of the main address before the `@`. Null: the account has no address.",
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain of the account, which is that of its main address. Null: none.",
    )
    tags: list[str] = attribute_field("Tags of the account, sorted. At most 1,000.")
    language: str | None = attribute_field(
        "Language tag such as `de`, which selects the language of messages from the server. "
        "Null: English."
    )
    metadata: JSON | None = attribute_field(
        "JSON object with data of your application, which the user can read and change. Null: none."
    )
    created_at: datetime = attribute_field("Time when the account was created.")
    updated_at: datetime = attribute_field("Time of the last change of the account.")
    last_login_at: datetime | None = attribute_field(
        "Time of the last successful sign-in with a password or at an identity provider. SMTP "
        "sign-ins with a password, also an application password, count. HTTP Basic "
        "authentication counts only with the account password, and at most once an hour. Uses "
        "of access tokens and API keys don't count. Null: there was none."
    )
    activated: bool = attribute_field(
        "True if the account is active and not suspended, and has a password or a temporary "
        "password, even an expired one."
    )
    active: bool = attribute_field("False: the user can neither sign in nor receive messages.")
    suspended: bool = attribute_field(
        "True: the account receives messages, but sends no autoreplies, and nobody can sign in. "
        "API keys and application passwords are refused."
    )
    has_password: bool = attribute_field(
        "True if the account has a password, or a temporary password, even an expired one."
    )
    password_change_required: bool = attribute_field(
        "True: `authenticate` reports that the user should set a new password. The OAuth sign-in "
        "page then refuses passwords of the account. Otherwise the server enforces it only after a "
        "sign-in with a temporary password."
    )
    disabled_scopes: list[ProtocolScope] = attribute_field(
        "Protocols that the account can't sign in to."
    )
    allowed_senders: list[str] = attribute_field(
        "Sender addresses that the account can use besides its own: addresses, domains, and "
        "patterns with one `*`. At most 1,000."
    )
    retention: Duration | None = attribute_field(
        "Time after which messages that are added from now on are deleted, in new mailboxes and "
        "in mailboxes that inherit the retention of the account. Null: messages are kept for ever."
    )
    openpgp_public_key: str | None = attribute_field(
        "OpenPGP public key (RFC 9580) in ASCII armor. Null: the account has none."
    )
    openpgp_key: OpenpgpKey | None = attribute_field(
        "Fingerprint, owner and expiry of the OpenPGP public key. Null: the account has no key."
    )
    encrypt_messages: bool = attribute_field(
        "True: received messages are encrypted with the OpenPGP key of the account before they "
        "are stored."
    )
    upload_sent_messages: bool = attribute_field(
        "True: messages that the account sends by SMTP submission are stored in its Sent mailbox."
    )
    require_inbound_tls: bool = attribute_field(
        "True: messages that other servers send to the account by SMTP without TLS are refused."
    )
    require_outbound_tls: bool = attribute_field(
        "True: messages of the account are delivered to other servers only over TLS; without TLS "
        "the delivery is deferred."
    )
    smtp_allowed_networks: list[CIDR] = attribute_field(
        "Networks from which the account can sign in to SMTP submission. Empty: any network. At "
        "most 100."
    )
    forward_to: list[str] = attribute_field(
        "Targets that get a copy of each received message, unless it is spam or its spam score is "
        "50 or more (by default). They are addresses, smtp:// and smtps:// relays, and http:// and "
        "https:// URLs. The password of a relay is shown as `***`. At most 100."
    )
    encrypt_forwarded: bool = attribute_field(
        "True: messages to the forwarding targets are encrypted with the OpenPGP key of the "
        "account. A message that can't be encrypted is not forwarded."
    )
    subaddress_action: SubaddressAction = attribute_field(
        "Treatment of mail to an address with a subaddress (RFC 5233), such as "
        "`user+label@example.com`."
    )
    spam: SpamPolicy = attribute_field("Spam thresholds of the account.")
    quarantine_notification: Frequency = attribute_field(
        "Time from the first unlisted message in the quarantine of the account to the next digest. "
        "It is at most half of the quarantine retention."
    )
    webmail_access: bool = attribute_field(
        "True: the user can get an access token with the scope FULL for the account password, "
        "which web mail clients need. HTTP Basic authentication, and OAuth clients with scopes for "
        "GraphQL and REST, are allowed, too. Application passwords are not affected."
    )
    allow_local: bool = attribute_field(
        "True: the account belongs to no directory, such as that of a machine that only sends "
        "mail. It signs in with its password, never at the identity provider of the domain. The "
        "identity provider and SCIM don't change it."
    )
    permissions: list[UserPermission] = attribute_field(
        "Permissions that a credential of the account with the role USER needs to change some "
        "settings and objects of the account."
    )
    admin_permissions: list[AdminPermission] = attribute_field(
        "Permissions that the account has as DOMAIN_ADMIN for users of the administered domains. "
        "Empty for other roles."
    )
    message_count: BigInt = attribute_field("Number of messages in all mailboxes of the account.")
    two_factor_methods: list[TwoFactorMethod] = attribute_field(
        "Second factors (2FA, MFA) that are turned on for the account."
    )
    rate_limit: RateLimit | None = link(
        "id",
        rate_limits.load_limits_by_owner,
        RateLimit.from_row_or_none,
        description="Sending rate of the account itself, besides those of the domain and the "
        "platform. Null: inherited from the settings.",
    )
    rate_limit_inherited: bool = link(
        "id",
        rate_limits.load_limits_by_owner,
        lambda row: row is None,
        description="True if the account has no rate limit of its own and inherits that of the "
        "settings.",
    )
    cursor: Cursor = link(
        "id",
        stream_reader.load_last_stream_positions_by_user,
        Cursor,
        description="Latest position in the event journal of the account, for the argument `after` "
        "of `changes`. The subscriptions `userChanges` and `domainChanges` refuse it.",
    )

    load_batch = staticmethod(user_loaders.load_visible_users_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = USER_DERIVED_FIELDS

    @field(
        "Domains that the account administers as DOMAIN_ADMIN. A caller with the role ADMIN or "
        "ROOT sees every domain that the account administers. Other callers see only those of them "
        "that they administer too.",
        "id",
    )
    async def administers(
        self,
        info: Info,
        filter: DomainFilter | None = UNSET,
        order_by: DomainOrder = DomainOrder.NAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Domain]:
        request = DomainListRequest(
            Domain, filter or None, order_by, PageArguments(first, after, last, before)
        )
        return await load_administered_domain_page(info, request, self.row.id)

    @field(
        "JSON object with data of your application that the user can't read. Null: none.",
        "private_metadata",
        role=Role.DOMAIN_ADMIN,
    )
    async def private_metadata(self) -> JSON | None:
        private_metadata: JSON | None = self.row.private_metadata
        return private_metadata

    @field("Storage quota and limits of the account, and their use.", *user_limits.LIMIT_COLUMNS)
    async def limits(self) -> user_limits.UserLimits:
        return user_limits.UserLimits.from_row(self.row)

    @field(
        "Used share of the storage quota of the account in percent. It can exceed 100. Null: the "
        "quota is unlimited.",
        "quota",
        "used",
        "domain_id",
    )
    async def quota_percent(self, info: Info) -> float | None:
        allowed = await quota_limits.load_quota(info.context, self.row)
        return max(self.row.used, 0) * 100 / allowed if allowed else None

    @field(
        "Highest quota in bytes that this account can be given. It is what the domain "
        "has left plus the account's present quota, at most the domain's `maxUserQuota`. "
        "Null: no limit, or no domain.",
        "quota",
        "domain_id",
        role=Role.DOMAIN_ADMIN,
    )
    async def max_new_quota(self, info: Info) -> ByteSize | None:
        max_quota = await quota_limits.load_max_quota_within_domain(info.context, self.row)
        return None if max_quota is None else ByteSize(max_quota)

    @field("Rules for new passwords of the account.", "id")
    async def password_policy(self, info: Info) -> PasswordPolicy:
        return PasswordPolicy.from_policy(
            await info.context.load(password_policy.load_policies_of_users, self.row.id)
        )

    @field(
        "True: the server is a backup MX for the domain. It relays mail for the account "
        "to the primary server, unless `relayUnknownOnly` of the domain is true.",
        "domain_id",
    )
    async def relayed(self, info: Info) -> bool:
        key = self.row.domain_id
        domain = (
            await info.context.load(domain_loaders.load_visible_domains_by_id, key) if key else None
        )
        return bool(domain and domain.backup_mx)

    @field(
        "Text in English about the storage of messages: deduplication, compression and "
        "encryption by the server. It is the same for every account, and does not show "
        "OpenPGP encryption (`encryptMessages`).",
        role=Role.ADMIN,
    )
    async def storage_format(self) -> str:
        return service_settings.STORAGE_FORMAT

    @field(
        "Effective settings of the account as the mail services read them: one item for each key.",
        *service_settings.USER_COLUMNS,
        role=Role.ADMIN,
    )
    async def service_settings(
        self,
        info: Info,
        service: str | None = UNSET,
        fields: list[str] | None = UNSET,
        userdb_only: bool = False,
        expand: str | None = UNSET,
    ) -> list[ServiceSetting]:
        request = service_settings.EffectiveSettingsRequest(
            service or None, optional_tuple(fields), userdb_only, expand or None
        )
        settings = await service_settings.load_effective_settings_of_user(
            info.context, self.row, request
        )
        return [ServiceSetting(key=setting.key, value=setting.value) for setting in settings]

    @field("Number of temporary and masked addresses of the account that have not expired.")
    async def temporary_address_count(self, info: Info) -> int:
        return await info.context.load(
            address_loaders.count_visible_unexpired_temporary_addresses_by_user, self.row.id
        )

    @field("Temporary and masked addresses of the account that have not expired.")
    async def temporary_addresses(
        self,
        info: Info,
        filter: AddressFilter | None = UNSET,
        order_by: AddressOrder = AddressOrder.LOCAL_PART_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Address]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_temporary_address_page(
            info, self.row.id, filter or None, order_by, page_arguments
        )

    @field("All addresses of the account: main address and aliases, even disabled or expired ones.")
    async def addresses(
        self,
        info: Info,
        filter: AddressFilter | None = UNSET,
        order_by: AddressOrder = AddressOrder.LOCAL_PART_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Address]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_address_page_of_user(
            info, self.row.id, filter or None, order_by, page_arguments
        )

    @field(
        "Suggests recipients for the signed-in user: correspondents, the most recent first, then "
        "active users of the same domain, by address, if it has `globalAddressList`. Empty for "
        "other accounts.",
        scope=Scope.MAIL_READ,
        access=OWN,
    )
    async def contact_suggestions(
        self,
        info: Info,
        query: Annotated[
            str,
            strawberry.argument(
                description="Text to search (case is ignored), at most 320 characters: the "
                "beginning of the address or name of correspondents, or any part of the username, "
                "name or main address of other users. For other users, 1 or 2 characters must be "
                "the beginning of the main address."
            ),
        ],
        first: Annotated[
            int, strawberry.argument(description="Highest number of suggestions, 1 to 250.")
        ] = 25,
    ) -> list[ContactSuggestion]:
        return await contacts.search_contacts(info, self.row.id, query, first)

    @field(
        "Security events of the account, such as sign-ins and changes of credentials. Equal "
        "events are one item. Empty for an account that the caller can't use this field for.",
        scope=Scope.READ,
        access=OVERSEEN,
    )
    async def security_log(
        self,
        info: Info,
        filter: SecurityLogFilter | None = UNSET,
        order_by: SecurityEventOrder = SecurityEventOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SecurityEvent]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_event_page_of_user(
            info, self.row.id, filter or None, order_by, page_arguments
        )

    @field(
        "Second factors (2FA, MFA) that are turned on for the account, with their last use. Empty "
        "also for an account that the caller can't use this field for.",
        scope=Scope.READ,
        access=OVERSEEN,
    )
    async def two_factors(self, info: Info) -> list[TwoFactor]:
        rows = await info.context.load(
            second_factor_loaders.load_visible_enabled_factors, self.row.id
        )
        return [TwoFactor.from_row(row) for row in rows]

    @field("Number of unused recovery codes of the account.", scope=Scope.READ, access=OVERSEEN)
    async def recovery_codes_left(self, info: Info) -> int:
        return await info.context.load(recovery_codes.count_unused_codes, self.row.id)

    @field(
        "Security keys and passkeys (WebAuthn) of the account, the oldest first. Empty: there "
        "are none, or the caller can't see those of this account. At most 20.",
        scope=Scope.READ,
        access=OVERSEEN,
    )
    async def webauthn_keys(self, info: Info) -> list[WebauthnKey]:
        rows = await info.context.load(webauthn.load_visible_keys_of_users, self.row.id)
        return await objects_from_rows_with_links(info, WebauthnKey, rows)

    @field(
        "Application passwords of the account that have not expired, also inactive ones.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.APP_PASSWORDS),
    )
    async def app_passwords(
        self,
        info: Info,
        filter: AppPasswordFilter | None = UNSET,
        order_by: AppPasswordOrder = AppPasswordOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[AppPassword]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_app_password_page(
            info, self.row.id, filter or None, order_by, page_arguments
        )

    @field(
        "Push channels that notify the user of new mail, ordered by kind.",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.PUSH_CHANNELS),
    )
    async def push_channels(self, info: Info) -> list[PushChannel]:
        rows = await info.context.load(push_channels.load_visible_channels_by_user, self.row.id)
        return await objects_from_rows_with_links(info, PushChannel, rows)

    @field(
        "Entry of the key-value store `default` of the account. Null if there is none, it has "
        "expired, or the caller can't see it.",
        scope=Scope.READ,
        access=OWN_OR_OVERSEEN,
    )
    async def key_value(self, info: Info, key: KeyArgument) -> KeyValueEntry | None:
        return KeyValueEntry.from_row_or_none(
            await key_values.find_entry(info.context, KeyValueNamespace(self.row.id), key)
        )

    @field(
        "Exports of the account that have not expired, also unfinished and failed ones. Exports "
        "with settings are left out unless the credential has the scope READ or SETTINGS. A "
        "caller who is neither this user nor a ROOT gets the error FORBIDDEN.",
        scope=Scope.MAIL_READ,
        access=OWN_OR_ROOT,
    )
    async def exports(
        self,
        info: Info,
        order_by: UserExportOrder = UserExportOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[UserExport]:
        page_arguments = PageArguments(first, after, last, before)
        return await authorize_and_load_export_page(info, self.row.id, order_by, page_arguments)
