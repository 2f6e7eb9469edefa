"""Mutations of Sieve scripts."""

from collections.abc import Sequence

import strawberry
from strawberry import UNSET

from graph.filters.sieve_scripts import SieveScript, SieveScriptRef
from graph.types.errors import (
    DeletePayload,
    MutationPayload,
    Options,
    Warning,  # noqa: A004 - the outline's word
    attribute_field,
)
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.object_references import id_from_ref
from graph.types.references import UserSelection, user_selector_from_selection
from graph.users.payloads import UsersPayload
from graph.users.types import User
from models.errors import InvalidInput, require_found, require_within_limit
from models.users.roles import AdminPermission, Scope
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.filters import sieve_script_mutations, sieve_scripts
from resolvers.filters.sieve_script_mutations import ScriptSelector
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import UserSelector


@strawberry.input(description="Input of sieveScriptSet.")
class SieveScriptSetInput(Options):
    users: UserSelection | None = attribute_field(
        "Users who get the script, at most 1,000 by default. Default: the signed-in user.",
        default=UNSET,
    )
    name: str = attribute_field(
        "Name of the script: 1 to 128 characters, without control characters and slashes."
    )
    content: str = attribute_field("Sieve script (RFC 5228) that compiles, at most 64 KiB.")
    activate: bool = attribute_field(
        "True makes the script the active one of the user. False leaves the active script as it "
        "is. Default: false.",
        default=False,
    )


@strawberry.input(description="Input of sieveScriptActivate.")
class SieveScriptActivateInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose script is activated. Default: the signed-in user, or the owner of a script "
        "that is referred to by ID.",
        default=UNSET,
    )
    sieve_script: SieveScriptRef = attribute_field(
        "Script to activate. A name refers to the script of each selected user. An ID must be that "
        "of a script of the only selected user, else NOT_FOUND."
    )


@strawberry.input(description="Input of sieveScriptDeactivate.")
class SieveScriptDeactivateInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose active scripts are deactivated. Default: the signed-in user.", default=UNSET
    )


@strawberry.input(description="Input of sieveScriptDelete.")
class SieveScriptDeleteInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose scripts are deleted. Default: the signed-in user, or the owners of scripts "
        "that are referred to by ID.",
        default=UNSET,
    )
    sieve_scripts: list[SieveScriptRef] = attribute_field(
        "Scripts to delete, 1 to 25. A name deletes the script with this name of each selected "
        "user. An ID deletes one script, whose owner must be among the selected users (else "
        "NOT_FOUND). Without `users`, refer to all scripts by ID or to all by name (else "
        "VALIDATION)."
    )
    ignore_active: bool = attribute_field(
        "True also deletes an active script. If false, an active script is a CONFLICT. Default: "
        "false.",
        default=False,
    )


@strawberry.input(description="Input of sieveScriptRename.")
class SieveScriptRenameInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose script is renamed. Default: the signed-in user, or the owner of a script "
        "that is referred to by ID.",
        default=UNSET,
    )
    sieve_script: SieveScriptRef = attribute_field(
        "Script to rename. A name refers to the script of each selected user. An ID must be that "
        "of a script of the only selected user, else NOT_FOUND."
    )
    new_name: str = attribute_field(
        "New name of the script, with the rules of `SieveScriptSetInput.name`. The user must have "
        "no other script with it."
    )


@strawberry.type(
    description="Payload of a mutation that stores, activates or renames Sieve scripts."
)
class SieveScriptsPayload(MutationPayload):
    sieve_scripts: list[SieveScript] = attribute_field(
        "Stored, activated or renamed script of each user, also if it has not changed. Empty if "
        "the mutation failed.",
        default_factory=list,
    )


