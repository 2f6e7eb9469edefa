"""Mutations that change users."""

from datetime import datetime

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.errors import MutationPayload, Options, UserSelectionPayload, leaf
from graph.types.fields import Info
from graph.types.input_conditions import Restrictions
from graph.types.mutations import Alone, mutation
from graph.types.references import (
    DomainRef,
    UserRef,
    UserSelection,
    domains_of,
    given,
    user_of,
    users_named,
)
from graph.types.scalars import CIDR, ByteSize, Duration
from graph.users.create_mutations import FORWARDS, HASHED, SENDERS
from graph.users.types import User
from models.errors import found
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import DelimiterAction, ProtocolScope
from resolvers.auth.passwords import password_reset
from resolvers.auth.passwords.new_passwords import NewPassword
from resolvers.spam import spam_policy
from resolvers.users import loaders as user_loaders
from resolvers.users import roles as user_roles
from resolvers.users import update as user_update
from resolvers.users.roles import Standing
from resolvers.users.update import Patch

SECRET = {"secret": True}
FACTS = (
    "name",
    "require_password_change",
    "disabled",
    "suspended",
    "tags",
    "retention",
    "meta_data",
    "internal_data",
    "language",
    "from_whitelist",
    "disabled_scopes",
    "spam_level",
    "quota",
    "recipients",
    "forwards",
    "received_max",
    "upload_sent_messages",
    "tls_enforce_in",
    "tls_enforce_out",
    "smtp_allowed_networks",
    "webmail_access",
    "encrypt_messages",
    "encrypt_forwarded",
    "delimiter_action",
)


@strawberry.input(description="What to change on accounts; absent = unchanged, null = cleared.")
class UserPatch(Restrictions):
    restrictions = frozenset({"smtp_allowed_networks"})
    username: strawberry.Maybe[str] = leaf("Another user name, of one account.")
    name: strawberry.Maybe[str | None] = leaf("Display name.")
    password: strawberry.Maybe[str] = leaf("Another password, of one account.")
    password_disabled: bool = leaf("Only application passwords and tokens.", default=False)
    hashed_password: bool = leaf(HASHED, default=False)
    allow_unsafe: bool = leaf("False checks the list of known passwords.", default=True)
    require_password_change: strawberry.Maybe[bool] = leaf("At the next login.")
    disabled: strawberry.Maybe[bool] = leaf("No login, no new mail; tokens end.")
    suspended: strawberry.Maybe[bool] = leaf("No login; tokens end.")
    disable_2fa: bool = leaf(
        "Turns off all second factors of other accounts. Needs `options.reason`. For the own "
        "account use twoFactorDisable, which asks for a proof.",
        default=False,
    )
    tags: strawberry.Maybe[list[str] | None] = leaf("Labels, in place of those there are.")
    retention: strawberry.Maybe[Duration | None] = leaf(
        "How long messages are kept in folders made from now on: from 1 second to 36,500 days; "
        "null or PT0S keeps them for ever."
    )
    pub_key: strawberry.Maybe[str | None] = leaf(
        "OpenPGP public key, armoured. It stays while account or a folder encrypt to it."
    )
    encrypt_messages: strawberry.Maybe[bool] = leaf(
        "Encrypt all that arrives to the key, which it needs."
    )
    targets: strawberry.Maybe[list[str] | None] = leaf(f"In place of those there are. {FORWARDS}")
    encrypt_forwarded: strawberry.Maybe[bool] = leaf(
        "Encrypt what goes to targets to the key, which it needs."
    )
    delimiter_action: strawberry.Maybe[DelimiterAction] = leaf(
        "What mail to user+label@domain does."
    )
    meta_data: strawberry.Maybe[JSON | None] = leaf("Free data of the application.")
    internal_data: strawberry.Maybe[JSON | None] = leaf("Free data hidden from the user.")
    language: strawberry.Maybe[str | None] = leaf("For texts sent to the user.")
    from_whitelist: strawberry.Maybe[list[str] | None] = leaf(SENDERS)
    disabled_scopes: strawberry.Maybe[list[ProtocolScope] | None] = leaf("Protocols switched off.")
    spam_level: strawberry.Maybe[int | None] = leaf("0 everything is spam … 100 nothing is.")
    quota: strawberry.Maybe[ByteSize | None] = leaf(
        "Null = inherited from domain, then platform; 0 = unlimited, needs UNLIMITED_QUOTA."
    )
    recipients: strawberry.Maybe[int | None] = leaf(
        "Messages sent per 24 h, 0 = unlimited; counts afresh."
    )
    forwards: strawberry.Maybe[int | None] = leaf(
        "Messages sent on to targets per 24 h, 0 = unlimited; counts afresh."
    )
    received_max: strawberry.Maybe[int | None] = leaf(
        "Messages received per hour, 0 = unlimited; counts afresh."
    )
    upload_sent_messages: strawberry.Maybe[bool] = leaf(
        "Keep what is sent by SMTP submission in Sent."
    )
    tls_enforce_in: strawberry.Maybe[bool] = leaf("Refuse mail that comes by SMTP without TLS.")
    tls_enforce_out: strawberry.Maybe[bool] = leaf("Send to servers elsewhere only over TLS.")
    smtp_allowed_networks: strawberry.Maybe[list[CIDR] | None] = leaf(
        "SMTP submission only from here; null = anywhere."
    )
    webmail_access: strawberry.Maybe[bool] = leaf("May use browser clients.")

    def patch(self) -> Patch:
        """Convert the input to changes of users. Absent fields are left out."""
        values = {name: change.value for name in FACTS if (change := getattr(self, name))}
        password = None
        if self.password:
            password = NewPassword(self.password.value, self.hashed_password, self.allow_unsafe)
        return Patch(
            values,
            username=given(self.username),
            targets=(self.targets.value or []) if self.targets else None,
            pub_key=(self.pub_key.value or "") if self.pub_key else None,
            password=password,
            password_disabled=self.password_disabled,
            disable_2fa=self.disable_2fa,
        )


