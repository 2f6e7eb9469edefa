"""GraphQL types and mutations of application passwords."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.auth.security_log import SecurityEvent
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info, field
from graph.types.idempotent_payloads import SECRET_METADATA
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import PASSWORD_HASH_COST, mutation
from graph.types.object_access import MANAGED
from graph.types.object_references import ObjectRef, ids_from_refs
from graph.types.object_views import DerivedField, ExpressionField, NestedViewField, View
from graph.types.references import UserRef, require_visible_user_id_if_named, value_or_none
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import Duration, EmailAddress
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Scope, UserPermission
from resolvers.auth import app_password_pages, app_passwords, security_event_pages
from resolvers.auth.app_password_pages import AppPasswordOrder, AppPasswordPageKey
from resolvers.auth.app_password_validation import (
    AppPasswordChanges,
    AppPasswordScope,
    NewAppPassword,
)
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="Last sign-in with an application password.")
class LastUse(View):
    """The last use of an application password, from a pair: time and id of its security event."""

    at: datetime = attribute_field(
        "Time of the last recorded sign-in with the application password. HTTP Basic "
        "authentication is recorded at most once an hour."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"at": ExpressionField("{0}[0]")}

    @field(
        "Entry of the sign-in in the security log. Null: the security log is off, or the entry "
        "was deleted after its retention."
    )
    async def event(self, info: Info) -> SecurityEvent | None:
        key = self.row[1]
        return SecurityEvent.from_row_or_none(
            await info.context.load(security_event_pages.load_visible_events_by_id, key)
            if key
            else None
        )


@strawberry.type(description="Password with limited scopes for one mail program or device.")
class AppPassword(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User that the application password belongs to. Null if the caller can't see "
        "the user.",
    )
    description: str = attribute_field(
        "Purpose of the application password, such as the name of the mail program."
    )
    scopes: list[AppPasswordScope] = attribute_field(
        "Protocols and rights that the application password opens. ALL: every other value of "
        "AppPasswordScope."
    )
    active: bool = attribute_field(
        "False: the application password is refused at sign-in until `appPasswordUpdate` "
        "activates it. True does not say that the user or protocol is enabled."
    )
    maker: str | None = attribute_field(
        "Username of the administrator, or `key NAME` for an API key without a user, who created "
        "the application password for its user. Null: the user or the operator of the server "
        "created it, or a ROOT imported its hash."
    )
    last_use: LastUse | None = attribute_field(
        "Last sign-in with the application password. Null: never used."
    )
    created_at: datetime = attribute_field("Time when the application password was created.")
    updated_at: datetime | None = attribute_field(
        "Time of the last change by appPasswordUpdate. Null: never changed."
    )
    expires_at: datetime | None = attribute_field(
        "Time when the application password expires. Each recorded sign-in moves it to "
        "the sign-in plus the `ttl`, unless an administrator or API key created the "
        "application password for the user. Null: never."
    )

    load_batch = staticmethod(app_passwords.load_visible_app_passwords_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("AppPassword"),
        "scopes": DerivedField(
            ("scopes",), lambda scopes: [AppPasswordScope(scope) for scope in scopes]
        ),
        "last_use": NestedViewField(
            ("last_used_at", "last_event_id"),
            lambda at, event: None if at is None else (at, event),
            LastUse,
        ),
    }


@strawberry.input(description="Conditions on application passwords. All of them must hold.")
class AppPasswordFilter(ConditionsInput):
    active: bool | None = attribute_field(
        "True returns only active passwords, false only those that were deactivated. "
        "Expired passwords are never returned.",
        default=UNSET,
    )
    has_ttl: bool | None = attribute_field(
        "True returns only passwords with a `ttl`, which expire if they are not used, false only "
        "the others. A password that an administrator created for its user has no `ttl`, although "
        "it expires.",
        default=UNSET,
    )


async def load_app_password_page(
    info: Info,
    user_id: int,
    filter: AppPasswordFilter | None,
    order_by: AppPasswordOrder,
    page_arguments: PageArguments,
) -> Connection[AppPassword]:
    """Load a page of the application passwords of a user."""
    conditions = (value_or_none(filter.active), value_or_none(filter.has_ttl)) if filter else ()
    list_order = app_password_pages.LIST_ORDERS[order_by]
    list_ordering = ordering_name(f"app-passwords-{order_by}", conditions)
    requested_page = page_request(list_ordering, *page_arguments)
    columns = selected_columns(info, AppPassword)
    page_key = AppPasswordPageKey(user_id, requested_page, list_order, columns, *conditions)
    return await connection_of_page(
        info,
        AppPassword,
        await info.context.load(app_password_pages.load_visible_app_password_pages, page_key),
        lambda row: list_order.cursor_of_row(row, list_ordering),
        lambda: info.context.load(app_password_pages.count_app_passwords, page_key),
    )


@strawberry.input(description="Input of appPasswordCreate.")
class AppPasswordCreateInput(Options):
    user: UserRef | None = attribute_field(
        "User that the application password is for. Default: the signed-in user.", default=UNSET
    )
    description: str = attribute_field(
        "Purpose of the application password, such as the name of the mail program: "
        "1 to 255 printable characters."
    )
    scopes: list[AppPasswordScope] = attribute_field(
        "Protocols and rights that the application password opens. ALL: every other value of "
        "AppPasswordScope. For another user only MAIL, MAIL_READ and SUBMIT are allowed (else "
        "FORBIDDEN), and ALL means these three. An empty list is refused. Default: ALL.",
        default_factory=lambda: [AppPasswordScope.ALL],
    )
    password: str | None = attribute_field(
        "Password text: exactly 16 characters from a to z. Default: random characters. A text "
        "that is easy to guess is refused (constraint `WEAK`). Such a text has fewer than 6 "
        "different characters, or only repeats a part of at most 8 characters. A text is also "
        "refused if each character has the same distance in the alphabet from the one before it. "
        "With `hashedPassword`: the hash, which is required.",
        default=UNSET,
    )
    hashed_password: bool = attribute_field(
        "True: `password` is required, and is the hash that another mail server has stored of an "
        "application password, in one of the formats of `UserCreateInput.hashedPassword`. The "
        "role ROOT is required. The hashed password must have 16 characters from a to z: the "
        "server can't check this, but refuses any other password at sign-in. For another user all "
        "scopes are then allowed, and any `ttl`. A user has at most 10 imported application "
        "passwords.",
        default=False,
    )
    ttl: Duration | None = attribute_field(
        "Time after the last recorded sign-in, or else after the creation, until the application "
        "password expires: 1 minute to 3,650 days. Default: never. For another user: time after "
        "the creation, at most and by default 4 hours.",
        default=UNSET,
    )
    active: bool = attribute_field(
        "False: the application password is refused at sign-in until it is activated.", default=True
    )
    generate_mobileconfig: bool = attribute_field(
        "True creates a configuration profile for Apple devices. Refused with `hashedPassword`, "
        "and if the application password is for another user (except with the bootstrap key). The "
        "operator must have set an IMAP or POP3 server beside Merganser, else the request is "
        "refused (constraint `SERVER`). The scope SMTP and the scope of such a server's protocol "
        "are required.",
        default=False,
    )
    address: EmailAddress | None = attribute_field(
        "Address in the configuration profile, one of the user's, else NOT_FOUND. Ignored unless "
        "`generateMobileconfig` is true. Default: the user's main address; NOT_FOUND if there is "
        "none.",
        default=UNSET,
    )

    def to_new_app_password(self) -> NewAppPassword:
        """Convert the input to the application password to create."""
        return NewAppPassword(
            description=self.description,
            scopes=[AppPasswordScope(scope) for scope in self.scopes],
            password=value_or_none(self.password),
            is_hash=self.hashed_password,
            ttl=value_or_none(self.ttl),
            active=self.active,
            profile=self.generate_mobileconfig,
            address=self.address or None,
        )


@strawberry.type(description="Payload of appPasswordCreate.")
class AppPasswordCreatePayload(MutationPayload):
    app_password: AppPassword | None = attribute_field(
        "Created application password, without its text. Null if the mutation failed.", default=None
    )
    password: str | None = attribute_field(
        "The new password in plain text, which is returned once. Spaces and case don't matter "
        "when it is typed. Null: its hash was imported, the mutation failed, or it was a dry run.",
        default=None,
        metadata=SECRET_METADATA,
    )
    mobileconfig: str | None = attribute_field(
        "Configuration profile for Apple devices (application/x-apple-aspen-config) in base64, "
        "with the password. It is returned once. Null: generateMobileconfig was false, the "
        "mutation failed, or it was a dry run.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.input(one_of=True, description="Reference to one application password.")
class AppPasswordRef(ObjectRef):
    pass


@strawberry.input(
    description=(
        "New values of application passwords. An absent field or null leaves the value. At least "
        "one value is required."
    )
)
class AppPasswordPatch:
    description: str | None = attribute_field(
        "Purpose of the application passwords: 1 to 255 printable characters.", default=UNSET
    )
    active: bool | None = attribute_field(
        "False: the application passwords are refused at sign-in until they are activated.",
        default=UNSET,
    )
    scopes: list[AppPasswordScope] | None = attribute_field(
        "Protocols and rights that replace the present ones. An empty list is refused. ALL: every "
        "other value of AppPasswordScope. For a password that an administrator created, only "
        "MAIL, MAIL_READ and SUBMIT are allowed (else FORBIDDEN), and ALL means these three.",
        default=UNSET,
    )


@strawberry.input(description="Input of appPasswordUpdate.")
class AppPasswordUpdateInput(Options):
    app_passwords: list[AppPasswordRef] = attribute_field(
        "Application passwords to change, 1 to 1,000 by default."
    )
    set: AppPasswordPatch = attribute_field(
        "New values, the same for all application passwords. At least one value is required."
    )


@strawberry.input(description="Input of appPasswordDelete.")
class AppPasswordDeleteInput(Options):
    app_passwords: list[AppPasswordRef] = attribute_field(
        "Application passwords to delete, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of appPasswordUpdate.")
class AppPasswordsPayload(MutationPayload):
    app_passwords: list[AppPassword] = attribute_field(
        "Changed application passwords, each once, in the order of the references.",
        default_factory=list,
    )


@strawberry.type
class AppPasswordMutation:
    @mutation(
        "Creates an application password for one program or device. A sign-in with it needs no "
        "second factor. SMTP, HTTP Basic authentication, and IMAP and POP3 servers beside "
        "Merganser accept it, within its scopes. If a second factor of the user is on, these "
        "services refuse the account's main password. For another user, it has at most the scopes "
        "MAIL, MAIL_READ and SUBMIT, and expires after at most 4 hours. Such a password also "
        "becomes invalid if its creator loses the right to create it. These rules for other users "
        "don't apply to the bootstrap key, and to hashes that a ROOT imports with "
        "`hashedPassword`. The user gets a message about an application password that somebody "
        "else creates. An API key that is restricted to domains can't create any (FORBIDDEN). "
        "LIMIT_REACHED if the user already has 50 unexpired application passwords (by default), "
        "imported ones included. LIMIT_REACHED also for an eleventh imported one. Expired "
        "application passwords of the user are deleted. CONFLICT if the password is too similar "
        "to another one of the user: retry with another password. RATE_LIMITED if the server has "
        "to hash too many passwords now: retry. UNAVAILABLE if `generateMobileconfig` is true, "
        "and the server's certificate for signing configuration profiles is unusable.",
        scope=Scope.FULL,
        user_permission=UserPermission.APP_PASSWORDS,
        access=MANAGED.with_permissions(AdminPermission.APP_PASSWORDS),
        cost=PASSWORD_HASH_COST,
    )
    async def app_password_create(
        self, info: Info, input: AppPasswordCreateInput
    ) -> AppPasswordCreatePayload:
        key = await require_visible_user_id_if_named(info, input.user)
        created = await app_passwords.create_app_password(
            info.context, key, input.to_new_app_password()
        )
        return AppPasswordCreatePayload(
            app_password=AppPassword.from_row(created.row),
            password=created.password,
            mobileconfig=created.profile,
        )

    @mutation(
        "Changes purpose, scopes or state of application passwords, all or none. The password "
        "text can't be changed. VALIDATION if `set` has no value. The user gets a message about a "
        "change by somebody else. NOT_FOUND for one that has expired or that the caller can't "
        "see. LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.FULL,
        user_permission=UserPermission.APP_PASSWORDS,
        access=MANAGED.with_permissions(AdminPermission.APP_PASSWORDS),
    )
    async def app_password_update(
        self, info: Info, input: AppPasswordUpdateInput
    ) -> AppPasswordsPayload:
        keys, scopes = ids_from_refs(info, input.app_passwords, "appPasswords"), input.set.scopes
        changes = AppPasswordChanges(
            description=value_or_none(input.set.description),
            active=value_or_none(input.set.active),
            scopes=[AppPasswordScope(scope) for scope in scopes]
            if isinstance(scopes, list)
            else None,
        )
        changed = await app_passwords.update_app_passwords(info.context, keys, changes)
        rows = await info.context.load_many(app_passwords.load_visible_app_passwords_by_id, changed)
        return AppPasswordsPayload(app_passwords=[AppPassword.from_row(row) for row in rows if row])

    @mutation(
        "Deletes application passwords, all or none. The user gets a message if somebody else "
        "deletes one. NOT_FOUND for one that has expired or that the caller can't see. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        scope=Scope.FULL,
        user_permission=UserPermission.APP_PASSWORDS,
        access=MANAGED.with_permissions(AdminPermission.APP_PASSWORDS),
    )
    async def app_password_delete(self, info: Info, input: AppPasswordDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.app_passwords, "appPasswords")
        await app_passwords.delete_app_passwords(info.context, keys)
        return DeletePayload.of_keys("AppPassword", keys)
