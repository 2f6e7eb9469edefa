"""GraphQL types, queries and mutations of the settings in the database."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types import errors as types_errors
from graph.types.connections import Connection, ConnectionSource, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from models.errors import InvalidInput
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.admin import settings as admin_settings
from resolvers.admin.setting_types import SettingKind
from resolvers.admin.settings import (
    CurrentSetting,
    SettingHistoryEntryOrder,
    SettingHistoryPageKey,
    SettingOrder,
)

MAX_QUERY_LENGTH = 128  # characters; as long as a key


@strawberry.type(
    description="A change of the stored value of a setting.", directives=[Auth(scope=Scope.READ)]
)
class SettingHistoryEntry(NodeView):
    key: str = attribute_field("Key of the changed setting.")
    at: datetime = attribute_field("Time of the change.")
    actor: str = attribute_field(
        "Username, at that time, of the user who changed the setting. `key NAME`: an API key of "
        "the platform. `operator`: a command on the server, or the bootstrap key."
    )
    before: JSON | None = attribute_field(
        "Stored value before the change. Null: no value was stored, so that the default applied or "
        "the custom setting did not exist; or the value was null."
    )
    after: JSON | None = attribute_field(
        "Stored value after the change. Null: the stored value was deleted, or the new value is "
        "null, which few settings accept. A setting without a stored value has its default; a "
        "custom setting does not exist."
    )
    reason: str | None = attribute_field(
        "Reason that the caller gave in `options.reason`. Null: none."
    )

    load_batch = staticmethod(admin_settings.load_visible_changes_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("SettingHistoryEntry"),
        "before": DerivedField(("before",), lambda stored: stored and stored["value"]),
        "after": DerivedField(("after",), lambda stored: stored and stored["value"]),
    }


@strawberry.type(description="Setting of the platform.")
class Setting:
    key: str = attribute_field(
        "Key of the setting, such as `submission.maxRecipients`. Keys of custom settings begin "
        "with `custom.`."
    )
    value: JSON | None = attribute_field(
        "Stored value, or else the default. If `restartRequired` is true, processes may still use "
        "an older value. Durations are in ISO 8601, sizes in bytes. Null is a value of few "
        "settings, as their `description` says."
    )
    name: str | None = attribute_field(
        "Name of the setting for people, in English. Null for custom settings."
    )
    description: str | None = attribute_field(
        "Description of the setting, in English. Null for custom settings."
    )
    default: JSON | None = attribute_field(
        "Value that applies if none is stored: the value of the environment variable or else the "
        "built-in default. Null for custom settings, and if the default is null."
    )
    type: SettingKind = attribute_field("Kind of the value, such as a number or a duration.")
    custom: bool = attribute_field(
        "True if a valid value of the setting is stored, which replaces the default. It does not "
        "say whether the key begins with `custom.`."
    )
    restart_required: bool = attribute_field(
        "True if a new value of the setting applies only after a restart of the server. Always "
        "false for custom settings."
    )

    @classmethod
    def from_stored_setting(cls, setting: CurrentSetting) -> "Setting":
        """Return the GraphQL object of a setting."""
        return cls(
            key=setting.key,
            value=setting.value,
            name=setting.name,
            description=setting.description,
            default=setting.default,
            type=setting.type,
            custom=setting.is_set,
            restart_required=setting.restart_required,
        )

    @field("Changes of the stored value of the setting, including deletions.")
    async def history(
        self,
        info: Info,
        order_by: SettingHistoryEntryOrder = SettingHistoryEntryOrder.AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SettingHistoryEntry]:
        ctx = info.context
        list_order = admin_settings.HISTORY_ORDERS[order_by]
        list_ordering = ordering_name(f"setting-history-{order_by}", self.key)
        requested_page = page_request(list_ordering, first, after, last, before)
        page_key = SettingHistoryPageKey(
            self.key, requested_page, list_order, selected_columns(info, SettingHistoryEntry)
        )
        return await connection_of_page(
            info,
            SettingHistoryEntry,
            await ctx.load(admin_settings.load_history_pages, page_key),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: ctx.load(admin_settings.count_history_entries, page_key),
        )


@strawberry.input(description="Conditions on settings.")
class SettingFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only settings whose key contains this text (case is ignored). At most 128 "
        "characters; more are an error.",
        default=UNSET,
    )


@strawberry.input(description="Input of settingSet.")
class SettingSetInput(Options):
    key: str = attribute_field(
        "Key of the setting. Case matters. An unknown key is the error VALIDATION, unless it is a "
        "valid key of a custom setting. Such a key has at most 128 characters: `custom.` and parts "
        "separated by dots. A part has A-Z, a-z, 0-9, `_` and `-`, and begins with one of A-Z, a-z "
        "and 0-9."
    )
    value: JSON | None = attribute_field(
        "New value, of the type and in the range of the setting, else VALIDATION. Durations are "
        "in ISO 8601, sizes in bytes or texts such as `3 GiB`. Only some settings accept null. An "
        "absent value is an error. A custom setting accepts a text, number, boolean, or a list of "
        "at most 100 of these. The JSON of a custom value has at most 4,096 bytes.",
        default=UNSET,
    )


@strawberry.input(one_of=True, description="Reference to one setting of the platform.")
class SettingRef:
    key: strawberry.Maybe[str] = attribute_field(
        "Key of the setting, such as `limits.warningPercent`. Case matters."
    )


@strawberry.input(description="Input of settingDelete.")
class SettingDeleteInput(Options):
    settings: list[SettingRef] = attribute_field(
        "Settings whose stored values are deleted, 1 to 100; more are the error VALIDATION."
    )


@strawberry.type(description="Payload of settingSet.")
class SettingPayload(MutationPayload):
    setting: Setting | None = attribute_field(
        "Setting after the change. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of settingDelete.")
class SettingsPayload(MutationPayload):
    settings: list[Setting] = attribute_field(
        "Settings after the change, each once, with their defaults as values. Custom settings are "
        "left out, since they are deleted. Empty if the mutation failed.",
        default_factory=list,
    )


@strawberry.type
class SettingQuery:
    @query(
        "Returns one setting of the platform by its key, with its stored value or else its "
        "default. Null if there is no setting with this key.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def setting(self, info: Info, by: SettingRef) -> Setting | None:
        setting = await admin_settings.find_setting(info.context, maybe_value(by.key) or "")
        return Setting.from_stored_setting(setting) if setting else None

    @query(
        "Returns all settings of the platform, also custom settings and those without a stored "
        "value, which have their default.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def settings(
        self,
        info: Info,
        filter: SettingFilter | None = UNSET,
        order_by: SettingOrder = SettingOrder.KEY_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Setting]:
        search_text = (filter.query or None) if filter else None
        if search_text and len(search_text) > MAX_QUERY_LENGTH:
            raise InvalidInput(
                f"The search text has at most {MAX_QUERY_LENGTH} characters.",
                constraint=ValidationConstraint.MAX,
                path=["filter", "query"],
            )
        list_order = admin_settings.SETTING_ORDERS[order_by]
        list_ordering = ordering_name(f"settings-{order_by}", search_text)
        requested_page = page_request(list_ordering, first, after, last, before)
        settings = await admin_settings.load_current_settings(info.context, search_text)
        page = admin_settings.page_of_settings(settings, requested_page, order_by)

        async def count() -> int:
            return len(settings)

        return Connection.from_row(
            ConnectionSource(
                page,
                [Setting.from_stored_setting(setting) for setting in page.rows],
                lambda setting: Cursor(list_ordering, list_order.sort_value(setting), 0),
                count,
            )
        )


@strawberry.type
class SettingMutation:
    @mutation(
        "Stores the value of a setting of the platform, or creates a custom setting. It applies "
        "at once in this process and within seconds in the others, or after a restart if "
        "`Setting.restartRequired` is true. The change is recorded in `Setting.history` and the "
        "audit log, unless the value is already stored. Above 200 custom settings the error is "
        "LIMIT_REACHED.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def setting_set(self, info: Info, input: SettingSetInput) -> SettingPayload:
        if input.value is UNSET:
            raise InvalidInput(
                "A value is required.", constraint=ValidationConstraint.REQUIRED, path=["value"]
            )
        setting = await admin_settings.store_setting_value(info.context, input.key, input.value)
        return SettingPayload(setting=Setting.from_stored_setting(setting))

    @mutation(
        "Deletes the stored values of settings of the platform, all or none, so that their "
        "defaults apply. The deletion applies at once in this process and within seconds in the "
        "others. If `Setting.restartRequired` is true, it applies only after a restart. A custom "
        "setting (`custom.…`) has no default and is removed. An unknown key without the prefix "
        "`custom.` is the error VALIDATION. A warning names settings without a stored value, also "
        "unknown keys that begin with `custom.`.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def setting_delete(self, info: Info, input: SettingDeleteInput) -> SettingsPayload:
        keys = [maybe_value(ref.key) or "" for ref in input.settings]
        settings, unchanged_indexes = await admin_settings.reset_settings(info.context, keys)
        warnings = [
            types_errors.Warning(
                code=WarningCode.DEFAULT_ALREADY,
                message=f"{keys[index]} already has its default.",
                path=["settings", str(index)],
            )
            for index in unchanged_indexes
        ]
        return SettingsPayload(
            settings=[Setting.from_stored_setting(setting) for setting in settings],
            warnings=warnings,
        )
