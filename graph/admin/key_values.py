"""GraphQL types, queries and mutations of the key-value stores."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info, query
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import UserRef, owner_named, owner_of, plain
from graph.types.row_mapping import Shape, columns, identified
from graph.types.scalars import BigInt, Duration
from models.errors import Invalid
from models.events.journal import PLATFORM
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Scope
from resolvers.access import own
from resolvers.admin import key_values
from resolvers.admin.key_values import DEFAULT, Listing, Namespace, NewValue

NOBODY = -1  # no account has this id; 0 is the platform
Key = Annotated[str, strawberry.argument(description="Name of the value.")]


@strawberry.type(description="One entry of a key-value store.")
class KeyValue(Shape):
    key: str = leaf("Slashes make levels.")
    value: str | None = leaf("Null when asked without values.")
    store: str = leaf("Named store.")
    shared: bool = leaf("Everybody who has signed in may read it.")
    expires_at: datetime | None = leaf("End of life, null = none.")
    version: BigInt = leaf(
        "Modification sequence of its last change, for ifVersion: no key has one twice."
    )

    batch = staticmethod(key_values.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("KeyValue"),
        "shared": Made(("stream_id",), lambda owner: owner == PLATFORM),
    }


@strawberry.input
class EntryInput(Options):
    """Base of the inputs of all key-value mutations: which store they change."""

    user: UserRef | None = leaf("Whose, for ROOT. Default: the viewer's.", default=UNSET)
    store: str = leaf("Named store.", default=DEFAULT)
    key: str = leaf("Name of the value.")
    shared: bool = leaf("One that everybody may read, for ADMIN.", default=False)

    async def within(self, info: Info) -> Namespace:
        """Return the namespace that the input names; default: the one of the viewer.

        Raises NotFound if the viewer can't see the user, Invalid if `shared` is combined with
        a user.
        """
        if self.shared:
            return _shared(self.user, self.store)
        user_id = await owner_named(info, self.user or None)
        return Namespace(own(info.context) if user_id is None else user_id, self.store)


@strawberry.input(description="Input of keyValueSet.")
class KeyValueSetInput(EntryInput):
    value: str = leaf("Any text.")
    ttl: Duration | None = leaf(
        "How long the value is kept: from 1 second to 3,650 days. Default: for ever.", default=UNSET
    )
    if_version: BigInt | None = leaf(
        "Refuse with STALE unless this is its version; 0: unless there is none.", default=UNSET
    )


@strawberry.input(description="Input of keyValueIncrement.")
class KeyValueIncrementInput(EntryInput):
    difference: BigInt = leaf("What to add; below 0 it is taken away.")
    create_missing: bool = leaf("Start at zero when missing.", default=False)


@strawberry.input(description="Input of keyValueDelete.")
class KeyValueDeleteInput(EntryInput):
    recursive: bool = leaf("All below it too.", default=False)


@strawberry.type(description="Answer of keyValueSet and keyValueIncrement.")
class KeyValuePayload(MutationPayload):
    entry: KeyValue | None = leaf("As it is now.", default=None)


@strawberry.type(description="Answer of keyValueDelete.")
class KeyValueDeletePayload(MutationPayload):
    deleted: int = leaf("How many entries are gone.", default=0)


def _shared(user: UserRef | None, store: str) -> Namespace:
    """Return the namespace of shared entries. Raises Invalid if a user is named as well."""
    if user:
        text = "what is shared is nobody's: name no user"
        raise Invalid(text, constraint="exclusive", path=["shared"])
    return Namespace(PLATFORM, store)


async def _within(info: Info, user: UserRef | None, store: str, *, shared: bool) -> Namespace:
    """Return the namespace that a query names; default: the one of the viewer.

    It is an empty namespace if the viewer can't see the user. Raises Invalid if `shared` is
    combined with a user.
    """
    if shared:
        return _shared(user, store)
    return Namespace(await owner_of(info, user) or NOBODY, store)


@strawberry.type
class KeyValueQuery:
    @query("One entry; null when missing or invisible.", scope=Scope.READ)
    async def key_value(
        self,
        info: Info,
        key: Key,
        user: UserRef | None = UNSET,
        store: str = DEFAULT,
        shared: bool = False,
    ) -> KeyValue | None:
        namespace = await _within(info, user, store, shared=shared)
        return KeyValue.maybe(await key_values.find(info.context, namespace, key))

    @query("Entries by key, in the order of its bytes: of one level.", scope=Scope.READ)
    async def key_values(
        self,
        info: Info,
        user: UserRef | None = UNSET,
        store: str = DEFAULT,
        prefix: str | None = UNSET,
        exact: bool = False,
        recurse: bool = False,
        no_value: bool = False,
        shared: bool = False,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[KeyValue]:
        namespace = await _within(info, user, store, shared=shared)
        ctx, list_request = info.context, Listing(namespace, prefix or "", exact, recurse)
        requested_page = page_asked(ordering("keyvalue", list_request), first, after, last, before)
        names = columns(info, KeyValue)
        return await connected(
            info,
            KeyValue,
            await key_values.page(ctx, list_request, requested_page, names, values=not no_value),
            lambda row: Cursor(requested_page.ordering, row.key, row.id),
            lambda: key_values.count(ctx, list_request),
        )


@strawberry.type
class KeyValueMutation:
    @mutation(
        "Sets a value: one's own; what is shared as ADMIN, and another's as ROOT, with MASTER.",
        scope=Scope.SETTINGS,
    )
    async def key_value_set(self, info: Info, input: KeyValueSetInput) -> KeyValuePayload:
        new = NewValue(
            input.value,
            plain(input.ttl),
            plain(input.if_version),
        )
        namespace = await input.within(info)
        entry = await key_values.put(info.context, namespace, input.key, new)
        return KeyValuePayload(entry=KeyValue.of(entry))

    @mutation(
        "Adds to a value that is a whole number; of several at once none is lost. Its end stays.",
        scope=Scope.SETTINGS,
    )
    async def key_value_increment(
        self, info: Info, input: KeyValueIncrementInput
    ) -> KeyValuePayload:
        entry = await key_values.increment(
            info.context,
            await input.within(info),
            input.key,
            input.difference,
            create_missing=input.create_missing,
        )
        return KeyValuePayload(entry=KeyValue.of(entry))

    @mutation("Removes one entry, or all below it too.", scope=Scope.SETTINGS)
    async def key_value_delete(
        self, info: Info, input: KeyValueDeleteInput
    ) -> KeyValueDeletePayload:
        namespace = await input.within(info)
        deleted = await key_values.remove(
            info.context, namespace, input.key, recursive=input.recursive
        )
        return KeyValueDeletePayload(deleted=deleted)
