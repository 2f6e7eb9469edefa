"""Mutations that change users."""

from datetime import datetime

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.errors import MutationPayload, Options, UserSelectionPayload, attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import RestrictionsInput
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.references import (
    DomainRef,
    UserRef,
    UserSelection,
    load_domain_ids,
    load_user_or_viewer,
    maybe_value,
    user_selector_from_selection,
)
from graph.types.scalars import CIDR, ByteSize, Duration
from graph.users.create_mutations import (
    FORWARD_TO_DESCRIPTION,
    HASH_DESCRIPTION,
    SENDERS_DESCRIPTION,
)
from graph.users.limits import UserLimitsInput, limit_value, patched_limit_columns
from graph.users.types import User
from models.errors import InvalidInput, require_found
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import ProtocolScope, SubaddressAction
from models.validation_constraints import ValidationConstraint
from resolvers.auth.passwords import password_reset
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.spam import spam_policy
from resolvers.users import loaders as user_loaders
from resolvers.users import roles as user_roles
from resolvers.users import update as user_update
from resolvers.users.roles import RoleChange
from resolvers.users.update import UserChanges

SECRET_METADATA = {"secret": True}
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
    "spam_level",
    "upload_sent_messages",
    "require_inbound_tls",
    "require_outbound_tls",
    "smtp_allowed_networks",
    "webmail_access",
    "encrypt_messages",
    "encrypt_forwarded",
    "subaddress_action",
)


@strawberry.input(description="What to change on accounts; absent = unchanged, null = cleared.")
class UserPatch(RestrictionsInput):
    restriction_fields = frozenset({"smtp_allowed_networks"})
    username: strawberry.Maybe[str] = attribute_field("Another user name, of one account.")
    name: strawberry.Maybe[str | None] = attribute_field("Display name.")
    password: strawberry.Maybe[str] = attribute_field("Another password, of one account.")
    password_disabled: bool = attribute_field(
        "Only application passwords and tokens.", default=False
    )
    hashed_password: bool = attribute_field(HASH_DESCRIPTION, default=False)
    allow_unsafe: bool = attribute_field("False checks the list of known passwords.", default=True)
    password_change_required: strawberry.Maybe[bool] = attribute_field("At the next login.")
    active: strawberry.Maybe[bool] = attribute_field(
        "False: the user can neither sign in nor receive messages, and all tokens end."
    )
    suspended: strawberry.Maybe[bool] = attribute_field("No login; tokens end.")
    disable_2fa: bool = attribute_field(
        "Turns off all second factors of other accounts. Needs `options.reason`. For the own "
        "account use twoFactorDisable, which asks for a proof.",
        default=False,
    )
    tags: strawberry.Maybe[list[str] | None] = attribute_field(
        "Labels, in place of those there are."
    )
    retention: strawberry.Maybe[Duration | None] = attribute_field(
        "How long messages are kept in folders made from now on: from 1 second to 36,500 days; "
        "null: for ever."
    )
    openpgp_public_key: strawberry.Maybe[str | None] = attribute_field(
        "OpenPGP public key, armoured. It stays while account or a folder encrypt to it."
    )
    encrypt_messages: strawberry.Maybe[bool] = attribute_field(
        "Encrypt all that arrives to the key, which it needs."
    )
    forward_to: strawberry.Maybe[list[str] | None] = attribute_field(
        f"In place of those there are. {FORWARD_TO_DESCRIPTION}"
    )
    encrypt_forwarded: strawberry.Maybe[bool] = attribute_field(
        "Encrypts messages to `forwardTo` to the OpenPGP key, which the account needs."
    )
    subaddress_action: strawberry.Maybe[SubaddressAction] = attribute_field(
        "What mail to user+label@domain does."
    )
    metadata: strawberry.Maybe[JSON | None] = attribute_field("Free data of the application.")
    private_metadata: strawberry.Maybe[JSON | None] = attribute_field(
        "Free data hidden from the user."
    )
    language: strawberry.Maybe[str | None] = attribute_field("For texts sent to the user.")
    allowed_senders: strawberry.Maybe[list[str] | None] = attribute_field(SENDERS_DESCRIPTION)
    disabled_scopes: strawberry.Maybe[list[ProtocolScope] | None] = attribute_field(
        "Protocols switched off."
    )
    spam_level: strawberry.Maybe[int | None] = attribute_field(
        "0 everything is spam … 100 nothing is."
    )
    quota: strawberry.Maybe[ByteSize | None] = attribute_field(
        "Bytes that the account can store, at least 1. Null: unlimited, which needs "
        "UNLIMITED_QUOTA."
    )
    inherit_quota: bool = attribute_field(
        "True: the account has the quota of the domain, or else of the platform. Excludes `quota`.",
        default=False,
    )
    limits: strawberry.Maybe[UserLimitsInput | None] = attribute_field(
        "Limits of the account. The counter of a limit that changes begins again. Null: the "
        "account has the limits of the platform."
    )
    upload_sent_messages: strawberry.Maybe[bool] = attribute_field(
        "Keep what is sent by SMTP submission in Sent."
    )
    require_inbound_tls: strawberry.Maybe[bool] = attribute_field(
        "Refuse mail that comes by SMTP without TLS."
    )
    require_outbound_tls: strawberry.Maybe[bool] = attribute_field(
        "Send to servers elsewhere only over TLS."
    )
    smtp_allowed_networks: strawberry.Maybe[list[CIDR] | None] = attribute_field(
        "SMTP submission only from here; null = anywhere."
    )
    webmail_access: strawberry.Maybe[bool] = attribute_field("May use browser clients.")

    def to_user_changes(self) -> UserChanges:
        """Convert the input to changes of users. Absent fields are left out."""
        values = {name: change.value for name in UPDATE_FIELDS if (change := getattr(self, name))}
        values |= patched_limit_columns(self.limits, LIMIT_COLUMNS)
        if self.quota:
            values["quota"] = limit_value(self.quota.value)
        if self.inherit_quota:
            if self.quota:
                text = "inheritQuota excludes a quota of the account"
                raise InvalidInput(
                    text, constraint=ValidationConstraint.EXCLUSIVE, path=["set", "inheritQuota"]
                )
            values["quota"] = None
        if self.metadata:
            values["public_metadata"] = self.metadata.value
        password = None
        if self.password:
            password = NewPassword(self.password.value, self.hashed_password, self.allow_unsafe)
        return UserChanges(
            values,
            username=maybe_value(self.username),
            forward_to=(self.forward_to.value or []) if self.forward_to else None,
            openpgp_public_key=(self.openpgp_public_key.value or "")
            if self.openpgp_public_key
            else None,
            password=password,
            password_disabled=self.password_disabled,
            disable_2fa=self.disable_2fa,
        )


