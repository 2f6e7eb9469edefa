"""Mutations that change users."""

from datetime import datetime

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.access_grants import GIVES_ACCESS
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.idempotent_payloads import SECRET_METADATA
from graph.types.input_conditions import RestrictionsInput
from graph.types.mutations import PASSWORD_HASH_COST, AtomicExclusion, mutation
from graph.types.object_access import MANAGED
from graph.types.references import (
    DomainRef,
    UserRef,
    UserSelection,
    is_true,
    load_visible_user,
    maybe_value,
    require_administered_domain_ids,
    user_selector_from_selection,
)
from graph.types.scalars import CIDR, ByteSize, Duration
from graph.users.column_requirements import user_patch_field
from graph.users.create_mutations import (
    FORWARD_TO_DESCRIPTION,
    HASH_DESCRIPTION,
    SENDERS_DESCRIPTION,
)
from graph.users.limits import UserLimitsInput, limit_value, validated_limit_columns_of_patch
from graph.users.part_types import SPAM_COLUMNS, SpamPolicyInput
from graph.users.payloads import UsersPayload, load_users_payload
from models.errors import InvalidInput, require_found
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import Frequency, ProtocolScope, SubaddressAction
from models.validation_constraints import ValidationConstraint
from resolvers.auth.passwords import password_reset
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.users import roles as user_roles
from resolvers.users import update as user_update
from resolvers.users.roles import RoleChange
from resolvers.users.update import UserChanges

LIMIT_COLUMNS = ("received_per_hour", "recipients_per_day", "forwards_per_day")
UPDATE_FIELDS = (
    "name",
    "password_change_required",
    "active",
    "suspended",
    "tags",
    "retention",
    "private_metadata",
    "language",
    "allowed_senders",
    "disabled_scopes",
    "quarantine_notification",
    "upload_sent_messages",
    "require_inbound_tls",
    "require_outbound_tls",
    "smtp_allowed_networks",
    "webmail_access",
    "allow_local",
    "encrypt_messages",
    "encrypt_forwarded",
    "subaddress_action",
)


