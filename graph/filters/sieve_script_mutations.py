"""Mutations of Sieve scripts."""

import strawberry
from strawberry import UNSET

from graph.filters.sieve_scripts import SieveScript
from graph.types.errors import MutationPayload, Options, Warning, leaf  # noqa: A004 - the outline's word
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import UserSelection, users_named
from graph.users.types import User
from graph.users.update_mutations import UsersPayload
from models.users.roles import Scope
from resolvers.filters import sieve_script_mutations, sieve_scripts
from resolvers.users import loaders as user_loaders

WHOSE = "Whose; nothing = the viewer's."


@strawberry.input(description="Input of sieveScriptPut.")
class SieveScriptPutInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    name: str = leaf("1 to 128 characters, without control characters and slashes.")
    content: str = leaf("The script, at most 64 KiB. Compiled before it is stored.")
    activate: bool = leaf("Make it the active one.", default=False)


@strawberry.input(description="Input of sieveScriptActivate.")
class SieveScriptActivateInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    name: str = leaf("A script that each of the accounts has.")


@strawberry.input(description="Input of sieveScriptDeactivate.")
class SieveScriptDeactivateInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)


@strawberry.input(description="Input of sieveScriptDelete.")
class SieveScriptDeleteInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    names: list[str] = leaf("Scripts that each of the accounts has.")
    ignore_active: bool = leaf("Delete even the active one.", default=False)


@strawberry.input(description="Input of sieveScriptRename.")
class SieveScriptRenameInput(Options):
    users: UserSelection | None = leaf(WHOSE, default=UNSET)
    name: str = leaf("A script that each of the accounts has.")
    new_name: str = leaf("As for sieveScriptPut; one that is not taken.")


@strawberry.type(description="Scripts, as they are now.")
class SieveScriptsPayload(MutationPayload):
    scripts: list[SieveScript] = leaf("One of each account.", default_factory=list)


@strawberry.type(description="Answer of sieveScriptDelete.")
class SieveScriptDeletePayload(MutationPayload):
    deleted_names: list[str] = leaf("What is gone.", default_factory=list)


@strawberry.type
class SieveMutation:
    @mutation(
        "Gives accounts a script, or overwrites the one of this name. An included script that is "
        "not there is a warning.",
        scope=Scope.SIEVE,
    )
    async def sieve_script_put(self, info: Info, input: SieveScriptPutInput) -> SieveScriptsPayload:
        stored = await sieve_script_mutations.put(
            info.context,
            users_named(input.users),
            input.name,
            input.content,
            activate=bool(input.activate),
        )
        payload = await _now(info, list(stored.ids))
        payload.warnings = [
            Warning(
                code="SIEVE_INCLUDE_MISSING",
                message=f'there is no script "{name}" to include',
                path=["content"],
            )
            for name in stored.missing
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
        return await _now(
            info, await sieve_script_mutations.activate(ctx, users_named(input.users), input.name)
        )

    @mutation("None runs.", scope=Scope.SIEVE)
    async def sieve_script_deactivate(
        self, info: Info, input: SieveScriptDeactivateInput
    ) -> UsersPayload:
        ctx = info.context
        keys = await sieve_script_mutations.deactivate(ctx, users_named(input.users))
        rows = await ctx.load_all(user_loaders.by_ids, keys)
        return UsersPayload(users=[User.of(row) for row in rows if row])

    @mutation("All or none; the active one only if that is said.", scope=Scope.SIEVE)
    async def sieve_script_delete(
        self, info: Info, input: SieveScriptDeleteInput
    ) -> SieveScriptDeletePayload:
        names = await sieve_script_mutations.remove(
            info.context,
            users_named(input.users),
            input.names,
            ignore_active=bool(input.ignore_active),
        )
        return SieveScriptDeletePayload(deleted_names=names)

    @mutation(
        "Calls a script otherwise; it stays active. Others include it by its new name only.",
        scope=Scope.SIEVE,
    )
    async def sieve_script_rename(
        self, info: Info, input: SieveScriptRenameInput
    ) -> SieveScriptsPayload:
        keys = await sieve_script_mutations.rename(
            info.context, users_named(input.users), input.name, input.new_name
        )
        return await _now(info, keys)


async def _now(info: Info, keys: list[int]) -> SieveScriptsPayload:
    """Load scripts and return the payload with them."""
    rows = await info.context.load_all(sieve_scripts.by_ids, keys)
    return SieveScriptsPayload(scripts=[SieveScript.of(row) for row in rows if row])
