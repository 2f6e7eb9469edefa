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
from models.errors import InvalidInput, check_limit, require_found
from models.users.roles import Scope
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.filters import sieve_script_mutations, sieve_scripts
from resolvers.filters.sieve_script_mutations import ScriptSelector
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import UserSelector

USERS_DESCRIPTION = (
    "Owners of the scripts. Default: the signed-in user, or the owners of scripts that are "
    "referred to by ID."
)
SCRIPT_DESCRIPTION = "Script to change. A name refers to the script of each user."


@strawberry.input(description="Input of sieveScriptSet.")
class SieveScriptSetInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    name: str = attribute_field(
        "Name of the script: 1 to 128 characters, without control characters and slashes."
    )
    content: str = attribute_field("Sieve script (RFC 5228), at most 64 KiB. It must compile.")
    activate: bool = attribute_field("Makes the script the active one of the user.", default=False)


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
        "Scripts to delete. A name refers to the script of each user."
    )
    ignore_active: bool = attribute_field(
        "Deletes the active script, too. If false, the active script is an error.", default=False
    )


@strawberry.input(description="Input of sieveScriptRename.")
class SieveScriptRenameInput(Options):
    users: UserSelection | None = attribute_field(USERS_DESCRIPTION, default=UNSET)
    sieve_script: SieveScriptRef = attribute_field(SCRIPT_DESCRIPTION)
    new_name: str = attribute_field(
        "New name of the script, with the rules of `SieveScriptSetInput.name`. The user must have "
        "no other script with it."
    )


@strawberry.type(description="Payload of the mutations of Sieve scripts.")
class SieveScriptsPayload(MutationPayload):
    sieve_scripts: list[SieveScript] = attribute_field(
        "The changed script of each user.", default_factory=list
    )


@strawberry.type
class SieveMutation:
    @mutation(
        "Stores a Sieve script for each user and replaces one with the same name. A user has at "
        "most 25 scripts. An included script that does not exist is a warning.",
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
                code=WarningCode.SIEVE_INCLUDE_MISSING,
                message=f'there is no script "{name}" to include',
                path=["content"],
            )
            for name in stored.missing_includes
        ]
        return payload

    @mutation(
        "Makes a Sieve script the active one. It runs on each received message, and other "
        "scripts of the user become inactive.",
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

    @mutation("Deactivates the active Sieve scripts of users.", scope=Scope.SIEVE)
    async def sieve_script_deactivate(
        self, info: Info, input: SieveScriptDeactivateInput
    ) -> UsersPayload:
        ctx = info.context
        keys = await sieve_script_mutations.deactivate_scripts(
            ctx, user_selector_from_selection(input.users)
        )
        rows = await ctx.load_many(user_loaders.load_visible_users_by_id, keys)
        return UsersPayload(users=[User.from_row(row) for row in rows if row])

    @mutation("Deletes Sieve scripts, all or none.", scope=Scope.SIEVE)
    async def sieve_script_delete(self, info: Info, input: SieveScriptDeleteInput) -> DeletePayload:
        users, selectors = await _select_scripts(
            info, input.users or None, input.sieve_scripts, "sieveScripts"
        )
        keys = await sieve_script_mutations.delete_scripts(
            info.context, users, selectors, deletes_active=bool(input.ignore_active)
        )
        return DeletePayload(deleted_ids=[global_ids.encode("SieveScript", key) for key in keys])

    @mutation(
        "Renames a Sieve script. An active script stays active. Scripts that include it must use "
        "the new name.",
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
    max_count = info.context.environment.options.bulk_max_items
    check_limit(len(refs), max_count, f"at most {max_count} at once", path=[field_name])
    paths = [
        [field_name, str(nth)] if field_name == "sieveScripts" else [field_name]
        for nth in range(len(refs))
    ]
    selectors = [
        ScriptSelector(name=ref.name.value)
        if ref.name
        else ScriptSelector(id=id_from_ref(ref, *path))
        for ref, path in zip(refs, paths, strict=True)
    ]
    script_ids = [one.id for one in selectors if one.id is not None]
    rows = await info.context.load_many(sieve_scripts.load_visible_by_ids, script_ids)
    paths_of_ids = [path for one, path in zip(selectors, paths, strict=True) if one.id is not None]
    owner_ids = [
        require_found(row, str(script_id), path=[*path, "id"]).user_id
        for script_id, row, path in zip(script_ids, rows, paths_of_ids, strict=True)
    ]
    if selection or not owner_ids:
        return user_selector_from_selection(selection), selectors
    if len(owner_ids) < len(refs):  # a name would select the scripts of all these owners
        text = "Refer to all scripts by ID, or to all by name, or give `users`"
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=[field_name])
    return UserSelector(was_sent=True, ids=tuple(dict.fromkeys(owner_ids))), selectors


async def _load_payload(info: Info, script_ids: list[int]) -> SieveScriptsPayload:
    """Load scripts and return the payload with them."""
    rows = await info.context.load_many(sieve_scripts.load_visible_by_ids, script_ids)
    return SieveScriptsPayload(sieve_scripts=[SieveScript.from_row(row) for row in rows if row])