@strawberry.input(
    description=(
        "New values of accounts. At least one is required. An absent field leaves the value. Null "
        "clears a value that can be empty; for other fields null is an error."
    )
)
class UserPatch(RestrictionsInput):
    restriction_fields = frozenset({"smtp_allowed_networks"})
    username: strawberry.Maybe[str] = user_patch_field(
        "New name to sign in with: at most 128 characters a-z, 0-9 and hyphens, in groups joined "
        "by one of `._=:`. It can be an address of such characters. Case is ignored, and so are "
        "dots, except in the domain of an address. Allowed for one account only. CONFLICT if "
        "another account has the name. The addresses of the account stay.",
        "username",
    )
    name: strawberry.Maybe[str | None] = user_patch_field(
        "Display name of the account, at most 255 characters. Null: none.", "name"
    )
    password: strawberry.Maybe[str] = user_patch_field(
        "New password of at most 256 characters, which must meet the `passwordPolicy` of the "
        "account, or its hash with `hashedPassword`. A temporary password ends, and "
        "`passwordChangeRequired` becomes false unless it is set, too. Not allowed with "
        "`passwordDisabled`. Allowed for one account only. Requires scope FULL, except after a "
        "sign-in with a temporary password.",
        "password",
    )
    password_disabled: strawberry.Maybe[bool] = user_patch_field(
        "True removes the password and a temporary password. Application passwords, API keys and "
        "sign-in at the identity provider of the domain don't need one. False changes nothing. "
        "Requires scope FULL.",
        "password",
    )
    hashed_password: strawberry.Maybe[bool] = user_patch_field(
        f"{HASH_DESCRIPTION} Default: false. Null is refused.", "hashed_password"
    )
    allow_unsafe: strawberry.Maybe[bool] = attribute_field(
        "False refuses a `password` that the built-in or configured lists of breached passwords "
        "contain, and is an error with `hashedPassword`. True: the lists are not searched. "
        "Default: true. Null is refused."
    )
    password_change_required: strawberry.Maybe[bool] = user_patch_field(
        "True: `authenticate` reports that the user should set a new password, until a new "
        "password is set. Until then the OAuth sign-in page refuses passwords of the account. "
        "Otherwise the server does not enforce it.",
        "password_change_required",
    )
    active: strawberry.Maybe[bool] = user_patch_field(
        "False: the user can neither sign in nor receive messages. Access tokens, WebSocket "
        "connections and event streams end. API keys and application passwords are refused until "
        "the account is active again. If the account is an administrator, BCC rules and webhooks "
        "that it made are deleted. Shares, and `bcc` and `replyTo` of identities, that it set for "
        "other users are removed too. A new activation restores none of these.",
        "active",
    )
    suspended: strawberry.Maybe[bool] = user_patch_field(
        "True: the account receives messages, but nobody can sign in, and it sends no autoreplies. "
        "Access tokens, WebSocket connections and event streams end. API keys and application "
        "passwords are refused until the suspension ends. If the account is an administrator, BCC "
        "rules and webhooks that it made are deleted. Shares, and `bcc` and `replyTo` of "
        "identities, that it set for other users are removed too. The end of the suspension "
        "restores none of these.",
        "suspended",
    )
    tags: strawberry.Maybe[list[str] | None] = user_patch_field(
        "Tags of the account: at most 1,000, each of 1 to 128 characters. Of tags that differ "
        "only in case, the first is stored. The list replaces the stored one. Null removes all "
        "tags.",
        "tags",
    )
    retention: strawberry.Maybe[Duration | None] = user_patch_field(
        "Time after which messages that are added from now on are deleted, from 1 second to "
        "36,500 days. It applies to new mailboxes and to mailboxes that inherit the retention of "
        "the account. Null: messages are kept for ever.",
        "retention",
    )
    openpgp_public_key: strawberry.Maybe[str | None] = user_patch_field(
        "OpenPGP public key (RFC 9580) in ASCII armor. A key that can't encrypt, is revoked or "
        "has expired is an error. Null removes the key, which is a CONFLICT while the account or "
        "a mailbox encrypts messages with it.",
        "openpgp_public_key",
    )
    encrypt_messages: strawberry.Maybe[bool] = user_patch_field(
        "True encrypts received messages with the OpenPGP key of the account before they are "
        "stored. An error if the account has no key.",
        "encrypt_messages",
    )
    forward_to: strawberry.Maybe[list[str] | None] = user_patch_field(
        f"{FORWARD_TO_DESCRIPTION} The list replaces the stored one. A relay URL with `***` as "
        "password keeps the stored password. Null: no forwarding.",
        "forward_to",
        metadata=GIVES_ACCESS,
    )
    encrypt_forwarded: strawberry.Maybe[bool] = user_patch_field(
        "True encrypts messages to `forwardTo` with the OpenPGP key of the account. An error if "
        "the account has no key.",
        "encrypt_forwarded",
    )
    subaddress_action: strawberry.Maybe[SubaddressAction] = user_patch_field(
        "Treatment of mail to an address with a subaddress (RFC 5233), such as "
        "`user+label@example.com`.",
        "subaddress_action",
    )
    metadata: strawberry.Maybe[JSON | None] = user_patch_field(
        "JSON object with data of your application, which the user can read and change. It "
        "replaces the stored object. At most 64 KiB by default. Null removes it.",
        "public_metadata",
    )
    private_metadata: strawberry.Maybe[JSON | None] = user_patch_field(
        "JSON object with data of your application that the user can't read. It replaces the "
        "stored one. At most 64 KiB by default. Null removes it.",
        "private_metadata",
    )
    language: strawberry.Maybe[str | None] = user_patch_field(
        "Language tag such as `de` or `pt-BR`, which selects the language of messages from the "
        "server. Null: English.",
        "language",
    )
    allowed_senders: strawberry.Maybe[list[str] | None] = user_patch_field(
        f"{SENDERS_DESCRIPTION} The list replaces the stored one. Null: none.", "allowed_senders"
    )
    disabled_scopes: strawberry.Maybe[list[ProtocolScope] | None] = user_patch_field(
        "Protocols that the account can't sign in to. The list replaces the stored one. Null or "
        "an empty list: none.",
        "disabled_scopes",
    )
    spam: strawberry.Maybe[SpamPolicyInput | None] = user_patch_field(
        "Spam thresholds of the account. Null: the defaults of all three thresholds.", "spam_level"
    )
    quarantine_notification: strawberry.Maybe[Frequency] = user_patch_field(
        "Time from the first unlisted message in the quarantine of the account to the next "
        "digest. It is at most half of the quarantine retention.",
        "quarantine_notification",
    )
    quota: strawberry.Maybe[ByteSize | None] = user_patch_field(
        "Bytes that the account can store, at least 1. Null: unlimited, for which a DOMAIN_ADMIN "
        "needs UNLIMITED_QUOTA. LIMIT_REACHED if the increase exceeds the free storage of the "
        "domain, or the quota exceeds `maxUserQuota` of the domain. The increases of several "
        "accounts of a domain count together. Null is LIMIT_REACHED if the domain has a quota or "
        "`maxUserQuota`.",
        "quota",
    )
    inherit_quota: strawberry.Maybe[bool] = user_patch_field(
        "True: the account inherits its quota from the domain, or else from the platform. "
        "LIMIT_REACHED if that quota does not fit into the domain. Not allowed with `quota`. "
        "False changes nothing.",
        "quota",
    )
    limits: strawberry.Maybe[UserLimitsInput] = user_patch_field(
        "Sending and receiving limits of the account. The counter of a changed limit starts at 0.",
        "received_per_hour",
    )
    inherit_limits: strawberry.Maybe[bool] = user_patch_field(
        "True: the account inherits all sending and receiving limits from the platform. "
        "The counter of a changed limit starts at 0. Not allowed with `limits`. False changes "
        "nothing.",
        "received_per_hour",
    )
    upload_sent_messages: strawberry.Maybe[bool] = user_patch_field(
        "True stores messages that the account sends by SMTP submission in its Sent mailbox.",
        "upload_sent_messages",
    )
    require_inbound_tls: strawberry.Maybe[bool] = user_patch_field(
        "True refuses messages that other servers send to the account by SMTP without TLS.",
        "require_inbound_tls",
    )
    require_outbound_tls: strawberry.Maybe[bool] = user_patch_field(
        "True delivers messages of the account to other servers only over TLS; without TLS the "
        "delivery is deferred.",
        "require_outbound_tls",
    )
    smtp_allowed_networks: strawberry.Maybe[list[CIDR] | None] = user_patch_field(
        "Networks from which the account can sign in to SMTP submission, at most 100. The list "
        "replaces the stored one. Null: any network. An empty list is an error.",
        "smtp_allowed_networks",
    )
    webmail_access: strawberry.Maybe[bool] = user_patch_field(
        "False: the account password can't be used for HTTP Basic authentication, nor to create an "
        "access token, which web mail clients need. OAuth clients get no new tokens with scopes "
        "for GraphQL and REST, also not by a refresh token. Existing access tokens stay valid. "
        "Application passwords, API keys and SMTP are not affected.",
        "webmail_access",
    )
    allow_local: strawberry.Maybe[bool] = user_patch_field(
        "True: the account belongs to no directory, such as that of a machine that only sends "
        "mail. It signs in with its password, never at the identity provider of the domain. The "
        "identity provider and SCIM don't change it.",
        "allow_local",
    )

    @property
    def refuses_unsafe_password(self) -> bool:
        """True if the new password must not be on a list of breached passwords."""
        return maybe_value(self.allow_unsafe) is False

    def to_validated_user_changes(self) -> UserChanges:
        """Convert the input to changes of users. Absent fields are left out."""
        values = {name: change.value for name in UPDATE_FIELDS if (change := getattr(self, name))}
        values |= validated_limit_columns_of_patch(self, LIMIT_COLUMNS)
        if self.quota:
            values["quota"] = limit_value(self.quota.value)
        if is_true(self.inherit_quota):
            if self.quota:
                text = "`inheritQuota` can't be combined with a quota of the account."
                raise InvalidInput(
                    text, constraint=ValidationConstraint.EXCLUSIVE, path=["set", "inheritQuota"]
                )
            values["quota"] = None
        if self.spam:
            values |= (
                self.spam.value.to_column_values()
                if self.spam.value
                else dict.fromkeys(SPAM_COLUMNS)
            )
        if self.metadata:
            values["public_metadata"] = self.metadata.value
        password = None
        if self.password:
            password = NewPassword(
                self.password.value,
                is_hash=is_true(self.hashed_password),
                allow_unsafe=not self.refuses_unsafe_password,
            )
        return UserChanges(
            values,
            username=maybe_value(self.username),
            forward_to=(self.forward_to.value or []) if self.forward_to else None,
            openpgp_public_key=(self.openpgp_public_key.value or "")
            if self.openpgp_public_key
            else None,
            password=password,
            password_disabled=is_true(self.password_disabled),
        )


