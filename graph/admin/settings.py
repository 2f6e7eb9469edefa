"""GraphQL types, queries and mutations of the settings in the database."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types import errors as types_errors
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.row_mapping import Shape, columns, identified
from models.errors import Invalid
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.admin import settings as admin_settings
from resolvers.admin.settings import Found, History

LONGEST = 128  # characters; as long as a key


@strawberry.type(
    description="What became of a setting, and by whom.", directives=[Auth(scope=Scope.READ)]
)
class SettingChange(Shape):
    key: str = leaf("Which setting.")
    at: datetime = leaf("When.")
    actor: str = leaf("User name, or what the key is called; operator: at the machine itself.")
    before: JSON | None = leaf("The value stored before; null where it had its default.")
    after: JSON | None = leaf("The value stored since; null where it has its default.")
    reason: str | None = leaf("What the caller gave as the reason.")

    batch = staticmethod(admin_settings.changes_by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("SettingChange"),
        "before": Made(("before",), lambda held: held and held["value"]),
        "after": Made(("after",), lambda held: held and held["value"]),
    }


@strawberry.type(description="One setting.")
class Setting:
    key: str = leaf("Such as submission.maxRecipients; one's own begin with custom.")
    value: JSON | None = leaf("In force; durations as ISO 8601, sizes in bytes.")
    name: str | None = leaf("For people; null for one's own.")
    description: str | None = leaf("What it is for; null for one's own.")
    default: JSON | None = leaf("In force while none is stored: what the environment says.")
    type: str = leaf("string, number, boolean, duration, size or list.")
    custom: bool = leaf("A value is stored.")
    restart_required: bool = leaf("In force only with the next start.")

    @classmethod
    def of(cls, found: Found) -> "Setting":
        """Return the GraphQL object of a setting."""
        return cls(
            key=found.key,
            value=found.value,
            name=found.name,
            description=found.description,
            default=found.default,
            type=found.kind.value,
            custom=found.custom,
            restart_required=found.restart_required,
        )

    @field("What became of it, newest first.")
    async def history(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SettingChange]:
        ctx = info.context
        requested_page = page_asked(
            ordering(admin_settings.NEWEST, self.key), first, after, last, before
        )
        page_key = History(self.key, requested_page, columns(info, SettingChange))
        return await connected(
            info,
            SettingChange,
            await ctx.load(admin_settings.pages, page_key),
            lambda row: Cursor(requested_page.ordering, row.at, row.id),
            lambda: ctx.load(admin_settings.counts, page_key),
        )


@strawberry.input(description="Input of settingSet.")
class SettingSetInput(Options):
    key: str = leaf("Which; one's own begin with custom.")
    value: JSON | None = leaf(
        "Of the setting's type; sizes also as text such as 3 GiB; null where the setting takes it.",
        default=UNSET,
    )


@strawberry.input(description="Input of settingDelete.")
class SettingDeleteInput(Options):
    keys: list[str] = leaf("Which, at most 100.")


@strawberry.type(description="Answer of settingSet.")
class SettingPayload(MutationPayload):
    setting: Setting | None = leaf("As it is now.", default=None)


@strawberry.type(description="Answer of settingDelete.")
class SettingsPayload(MutationPayload):
    settings: list[Setting] = leaf(
        "As they are now, without one's own, which are gone.", default_factory=list
    )


@strawberry.type
class SettingQuery:
    @query("One; null when unknown.", role=Role.ADMIN, scope=Scope.READ)
    async def setting(self, info: Info, key: str) -> Setting | None:
        setting = await admin_settings.one(info.context, key)
        return Setting.of(setting) if setting else None

    @query("All, by key.", role=Role.ADMIN, scope=Scope.READ)
    async def settings(
        self,
        info: Info,
        filter: Annotated[
            str | None, strawberry.argument(description="Partial match of the key, in any case.")
        ] = UNSET,
    ) -> list[Setting]:
        if filter and len(filter) > LONGEST:
            raise Invalid(f"at most {LONGEST} characters", constraint="max", path=["filter"])
        return [
            Setting.of(setting)
            for setting in await admin_settings.all_of(info.context, filter or None)
        ]


@strawberry.type
class SettingMutation:
    @mutation(
        "In force at once, here and within seconds everywhere.", role=Role.ADMIN, scope=Scope.MASTER
    )
    async def setting_set(self, info: Info, input: SettingSetInput) -> SettingPayload:
        if input.value is UNSET:
            raise Invalid("give a value", constraint="required", path=["value"])
        setting = await admin_settings.put(info.context, input.key, input.value)
        return SettingPayload(setting=Setting.of(setting))

    @mutation(
        "Back to the defaults; a warning tells which had them already.",
        role=Role.ADMIN,
        scope=Scope.MASTER,
    )
    async def setting_delete(self, info: Info, input: SettingDeleteInput) -> SettingsPayload:
        settings, unchanged_indexes = await admin_settings.drop(info.context, input.keys)
        warnings = [
            types_errors.Warning(
                code="DEFAULT_ALREADY",
                message=f"{input.keys[index]} had its default already",
                path=["keys", str(index)],
            )
            for index in unchanged_indexes
        ]
        return SettingsPayload(
            settings=[Setting.of(setting) for setting in settings], warnings=warnings
        )
