"""GraphQL types, query and mutations that delete, restore and purge users."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task
from graph.http.admission_control import ConnectionRegistry
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, UserSelectionPayload, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField
from graph.types.references import (
    DomainRef,
    UserRef,
    UserSelection,
    domain_selector_from_ref,
    maybe_value,
    user_selector_from_selection,
)
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from graph.types.scalars import ByteSize, EmailAddress
from graph.users.types import User
from models.errors import InUse
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.users import delete as user_delete
from resolvers.users import deleted_listing
from resolvers.users import restore as user_restore
from resolvers.users.delete import UserDeletion
from resolvers.users.deleted_listing import DeletedUserConditions
from resolvers.users.restore import DeletedUserRef


@strawberry.type(
    description="A deleted account, whose data is kept until it is purged.",
    directives=[Auth(role=Role.DOMAIN_ADMIN, scope=Scope.READ)],
)
class DeletedUser(NodeView):
    user_id: strawberry.ID = attribute_field("Global ID that the account had.")
    username: str = attribute_field("User name that the account had.")
    storage_used: ByteSize = attribute_field("Bytes that the account still stores.")
    tags: list[str] = attribute_field("Tags of the account.")
    deleted_at: datetime = attribute_field("The time of the deletion.")
    purge_at: datetime | None = attribute_field(
        "The time at which the data is removed. Null: the data is being removed."
    )

    load_batch = staticmethod(deleted_listing.load_deleted_users_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("DeletedUser"),
        "user_id": DerivedField(("id",), global_ids.encoder("User")),
        "storage_used": DerivedField(("used",), ByteSize),
    }

    @field("Addresses that userRestore gives back: nobody else has them, and their domains exist.")
    async def recoverable_addresses(self, info: Info) -> list[EmailAddress]:
        addresses = await info.context.load(deleted_listing.load_recoverable_addresses, self.row.id)
        return [EmailAddress(address) for address in addresses]


@strawberry.input(description="Conditions on deleted accounts. All must hold.")
class DeletedUserFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Part of the user name or display name, in any case.", default=UNSET
    )
    domain: DomainRef | None = attribute_field(
        "Accounts that had their main address in this domain.", default=UNSET
    )
    deleted_since: datetime | None = attribute_field(
        "Accounts deleted at this time or later.", default=UNSET
    )
    deleted_before: datetime | None = attribute_field(
        "Accounts deleted before this time.", default=UNSET
    )

    def to_conditions(self) -> DeletedUserConditions:
        """Convert the filter to conditions of the resolvers."""
        return DeletedUserConditions(
            query=self.query or None,
            domain=domain_selector_from_ref(self.domain, path="filter") if self.domain else None,
            deleted_since=self.deleted_since or None,
            deleted_before=self.deleted_before or None,
        )


def _deleted_user_ref(user_ref: UserRef, path: str) -> DeletedUserRef:
    """Return the reference to a deleted user by id, username or address.

    Raises Invalid if the ID is not one of a user.
    """
    if user_ref.id:
        return DeletedUserRef(global_ids.decode("User", user_ref.id.value, path=path))
    return DeletedUserRef(
        name=maybe_value(user_ref.username) or maybe_value(user_ref.address) or ""
    )


@strawberry.input(description="Input of userDelete.")
class UserDeleteInput(Options):
    users: UserSelection = attribute_field("Which accounts; at least one condition.")
    purge_at: datetime | None = attribute_field(
        "Keep everything recoverable until then; without, the data goes at once.", default=UNSET
    )


@strawberry.input(description="Input of userRestore.")
class UserRestoreInput(Options):
    user: UserRef = attribute_field(
        "The deleted account, by its ID or by a user name or address that it had."
    )


@strawberry.input(description="Input of userPurge.")
class UserPurgeInput(Options):
    users: UserSelection = attribute_field(
        "Which accounts, deleted ones too; at least one condition."
    )


@strawberry.type(description="Answer of userDelete.")
class UserDeletePayload(UserSelectionPayload):
    counted_field = "deleted_ids"
    deleted_ids: list[strawberry.ID] = attribute_field(
        "IDs of the deleted accounts.", default_factory=list
    )
    tasks: list[Task] = attribute_field(
        "Background tasks that remove the data, one for each of `deletedIds`, in order.",
        default_factory=list,
    )


@strawberry.type(description="Answer of userRestore.")
class UserRestorePayload(MutationPayload):
    user: User | None = attribute_field("The account, as it is again.", default=None)
    recovered_addresses: list[EmailAddress] = attribute_field(
        "It has these again.", default_factory=list
    )
    lost_addresses: list[EmailAddress] = attribute_field(
        "Taken by others meanwhile, or of a domain that is gone.", default_factory=list
    )


@strawberry.type(description="Answer of userPurge.")
class UserPurgePayload(UserSelectionPayload):
    counted_field = "purged_ids"
    purged_ids: list[strawberry.ID] = attribute_field(
        "IDs of the accounts whose data is removed.", default_factory=list
    )
    tasks: list[Task] = attribute_field(
        "Background tasks that remove the data, one for each of `purgedIds`, in order.",
        default_factory=list,
    )


def _user_global_ids(deletion: UserDeletion) -> list[strawberry.ID]:
    """Return the global IDs of the deleted users."""
    return [global_ids.encode("User", key) for key in deletion.user_ids]


@strawberry.type
class UserDeleteQuery:
    @query(
        "What is left of a deleted account, and could be brought back.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def deleted_user(self, info: Info, by: UserRef) -> DeletedUser | None:
        return DeletedUser.from_row_or_none(
            await user_restore.find_deleted_user(info.context, _deleted_user_ref(by, "by"))
        )

    @query(
        "Lists the deleted accounts that the viewer can restore, the last deleted first. A "
        "DOMAIN_ADMIN sees those of the administered domains.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def deleted_users(
        self,
        info: Info,
        filter: DeletedUserFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DeletedUser]:
        conditions = filter.to_conditions() if filter else DeletedUserConditions()
        list_ordering = ordering_name(
            "deleted-users", None if conditions == DeletedUserConditions() else conditions
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            DeletedUser,
            await deleted_listing.read_deleted_user_page(
                info.context, conditions, requested_page, selected_columns(info, DeletedUser)
            ),
            lambda row: Cursor(requested_page.ordering, row.deleted_at, row.id),
            lambda: deleted_listing.count_deleted_users(info.context, conditions),
        )


@strawberry.type
class UserDeleteMutation:
    @mutation(
        "Ends accounts; their data goes now or after a time of grace. Repeatable.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
    )
    async def user_delete(self, info: Info, input: UserDeleteInput) -> UserDeletePayload:
        selector = user_selector_from_selection(input.users)
        deletion = await user_delete.delete_users(info.context, selector, input.purge_at or None)
        return UserDeletePayload(
            deleted_ids=_user_global_ids(deletion),
            tasks=[Task.from_row(row) for row in deletion.tasks],
        )

    @mutation(
        "Brings an account back while its data waits.", role=Role.DOMAIN_ADMIN, scope=Scope.FULL
    )
    async def user_restore(self, info: Info, input: UserRestoreInput) -> UserRestorePayload:
        result = await user_restore.restore_user(
            info.context, _deleted_user_ref(input.user, "user")
        )
        return UserRestorePayload(
            user=User.from_row(result.user),
            recovered_addresses=[EmailAddress(text) for text in result.recovered_addresses],
            lost_addresses=[EmailAddress(text) for text in result.lost_addresses],
        )

    @mutation(
        "All data gone at once, also of accounts that wait for their end; IN_USE while "
        "connections are open.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def user_purge(self, info: Info, input: UserPurgeInput) -> UserPurgePayload:
        ctx: Context = info.context
        live: ConnectionRegistry | None = getattr(ctx, "live", None)
        async with ctx.combined_transaction():
            deletion = await user_delete.delete_users(
                ctx, user_selector_from_selection(input.users), mutation="userPurge"
            )
            if live and (connections := live.viewers_of_users(deletion.user_ids)):
                text = "connections are open: end them by sessionTerminate first"
                raise InUse(text, sessions=len(connections), path=["users"])
        return UserPurgePayload(
            purged_ids=_user_global_ids(deletion),
            tasks=[Task.from_row(row) for row in deletion.tasks],
        )
