"""GraphQL type of users."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

import graph.auth.types
from graph.addresses import contacts
from graph.addresses.contacts import AddressRegisterEntry
from graph.addresses.types import Address, address_page
from graph.admin.key_values import Key, KeyValue
from graph.auth.app_passwords import AppPassword
from graph.auth.password_policy import PasswordPolicy
from graph.auth.second_factors import TwoFactor, WebauthnKey
from graph.auth.security_log import AuthEvent, AuthLogFilter, event_page
from graph.autoreply.types import Autoreply
from graph.connectors.types import Connector, connector_page
from graph.domains.types import Domain
from graph.files.types import File, file_page
from graph.filters.sieve_scripts import SieveScript, script_named, script_page
from graph.filters.types import Filter, filter_page
from graph.mailboxes.share_mutations import shared_page
from graph.mailboxes.types import Mailbox, MailboxTotals
from graph.messages.deleted_messages import ArchivedMessage, archive_page
from graph.messages.filter_inputs import MessageFilter, MessageOrder, Wanted
from graph.messages.labels import Label
from graph.messages.types import MessageConnection, message_page
from graph.notifications.push_channels import PushChannel
from graph.queue.rate_limits import RateLimit
from graph.search.saved_searches import SavedSearch
from graph.spam.quarantine import QuarantineItem, item_page
from graph.submission.identities import Identity, identity_page
from graph.submission.types import Submission, submission_page
from graph.transfer.types import AccountExport
from graph.types.connections import Connection, OrderDirection, page_asked
from graph.types.errors import leaf
from graph.types.fields import Info, field
from graph.types.object_views import Made, Whole
from graph.types.references import MailboxRef, items_of, named
from graph.types.row_mapping import Shape, columns, identified, link, listed
from graph.types.scalars import CIDR, BigInt, ByteSize, Cursor, Duration
from graph.users import limits as user_limits
from graph.users.part_types import EffectiveSetting, KeyInfo, SpamPolicy, info_of, policy_of
from models.store.keyset_pages import ordering
from models.submission.tables import SubmissionState
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import DelimiterAction, Frequency, ProtocolScope
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses.loaders import OfUser
from resolvers.admin import key_values
from resolvers.admin.key_values import Namespace
from resolvers.auth import access_tokens, app_passwords
from resolvers.auth.passwords import password_policy
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors import recovery_codes, webauthn
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod, enabled
from resolvers.autoreply import autoreplies
from resolvers.changes import stream_reader
from resolvers.domains import loaders as domain_loaders
from resolvers.mailboxes import listing as mailbox_listing
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import subscriptions
from resolvers.mailboxes.listing import Only
from resolvers.messages import labels
from resolvers.messages.content_access import openable
from resolvers.notifications import push_channels
from resolvers.queue import rate_limits
from resolvers.search import saved_searches
from resolvers.transfer import exports
from resolvers.users import effective_settings
from resolvers.users import loaders as user_loaders
from resolvers.users.quota import limits as quota_limits

if TYPE_CHECKING:
    from graph.auth.types import AccessToken


def _masks(masks: list[str] | None) -> tuple[str, ...] | None:
    """Return the path masks as a tuple; None if they are absent."""
    return tuple(masks) if isinstance(masks, list) else None


def _listed(enum: Any) -> Callable[[list[str]], list[Any]]:
    """Return a function that converts stored values to members of an enum."""
    return lambda values: [enum(value) for value in values]


@strawberry.type(description="Account.")
class User(Shape):
    username: str = leaf("Lower case.")
    name: str | None = leaf("Display name.")
    role: Role = leaf("USER unless delegated.")
    address: Address | None = link(
        "id",
        address_loaders.mains,
        Address.maybe,
        description="Main address, null for accounts without one.",
    )
    local_part: str | None = link(
        "id",
        address_loaders.mains,
        lambda row: row and row.shown.rpartition("@")[0],
        description="Left part of the main address.",
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.by_ids,
        Domain.maybe,
        description="Domain of the main address.",
    )
    tags: list[str] = leaf("Labels such as domain:example.com.")
    language: str | None = leaf("For texts sent to the user.")
    meta_data: JSON | None = leaf("Free data of the application.")
    created_at: datetime = leaf("Created.")
    updated_at: datetime = leaf("Changed.")
    last_login_at: datetime | None = leaf("Last successful login.")
    activated: bool = leaf("Has a password and may start.")
    disabled: bool = leaf("No login, no new mail.")
    suspended: bool = leaf("No login.")
    has_password_set: bool = leaf("Can log in with a password.")
    require_password_change: bool = leaf("At next login.")
    disabled_scopes: list[ProtocolScope] = leaf("Protocols switched off.")
    from_whitelist: list[str] = leaf("Further senders: addresses, domains, patterns with one *.")
    retention: Duration | None = leaf("Life of messages in new folders, null = for ever.")
    pub_key: str | None = leaf("OpenPGP public key, armoured.")
    key_info: KeyInfo | None = leaf("What the key says.")
    encrypt_messages: bool = leaf("All that arrives is encrypted to the key.")
    upload_sent_messages: bool = leaf("What is sent by SMTP submission is kept in Sent.")
    tls_enforce_in: bool = leaf("Mail that comes by SMTP without TLS is refused.")
    tls_enforce_out: bool = leaf("Mail goes to servers elsewhere over TLS, or waits.")
    smtp_allowed_networks: list[CIDR] = leaf("SMTP submission only from here, empty = anywhere.")
    targets: list[str] = leaf(
        "What comes goes there too: addresses, smtp:// relays, http(s):// URLs. The password of a "
        "relay is ***."
    )
    encrypt_forwarded: bool = leaf("What goes there is encrypted to the key.")
    delimiter_action: DelimiterAction = leaf("What mail to user+label@domain does.")
    spam: SpamPolicy = leaf("Spam thresholds.")
    quarantine_notification: Frequency = leaf("Letters about held mail.")
    webmail_access: bool = leaf("May use browser clients.")
    permissions: list[UserPermission] = leaf("What the user may change.")
    admin_permissions: list[AdminPermission] = leaf("What a DOMAIN_ADMIN may do for users.")
    message_count: BigInt = leaf("All messages.")
    enabled2fa: list[TwoFactorMethod] = leaf("Second factors that are on.")
    rate_limit: RateLimit | None = link(
        "id",
        rate_limits.by_ids,
        RateLimit.maybe,
        description="Own sending rate, beside that of the domain; null = what the settings say.",
    )
    cursor: Cursor = link(
        "id",
        stream_reader.by_streams,
        Cursor,
        description="Journal position, for subscribing.",
    )

    batch = staticmethod(user_loaders.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("User"),
        "activated": Made(
            ("password", "temporary_password", "disabled", "suspended"),
            lambda password, temporary, disabled, suspended: (
                bool(password or temporary) and not (disabled or suspended)
            ),
        ),
        "enabled2fa": Whole(("second_factors",), enabled),
        "targets": Made(("targets",), list),
        "delimiter_action": Made(("delimiter_action",), DelimiterAction),
        "has_password_set": Made(
            ("password", "temporary_password"),
            lambda password, temporary: bool(password or temporary),
        ),
        "disabled_scopes": Made(("disabled_scopes",), _listed(ProtocolScope)),
        "retention": Made(
            ("retention",), lambda life: None if life is None else timedelta(seconds=life)
        ),
        "key_info": Made(("key_info",), info_of),
        "spam": Made(("spam_level", "junk_score", "reject_score"), policy_of),
        "permissions": Made(("permissions",), _listed(UserPermission)),
        "admin_permissions": Made(("admin_permissions",), _listed(AdminPermission)),
    }

    @field("Domains a DOMAIN_ADMIN is in charge of.", "id")
    async def administers(self, info: Info) -> list[Domain]:
        rows = await info.context.load(user_loaders.administered, self.row.id)
        return await listed(info, Domain, rows)

    @field("Free data hidden from the user.", "internal_data", role=Role.DOMAIN_ADMIN)
    async def internal_data(self) -> JSON | None:
        internal_data: JSON | None = self.row.internal_data
        return internal_data

    @field("Limits with what is used of them.", *user_limits.COLUMNS)
    async def limits(self) -> user_limits.UserLimits:
        return user_limits.UserLimits.of(self.row)

    @field("Used share of the quota in percent; null = unlimited.", "quota", "used", "domain_id")
    async def quota_percent(self, info: Info) -> float | None:
        allowed = await quota_limits.allowed(info.context, self.row)
        return max(self.row.used, 0) * 100 / allowed if allowed else None

    @field(
        "Most this user could be given within the domain; null = nothing limits it.",
        "quota",
        "domain_id",
        role=Role.DOMAIN_ADMIN,
    )
    async def max_new_quota(self, info: Info) -> ByteSize | None:
        max_quota = await quota_limits.most(info.context, self.row)
        return None if max_quota is None else ByteSize(max_quota)

    @field("What a password must have to be set here.", "id")
    async def password_policy(self, info: Info) -> PasswordPolicy:
        return PasswordPolicy.of(await info.context.load(password_policy.of_users, self.row.id))

    @field("Mail is passed on to another server (backup MX domain).", "domain_id")
    async def is_relayed(self, info: Info) -> bool:
        key = self.row.domain_id
        domain = await info.context.load(domain_loaders.by_ids, key) if key else None
        return bool(domain and domain.backup_mx)

    @field("How messages are stored, with compression and encryption at rest.", role=Role.ADMIN)
    async def storage_format(self) -> str:
        return effective_settings.FORMAT

    @field(
        "What a service is told about the user: api, imap, lmtp, pop3 or smtp; absent = all.",
        *effective_settings.COLUMNS,
        role=Role.ADMIN,
    )
    async def effective_settings(
        self,
        info: Info,
        service: str | None = UNSET,
        fields: list[str] | None = UNSET,
        userdb_only: bool = False,
        expand: str | None = UNSET,
    ) -> list[EffectiveSetting]:
        request = effective_settings.Asked(
            service or None, items_of(fields), userdb_only, expand or None
        )
        settings = await effective_settings.settings(info.context, self.row, request)
        return [EffectiveSetting(key=key, value=value) for key, value in settings]

    @field("How many temporary addresses have not ended.")
    async def temporary_address_count(self, info: Info) -> int:
        return await info.context.load(address_loaders.temporary, self.row.id)

    @field("Those with an end that is to come, and masked ones, which have none.")
    async def temporary_addresses(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> Connection[Address]:
        requested_page = page_asked("temporary", first, after, None, None)
        page_key = OfUser(self.row.id, requested_page, columns(info, Address), temporary=True)
        return await address_page(info, page_key)

    @field("All that deliver here.")
    async def addresses(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        query: str | None = UNSET,
    ) -> Connection[Address]:
        requested_page = page_asked(ordering("address", query or None), first, after, None, None)
        page_key = OfUser(self.row.id, requested_page, columns(info, Address), query or None)
        return await address_page(info, page_key)

    @field(
        "Correspondents whose address or name begins so, most recent first, then colleagues where "
        "the domain has globalAddressList; of others nobody sees any.",
        scope=Scope.MAIL_READ,
    )
    async def address_register(
        self,
        info: Info,
        query: Annotated[str, strawberry.argument(description="How it begins, in any case.")],
        first: Annotated[int, strawberry.argument(description="How many, 1 to 250.")] = 25,
    ) -> list[AddressRegisterEntry]:
        return await contacts.begun(info, self.row.id, query, first)

    @field("What the user may send as, by address.", scope=Scope.MAIL_READ)
    async def identities(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> Connection[Identity]:
        return await identity_page(info, self.row.id, first, after)

    @field(
        "In the order they are run; of others only with FILTERS.",
        scope=Scope.READ,
    )
    async def filters(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> Connection[Filter]:
        return await filter_page(info, self.row.id, first, after)

    @field("Accounts elsewhere; of others only with SYNCJOBS.", scope=Scope.READ)
    async def connectors(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Connector]:
        return await connector_page(info, self.row.id, (first, after, last, before))

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
        return await event_page(info, self.row.id, filter, first, after, last, before)

    @field("Live tokens, newest first; of others nobody sees any.", scope=Scope.READ)
    async def access_tokens(
        self, info: Info
    ) -> list[Annotated["AccessToken", strawberry.lazy("graph.auth.types")]]:
        rows = await info.context.load(access_tokens.tokens_of, self.row.id)
        return await listed(info, graph.auth.types.AccessToken, rows)

    @field("Second factors that are on, with their last use.", scope=Scope.READ)
    async def two_factors(self, info: Info) -> list[TwoFactor]:
        rows = await info.context.load(second_factors_mutations.standing, self.row.id)
        return [TwoFactor.of(row) for row in rows]

    @field("Recovery codes that are not used yet.", scope=Scope.READ)
    async def recovery_codes_left(self, info: Info) -> int:
        return await info.context.load(recovery_codes.left, self.row.id)

    @field("Security keys, the oldest first.", scope=Scope.READ)
    async def webauthn_keys(self, info: Info) -> list[WebauthnKey]:
        rows = await info.context.load(webauthn.of_users, self.row.id)
        return await listed(info, WebauthnKey, rows)

    @field(
        "Passwords of programs, the newest first; without those that end, unless showAll.",
        scope=Scope.READ,
    )
    async def app_passwords(self, info: Info, show_all: bool = False) -> list[AppPassword]:
        rows = await info.context.load(app_passwords.of_users, (self.row.id, show_all))
        return await listed(info, AppPassword, rows)

    @field("Vacation answer; where none was set, createdAt is null.", scope=Scope.READ)
    async def autoreply(self, info: Info) -> Autoreply | None:
        return Autoreply.maybe(await info.context.load(autoreplies.of_users, self.row.id))

    @field("Scripts in Sieve, by name.", scope=Scope.READ)
    async def sieve_scripts(
        self, info: Info, first: int | None = 50, after: str | None = UNSET
    ) -> Connection[SieveScript]:
        return await script_page(info, self.row.id, first, after)

    @field("The script of this name.", scope=Scope.READ)
    async def sieve_script(self, info: Info, name: str) -> SieveScript | None:
        return await script_named(info, self.row.id, name)

    @field("Where the user is told of new mail, by kind.", scope=Scope.READ)
    async def push_channels(self, info: Info) -> list[PushChannel]:
        rows = await info.context.load(push_channels.of_users, self.row.id)
        return await listed(info, PushChannel, rows)

    @field(
        "Held mail, newest first.",
        scope=Scope.READ,
        user_permission=UserPermission.QUARANTINE,
    )
    async def quarantine(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> Connection[QuarantineItem]:
        return await item_page(info, self.row.id, first, after)

    @field("Own key-value store: an entry of the one called default.", scope=Scope.READ)
    async def key_value(self, info: Info, key: Key) -> KeyValue | None:
        return KeyValue.maybe(await key_values.find(info.context, Namespace(self.row.id), key))

    @field("Folders in path order.", scope=Scope.MAIL_READ)
    async def mailboxes(
        self,
        info: Info,
        masks: list[str] | None = UNSET,
        special_use: bool = False,
        show_hidden: bool = False,
        subscribed: bool | None = UNSET,
    ) -> list[Mailbox]:
        conditions = Only(
            _masks(masks),
            special_use=special_use,
            hidden=show_hidden,
            subscribed=subscribed if isinstance(subscribed, bool) else None,
        )
        column_names = columns(info, Mailbox)
        rows = await mailbox_listing.of_user(info.context, self.row.id, column_names, conditions)
        return await listed(info, Mailbox, rows)

    @field("Folders that others share with the user, owner by owner.", scope=Scope.MAIL_READ)
    async def shared_mailboxes(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Mailbox]:
        return await shared_page(info, self.row.id, (first, after, last, before))

    @field("Sums over folders, hidden ones too.", scope=Scope.MAIL_READ)
    async def mailbox_totals(self, info: Info, masks: list[str] | None = UNSET) -> MailboxTotals:
        conditions = Only(_masks(masks), hidden=True)
        sums = await mailbox_listing.totals(info.context, self.row.id, conditions)
        return MailboxTotals(
            total=BigInt(sums.total), unseen=BigInt(sums.unseen), size=ByteSize(sums.size)
        )

    @field("Paths subscribed to without a folder, sorted.", scope=Scope.MAIL_READ)
    async def subscribed_paths(self, info: Info) -> list[str]:
        return sorted(await info.context.load(subscriptions.of_users, self.row.id))

    @field("One folder.", scope=Scope.MAIL_READ)
    async def mailbox(self, info: Info, by: MailboxRef) -> Mailbox | None:
        row = await info.context.load(mailbox_loaders.named, (self.row.id, named(by, path="by")))
        return Mailbox.maybe(row)

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
        request = Wanted(filter, order_by, (first, after, last, before))
        return await message_page(info, request, users=[self.row.id])

    @field("Deleted, and recoverable still.", scope=Scope.MAIL_READ)
    async def archived_messages(
        self,
        info: Info,
        filter: MessageFilter | None = UNSET,
        order_by: OrderDirection = OrderDirection.DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[ArchivedMessage]:
        page = (first, after, last, before)
        return await archive_page(info, self.row.id, filter, order_by, page)

    @field(
        "Keywords with name and colour, by name; of others nobody sees any.", scope=Scope.MAIL_READ
    )
    async def labels(self, info: Info) -> list[Label]:
        rows = await info.context.load(labels.of_users, self.row.id)
        return await listed(info, Label, rows)

    @field("Searches that are kept, by name; of others nobody sees any.", scope=Scope.MAIL_READ)
    async def saved_searches(self, info: Info) -> list[SavedSearch]:
        rows = await info.context.load(saved_searches.of_users, self.row.id)
        return await listed(info, SavedSearch, rows)

    @field(
        "Exports that can be fetched, or are being made; newest first. Only the user and a ROOT "
        "see them; others get FORBIDDEN.",
        scope=Scope.MAIL_READ,
    )
    async def exports(self, info: Info) -> list[AccountExport]:
        openable(info.context, self.row.id)
        rows = await info.context.load(exports.of_users, self.row.id)
        return await listed(info, AccountExport, rows)

    @field("Stored files, the newest first; query = part of the name.", scope=Scope.MAIL_READ)
    async def files(
        self,
        info: Info,
        query: str | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[File]:
        return await file_page(info, self.row.id, query, (first, after, last, before))

    @field(
        "Sent and scheduled mail with delivery state, newest first. Administrators see that of the "
        "accounts they manage, a DOMAIN_ADMIN with LOGIN_AS; others get FORBIDDEN.",
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
        return await submission_page(info, self.row.id, states, (first, after, last, before))
