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
from graph.types.mutations import LONG_MUTATION_COST, mutation
from graph.types.object_access import MANAGED
from graph.types.object_views import DerivedField
from graph.types.references import (
    DomainRef,
    UserRef,
    UserSelection,
    domain_selector_from_ref,
    maybe_value,
    user_selector_from_selection,
    user_type_of_id,
)
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from graph.types.scalars import ByteSize, EmailAddress
from graph.users.types import User
from models.errors import InUse
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.users import delete as user_delete
from resolvers.users import deleted_listing
from resolvers.users import restore as user_restore
from resolvers.users.delete import UserDeletion
from resolvers.users.deleted_listing import DeletedUserConditions, DeletedUserOrder
from resolvers.users.restore import DeletedUserRef


@strawberry.type(
    description="Deleted account whose data is kept until a task removes it.",
    directives=[Auth(role=Role.DOMAIN_ADMIN, scope=Scope.READ)],
)
class DeletedUser(NodeView):
    user_id: strawberry.ID = attribute_field("Global ID that the account had.")
    username: str = attribute_field("Username that the account had.")
    storage_used: ByteSize = attribute_field(
        "Bytes of the messages and custom data that are still stored of the deleted account."
    )
    tags: list[str] = attribute_field("Tags that the account had. At most 1,000.")
    deleted_at: datetime = attribute_field("Time when the account was deleted.")
    purge_at: datetime | None = attribute_field(
        "Time from which the data is removed. After this time, its removal is due or has begun. "
        "Null: the data is removed as soon as possible."
    )

    load_batch = staticmethod(deleted_listing.load_deleted_users_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("DeletedUser"),
        "user_id": DerivedField(("id",), global_ids.encoder("User")),
        "storage_used": DerivedField(("used",), ByteSize),
    }

    @field(
        "Addresses that the account gets back if it is restored: they are free, and their "
        "domains exist. At most the first 250. `recoverableAddressCount` counts all."
    )
    async def recoverable_addresses(self, info: Info) -> list[EmailAddress]:
        addresses = await info.context.load(deleted_listing.load_recoverable_addresses, self.row.id)
        listed = addresses[: deleted_listing.MAX_RECOVERABLE_ADDRESSES]
        return [EmailAddress(address) for address in listed]

    @field(
        "Number of addresses that the account gets back if it is restored, including those that "
        "`recoverableAddresses` leaves out."
    )
    async def recoverable_address_count(self, info: Info) -> int:
        return len(await info.context.load(deleted_listing.load_recoverable_addresses, self.row.id))


@strawberry.input(
    description="Conditions on deleted accounts. All must hold. A filter without a condition is "
    "an error."
)
class DeletedUserFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only accounts with this text in the username or display name (case is ignored). "
        "At most 1,000 characters.",
        default=UNSET,
    )
    domain: DomainRef | None = attribute_field(
        "Returns only accounts that belonged to this domain, by their main address.", default=UNSET
    )
    deleted_since: datetime | None = attribute_field(
        "Returns only accounts deleted at this time or later.", default=UNSET
    )
    deleted_before: datetime | None = attribute_field(
        "Returns only accounts deleted before this time.", default=UNSET
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
    """Return the reference to a deleted user by id, also of DeletedUser, username or address.

    Raises InvalidInput if the ID is not one of a user.
    """
    if user_ref.id:
        user_id = user_ref.id.value
        return DeletedUserRef(global_ids.decode(user_type_of_id(user_id), user_id, path=path))
    return DeletedUserRef(
        name=maybe_value(user_ref.username) or maybe_value(user_ref.address) or ""
    )


@strawberry.input(description="Input of userDelete.")
class UserDeleteInput(Options):
    users: UserSelection = attribute_field(
        "Accounts to delete. An account that is deleted already can be selected by the ID of its "
        "User or DeletedUser, or by its former username. This changes the time of its purge."
    )
    purge_at: datetime | None = attribute_field(
        "Time from which the data is removed; until then the account can be restored. Null, "
        "absent or a past time: the data is removed at once.",
        default=UNSET,
    )


@strawberry.input(description="Input of userRestore.")
class UserRestoreInput(Options):
    user: UserRef = attribute_field(
        "Deleted account: by the ID of the DeletedUser or the one that the User had, or by a "
        "username or address that it had. Of several, the one deleted last."
    )


@strawberry.input(description="Input of userPurge.")
class UserPurgeInput(Options):
    users: UserSelection = attribute_field(
        "Accounts to purge. A deleted account can be selected by the ID of its User or "
        "DeletedUser, or by its former username."
    )


@strawberry.type(description="Payload of userDelete.")
class UserDeletePayload(UserSelectionPayload):
    counted_field = "deleted_ids"
    deleted_ids: list[strawberry.ID] = attribute_field(
        "Global IDs of the deleted accounts, also of those that were deleted before and got a "
        "new time of removal.",
        default_factory=list,
    )
    tasks: list[Task] = attribute_field(
        "Background tasks that remove the data, one for each of `deletedIds`, in order.",
        default_factory=list,
    )


@strawberry.type(description="Payload of userRestore.")
class UserRestorePayload(MutationPayload):
    user: User | None = attribute_field(
        "Restored account. Null if the mutation failed.", default=None
    )
    recovered_addresses: list[EmailAddress] = attribute_field(
        "Earlier addresses that the restored account has again.", default_factory=list
    )
    lost_addresses: list[EmailAddress] = attribute_field(
        "Addresses that were not restored: they are in use again, or their domain no longer "
        "exists.",
        default_factory=list,
    )


@strawberry.type(description="Payload of userPurge.")
class UserPurgePayload(UserSelectionPayload):
    counted_field = "purged_ids"
    purged_ids: list[strawberry.ID] = attribute_field(
        "Global IDs of the accounts whose data the `tasks` remove in the background.",
        default_factory=list,
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
        "Returns a deleted account whose data is not removed yet. `by` has the ID of the "
        "DeletedUser or of its former User, or a username or address that it had. If there are "
        "several, it is the one deleted last. The removal of the data can have begun. Null if "
        "there is none that the caller manages.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=MANAGED,
        cost=3,
    )
    async def deleted_user(self, info: Info, by: UserRef) -> DeletedUser | None:
        return DeletedUser.from_row_or_none(
            await user_restore.find_deleted_user(info.context, _deleted_user_ref(by, "by"))
        )

    @query(
        "Returns the deleted accounts that the caller manages. A deleted account is in the list "
        "until all its data is removed.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=MANAGED,
    )
    async def deleted_users(
        self,
        info: Info,
        filter: DeletedUserFilter | None = UNSET,
        order_by: DeletedUserOrder = DeletedUserOrder.DELETED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DeletedUser]:
        conditions = filter.to_conditions() if filter else DeletedUserConditions()
        list_ordering = ordering_name(
            f"deleted-users-{order_by}",
            None if conditions == DeletedUserConditions() else conditions,
        )
        list_order = deleted_listing.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            DeletedUser,
            await deleted_listing.read_deleted_user_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, DeletedUser),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: deleted_listing.count_deleted_users(info.context, conditions),
        )


