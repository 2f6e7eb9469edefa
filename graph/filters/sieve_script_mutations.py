"""Mutations of Sieve scripts."""

import strawberry
from strawberry import UNSET

from graph.filters.sieve_scripts import SieveScript
from graph.types.errors import MutationPayload, Options, Warning, attribute_field  # noqa: A004 - the outline's word
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import UserSelection, user_selector_from_selection
from graph.users.types import User
from graph.users.update_mutations import UsersPayload
from models.users.roles import Scope
from resolvers.filters import sieve_script_mutations, sieve_scripts
from resolvers.users import loaders as user_loaders

USERS_DESCRIPTION = "Whose; nothing = the viewer's."


@strawberry.input(description="Input of sieveScriptSet.")
class SieveScriptSetInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    name: str = attribute_field("1 to 128 characters, without control characters and slashes.")
    content: str = attribute_field("The script, at most 64 KiB. Compiled before it is stored.")
    activate: bool = attribute_field("Make it the active one.", default=False)


@strawberry.input(description="Input of sieveScriptActivate.")
class SieveScriptActivateInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    name: str = attribute_field("A script that each of the accounts has.")


@strawberry.input(description="Input of sieveScriptDeactivate.")
class SieveScriptDeactivateInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)


@strawberry.input(description="Input of sieveScriptDelete.")
class SieveScriptDeleteInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    names: list[str] = attribute_field("Scripts that each of the accounts has.")
    ignore_active: bool = attribute_field("Delete even the active one.", default=False)


@strawberry.input(description="Input of sieveScriptRename.")
class SieveScriptRenameInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    name: str = attribute_field("A script that each of the accounts has.")
    new_name: str = attribute_field("As for sieveScriptSet; one that is not taken.")


@strawberry.type(description="Scripts, as they are now.")
class SieveScriptsPayload(MutationPayload):
    scripts: list[SieveScript] = attribute_field("One of each account.", default_factory=list)


@strawberry.type(description="Answer of sieveScriptDelete.")
class SieveScriptDeletePayload(MutationPayload):
    deleted_names: list[str] = attribute_field("What is gone.", default_factory=list)


@strawberry.type
class SieveMutation:
    @mutation(
        "Gives accounts a script, or overwrites the one of this name. An included script that is "
        "not there is a warning.",
        scope=Scope.SIEVE,
    )
    async def sieve_script_set(self, info: Info, input: SieveScriptSetInput) -> SieveScriptsPayload:
        stored = await sieve_script_mutations.put_script(
            info.context,
            user_selector_from_selection(input.users),
            input.name,
            input.content,
            activates=bool(input.activate),
        )
        payload = await _load_payload(info, list(stored.script_ids))
        payload.warnings = [
            Warning(
                code="SIEVE_INCLUDE_MISSING",
                message=f'there is no script "{name}" to include',
                path=["content"],
            )
            for name in stored.missing_includes
        ]
        return payload

    @mutation(
        "Makes a script the one that runs when mail comes; none other of the account does then.",
        scope=Scope.SIEVE,
    )
    async def sieve_script_activate(
        self, info: Info, input: SieveScriptActivateInput
    ) -> SieveScriptsPayload:
        ctx = info.context
        return await _load_payload(
            info,
            await sieve_script_mutations.activate_script(
                ctx, user_selector_from_selection(input.users), input.name
            ),
        )

    @mutation("None runs.", scope=Scope.SIEVE)
    async def sieve_script_deactivate(
        self, info: Info, input: SieveScriptDeactivateInput
    ) -> UsersPayload:
        ctx = info.context
        keys = await sieve_script_mutations.deactivate_scripts(
            ctx, user_selector_from_selection(input.users)
        )
        rows = await ctx.load_many(user_loaders.load_visible_users_by_id, keys)
        return UsersPayload(users=[User.from_row(row) for row in rows if row])

    @mutation("All or none; the active one only if that is said.", scope=Scope.SIEVE)
    async def sieve_script_delete(
        self, info: Info, input: SieveScriptDeleteInput
    ) -> SieveScriptDeletePayload:
        names = await sieve_script_mutations.delete_scripts(
            info.context,
            user_selector_from_selection(input.users),
            input.names,
            deletes_active=bool(input.ignore_active),
        )
        return SieveScriptDeletePayload(deleted_names=names)

    @mutation(
        "Calls a script otherwise; it stays active. Others include it by its new name only.",
        scope=Scope.SIEVE,
    )
    async def sieve_script_rename(
        self, info: Info, input: SieveScriptRenameInput
    ) -> SieveScriptsPayload:
        keys = await sieve_script_mutations.rename_script(
            info.context, user_selector_from_selection(input.users), input.name, input.new_name
        )
        return await _load_payload(info, keys)


async def _load_payload(info: Info, script_ids: list[int]) -> SieveScriptsPayload:
    """Load scripts and return the payload with them."""
    rows = await info.context.load_many(sieve_scripts.load_visible_by_ids, script_ids)
    return SieveScriptsPayload(scripts=[SieveScript.from_row(row) for row in rows if row])