@strawberry.input(description="Input of userUpdate.")
class UserUpdateInput(Options):
    users: UserSelection | None = attribute_field("Whose; nothing = the viewer's.", default=UNSET)
    existing_password: str | None = attribute_field(
        "Checked first; needed to change the own password.", default=UNSET
    )
    set: UserPatch = attribute_field("What to change.")


@strawberry.input(description="Input of userRoleSet; what is absent stays.")
class UserRoleSetInput(Options):
    users: UserSelection = attribute_field("Whose.")
    role: Role | None = attribute_field("Up to the caller's own.", default=UNSET)
    administers: list[DomainRef] | None = attribute_field(
        "Domains of a DOMAIN_ADMIN, in place of those there are.", default=UNSET
    )
    admin_permissions: list[AdminPermission] | None = attribute_field(
        "What a DOMAIN_ADMIN may do, in place of what there is.", default=UNSET
    )


@strawberry.input(description="Input of userPermissionsSet.")
class UserPermissionsSetInput(Options):
    users: UserSelection = attribute_field("Whose.")
    permissions: list[UserPermission] = attribute_field("In place of those there are.")


@strawberry.input(description="Input of spamPolicySet; absent = unchanged, null = the default.")
class SpamPolicySetInput(Options):
    users: UserSelection | None = attribute_field("Whose; nothing = the viewer's.", default=UNSET)
    level: strawberry.Maybe[int | None] = attribute_field("0 everything is spam … 100 nothing is.")
    junk_score: strawberry.Maybe[float | None] = attribute_field("To Junk from this score.")
    reject_score: strawberry.Maybe[float | None] = attribute_field("Refused from this score.")