@strawberry.type
class UserDeleteMutation:
    @mutation(
        "Deletes accounts, all or none. They can no longer sign in or receive mail, and their "
        "usernames and addresses are free at once. Their access tokens, OAuth grants and mailbox "
        "shares end. BCC rules, webhooks, and `bcc` and `replyTo` of identities that they set for "
        "others as administrators end too. A task removes the data now, or not before `purgeAt`; "
        "until then `userRestore` restores the accounts. For an account that is deleted already, "
        "the mutation changes that time. A future time is a CONFLICT if the removal has begun. "
        "FORBIDDEN_OPERATION if the signed-in user is selected. LIMIT_REACHED for more than 1,000 "
        "accounts (by default).",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
    )
    async def user_delete(self, info: Info, input: UserDeleteInput) -> UserDeletePayload:
        selector = user_selector_from_selection(input.users, with_deleted=True)
        deletion = await user_delete.delete_users_or_reschedule_purge(
            info.context, selector, input.purge_at or None
        )
        return UserDeletePayload(
            deleted_ids=_user_global_ids(deletion),
            tasks=[Task.from_row(row) for row in deletion.tasks],
        )

    @mutation(
        "Restores a deleted account with its data, its password, API keys and application "
        "passwords, and its addresses that are still free. Access tokens, OAuth grants, the link "
        "to an identity provider, and shares of mailboxes with other users are not restored. The "
        "main address is the former one, or else another restored address. CONFLICT if the "
        "removal of the data has begun, the username is taken, or the account is not deleted. "
        "LIMIT_REACHED if the domain has no room for another user or for the quota of the account.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
        cost=LONG_MUTATION_COST,
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
        "Deletes accounts, all or none, and starts background tasks that remove all their data "
        "without a grace period. Deleted accounts can be purged, too. This can't be undone. "
        "IN_USE if an account has WebSocket connections or event streams to the process that runs "
        "the mutation: end them by `sessionTerminate` first. Connections to other processes end. "
        "FORBIDDEN_OPERATION if the signed-in user is selected. LIMIT_REACHED for more than 1,000 "
        "users (by default).",
        role=Role.ADMIN,
        scope=Scope.FULL,
        access=MANAGED,
    )
    async def user_purge(self, info: Info, input: UserPurgeInput) -> UserPurgePayload:
        ctx: Context = info.context
        live: ConnectionRegistry | None = getattr(ctx, "live", None)
        async with ctx.combined_transaction():
            deletion = await user_delete.delete_users_or_reschedule_purge(
                ctx,
                user_selector_from_selection(input.users, with_deleted=True),
                mutation="userPurge",
            )
            if live and (connections := live.viewers_of_users(deletion.user_ids)):
                text = "Connections of the account are open: end them by sessionTerminate first."
                raise InUse(text, sessions=len(connections), path=["users"])
        return UserPurgePayload(
            purged_ids=_user_global_ids(deletion),
            tasks=[Task.from_row(row) for row in deletion.tasks],
        )
