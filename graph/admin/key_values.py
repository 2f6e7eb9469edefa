"""GraphQL types, queries and mutations of the key-value stores."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_access import OWN_OR_OVERSEEN, OWN_OR_ROOT
from graph.types.object_references import ObjectRef, id_from_ref
from graph.types.object_views import DerivedField
from graph.types.references import (
    UserRef,
    is_given,
    load_visible_user_id_or_viewer_id,
    require_visible_user_id_if_named,
    value_or_none,
)
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from graph.types.scalars import BigInt, Duration
from models.errors import InvalidInput
from models.events.journal import PLATFORM
from models.store.keyset_pages import ordering_name
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import key_values
from resolvers.admin.key_values import (
    DEFAULT_STORE,
    KeyValueEntryOrder,
    KeyValueListConditions,
    KeyValueNamespace,
    NewKeyValue,
)

UNKNOWN_ACCOUNT_ID = -1  # no account has this id; 0 is the platform
KeyArgument = Annotated[
    str,
    strawberry.argument(
        description=(
            "Key of the entry, at most 1,024 bytes. Case matters. Slashes separate levels, none of "
            "which is empty."
        )
    ),
]


@strawberry.type(description="Entry of a key-value store.")
class KeyValueEntry(NodeView):
    key: str = attribute_field("Key of the entry. Slashes separate levels.")
    value: str | None = attribute_field(
        "Text value of the entry. Null in a list whose filter has `keysOnly`."
    )
    store: str = attribute_field("Name of the key-value store that contains the entry.")
    shared: bool = attribute_field(
        "True for a shared entry, which every signed-in user can read. False for an entry of one "
        "user."
    )
    expires_at: datetime | None = attribute_field(
        "Time when the entry expires: from then on it is treated as missing, and a later "
        "clean-up deletes it. Null: never."
    )
    version: BigInt = attribute_field(
        "MODSEQ of the last change of the entry, for `ifVersion`. Each change gives a higher "
        "version."
    )

    load_batch = staticmethod(key_values.load_visible_entries_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("KeyValueEntry"),
        "shared": DerivedField(("stream_id",), lambda owner: owner == PLATFORM),
    }


@strawberry.input(description="Store and key of an entry.")
class KeyValueKeyInput:
    key: str = attribute_field(
        "Key of the entry, at most 1,024 bytes. Case matters. Slashes separate levels, none of "
        "which is empty."
    )
    store: str = attribute_field(
        "Name of the key-value store that contains the entry. A name that the setting "
        "MERGANSER_KEY_VALUE_STORES does not list is an error.",
        default=DEFAULT_STORE,
    )
    shared: bool = attribute_field(
        "True refers to the shared entry with this key, which every signed-in user can read. True "
        "is not allowed with `user`.",
        default=False,
    )
    user: UserRef | None = attribute_field(
        "Owner of the entry. Default: the signed-in user. A caller without a user must set `user` "
        "or `shared`.",
        default=UNSET,
    )


@strawberry.input(one_of=True, description="Reference to one entry of a key-value store.")
class KeyValueEntryRef(ObjectRef):
    name: strawberry.Maybe[KeyValueKeyInput] = attribute_field("Store and key of the entry.")


@strawberry.input(description="Conditions on the entries of one key-value store. All must hold.")
class KeyValueEntryFilter(ConditionsInput):
    fields_with_empty_texts = frozenset({"prefix", "store", "exact_key"})
    user: UserRef | None = attribute_field(
        "Returns the entries of this user. Without a user whom the caller can see, the list is "
        "empty. Default: the signed-in user. A caller without a user must set `user` or `shared`.",
        default=UNSET,
    )
    store: str | None = attribute_field(
        f"Name of the key-value store. An unknown name is an error. Default: `{DEFAULT_STORE}`.",
        default=UNSET,
    )
    shared: bool | None = attribute_field(
        "True returns the shared entries, which every signed-in user can read, instead of those "
        "of a user. Not allowed with `user`. Default: false.",
        default=UNSET,
    )
    prefix: str | None = attribute_field(
        "Returns only entries whose key begins with this text (case matters). The level is that "
        "of the text up to its last slash: `a/` and `a/b` select keys such as `a/bc`. At most "
        "1,024 bytes. Default: all keys of the first level.",
        default=UNSET,
    )
    exact_key: str | None = attribute_field(
        "Returns only the entry with this key, on any level (case matters). Must not be empty. "
        "Not allowed with `prefix`.",
        default=UNSET,
    )
    recursive: bool | None = attribute_field(
        "True also returns matching keys on all levels below the selected one. Default: false.",
        default=UNSET,
    )
    keys_only: bool | None = attribute_field(
        "True returns the entries without values: `value` is null. Default: false.", default=UNSET
    )

    async def resolve_conditions_or_match_nothing(self, info: Info) -> KeyValueListConditions:
        """Convert the filter to conditions of the resolvers.

        Raises InvalidInput if fields are combined that exclude each other.
        """
        has_exact_key = is_given(self.exact_key)
        if has_exact_key and is_given(self.prefix):
            text = "`prefix` and `exactKey` can't be combined."
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=["filter", "exactKey"]
            )
        namespace = await _query_namespace_or_empty(
            info, self.user, self.store or DEFAULT_STORE, is_shared=bool(self.shared)
        )
        start = (self.exact_key if has_exact_key else self.prefix) or ""
        return KeyValueListConditions(namespace, start, has_exact_key, bool(self.recursive))


@strawberry.input
class KeyValueEntryInput(Options):
    """Base of the inputs of all key-value mutations: which store they change."""

    user: UserRef | None = attribute_field(
        "Owner of the entry. Default: the signed-in user. A caller without a user must set `user` "
        "or `shared`.",
        default=UNSET,
    )
    store: str = attribute_field(
        "Name of the key-value store that contains the entry. A name that the setting "
        "MERGANSER_KEY_VALUE_STORES does not list is refused.",
        default=DEFAULT_STORE,
    )
    key: str = attribute_field(
        "Key of the entry. Case matters. Slashes separate levels, none of which is empty. Control "
        "characters are not allowed. A new key has by default at most 512 bytes and 16 levels."
    )
    shared: bool = attribute_field(
        "True refers to the shared entry with this key, which every signed-in user can read. True "
        "is not allowed with `user`, and requires role ADMIN and scope FULL.",
        default=False,
    )

    async def resolve_namespace(self, info: Info) -> KeyValueNamespace:
        """Return the namespace that the input names; default: the one of the viewer.

        Raises NotFound if the viewer can't see the user, InvalidInput if `shared` is combined with
        a user.
        """
        if self.shared:
            return _require_no_user_for_shared_namespace(self.user, self.store)
        user_id = await require_visible_user_id_if_named(info, self.user or None)
        return KeyValueNamespace(
            require_user_id(info.context) if user_id is None else user_id, self.store
        )


@strawberry.input(description="Input of keyValueSet.")
class KeyValueSetInput(KeyValueEntryInput):
    value: str = attribute_field(
        "Text to store, by default at most 64 KiB. A larger one is LIMIT_REACHED. It can be empty."
    )
    ttl: Duration | None = attribute_field(
        "Lifetime of the entry from now, 1 second to 3,650 days. Default: null, the entry never "
        "expires, even if it had an expiry before.",
        default=UNSET,
    )
    if_version: BigInt | None = attribute_field(
        "Changes the entry only if this is its version, else returns a StaleError. 0: only if "
        "there is no entry, or an expired one. Default: always.",
        default=UNSET,
    )


@strawberry.input(description="Input of keyValueIncrement.")
class KeyValueIncrementInput(KeyValueEntryInput):
    delta: BigInt = attribute_field("Integer to add. A negative number lowers the value.")
    create_missing: bool = attribute_field(
        "True creates a missing or expired entry with the value `delta` and without an expiry. "
        "False: such an entry is the error NOT_FOUND.",
        default=False,
    )


@strawberry.input(description="Input of keyValueDelete.")
class KeyValueDeleteInput(KeyValueEntryInput):
    recursive: bool = attribute_field(
        "True also deletes all entries whose key begins with this key and a slash.", default=False
    )


@strawberry.type(description="Payload of keyValueSet and keyValueIncrement.")
class KeyValuePayload(MutationPayload):
    key_value_entry: KeyValueEntry | None = attribute_field(
        "Entry after the change. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of keyValueDelete.")
class KeyValueDeletePayload(MutationPayload):
    deleted_count: BigInt = attribute_field(
        "Number of deleted entries. Expired entries are not counted. 0 if the mutation failed.",
        default=BigInt(0),
    )


def _require_no_user_for_shared_namespace(
    user_ref: UserRef | None, store: str
) -> KeyValueNamespace:
    """Return the namespace of shared entries. Raises InvalidInput if a user is named as well."""
    if user_ref:
        text = "`shared` and `user` can't be combined."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["shared"])
    return KeyValueNamespace(PLATFORM, store)


async def _query_namespace_or_empty(
    info: Info, user_ref: UserRef | None, store: str, *, is_shared: bool
) -> KeyValueNamespace:
    """Return the namespace that a query names; default: the one of the viewer.

    It is an empty namespace if the viewer can't see the user. Raises InvalidInput if `is_shared` is
    combined with a user.
    """
    if is_shared:
        return _require_no_user_for_shared_namespace(user_ref, store)
    return KeyValueNamespace(
        await load_visible_user_id_or_viewer_id(info, user_ref) or UNKNOWN_ACCOUNT_ID, store
    )


@strawberry.type
class KeyValueQuery:
    @query(
        "Returns an entry of a key-value store by ID, or by store and key. It belongs to a user, "
        "or is shared, so that every signed-in user can read it. Null if there is none, it has "
        "expired, or the caller can't see it. An unknown store is an error.",
        scope=Scope.READ,
        access=OWN_OR_OVERSEEN,
    )
    async def key_value(
        self,
        info: Info,
        by: KeyValueEntryRef,
    ) -> KeyValueEntry | None:
        if by.name is None:
            key = id_from_ref(by, "by")
            row = await info.context.load(key_values.load_visible_entries_by_id, key)
            return KeyValueEntry.from_row_or_none(row)
        name = by.name.value
        namespace = await _query_namespace_or_empty(
            info, name.user, name.store, is_shared=name.shared
        )
        return KeyValueEntry.from_row_or_none(
            await key_values.find_entry(info.context, namespace, name.key)
        )

    @query(
        "Returns the entries of one user in a key-value store, or its shared entries. Default: "
        "the signed-in user's entries in the store `default`. Slashes in a key separate levels. "
        "Only one level is returned, by default the first. If `filter.recursive` is true, the "
        "levels below it are returned too. Expired entries are left out. Every signed-in user can "
        "read the shared entries. For another user whose entries the caller can't read, the list "
        "is empty. An unknown store is an error.",
        scope=Scope.READ,
        access=OWN_OR_OVERSEEN,
    )
    async def key_values(
        self,
        info: Info,
        filter: KeyValueEntryFilter | None = UNSET,
        order_by: KeyValueEntryOrder = KeyValueEntryOrder.KEY_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[KeyValueEntry]:
        conditions = filter or KeyValueEntryFilter()
        ctx, list_request = info.context, await conditions.resolve_conditions_or_match_nothing(info)
        list_order = key_values.LIST_ORDERS[order_by]
        list_ordering = ordering_name(f"key-values-{order_by}", list_request)
        requested_page = page_request(list_ordering, first, after, last, before)
        names = selected_columns(info, KeyValueEntry)
        return await connection_of_page(
            info,
            KeyValueEntry,
            await key_values.read_visible_key_value_page(
                ctx,
                list_request,
                requested_page,
                names,
                order_by,
                with_values=not conditions.keys_only,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: key_values.count_visible_key_values(ctx, list_request),
        )


@strawberry.type
class KeyValueMutation:
    @mutation(
        "Creates an entry of a key-value store, or replaces its value and expiry. By default, the "
        "entries of a user in all stores are limited to 1,000, and to 1 MiB of keys and values. "
        "The shared entries together have the same limits. Expired entries don't count. Above a "
        "limit the error is LIMIT_REACHED, and QUOTA_EXCEEDED if the storage of the account is "
        "full. STALE if `ifVersion` is not the present version. Shared entries require the role "
        "ADMIN and the scope FULL. The audit log names changes of shared entries and of other "
        "users' entries, without values.",
        scope=Scope.SETTINGS,
        access=OWN_OR_ROOT.with_scope(Scope.FULL),
    )
    async def key_value_set(self, info: Info, input: KeyValueSetInput) -> KeyValuePayload:
        new = NewKeyValue(
            input.value,
            value_or_none(input.ttl),
            value_or_none(input.if_version),
        )
        namespace = await input.resolve_namespace(info)
        entry = await key_values.set_key_value(info.context, namespace, input.key, new)
        return KeyValuePayload(key_value_entry=KeyValueEntry.from_row(entry))

    @mutation(
        "Adds an integer to the integer value of an entry of a key-value store atomically. The "
        "expiry is unchanged. A missing or expired entry is the error NOT_FOUND, unless "
        "`createMissing` is true. VALIDATION if the value is no integer, or if the result is not "
        "between -(2^53-1) and 2^53-1. Shared entries require the role ADMIN and the scope FULL. "
        "LIMIT_REACHED above 1,000 entries or 1 MiB of a user, or of all shared entries together "
        "(by default). QUOTA_EXCEEDED if the storage of the account is full.",
        scope=Scope.SETTINGS,
        access=OWN_OR_ROOT.with_scope(Scope.FULL),
    )
    async def key_value_increment(
        self, info: Info, input: KeyValueIncrementInput
    ) -> KeyValuePayload:
        entry = await key_values.increment_key_value(
            info.context,
            await input.resolve_namespace(info),
            input.key,
            input.delta,
            create_missing=input.create_missing,
        )
        return KeyValuePayload(key_value_entry=KeyValueEntry.from_row(entry))

    @mutation(
        "Deletes an entry of a key-value store, or with `recursive` also all entries below its "
        "key, even if the key itself has none. A missing entry is no error: `deletedCount` is 0. "
        "Shared entries require the role ADMIN and the scope FULL.",
        scope=Scope.SETTINGS,
        access=OWN_OR_ROOT.with_scope(Scope.FULL),
    )
    async def key_value_delete(
        self, info: Info, input: KeyValueDeleteInput
    ) -> KeyValueDeletePayload:
        namespace = await input.resolve_namespace(info)
        deleted_count = await key_values.delete_key_values(
            info.context, namespace, input.key, recursive=input.recursive
        )
        return KeyValueDeletePayload(deleted_count=BigInt(deleted_count))
