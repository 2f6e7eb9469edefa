"""GraphQL types and mutations of application passwords."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.auth.second_factors import SECRET_METADATA
from graph.auth.security_log import AuthEvent
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info, field
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, ids_from_refs
from graph.types.object_views import DerivedField, ExpressionField, NestedViewField, View
from graph.types.references import UserRef, load_named_user_id, value_or_none
from graph.types.row_mapping import NodeView, global_id_field, lazy_view_factory, link
from graph.types.scalars import Duration, EmailAddress
from models.users.roles import Scope, UserPermission
from resolvers.auth import app_passwords, security_log
from resolvers.auth.app_password_validation import AppPasswordScope, NewAppPassword
from resolvers.auth.app_passwords import AppPasswordChanges
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="The last sign-in with an application password.")
class LastUse(View):
    """The last use of an application password, from a pair: time and id of its security event."""

    at: datetime = attribute_field("Time of the sign-in.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"at": ExpressionField("{0}[0]")}

    @field(
        "Entry of the sign-in in the security log. Null: the entry was deleted after its retention."
    )
    async def event(self, info: Info) -> AuthEvent | None:
        key = self.row[1]
        return AuthEvent.from_row_or_none(
            await info.context.load(security_log.load_visible_events_by_id, key) if key else None
        )


@strawberry.type(description="A password with limited scopes for one mail program or device.")
class AppPassword(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User that the application password belongs to.",
    )
    description: str = attribute_field(
        "Purpose of the application password, such as the name of the mail program."
    )
    scopes: list[AppPasswordScope] = attribute_field(
        "Protocols and rights that the application password opens. ALL: every scope except FULL."
    )
    active: bool = attribute_field("True if the application password can be used to sign in.")
    maker: str | None = attribute_field(
        "Name of the administrator or API key that created the application "
        "password. Null: the user did."
    )
    last_use: LastUse | None = attribute_field(
        "Last sign-in with the application password. Null: never used."
    )
    created_at: datetime = attribute_field("Time when the application password was created.")
    updated_at: datetime | None = attribute_field(
        "Time of the last change by appPasswordUpdate. Null: never changed."
    )
    expires_at: datetime | None = attribute_field(
        "Time when the application password expires. Each sign-in extends it, "
        "unless another user created the application password. Null: never."
    )

    load_batch = staticmethod(app_passwords.load_visible_app_passwords_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("AppPassword"),
        "scopes": DerivedField(
            ("scopes",), lambda scopes: [AppPasswordScope(one) for one in scopes]
        ),
        "last_use": NestedViewField(
            ("last_used_at", "last_event_id"),
            lambda at, event: None if at is None else (at, event),
            LastUse,
        ),
    }


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
        "Protocols and rights that the application password opens. ALL: every scope except FULL.",
        default_factory=lambda: [AppPasswordScope.ALL],
    )
    password: str | None = attribute_field(
        "The password: exactly 16 letters from a to z. A password that is easy to "
        "guess is refused (constraint `WEAK`): one with fewer than 6 different "
        "letters, with a repeated part of at most 8 letters, or in alphabetical "
        "order. Default: random letters.",
        default=UNSET,
    )
    ttl: Duration | None = attribute_field(
        "Time after the last sign-in until the application password expires: 1 "
        "minute to 3,650 days. Default: never. If the user is another one: time "
        "after the creation, at most and by default 4 hours.",
        default=UNSET,
    )
    active: bool = attribute_field(
        "Lets the application password be used to sign in.", default=True
    )
    generate_mobileconfig: bool = attribute_field(
        "Creates a configuration profile for Apple devices. It requires the scope "
        "SMTP, the scope IMAP or POP3, and an IMAP or POP3 server that the operator "
        "has set; without such a server the request is refused (constraint "
        "`SERVER`).",
        default=False,
    )
    address: EmailAddress | None = attribute_field(
        "Address in the configuration profile, one of the user's. Default: the "
        "user's main address.",
        default=UNSET,
    )

    def to_new_app_password(self) -> NewAppPassword:
        """Convert the input to the application password to create."""
        return NewAppPassword(
            description=self.description,
            scopes=[AppPasswordScope(scope) for scope in self.scopes],
            password=value_or_none(self.password),
            ttl=value_or_none(self.ttl),
            active=self.active,
            profile=self.generate_mobileconfig,
            address=self.address or None,
        )


@strawberry.type(description="Payload of appPasswordCreate.")
class AppPasswordCreatePayload(MutationPayload):
    app_password: AppPassword | None = attribute_field(
        "The new application password, without its text.", default=None
    )
    password: str | None = attribute_field(
        "The new password in plain text, which is returned once. Spaces and case "
        "don't matter when it is typed.",
        default=None,
        metadata=SECRET_METADATA,
    )
    mobileconfig: str | None = attribute_field(
        "Configuration profile for Apple devices (application/x-apple-aspen-config) "
        "in base64, with the password. It is returned once. Null: "
        "generateMobileconfig was false.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.input(one_of=True, description="Names one application password.")
class AppPasswordRef(ObjectRef):
    pass


@strawberry.input(
    description="New values of application passwords. An absent field leaves the value."
)
class AppPasswordPatch:
    description: str | None = attribute_field(
        "Purpose of the application passwords: 1 to 255 printable characters.", default=UNSET
    )
    active: bool | None = attribute_field(
        "Lets the application passwords be used to sign in, or stops it.", default=UNSET
    )
    scopes: list[AppPasswordScope] | None = attribute_field(
        "Protocols and rights that replace the present ones. ALL: every scope except FULL.",
        default=UNSET,
    )


@strawberry.input(description="Input of appPasswordUpdate.")
class AppPasswordUpdateInput(Options):
    app_passwords: list[AppPasswordRef] = attribute_field("The application passwords to change.")
    set: AppPasswordPatch = attribute_field("Values to set on each of the application passwords.")


@strawberry.input(description="Input of appPasswordDelete.")
class AppPasswordDeleteInput(Options):
    app_passwords: list[AppPasswordRef] = attribute_field("The application passwords to delete.")


@strawberry.type(description="Payload of appPasswordUpdate.")
class AppPasswordsPayload(MutationPayload):
    app_passwords: list[AppPassword] = attribute_field(
        "The changed application passwords, each once, in the order of the references.",
        default_factory=list,
    )


@strawberry.type
class AppPasswordMutation:
    @mutation(
        "Creates an application password for one program or device. It signs in to "
        "IMAP, POP3 and SMTP without a second factor; if a second factor is on, "
        "these refuse the account's main password.",
        scope=Scope.FULL,
        user_permission=UserPermission.APP_PASSWORDS,
    )
    async def app_password_create(
        self, info: Info, input: AppPasswordCreateInput
    ) -> AppPasswordCreatePayload:
        key = await load_named_user_id(info, input.user)
        created = await app_passwords.create_app_password(
            info.context, key, input.to_new_app_password()
        )
        return AppPasswordCreatePayload(
            app_password=AppPassword.from_row(created.row),
            password=created.password,
            mobileconfig=created.profile,
        )

    @mutation(
        "Updates application passwords, all or none.",
        scope=Scope.FULL,
        user_permission=UserPermission.APP_PASSWORDS,
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
        "Deletes application passwords, all or none.",
        scope=Scope.FULL,
        user_permission=UserPermission.APP_PASSWORDS,
    )
    async def app_password_delete(self, info: Info, input: AppPasswordDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.app_passwords, "appPasswords")
        await app_passwords.delete_app_passwords(info.context, keys)
        return DeletePayload.of_keys("AppPassword", keys)
