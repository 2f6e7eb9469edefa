"""GraphQL types, query and mutations that delete, restore and purge users."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, UserSelectionPayload, leaf
from graph.types.fields import Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import Made, View
from graph.types.references import UserRef, UserSelection, given, users_named
from graph.types.scalars import ByteSize, EmailAddress
from graph.users.types import User
from models.errors import InUse
from models.users.roles import Role, Scope
from resolvers.users import delete as user_delete
from resolvers.users import restore as user_restore
from resolvers.users.delete import Deletion
from resolvers.users.restore import Named


@strawberry.type(description="Account that waits for its end.")
class DeletedUser(View):
    user: strawberry.ID = leaf("Id it had.")
    username: str = leaf("Name it had.")
    storage_used: ByteSize = leaf("Still stored.")
    tags: list[str] = leaf("Labels.")
    deleted_at: datetime = leaf("When deleted.")
    delete_after: datetime | None = leaf("Kept until; null = its data goes at once.")

    made: ClassVar[Mapping[str, Made]] = {
        "user": Made(("id",), global_ids.encoder("User")),
        "storage_used": Made(("used",), ByteSize),
    }

    @field("Not taken by others, in domains that are there.")
    async def recoverable_addresses(self, info: Info) -> list[EmailAddress]:
        addresses = await user_restore.recoverable(info.context, self.row.addresses)
        return [EmailAddress(address["shown"]) for address in addresses]


def _named(by: UserRef) -> Named:
    """Return the reference to a deleted user by id, username or address.

    Raises Invalid if the ID is not one of a user.
    """
    if by.id:
        return Named(global_ids.decode("User", by.id.value, path="by"))
    return Named(name=given(by.username) or given(by.address) or "")


@strawberry.input(description="Input of userDelete.")
class UserDeleteInput(Options):
    users: UserSelection = leaf("Which accounts; at least one condition.")
    delete_after: datetime | None = leaf(
        "Keep everything recoverable until then; without, the data goes at once.", default=UNSET
    )


@strawberry.input(description="Input of userRestore.")
class UserRestoreInput(Options):
    by: UserRef = leaf("By its id, or by a user name or address that it had.")


@strawberry.input(description="Input of userPurge.")
class UserPurgeInput(Options):
    users: UserSelection = leaf("Which accounts, deleted ones too; at least one condition.")


@strawberry.type(description="Answer of userDelete.")
class UserDeletePayload(UserSelectionPayload):
    counted = "deleted_ids"
    deleted_ids: list[strawberry.ID] = leaf("What is gone.", default_factory=list)
    task: Task | None = leaf(
        "Removes the data; of several accounts, that of the first.", default=None
    )
    tasks: list[Task] = leaf("One for each of deletedIds, in their order.", default_factory=list)


@strawberry.type(description="Answer of userRestore.")
class UserRestorePayload(MutationPayload):
    user: User | None = leaf("The account, as it is again.", default=None)
    recovered_addresses: list[EmailAddress] = leaf("It has these again.", default_factory=list)
    lost_addresses: list[EmailAddress] = leaf(
        "Taken by others meanwhile, or of a domain that is gone.", default_factory=list
    )


@strawberry.type(description="Answer of userPurge.")
class UserPurgePayload(UserSelectionPayload):
    counted = "purged"
    purged: list[strawberry.ID] = leaf("Whose data goes.", default_factory=list)
    task: Task | None = leaf(
        "Removes the data; of several accounts, that of the first.", default=None
    )
    tasks: list[Task] = leaf("One for each of purged, in their order.", default_factory=list)


def _ids(deletion: Deletion) -> list[strawberry.ID]:
    """Return the global IDs of the deleted users."""
    return [global_ids.encode("User", key) for key in deletion.ids]


@strawberry.type
class UserDeleteQuery:
    @query(
        "What is left of a deleted account, and could be brought back.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def deleted_user(self, info: Info, by: UserRef) -> DeletedUser | None:
        return DeletedUser.maybe(await user_restore.find(info.context, _named(by)))


@strawberry.type
class UserDeleteMutation:
    @mutation(
        "Ends accounts; their data goes now or after a time of grace. Repeatable.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.MASTER,
    )
    async def user_delete(self, info: Info, input: UserDeleteInput) -> UserDeletePayload:
        selector = users_named(input.users)
        deletion = await user_delete.delete(info.context, selector, input.delete_after or None)
        tasks = [Task.of(row) for row in deletion.tasks]
        return UserDeletePayload(
            deleted_ids=_ids(deletion), task=next(iter(tasks), None), tasks=tasks
        )

    @mutation(
        "Brings an account back while its data waits.", role=Role.DOMAIN_ADMIN, scope=Scope.MASTER
    )
    async def user_restore(self, info: Info, input: UserRestoreInput) -> UserRestorePayload:
        result = await user_restore.restore(info.context, _named(input.by))
        return UserRestorePayload(
            user=User.of(result.user),
            recovered_addresses=[EmailAddress(text) for text in result.recovered],
            lost_addresses=[EmailAddress(text) for text in result.lost],
        )

    @mutation(
        "All data gone at once, also of accounts that wait for their end; IN_USE while "
        "connections are open.",
        role=Role.ADMIN,
        scope=Scope.MASTER,
    )
    async def user_purge(self, info: Info, input: UserPurgeInput) -> UserPurgePayload:
        ctx, live = info.context, getattr(info.context, "live", None)
        async with ctx.together():
            deletion = await user_delete.delete(ctx, users_named(input.users), mutation="userPurge")
            if live and (connections := live.of(deletion.ids)):
                text = "connections are open: end them by sessionKick first"
                raise InUse(text, sessions=len(connections), path=["users"])
        tasks = [Task.of(row) for row in deletion.tasks]
        return UserPurgePayload(purged=_ids(deletion), task=next(iter(tasks), None), tasks=tasks)
