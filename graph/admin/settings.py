"""GraphQL types, queries and mutations of the settings in the database."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

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
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from models.errors import InvalidInput
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.admin import settings as admin_settings
from resolvers.admin.setting_types import SettingKind
from resolvers.admin.settings import CurrentSetting, SettingHistoryPageKey, page_of_keys

MAX_QUERY_LENGTH = 128  # characters; as long as a key


@strawberry.type(description="Change of a setting.", directives=[Auth(scope=Scope.READ)])
class SettingChange(NodeView):
    key: str = attribute_field("Key of the setting.")
    at: datetime = attribute_field("Time of the change.")
    actor: str = attribute_field(
        "Username or name of the API key that made the change; `operator` for a command on the "
        "server."
    )
    before: JSON | None = attribute_field(
        "Stored value before the change. Null: the default applied."
    )
    after: JSON | None = attribute_field(
        "Stored value after the change. Null: the default applies."
    )
    reason: str | None = attribute_field("Reason that the caller gave in `options`.")

    load_batch = staticmethod(admin_settings.load_visible_changes_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("SettingChange"),
        "before": DerivedField(("before",), lambda held: held and held["value"]),
        "after": DerivedField(("after",), lambda held: held and held["value"]),
    }


@strawberry.type(description="Setting of the platform.")
class Setting:
    key: str = attribute_field(
        "Key of the setting, such as `submission.maxRecipients`. Keys of custom settings begin "
        "with `custom.`."
    )
    value: JSON | None = attribute_field(
        "Current value. Durations are in ISO 8601, sizes in bytes."
    )
    name: str | None = attribute_field(
        "Name of the setting for people, in English. Null for custom settings."
    )
    description: str | None = attribute_field(
        "Description of the setting, in English. Null for custom settings."
    )
    default: JSON | None = attribute_field(
        "Value that applies if none is stored: the value of the environment variable or the "
        "built-in default. Null for custom settings."
    )
    type: SettingKind = attribute_field("Kind of the value.")
    custom: bool = attribute_field("True if a value is stored and replaces the default.")
    restart_required: bool = attribute_field("True if a new value applies only after a restart.")

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

    @field("Changes of the setting, newest first.")
    async def history(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SettingChange]:
        ctx = info.context
        requested_page = page_request(
            ordering_name(admin_settings.HISTORY_CURSOR_KIND, self.key), first, after, last, before
        )
        page_key = SettingHistoryPageKey(
            self.key, requested_page, selected_columns(info, SettingChange)
        )
        return await connection_of_page(
            info,
            SettingChange,
            await ctx.load(admin_settings.load_history_pages, page_key),
            lambda row: Cursor(requested_page.ordering, row.at, row.id),
            lambda: ctx.load(admin_settings.count_history_entries, page_key),
        )


@strawberry.input(description="Conditions for settings.")
class SettingFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Text that the key contains, in any case. At most 128 characters.", default=UNSET
    )


@strawberry.input(description="Input of settingSet.")
class SettingSetInput(Options):
    key: str = attribute_field(
        "Key of the setting. Keys of custom settings begin with `custom.` and have at most 128 "
        "characters."
    )
    value: JSON | None = attribute_field(
        "New value, of the type of the setting. Sizes can be texts such as `3 GiB`. Null is "
        "accepted only by some settings.",
        default=UNSET,
    )


@strawberry.input(description="Input of settingDelete.")
class SettingDeleteInput(Options):
    keys: list[str] = attribute_field("Keys of the settings, at most 100.")


@strawberry.type(description="Payload of settingSet.")
class SettingPayload(MutationPayload):
    setting: Setting | None = attribute_field("Setting after the change.", default=None)


@strawberry.type(description="Payload of settingDelete.")
class SettingsPayload(MutationPayload):
    settings: list[Setting] = attribute_field(
        "Settings after the change, without custom settings, which are deleted.",
        default_factory=list,
    )


@strawberry.type
class SettingQuery:
    @query(
        "Returns a setting. Null: there is no setting with this key.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def setting(
        self,
        info: Info,
        key: Annotated[
            str,
            strawberry.argument(description="Key of the setting, such as `limits.warningPercent`."),
        ],
    ) -> Setting | None:
        setting = await admin_settings.find_setting(info.context, key)
        return Setting.from_stored_setting(setting) if setting else None

    @query("Returns settings, sorted by key.", role=Role.ADMIN, scope=Scope.READ)
    async def settings(
        self,
        info: Info,
        filter: SettingFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Setting]:
        search_text = (filter.query or None) if filter else None
        if search_text and len(search_text) > MAX_QUERY_LENGTH:
            raise InvalidInput(
                f"at most {MAX_QUERY_LENGTH} characters",
                constraint=ValidationConstraint.MAX,
                path=["filter", "query"],
            )
        list_ordering = ordering_name("settings", search_text)
        requested_page = page_request(list_ordering, first, after, last, before)
        settings = await admin_settings.list_settings(info.context, search_text)
        page = page_of_keys(settings, requested_page)

        async def count() -> int:
            return len(settings)

        return Connection.from_row(
            ConnectionSource(
                page,
                [Setting.from_stored_setting(setting) for setting in page.rows],
                lambda setting: Cursor(list_ordering, setting.key, 0),
                count,
            )
        )


@strawberry.type
class SettingMutation:
    @mutation(
        "Stores the value of a setting. It applies at once in this process, and within seconds "
        "in the others. At most 200 custom settings are stored.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def setting_set(self, info: Info, input: SettingSetInput) -> SettingPayload:
        if input.value is UNSET:
            raise InvalidInput(
                "A value is required", constraint=ValidationConstraint.REQUIRED, path=["value"]
            )
        setting = await admin_settings.set_setting(info.context, input.key, input.value)
        return SettingPayload(setting=Setting.from_stored_setting(setting))

    @mutation(
        "Deletes the stored values of settings, so that their defaults apply. Custom settings "
        "are deleted. A warning names settings without a stored value.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def setting_delete(self, info: Info, input: SettingDeleteInput) -> SettingsPayload:
        settings, unchanged_indexes = await admin_settings.reset_settings(info.context, input.keys)
        warnings = [
            types_errors.Warning(
                code=WarningCode.DEFAULT_ALREADY,
                message=f"{input.keys[index]} had its default already",
                path=["keys", str(index)],
            )
            for index in unchanged_indexes
        ]
        return SettingsPayload(
            settings=[Setting.from_stored_setting(setting) for setting in settings],
            warnings=warnings,
        )