@strawberry.input(description="Input of userUpdate.")
class UserUpdateInput(Options):
    users: UserSelection | None = attribute_field(
        "Accounts to change. Default: the signed-in user.", default=UNSET
    )
    existing_password: str | None = attribute_field(
        "Current or temporary password of the account to change, which must be one account. "
        "Required if the signed-in user has a password, and changes or removes it. If it is "
        "given, it is checked for every change, also of another user. It is ignored if the "
        "account has no password. Wrong attempts are counted.",
        default=UNSET,
    )
    set: UserPatch = attribute_field(
        "New values, the same for all accounts. At least one value is required."
    )


@strawberry.input(
    description=(
        "Input of userRoleSet. At least one of `role`, `administers` and `adminPermissions` is "
        "required. Null or an absent field leaves the value. Another role than DOMAIN_ADMIN clears "
        "`administers` and `adminPermissions`."
    )
)
class UserRoleSetInput(Options):
    users: UserSelection = attribute_field("Accounts whose role is set.")
    role: Role | None = attribute_field(
        "Role of the accounts. It can't exceed the role of the caller, and PUBLIC is "
        "refused. Default: unchanged.",
        default=UNSET,
    )
    administers: list[DomainRef] | None = attribute_field(
        "Domains that the account administers as DOMAIN_ADMIN, at most 1,000. The list replaces "
        "the stored one. Refused for other roles. An empty list removes all. Default, and with "
        "null: unchanged.",
        default=UNSET,
    )
    admin_permissions: list[AdminPermission] | None = attribute_field(
        "Permissions that the account has as DOMAIN_ADMIN for users of the administered domains. "
        "The list replaces the stored one. Refused for other roles. An empty list removes all. "
        "Default, and with null: unchanged.",
        default=UNSET,
    )