@strawberry.input(description="Input of userPasswordReset.")
class UserPasswordResetInput(Options):
    user: UserRef = attribute_field("Whose; not the viewer's.")
    starts_at: datetime | None = attribute_field("Not usable earlier.", default=UNSET)


@strawberry.type(description="Accounts that were changed, or were so already.")
class UsersPayload(UserSelectionPayload):
    users: list[User] = attribute_field("The accounts, as they are now.", default_factory=list)


@strawberry.type(description="Answer of userPasswordReset.")
class UserPasswordResetPayload(MutationPayload):
    password: str | None = attribute_field(
        "Temporary password, good for 24 hours; shown once.", default=None, metadata=SECRET_METADATA
    )


async def load_users_payload(info: Info, user_ids: list[int]) -> UsersPayload:
    """Load users that were changed and return the payload with them."""
    rows = await info.context.load_many(user_loaders.load_visible_users_by_id, user_ids)
    return UsersPayload(users=[User.from_row(row) for row in rows if row])


def _needs_separate_transaction(update_input: UserUpdateInput) -> bool:
    """True if the mutation must not run within another transaction.

    It then asks the list of known passwords, or counts a wrong existing password.
    """
    return not update_input.set.allow_unsafe or isinstance(update_input.existing_password, str)


@strawberry.type
class UserUpdateMutation:
    @mutation(
        "Own account, or many: all or none.",
        scope=Scope.SETTINGS,
        atomic_exclusion=AtomicExclusion("a password that is checked", _needs_separate_transaction),
    )
    async def user_update(self, info: Info, input: UserUpdateInput) -> UsersPayload:
        existing = input.existing_password
        keys = await user_update.update_users(
            info.context,
            user_selector_from_selection(input.users),
            input.set.to_user_changes(),
            existing if isinstance(existing, str) else None,
        )
        return await load_users_payload(info, keys)

    @mutation("Role, domains and delegated permissions.", role=Role.ADMIN, scope=Scope.FULL)
    async def user_role_set(self, info: Info, input: UserRoleSetInput) -> UsersPayload:
        domain_ids, permissions = input.administers, input.admin_permissions
        role_change = RoleChange(
            input.role or None,
            await load_domain_ids(info, domain_ids, path="administers")
            if isinstance(domain_ids, list)
            else None,
            permissions if isinstance(permissions, list) else None,
        )
        selector = user_selector_from_selection(input.users)
        return await load_users_payload(
            info, await user_roles.set_roles(info.context, selector, role_change)
        )

    @mutation(
        "What users may change themselves: replaces the list.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
    )
    async def user_permissions_set(
        self, info: Info, input: UserPermissionsSetInput
    ) -> UsersPayload:
        selector = user_selector_from_selection(input.users)
        keys = await user_roles.set_user_permissions(info.context, selector, input.permissions)
        return await load_users_payload(info, keys)

    @mutation(
        "Spam thresholds.",
        scope=Scope.SETTINGS,
        user_permission=UserPermission.SPAM_SCORE,
        admin_permission=AdminPermission.SPAM_POLICY,
    )
    async def spam_policy_set(self, info: Info, input: SpamPolicySetInput) -> UsersPayload:
        fields = {
            "spam_level": input.level,
            "junk_score": input.junk_score,
            "reject_score": input.reject_score,
        }
        values = {name: change.value for name, change in fields.items() if change}
        selector = user_selector_from_selection(input.users)
        return await load_users_payload(
            info, await spam_policy.set_spam_policy(info.context, selector, values)
        )

    @mutation(
        "A temporary password beside the one there is, to be changed at the next login; "
        "second factors stay.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
    )
    async def user_password_reset(
        self, info: Info, input: UserPasswordResetInput
    ) -> UserPasswordResetPayload:
        user = require_found(await load_user_or_viewer(info, input.user), path=["user"])
        starts_at = input.starts_at or None
        password = await password_reset.set_temporary_password(info.context, user.id, starts_at)
        return UserPasswordResetPayload(password=password)
