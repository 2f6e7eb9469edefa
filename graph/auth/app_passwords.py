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
from resolvers.auth.app_passwords import AppPasswordChanges, AppPasswordScope, NewAppPassword
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="The last sign-in by a credential.")
class LastUse(View):
    """The last use of an application password, from a pair: time and id of its security event."""

    at: datetime = attribute_field("When.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"at": ExpressionField("{0}[0]")}

    @field("What the security log has of it; null = no longer kept.")
    async def event(self, info: Info) -> AuthEvent | None:
        key = self.row[1]
        return AuthEvent.from_row_or_none(
            await info.context.load(security_log.load_visible_events_by_id, key) if key else None
        )


@strawberry.type(description="Password of one program.")
class AppPassword(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Whose it is.",
    )
    description: str = attribute_field("What it is for.")
    scopes: list[AppPasswordScope] = attribute_field("What it is good for; ALL = any but FULL.")
    active: bool = attribute_field("Good for signing in.")
    maker: str | None = attribute_field(
        "Name of the administrator or API key that made it for the account. Null: the account."
    )
    last_use: LastUse | None = attribute_field("Null = never.")
    created_at: datetime = attribute_field("Made.")
    updated_at: datetime | None = attribute_field("Changed; null = never.")
    expires_at: datetime | None = attribute_field("Ends then; each use puts it off. Null = never.")

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
    user: UserRef | None = attribute_field("Whose. Default: the viewer's.", default=UNSET)
    description: str = attribute_field("What it is for.")
    scopes: list[AppPasswordScope] = attribute_field(
        "What it is to be good for; ALL = any but FULL.",
        default_factory=lambda: [AppPasswordScope.ALL],
    )
    password: str | None = attribute_field(
        "Exactly 16 letters of a to z. Refused as too easy to guess (constraint `WEAK`) if it has "
        "fewer than 6 different letters, repeats a piece of at most 8 letters, or has the order of "
        "the alphabet. Default: random letters.",
        default=UNSET,
    )
    ttl: Duration | None = attribute_field(
        "How long after its last use it ends: from 1 minute to 3,650 days. Default: never.",
        default=UNSET,
    )
    active: bool = attribute_field("Good for signing in.", default=True)
    generate_mobileconfig: bool = attribute_field(
        "Makes a configuration profile for Apple's devices too. It needs the scope SMTP, the scope "
        "IMAP or POP3, and an IMAP or POP3 server that the operator has set; without such a server "
        "it is refused (constraint `SERVER`).",
        default=False,
    )
    address: EmailAddress | None = attribute_field(
        "For the profile: one of the user's. Default: the main address.", default=UNSET
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


@strawberry.type(description="Answer of appPasswordCreate.")
class AppPasswordCreatePayload(MutationPayload):
    app_password: AppPassword | None = attribute_field("Its record.", default=None)
    password: str | None = attribute_field(
        "Shown once; spaces and case do not matter.", default=None, metadata=SECRET_METADATA
    )
    mobileconfig: str | None = attribute_field(
        "Base64 of application/x-apple-aspen-config, with the password in it. Shown once.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.input(one_of=True, description="Names one app password.")
class AppPasswordRef(ObjectRef):
    pass


@strawberry.input(description="New values of app passwords. An absent field leaves the value.")
class AppPasswordPatch:
    description: str | None = attribute_field("What it is for.", default=UNSET)
    active: bool | None = attribute_field("Good for signing in.", default=UNSET)
    scopes: list[AppPasswordScope] | None = attribute_field(
        "What it is to be good for.", default=UNSET
    )


@strawberry.input(description="Input of appPasswordUpdate.")
class AppPasswordUpdateInput(Options):
    app_passwords: list[AppPasswordRef] = attribute_field("The app passwords to change.")
    set: AppPasswordPatch = attribute_field("New values.")


@strawberry.input(description="Input of appPasswordDelete.")
class AppPasswordDeleteInput(Options):
    app_passwords: list[AppPasswordRef] = attribute_field("The app passwords to delete.")


@strawberry.type(description="Payload of appPasswordUpdate.")
class AppPasswordsPayload(MutationPayload):
    app_passwords: list[AppPassword] = attribute_field(
        "The changed app passwords.", default_factory=list
    )


@strawberry.type
class AppPasswordMutation:
    @mutation(
        "A password for one program. Good beside second factors, where the account's own is not.",
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
        "Changes app passwords, all or none.",
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
        "Deletes app passwords, all or none.",
        scope=Scope.FULL,
        user_permission=UserPermission.APP_PASSWORDS,
    )
    async def app_password_delete(self, info: Info, input: AppPasswordDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.app_passwords, "appPasswords")
        await app_passwords.delete_app_passwords(info.context, keys)
        return DeletePayload.of_keys("AppPassword", keys)