@strawberry.input(description="Input of userPermissionsSet.")
class UserPermissionsSetInput(Options):
    users: UserSelection = attribute_field("Accounts whose permissions are set.")
    permissions: list[UserPermission] = attribute_field(
        "Permissions that the accounts have. The list replaces the stored one; an empty list gives "
        "none."
    )


@strawberry.input(description="Input of userPasswordReset.")
class UserPasswordResetInput(Options):
    user: UserRef = attribute_field(
        "Account that gets the temporary password. The signed-in user is refused."
    )
    starts_at: datetime | None = attribute_field(
        "Time from which the temporary password is valid. More than 365 days ahead is an error. "
        "Default: now, which also replaces a past time.",
        default=UNSET,
    )


@strawberry.type(description="Payload of userPasswordReset.")
class UserPasswordResetPayload(MutationPayload):
    password: str | None = attribute_field(
        "Temporary password, valid for 24 hours from `startsAt`. It is returned once. Null if the "
        "mutation failed, if it is `replayed`, and with `validateOnly`.",
        default=None,
        metadata=SECRET_METADATA,
    )


def _needs_separate_transaction(update_input: UserUpdateInput) -> bool:
    """True if the mutation must not run within another transaction.

    It then asks the list of known passwords, or counts a wrong existing password.
    """
    return update_input.set.refuses_unsafe_password or isinstance(
        update_input.existing_password, str
    )


