"""Mutations of Sieve scripts."""

from collections.abc import Sequence

import strawberry
from strawberry import UNSET

from graph.filters.sieve_scripts import SieveScript, SieveScriptRef
from graph.types import global_ids
from graph.types.errors import (
    DeletePayload,
    MutationPayload,
    Options,
    Warning,  # noqa: A004 - the outline's word
    attribute_field,
)
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_references import id_from_ref
from graph.types.references import UserSelection, user_selector_from_selection
from graph.users.types import User
from graph.users.update_mutations import UsersPayload
from models.errors import require_found
from models.users.roles import Scope
from resolvers.access import require_user_id
from resolvers.filters import sieve_script_mutations, sieve_scripts
from resolvers.filters.sieve_script_mutations import ScriptSelector
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import UserSelector

USERS_DESCRIPTION = (
    "Owners of the scripts. Default: the signed-in user, or the owners of scripts named by ID."
)
SCRIPT_DESCRIPTION = "Script to change. A name selects the script of each user."


@strawberry.input(description="Input of sieveScriptSet.")
class SieveScriptSetInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    name: str = attribute_field(
        "Name of 1 to 128 characters, without control characters and slashes."
    )
    content: str = attribute_field("Sieve script (RFC 5228), at most 64 KiB. It must compile.")
    activate: bool = attribute_field("Makes the script the active one.", default=False)


@strawberry.input(description="Input of sieveScriptActivate.")
class SieveScriptActivateInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    sieve_script: SieveScriptRef = attribute_field(SCRIPT_DESCRIPTION)


@strawberry.input(description="Input of sieveScriptDeactivate.")
class SieveScriptDeactivateInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)


@strawberry.input(description="Input of sieveScriptDelete.")
class SieveScriptDeleteInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    sieve_scripts: list[SieveScriptRef] = attribute_field(
        "Scripts to delete. A name selects the script of each user."
    )
    ignore_active: bool = attribute_field(
        "Deletes also the active script. Default: the active script is an error.", default=False
    )


@strawberry.input(description="Input of sieveScriptRename.")
class SieveScriptRenameInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    sieve_script: SieveScriptRef = attribute_field(SCRIPT_DESCRIPTION)
    new_name: str = attribute_field(
        "New name, with the rules of `SieveScriptSetInput.name`. It must be free."
    )


@strawberry.type(description="Sieve scripts after a change.")
class SieveScriptsPayload(MutationPayload):
    sieve_scripts: list[SieveScript] = attribute_field(
        "One script of each user.", default_factory=list
    )


@strawberry.type
class SieveMutation:
    @mutation(
        "Stores a script for each user, in place of one with the same name. An included script "
        "that does not exist is a warning.",
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
        "Makes a script the active one. It runs on each received message, and other scripts of the "
        "user become inactive.",
        scope=Scope.SIEVE,
    )
    async def sieve_script_activate(
        self, info: Info, input: SieveScriptActivateInput
    ) -> SieveScriptsPayload:
        users, (selector,) = await _select_scripts(
            info, input.users or None, [input.sieve_script], "sieveScript"
        )
        return await _load_payload(
            info, await sieve_script_mutations.activate_script(info.context, users, selector)
        )

    @mutation("Deactivates the active scripts of users.", scope=Scope.SIEVE)
    async def sieve_script_deactivate(
        self, info: Info, input: SieveScriptDeactivateInput
    ) -> UsersPayload:
        ctx = info.context
        keys = await sieve_script_mutations.deactivate_scripts(
            ctx, user_selector_from_selection(input.users)
        )
        rows = await ctx.load_many(user_loaders.load_visible_users_by_id, keys)
        return UsersPayload(users=[User.from_row(row) for row in rows if row])

    @mutation("Deletes scripts, all or none.", scope=Scope.SIEVE)
    async def sieve_script_delete(self, info: Info, input: SieveScriptDeleteInput) -> DeletePayload:
        users, selectors = await _select_scripts(
            info, input.users or None, input.sieve_scripts, "sieveScripts"
        )
        keys = await sieve_script_mutations.delete_scripts(
            info.context, users, selectors, deletes_active=bool(input.ignore_active)
        )
        return DeletePayload(deleted_ids=[global_ids.encode("SieveScript", key) for key in keys])

    @mutation(
        "Renames a script. It stays active. Scripts that include it must use the new name.",
        scope=Scope.SIEVE,
    )
    async def sieve_script_rename(
        self, info: Info, input: SieveScriptRenameInput
    ) -> SieveScriptsPayload:
        users, (selector,) = await _select_scripts(
            info, input.users or None, [input.sieve_script], "sieveScript"
        )
        keys = await sieve_script_mutations.rename_script(
            info.context, users, selector, input.new_name
        )
        return await _load_payload(info, keys)


async def _select_scripts(
    info: Info, selection: UserSelection | None, refs: Sequence[SieveScriptRef], field_name: str
) -> tuple[UserSelector, list[ScriptSelector]]:
    """Return the owners and the scripts of references.

    Without a selection the owners of scripts named by ID are selected. Raises NotFound if a script
    is not visible, InvalidInput for a malformed ID.
    """
    selectors: list[ScriptSelector] = []
    owner_ids: list[int] = []
    for nth, ref in enumerate(refs):
        path = [field_name, str(nth)] if field_name == "sieveScripts" else [field_name]
        if ref.name:
            selectors.append(ScriptSelector(name=ref.name.value))
            continue
        key = id_from_ref(ref, *path)
        row = await info.context.load(sieve_scripts.load_visible_by_ids, key)
        owner_ids.append(require_found(row, str(key), path=[*path, "id"]).user_id)
        selectors.append(ScriptSelector(id=key))
    if selection or not owner_ids:
        return user_selector_from_selection(selection), selectors
    if len(owner_ids) < len(refs):
        owner_ids.append(require_user_id(info.context))
    return UserSelector(was_sent=True, ids=tuple(dict.fromkeys(owner_ids))), selectors


async def _load_payload(info: Info, script_ids: list[int]) -> SieveScriptsPayload:
    """Load scripts and return the payload with them."""
    rows = await info.context.load_many(sieve_scripts.load_visible_by_ids, script_ids)
    return SieveScriptsPayload(sieve_scripts=[SieveScript.from_row(row) for row in rows if row])