@strawberry.type
class SieveMutation:
    @mutation(
        "Stores a Sieve script (RFC 5228) under a name for each selected user, for all users or "
        "none. If the user has a script with this name, its content is replaced. An active script "
        "stays active. New redirects are written to the user's security log; if somebody else "
        "makes them, the user gets a message. SIEVE_COMPILE if the script does not compile. "
        "LIMIT_REACHED if a user would have more than 25 scripts, or for more than 1,000 users "
        "(by default). If the script includes a script that does not exist, the payload has a "
        "warning. CONFLICT if another request moves a user to another domain at the same time: "
        "retry.",
        scope=Scope.SIEVE,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
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
                message=f'There is no script "{name}" to include.',
                path=["content"],
            )
            for name in stored.missing_includes
        ]
        return payload

    @mutation(
        "Makes a Sieve script the active one of each selected user, all or none. The active "
        "script runs on each received message; the one before becomes inactive. Its redirects are "
        "written to the user's security log; if somebody else activates the script, the user gets "
        "a message. A user without the script is NOT_FOUND. CONFLICT if a user moves to another "
        "domain at the same time: retry. LIMIT_REACHED for more than 1,000 users (by default).",
        scope=Scope.SIEVE,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
    )
    async def sieve_script_activate(
        self, info: Info, input: SieveScriptActivateInput
    ) -> SieveScriptsPayload:
        users, (selector,) = await _resolve_owner_and_script_selectors_or_raise(
            info, input.users or None, [input.sieve_script], "sieveScript"
        )
        return await _load_payload(
            info, await sieve_script_mutations.activate_script(info.context, users, selector)
        )

    @mutation(
        "Deactivates the active Sieve script of each selected user, all or none. The scripts stay "
        "stored. A user without an active script is no error. CONFLICT if another request moves a "
        "user to another domain at the same time: retry. LIMIT_REACHED for more than 1,000 users "
        "(by default).",
        scope=Scope.SIEVE,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
    )
    async def sieve_script_deactivate(
        self, info: Info, input: SieveScriptDeactivateInput
    ) -> UsersPayload:
        ctx = info.context
        keys = await sieve_script_mutations.deactivate_scripts(
            ctx, user_selector_from_selection(input.users)
        )
        rows = await ctx.load_many(user_loaders.load_visible_users_by_id, keys)
        return UsersPayload(users=[User.from_row(row) for row in rows if row])

    @mutation(
        "Deletes Sieve scripts, all or none. If a selected user has no script with a given name, "
        "the error is NOT_FOUND. An active script is a CONFLICT. With `ignoreActive`, it is "
        "deleted too. CONFLICT also if another request moves a user to another domain at the same "
        "time: retry. LIMIT_REACHED for more than 1,000 users (by default).",
        scope=Scope.SIEVE,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
    )
    async def sieve_script_delete(self, info: Info, input: SieveScriptDeleteInput) -> DeletePayload:
        users, selectors = await _resolve_owner_and_script_selectors_or_raise(
            info, input.users or None, input.sieve_scripts, "sieveScripts"
        )
        keys = await sieve_script_mutations.delete_scripts(
            info.context, users, selectors, deletes_active=bool(input.ignore_active)
        )
        return DeletePayload.of_keys("SieveScript", keys)

    @mutation(
        "Renames a Sieve script of each selected user, all or none. A user without the script is "
        "NOT_FOUND. An active script stays active. Scripts that include it must be changed to the "
        "new name. CONFLICT if a user already has another script with the new name, or moves to "
        "another domain at the same time. LIMIT_REACHED for more than 1,000 users (by default).",
        scope=Scope.SIEVE,
        access=MANAGED.with_permissions(AdminPermission.FILTERS).with_scope(Scope.FULL),
    )
    async def sieve_script_rename(
        self, info: Info, input: SieveScriptRenameInput
    ) -> SieveScriptsPayload:
        users, (selector,) = await _resolve_owner_and_script_selectors_or_raise(
            info, input.users or None, [input.sieve_script], "sieveScript"
        )
        keys = await sieve_script_mutations.rename_script(
            info.context, users, selector, input.new_name
        )
        return await _load_payload(info, keys)


async def _resolve_owner_and_script_selectors_or_raise(
    info: Info, selection: UserSelection | None, refs: Sequence[SieveScriptRef], field_name: str
) -> tuple[UserSelector, list[ScriptSelector]]:
    """Return the owners and the scripts of references.

    Without a selection the owners of scripts named by ID are selected. Raises NotFound if a script
    is not visible, InvalidInput for a malformed ID.
    """
    max_count = info.context.environment.options.bulk_max_items
    require_within_limit(
        len(refs),
        max_count,
        f"At most {max_count} scripts can be changed at once.",
        path=[field_name],
    )
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
    script_ids = [selector.id for selector in selectors if selector.id is not None]
    rows = await info.context.load_many(sieve_scripts.load_visible_by_ids, script_ids)
    paths_of_ids = [
        path for selector, path in zip(selectors, paths, strict=True) if selector.id is not None
    ]
    owner_ids = [
        require_found(row, str(script_id), path=[*path, "id"]).user_id
        for script_id, row, path in zip(script_ids, rows, paths_of_ids, strict=True)
    ]
    if selection or not owner_ids:
        return user_selector_from_selection(selection), selectors
    if len(owner_ids) < len(refs):  # a name would select the scripts of all these owners
        text = "Refer to all scripts by ID, or to all by name, or give `users`."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=[field_name])
    unique_ids = tuple(dict.fromkeys(owner_ids))
    return UserSelector(was_sent=True, is_reference=True, ids=unique_ids), selectors


async def _load_payload(info: Info, script_ids: list[int]) -> SieveScriptsPayload:
    """Load scripts and return the payload with them."""
    rows = await info.context.load_many(sieve_scripts.load_visible_by_ids, script_ids)
    return SieveScriptsPayload(sieve_scripts=[SieveScript.from_row(row) for row in rows if row])
