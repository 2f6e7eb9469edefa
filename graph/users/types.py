"""GraphQL type of users."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

import graph.auth.types
from graph.addresses import contacts
from graph.addresses.contacts import ContactSuggestion
from graph.addresses.types import Address, load_address_page
from graph.admin.key_values import KeyArgument, KeyValueEntry
from graph.auth.app_passwords import AppPassword
from graph.auth.password_policy import PasswordPolicy
from graph.auth.second_factors import TwoFactor, WebauthnKey
from graph.auth.security_log import AuthEvent, AuthLogFilter, load_event_page
from graph.autoreply.types import Autoreply
from graph.connectors.types import Connector, load_connector_page
from graph.domains.types import Domain
from graph.files.types import File, load_file_page
from graph.filters.sieve_scripts import SieveScript, load_script_by_name, load_script_page
from graph.filters.types import Filter, load_filter_page
from graph.mailboxes.share_mutations import load_shared_mailbox_page
from graph.mailboxes.types import Mailbox, MailboxTotals
from graph.messages.deleted_messages import (
    DeletedMessage,
    DeletedMessageOrder,
    load_deleted_message_page,
)
from graph.messages.filter_inputs import MessageFilter, MessageListRequest, MessageOrder
from graph.messages.labels import Label
from graph.messages.types import MessageConnection, load_message_page
from graph.notifications.push_channels import PushChannel
from graph.queue.rate_limits import RateLimit
from graph.search.saved_searches import SavedSearch
from graph.spam.quarantine import QuarantineItem, load_quarantine_page
from graph.submission.identities import Identity, load_identity_page
from graph.submission.types import Submission, load_submission_page
from graph.transfer.types import UserExport
from graph.types.connections import Connection, PageArguments, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.object_views import DerivedField
from graph.types.references import MailboxRef, mailbox_selector_from_ref, optional_tuple
from graph.types.row_mapping import NodeView, link, objects_from_rows_with_links, selected_columns
from graph.types.scalars import CIDR, BigInt, ByteSize, Cursor, Duration
from graph.users import limits as user_limits
from graph.users.derived_fields import USER_DERIVED_FIELDS
from graph.users.part_types import OpenpgpKey, ServiceSetting, SpamPolicy
from models.errors import InvalidInput
from models.store.keyset_pages import ordering_name
from models.submission.tables import SubmissionState
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import Frequency, ProtocolScope, SubaddressAction
from models.validation_constraints import ValidationConstraint
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses.loaders import AddressPageKey
from resolvers.admin import key_values
from resolvers.admin.key_values import KeyValueNamespace
from resolvers.auth import access_tokens, app_passwords
from resolvers.auth.passwords import password_policy
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors import recovery_codes, webauthn
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod
from resolvers.autoreply import autoreplies
from resolvers.changes import stream_reader
from resolvers.domains import loaders as domain_loaders
from resolvers.filters.loaders import FilterOrder
from resolvers.mailboxes import listing as mailbox_listing
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.listing import MailboxConditions
from resolvers.messages import labels
from resolvers.messages.content_access import require_readable_account
from resolvers.notifications import push_channels
from resolvers.queue import rate_limits
from resolvers.search import saved_searches
from resolvers.transfer import exports
from resolvers.users import loaders as user_loaders
from resolvers.users import service_settings
from resolvers.users.quota import limits as quota_limits

if TYPE_CHECKING:
    from graph.auth.types import AccessToken


def _path_patterns(patterns: list[str] | None) -> tuple[str, ...] | None:
    """Return the path patterns as a tuple; None if they are absent."""
    return tuple(patterns) if isinstance(patterns, list) else None


@strawberry.type(description="Account.")
class User(NodeView):
    username: str = attribute_field("Lower case.")
    name: str | None = attribute_field("Display name.")
    role: Role = attribute_field("USER unless delegated.")
    address: Address | None = link(
        "id",
        address_loaders.load_visible_main_addresses_by_user,
        Address.from_row_or_none,
        description="Main address, null for accounts without one.",
    )
    local_part: str | None = link(
        "id",
        address_loaders.load_visible_main_addresses_by_user,
        lambda row: row and row.shown.rpartition("@")[0],
        description="Left part of the main address.",
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain of the main address.",
    )
    tags: list[str] = attribute_field("Labels such as domain:example.com.")
    language: str | None = attribute_field("For texts sent to the user.")
    metadata: JSON | None = attribute_field("Free data of the application.")
    created_at: datetime = attribute_field("Created.")
    updated_at: datetime = attribute_field("Changed.")
    last_login_at: datetime | None = attribute_field("Last successful login.")
    activated: bool = attribute_field("Has a password and may start.")
    active: bool = attribute_field("False: the user can neither sign in nor receive messages.")
    suspended: bool = attribute_field("No login.")
    has_password: bool = attribute_field("Can log in with a password.")
    password_change_required: bool = attribute_field("At next login.")
    disabled_scopes: list[ProtocolScope] = attribute_field("Protocols switched off.")
    allowed_senders: list[str] = attribute_field(
        "Further senders: addresses, domains, patterns with one *."
    )
    retention: Duration | None = attribute_field(
        "Life of messages in new folders, null = for ever."
    )
    openpgp_public_key: str | None = attribute_field("OpenPGP public key, armoured.")
    openpgp_key: OpenpgpKey | None = attribute_field("What the key says.")
    encrypt_messages: bool = attribute_field("All that arrives is encrypted to the key.")
    upload_sent_messages: bool = attribute_field("What is sent by SMTP submission is kept in Sent.")
    require_inbound_tls: bool = attribute_field("Mail that comes by SMTP without TLS is refused.")
    require_outbound_tls: bool = attribute_field(
        "Mail goes to servers elsewhere over TLS, or waits."
    )
    smtp_allowed_networks: list[CIDR] = attribute_field(
        "SMTP submission only from here, empty = anywhere."
    )
    forward_to: list[str] = attribute_field(
        "What comes goes there too: addresses, smtp:// relays, http(s):// URLs. The password of a "
        "relay is ***."
    )
    encrypt_forwarded: bool = attribute_field("What goes there is encrypted to the key.")
    subaddress_action: SubaddressAction = attribute_field("What mail to user+label@domain does.")
    spam: SpamPolicy = attribute_field("Spam thresholds.")
    quarantine_notification: Frequency = attribute_field("Letters about held mail.")
    webmail_access: bool = attribute_field("May use browser clients.")
    permissions: list[UserPermission] = attribute_field("What the user may change.")
    admin_permissions: list[AdminPermission] = attribute_field(
        "What a DOMAIN_ADMIN may do for users."
    )
    message_count: BigInt = attribute_field("All messages.")
    two_factor_methods: list[TwoFactorMethod] = attribute_field("Second factors that are on.")
    rate_limit: RateLimit | None = link(
        "id",
        rate_limits.load_limits_by_owner,
        RateLimit.from_row_or_none,
        description="Own sending rate, beside that of the domain; null = what the settings say.",
    )
    cursor: Cursor = link(
        "id",
        stream_reader.load_last_stream_positions_by_user,
        Cursor,
        description="Journal position, for subscribing.",
    )

    load_batch = staticmethod(user_loaders.load_visible_users_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = USER_DERIVED_FIELDS

    @field("Domains a DOMAIN_ADMIN is in charge of.", "id")
    async def administers(self, info: Info) -> list[Domain]:
        rows = await info.context.load(user_loaders.load_administered_domains, self.row.id)
        return await objects_from_rows_with_links(info, Domain, rows)

    @field("Free data hidden from the user.", "private_metadata", role=Role.DOMAIN_ADMIN)
    async def private_metadata(self) -> JSON | None:
        private_metadata: JSON | None = self.row.private_metadata
        return private_metadata

    @field("Limits with what is used of them.", *user_limits.LIMIT_COLUMNS)
    async def limits(self) -> user_limits.UserLimits:
        return user_limits.UserLimits.from_row(self.row)

    @field("Used share of the quota in percent; null = unlimited.", "quota", "used", "domain_id")
    async def quota_percent(self, info: Info) -> float | None:
        allowed = await quota_limits.load_quota(info.context, self.row)
        return max(self.row.used, 0) * 100 / allowed if allowed else None

    @field(
        "Most this user could be given within the domain; null = nothing limits it.",
        "quota",
        "domain_id",
        role=Role.DOMAIN_ADMIN,
    )
    async def max_new_quota(self, info: Info) -> ByteSize | None:
        max_quota = await quota_limits.load_max_quota(info.context, self.row)
        return None if max_quota is None else ByteSize(max_quota)

    @field("What a password must have to be set here.", "id")
    async def password_policy(self, info: Info) -> PasswordPolicy:
        return PasswordPolicy.from_policy(
            await info.context.load(password_policy.load_policies_of_users, self.row.id)
        )

    @field("Mail is passed on to another server (backup MX domain).", "domain_id")
    async def relayed(self, info: Info) -> bool:
        key = self.row.domain_id
        domain = (
            await info.context.load(domain_loaders.load_visible_domains_by_id, key) if key else None
        )
        return bool(domain and domain.backup_mx)

    @field("How messages are stored, with compression and encryption at rest.", role=Role.ADMIN)
    async def storage_format(self) -> str:
        return service_settings.STORAGE_FORMAT

    @field(
        "What a service is told about the user: api, imap, lmtp, pop3 or smtp; absent = all.",
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
        request = service_settings.SettingsRequest(
            service or None, optional_tuple(fields), userdb_only, expand or None
        )
        settings = await service_settings.load_service_settings(info.context, self.row, request)
        return [ServiceSetting(key=key, value=value) for key, value in settings]

    @field("How many temporary addresses have not ended.")
    async def temporary_address_count(self, info: Info) -> int:
        return await info.context.load(
            address_loaders.count_visible_unexpired_temporary_addresses_by_user, self.row.id
        )

    @field("Those with an end that is to come, and masked ones, which have none.")
    async def temporary_addresses(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Address]:
        requested_page = page_request("temporary", first, after, last, before)
        page_key = AddressPageKey(
            self.row.id, requested_page, selected_columns(info, Address), temporary=True
        )
        return await load_address_page(info, page_key)

    @field("All that deliver here.")
    async def addresses(
        self,
        info: Info,
        query: Annotated[
            str | None,
            strawberry.argument(
                description="Returns only addresses that contain this text, in any case. At most "
                "1,000 characters."
            ),
        ] = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Address]:
        list_ordering = ordering_name("address", query or None)
        requested_page = page_request(list_ordering, first, after, last, before)
        page_key = AddressPageKey(
            self.row.id, requested_page, selected_columns(info, Address), query or None
        )
        return await load_address_page(info, page_key)

    @field(
        "Correspondents whose address or name begins so, most recent first, then colleagues where "
        "the domain has globalAddressList; of others nobody sees any.",
        scope=Scope.MAIL_READ,
    )
    async def contact_suggestions(
        self,
        info: Info,
        query: Annotated[str, strawberry.argument(description="How it begins, in any case.")],
        first: Annotated[int, strawberry.argument(description="How many, 1 to 250.")] = 25,
    ) -> list[ContactSuggestion]:
        return await contacts.search_contacts(info, self.row.id, query, first)

    @field(
        "Addresses that the user can send as, in the order of the addresses.", scope=Scope.MAIL_READ
    )
    async def identities(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Identity]:
        return await load_identity_page(
            info, self.row.id, PageArguments(first, after, last, before)
        )

    @field(
        "Filters of the user. Those of another user need the permission FILTERS.",
        scope=Scope.READ,
    )
    async def filters(
        self,
        info: Info,
        order_by: FilterOrder = FilterOrder.POSITION_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Filter]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_filter_page(info, self.row.id, order_by, page_arguments)

    @field("Accounts elsewhere; of others only with CONNECTORS.", scope=Scope.READ)
    async def connectors(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Connector]:
        return await load_connector_page(
            info, self.row.id, PageArguments(first, after, last, before)
        )

    @field("Security events, newest first.", scope=Scope.READ)
    async def auth_log(
        self,
        info: Info,
        filter: AuthLogFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[AuthEvent]:
        if filter and filter.user:
            text = "this list has the events of one account"
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=["filter", "user"]
            )
        return await load_event_page(info, self.row.id, filter, first, after, last, before)

    @field("Live tokens, newest first; of others nobody sees any.", scope=Scope.READ)
    async def access_tokens(
        self, info: Info
    ) -> list[Annotated["AccessToken", strawberry.lazy("graph.auth.types")]]:
        rows = await info.context.load(access_tokens.load_own_tokens_by_user, self.row.id)
        return await objects_from_rows_with_links(info, graph.auth.types.AccessToken, rows)

    @field("Second factors that are on, with their last use.", scope=Scope.READ)
    async def two_factors(self, info: Info) -> list[TwoFactor]:
        rows = await info.context.load(second_factors_mutations.load_enabled_factors, self.row.id)
        return [TwoFactor.from_row(row) for row in rows]

    @field("Recovery codes that are not used yet.", scope=Scope.READ)
    async def recovery_codes_left(self, info: Info) -> int:
        return await info.context.load(recovery_codes.count_unused_codes, self.row.id)

    @field("Security keys, the oldest first.", scope=Scope.READ)
    async def webauthn_keys(self, info: Info) -> list[WebauthnKey]:
        rows = await info.context.load(webauthn.load_keys_of_users, self.row.id)
        return await objects_from_rows_with_links(info, WebauthnKey, rows)

    @field(
        "Passwords of programs, the newest first; without those that end, unless showAll.",
        scope=Scope.READ,
    )
    async def app_passwords(self, info: Info, show_all: bool = False) -> list[AppPassword]:
        rows = await info.context.load(
            app_passwords.load_app_passwords_of_users, (self.row.id, show_all)
        )
        return await objects_from_rows_with_links(info, AppPassword, rows)

    @field("Vacation answer; where none was set, createdAt is null.", scope=Scope.READ)
    async def autoreply(self, info: Info) -> Autoreply | None:
        return Autoreply.from_row_or_none(
            await info.context.load(autoreplies.load_autoreplies_by_user, self.row.id)
        )

    @field("Sieve scripts of the user, ordered by name.", scope=Scope.READ)
    async def sieve_scripts(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SieveScript]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_script_page(info, self.row.id, page_arguments)

    @field("The script of this name.", scope=Scope.READ)
    async def sieve_script(
        self,
        info: Info,
        name: Annotated[str, strawberry.argument(description="Name of the script. Case matters.")],
    ) -> SieveScript | None:
        return await load_script_by_name(info, self.row.id, name)

    @field("Where the user is told of new mail, by kind.", scope=Scope.READ)
    async def push_channels(self, info: Info) -> list[PushChannel]:
        rows = await info.context.load(push_channels.load_channels_by_user, self.row.id)
        return await objects_from_rows_with_links(info, PushChannel, rows)

    @field(
        "Quarantined messages of the user, the newest first.",
        scope=Scope.READ,
        user_permission=UserPermission.QUARANTINE,
    )
    async def quarantine(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[QuarantineItem]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_quarantine_page(info, self.row.id, page_arguments)

    @field("Own key-value store: an entry of the one called default.", scope=Scope.READ)
    async def key_value(self, info: Info, key: KeyArgument) -> KeyValueEntry | None:
        return KeyValueEntry.from_row_or_none(
            await key_values.find_entry(info.context, KeyValueNamespace(self.row.id), key)
        )

    @field("Folders in path order.", scope=Scope.MAIL_READ)
    async def mailboxes(
        self,
        info: Info,
        patterns: list[str] | None = UNSET,
        special_use: bool = False,
        show_hidden: bool = False,
        subscribed: bool | None = UNSET,
    ) -> list[Mailbox]:
        conditions = MailboxConditions(
            _path_patterns(patterns),
            has_special_use=special_use,
            include_hidden=show_hidden,
            is_subscribed=subscribed if isinstance(subscribed, bool) else None,
        )
        column_names = selected_columns(info, Mailbox)
        rows = await mailbox_listing.list_mailboxes_of_user(
            info.context, self.row.id, column_names, conditions
        )
        return await objects_from_rows_with_links(info, Mailbox, rows)

    @field("Folders that others share with the user, owner by owner.", scope=Scope.MAIL_READ)
    async def shared_mailboxes(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Mailbox]:
        return await load_shared_mailbox_page(
            info, self.row.id, PageArguments(first, after, last, before)
        )

    @field("Sums over folders, hidden ones too.", scope=Scope.MAIL_READ)
    async def mailbox_totals(self, info: Info, patterns: list[str] | None = UNSET) -> MailboxTotals:
        conditions = MailboxConditions(_path_patterns(patterns), include_hidden=True)
        sums = await mailbox_listing.sum_counters(info.context, self.row.id, conditions)
        return MailboxTotals(
            message_count=BigInt(sums.total),
            unseen_count=BigInt(sums.unseen),
            size=ByteSize(sums.size),
        )

    @field("Paths subscribed to without a folder, sorted.", scope=Scope.MAIL_READ)
    async def subscribed_paths(self, info: Info) -> list[str]:
        return sorted(
            await info.context.load(subscriptions.load_subscriptions_by_user, self.row.id)
        )

    @field("One folder.", scope=Scope.MAIL_READ)
    async def mailbox(self, info: Info, by: MailboxRef) -> Mailbox | None:
        row = await info.context.load(
            mailbox_loaders.load_by_selectors,
            (self.row.id, mailbox_selector_from_ref(by, path="by")),
        )
        return Mailbox.from_row_or_none(row)

    @field("Messages in all folders, newest first.", scope=Scope.MAIL_READ)
    async def messages(
        self,
        info: Info,
        filter: MessageFilter | None = UNSET,
        order_by: MessageOrder = MessageOrder.RECEIVED_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> MessageConnection:
        request = MessageListRequest(filter, order_by, PageArguments(first, after, last, before))
        return await load_message_page(info, request, user_ids=[self.row.id])

    @field("Deleted, and recoverable still.", scope=Scope.MAIL_READ)
    async def deleted_messages(
        self,
        info: Info,
        filter: MessageFilter | None = UNSET,
        order_by: DeletedMessageOrder = DeletedMessageOrder.DELETED_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DeletedMessage]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_deleted_message_page(info, self.row.id, filter, order_by, page_arguments)

    @field(
        "Keywords with name and colour, by name; of others nobody sees any.", scope=Scope.MAIL_READ
    )
    async def labels(self, info: Info) -> list[Label]:
        rows = await info.context.load(labels.load_labels_by_user, self.row.id)
        return await objects_from_rows_with_links(info, Label, rows)

    @field("Searches that are kept, by name; of others nobody sees any.", scope=Scope.MAIL_READ)
    async def saved_searches(self, info: Info) -> list[SavedSearch]:
        rows = await info.context.load(
            saved_searches.load_visible_saved_searches_by_user, self.row.id
        )
        return await objects_from_rows_with_links(info, SavedSearch, rows)

    @field(
        "Exports that can be fetched, or are being made; newest first. Only the user and a ROOT "
        "see them; others get FORBIDDEN.",
        scope=Scope.MAIL_READ,
    )
    async def exports(self, info: Info) -> list[UserExport]:
        require_readable_account(info.context, self.row.id)
        rows = await info.context.load(exports.load_exports_by_user, self.row.id)
        return await objects_from_rows_with_links(info, UserExport, rows)

    @field("Stored files, the newest first; query = part of the name.", scope=Scope.MAIL_READ)
    async def files(
        self,
        info: Info,
        query: Annotated[
            str | None,
            strawberry.argument(
                description="Returns only files with this text in the name, in any case. At most "
                "1,000 characters."
            ),
        ] = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[File]:
        return await load_file_page(
            info, self.row.id, query, PageArguments(first, after, last, before)
        )

    @field(
        "Sent and scheduled mail with delivery state, newest first. Administrators see that of the "
        "accounts they manage, a DOMAIN_ADMIN with IMPERSONATE; others get FORBIDDEN.",
        scope=Scope.MAIL_READ,
    )
    async def submissions(
        self,
        info: Info,
        states: list[SubmissionState] | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Submission]:
        return await load_submission_page(
            info, self.row.id, states, PageArguments(first, after, last, before)
        )