@strawberry.input(description="Input of userUpdate.")
class UserUpdateInput(Options):
    users: UserSelection | None = leaf("Whose; nothing = the viewer's.", default=UNSET)
    existing_password: str | None = leaf(
        "Checked first; needed to change the own password.", default=UNSET
    )
    set: UserPatch = leaf("What to change.")


@strawberry.input(description="Input of userRoleSet; what is absent stays.")
class UserRoleSetInput(Options):
    users: UserSelection = leaf("Whose.")
    role: Role | None = leaf("Up to the caller's own.", default=UNSET)
    administers: list[DomainRef] | None = leaf(
        "Domains of a DOMAIN_ADMIN, in place of those there are.", default=UNSET
    )
    admin_permissions: list[AdminPermission] | None = leaf(
        "What a DOMAIN_ADMIN may do, in place of what there is.", default=UNSET
    )


@strawberry.input(description="Input of userPermissionsSet.")
class UserPermissionsSetInput(Options):
    users: UserSelection = leaf("Whose.")
    permissions: list[UserPermission] = leaf("In place of those there are.")


@strawberry.input(description="Input of spamPolicySet; absent = unchanged, null = the default.")
class SpamPolicySetInput(Options):
    users: UserSelection | None = leaf("Whose; nothing = the viewer's.", default=UNSET)
    level: strawberry.Maybe[int | None] = leaf("0 everything is spam … 100 nothing is.")
    junk_score: strawberry.Maybe[float | None] = leaf("To Junk from this score.")
    reject_score: strawberry.Maybe[float | None] = leaf("Refused from this score.")


@strawberry.input(description="Input of passwordReset.")
class PasswordResetInput(Options):
    user: UserRef = leaf("Whose; not the viewer's.")
    valid_after: datetime | None = leaf("Not usable earlier.", default=UNSET)


@strawberry.type(description="Accounts that were changed, or were so already.")
class UsersPayload(UserSelectionPayload):
    users: list[User] = leaf("The accounts, as they are now.", default_factory=list)


@strawberry.type(description="Answer of passwordReset.")
class PasswordResetPayload(MutationPayload):
    password: str | None = leaf(
        "Temporary password, good for 24 hours; shown once.", default=None, metadata=SECRET
    )


async def payload_of(info: Info, keys: list[int]) -> UsersPayload:
    """Load users that were changed and return the payload with them."""
    rows = await info.context.load_all(user_loaders.by_ids, keys)
    return UsersPayload(users=[User.of(row) for row in rows if row])


def _checks(given: UserUpdateInput) -> bool:
    """True if the mutation must not run within another transaction.

    It then asks the list of known passwords, or counts a wrong existing password.
    """
    return not given.set.allow_unsafe or isinstance(given.existing_password, str)


@strawberry.type
class UserUpdateMutation:
    @mutation(
        "Own account, or many: all or none.",
        scope=Scope.SETTINGS,
        alone=Alone("a password that is checked", _checks),
    )
    async def user_update(self, info: Info, input: UserUpdateInput) -> UsersPayload:
        existing = input.existing_password
        keys = await user_update.change(
            info.context,
            users_named(input.users),
            input.set.patch(),
            existing if isinstance(existing, str) else None,
        )
        return await payload_of(info, keys)

    @mutation("Role, domains and delegated permissions.", role=Role.ADMIN, scope=Scope.MASTER)
    async def user_role_set(self, info: Info, input: UserRoleSetInput) -> UsersPayload:
        domain_ids, permissions = input.administers, input.admin_permissions
        role_change = Standing(
            input.role or None,
            await domains_of(info, domain_ids, path="administers")
            if isinstance(domain_ids, list)
            else None,
            permissions if isinstance(permissions, list) else None,
        )
        selector = users_named(input.users)
        return await payload_of(
            info, await user_roles.set_role(info.context, selector, role_change)
        )

    @mutation(
        "What users may change themselves: replaces the list.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.MASTER,
    )
    async def user_permissions_set(
        self, info: Info, input: UserPermissionsSetInput
    ) -> UsersPayload:
        selector = users_named(input.users)
        keys = await user_roles.set_permissions(info.context, selector, input.permissions)
        return await payload_of(info, keys)

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
        selector = users_named(input.users)
        return await payload_of(
            info, await spam_policy.set_spam_policy(info.context, selector, values)
        )

    @mutation(
        "A temporary password beside the one there is, to be changed at the next login; "
        "second factors stay.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.MASTER,
    )
    async def password_reset(self, info: Info, input: PasswordResetInput) -> PasswordResetPayload:
        user = found(await user_of(info, input.user), path=["user"])
        valid_after = input.valid_after or None
        password = await password_reset.reset_password(info.context, user.id, valid_after)
        return PasswordResetPayload(password=password)