@strawberry.type
class UserUpdateMutation:
    @mutation(
        "Changes the account of the signed-in user, or the selected accounts: all of them or "
        "none. The fields of `set` say if only an administrator can change them. A DOMAIN_ADMIN "
        "can change such fields of the own account only if it is in an administered domain. A new "
        "or removed password requires the scope FULL. It ends the access tokens of the account "
        "and the connections that they opened. If the own account changes, the token of the "
        "request and its connection stay. API keys and application passwords stay valid. After a "
        "sign-in with a temporary password, only a new password of the own account can be set, "
        "without the scope FULL. VALIDATION if a user with a password changes the own password "
        "without `existingPassword`. AUTHENTICATION_FAILED if `existingPassword` is wrong, "
        "RATE_LIMITED after too many wrong ones. CONFLICT if the username is taken, or another "
        "request moves a user to another domain at the same time. CONFLICT also if an OpenPGP key "
        "is removed that the account or a mailbox uses to encrypt messages. LIMIT_REACHED if a "
        "quota exceeds what the domain allows, or for more than 1,000 accounts (by default). "
        "QUOTA_EXCEEDED if new metadata exceed the storage quota of the account.",
        scope=Scope.SETTINGS,
        atomic_exclusion=AtomicExclusion(
            "A check for breached passwords",
            "With `existingPassword` or `allowUnsafe: false`",
            applies_to=_needs_separate_transaction,
        ),
        access=MANAGED.with_scope(Scope.FULL),
    )
    async def user_update(self, info: Info, input: UserUpdateInput) -> UsersPayload:
        existing = input.existing_password
        keys = await user_update.update_users(
            info.context,
            user_selector_from_selection(input.users),
            input.set.to_validated_user_changes(),
            existing if isinstance(existing, str) else None,
        )
        return await load_users_payload(info, keys)

    @mutation(
        "Sets the role of accounts, and the domains and permissions of a DOMAIN_ADMIN, for all "
        "accounts or none. FORBIDDEN for a role above the caller's. Access tokens stay valid, "
        "with the new rights. An account that is no longer a DOMAIN_ADMIN loses its domains and "
        "permissions. An account can lose the right to what it set up for the platform, for "
        "domains or for other users. BCC rules and webhooks without such a right are deleted, and "
        "shares of other users' mailboxes end. For users to whom it lost the right, `bcc` and "
        "`replyTo` that it set in their identities are removed. VALIDATION if `role`, "
        "`administers` and `adminPermissions` are all absent. CONFLICT if a user moves to another "
        "domain at the same time: retry. LIMIT_REACHED for more than 1,000 users (by default).",
        role=Role.ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
    )
    async def user_role_set(self, info: Info, input: UserRoleSetInput) -> UsersPayload:
        domain_ids, permissions = input.administers, input.admin_permissions
        role_change = RoleChange(
            input.role or None,
            await require_administered_domain_ids(info, domain_ids, path="administers")
            if isinstance(domain_ids, list)
            else None,
            permissions if isinstance(permissions, list) else None,
        )
        selector = user_selector_from_selection(input.users)
        return await load_users_payload(
            info, await user_roles.set_roles(info.context, selector, role_change)
        )

    @mutation(
        "Replaces the permissions of accounts, for all accounts or none. A permission "
        "(`UserPermission`) lets a credential with the role USER change some settings and objects "
        "of its account. CONFLICT if a user moves to another domain at the same time: retry. "
        "LIMIT_REACHED for more than 1,000 users (by default).",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
    )
    async def user_permissions_set(
        self, info: Info, input: UserPermissionsSetInput
    ) -> UsersPayload:
        selector = user_selector_from_selection(input.users)
        keys = await user_roles.set_user_permissions(info.context, selector, input.permissions)
        return await load_users_payload(info, keys)

    @mutation(
        "Gives an account a generated temporary password, which is returned once. It is valid for "
        "24 hours from `startsAt`, and a sign-in with it can only set a new password. An earlier "
        "temporary password is replaced. The main password of the account stays valid, and an "
        "access token from `authenticate` with it is not limited. The OAuth sign-in page refuses "
        "every password of the account until a new one is set. The access tokens of the account "
        "and their open connections end at once. API keys, application passwords and second "
        "factors stay. The field `passwordChangeRequired` of the account becomes true at once. "
        "The user gets a message about the reset. FORBIDDEN_OPERATION for the signed-in user. "
        "CONFLICT if the user moves to another domain at the same time: retry. RATE_LIMITED if "
        "the server has to hash too many passwords now: retry.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
        cost=PASSWORD_HASH_COST,
    )
    async def user_password_reset(
        self, info: Info, input: UserPasswordResetInput
    ) -> UserPasswordResetPayload:
        user = require_found(await load_visible_user(info, input.user), path=["user"])
        starts_at = input.starts_at or None
        password = await password_reset.set_temporary_password_and_sign_out(
            info.context, user.id, starts_at
        )
        return UserPasswordResetPayload(password=password)
