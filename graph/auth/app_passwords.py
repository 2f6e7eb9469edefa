"""GraphQL types and mutations of application passwords."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.auth.second_factors import SECRET
from graph.auth.security_log import AuthEvent
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Info, field
from graph.types.mutations import mutation
from graph.types.object_views import Expressed, Made, View, Viewed
from graph.types.references import UserRef, keys_of, owner_named, plain
from graph.types.row_mapping import Shape, identified, link, shaped
from graph.types.scalars import Duration, EmailAddress
from models.users.roles import Scope, UserPermission
from resolvers.auth import app_passwords, security_log
from resolvers.auth.app_passwords import AppPasswordPatch, AppPasswordScope, NewAppPassword
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="The last sign-in by a credential.")
class LastUse(View):
    """The last use of an application password, from a pair: time and id of its security event."""

    at: datetime = leaf("When.")

    made: ClassVar[Mapping[str, Made]] = {"at": Expressed("{0}[0]")}

    @field("What the security log has of it; null = no longer kept.")
    async def event(self, info: Info) -> AuthEvent | None:
        key = self.row[1]
        return AuthEvent.maybe(await info.context.load(security_log.by_ids, key) if key else None)


@strawberry.type(description="Password of one program.")
class AppPassword(Shape):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="Whose it is.",
    )
    description: str = leaf("What it is for.")
    scopes: list[AppPasswordScope] = leaf("What it is good for; ALL = any but MASTER.")
    active: bool = leaf("Good for signing in.")
    maker: str | None = leaf(
        "Name of the administrator or API key that made it for the account. Null: the account."
    )
    last_use: LastUse | None = leaf("Null = never.")
    created_at: datetime = leaf("Made.")
    updated_at: datetime | None = leaf("Changed; null = never.")
    expires_at: datetime | None = leaf("Ends then; each use puts it off. Null = never.")

    batch = staticmethod(app_passwords.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("AppPassword"),
        "scopes": Made(("scopes",), lambda scopes: [AppPasswordScope(one) for one in scopes]),
        "last_use": Viewed(
            ("last_used_at", "last_event_id"),
            lambda at, event: None if at is None else (at, event),
            LastUse,
        ),
    }


@strawberry.input(description="Input of appPasswordCreate.")
class AppPasswordCreateInput(Options):
    user: UserRef | None = leaf("Whose. Default: the viewer's.", default=UNSET)
    description: str = leaf("What it is for.")
    scopes: list[AppPasswordScope] = leaf(
        "What it is to be good for; ALL = any but MASTER.",
        default_factory=lambda: [AppPasswordScope.ALL],
    )
    password: str | None = leaf(
        "Exactly 16 letters of a to z. Refused as too easy to guess (constraint `weak`) if it has "
        "fewer than 6 different letters, repeats a piece of at most 8 letters, or has the order of "
        "the alphabet. Default: random letters.",
        default=UNSET,
    )
    ttl: Duration | None = leaf(
        "How long after its last use it ends: from 1 minute to 3,650 days. Default: never.",
        default=UNSET,
    )
    active: bool = leaf("Good for signing in.", default=True)
    generate_mobileconfig: bool = leaf(
        "Makes a configuration profile for Apple's devices too. It needs the scope SMTP, the scope "
        "IMAP or POP3, and an IMAP or POP3 server that the operator has set; without such a server "
        "it is refused (constraint `server`).",
        default=False,
    )
    address: EmailAddress | None = leaf(
        "For the profile: one of the user's. Default: the main address.", default=UNSET
    )

    def new(self) -> NewAppPassword:
        """Convert the input to the application password to create."""
        return NewAppPassword(
            description=self.description,
            scopes=[AppPasswordScope(scope) for scope in self.scopes],
            password=plain(self.password),
            ttl=plain(self.ttl),
            active=self.active,
            profile=self.generate_mobileconfig,
            address=self.address or None,
        )


@strawberry.type(description="Answer of appPasswordCreate.")
class AppPasswordCreatePayload(MutationPayload):
    app_password: AppPassword | None = leaf("Its record.", default=None)
    password: str | None = leaf(
        "Shown once; spaces and case do not matter.", default=None, metadata=SECRET
    )
    mobileconfig: str | None = leaf(
        "Base64 of application/x-apple-aspen-config, with the password in it. Shown once.",
        default=None,
        metadata=SECRET,
    )


@strawberry.input(description="Input of appPasswordUpdate.")
class AppPasswordUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    description: str | None = leaf("What it is for.", default=UNSET)
    active: bool | None = leaf("Good for signing in.", default=UNSET)
    scopes: list[AppPasswordScope] | None = leaf("What it is to be good for.", default=UNSET)


@strawberry.type(description="Some application passwords.")
class AppPasswordsPayload(MutationPayload):
    app_passwords: list[AppPassword] = leaf("As they are now.", default_factory=list)


@strawberry.type
class AppPasswordMutation:
    @mutation(
        "A password for one program. Good beside second factors, where the account's own is not.",
        scope=Scope.MASTER,
        user_permission=UserPermission.APP_PASSWDS,
    )
    async def app_password_create(
        self, info: Info, input: AppPasswordCreateInput
    ) -> AppPasswordCreatePayload:
        key = await owner_named(info, input.user)
        row, password, profile = await app_passwords.create(info.context, key, input.new())
        return AppPasswordCreatePayload(
            app_password=AppPassword.of(row), password=password, mobileconfig=profile
        )

    @mutation("All or none.", scope=Scope.MASTER, user_permission=UserPermission.APP_PASSWDS)
    async def app_password_update(
        self, info: Info, input: AppPasswordUpdateInput
    ) -> AppPasswordsPayload:
        scopes: Any = input.scopes
        patch = AppPasswordPatch(
            description=plain(input.description),
            active=plain(input.active),
            scopes=[AppPasswordScope(scope) for scope in scopes]
            if isinstance(scopes, list)
            else None,
        )
        keys = keys_of(info, "AppPassword", input.ids)
        changed = await app_passwords.change(info.context, keys, patch)
        rows = await info.context.load_all(app_passwords.by_ids, changed)
        return AppPasswordsPayload(app_passwords=[AppPassword.of(row) for row in rows if row])

    @mutation("All or none.", scope=Scope.MASTER, user_permission=UserPermission.APP_PASSWDS)
    async def app_password_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        keys = keys_of(info, "AppPassword", input.ids)
        await app_passwords.remove(info.context, keys)
        return DeletePayload(deleted_ids=input.ids)
