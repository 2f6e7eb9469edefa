"""GraphQL types and queries of Sieve scripts."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.object_views import DerivedField
from graph.types.references import (
    MessageRef,
    UserRef,
    find_unchecked_message_id,
    load_user_or_viewer,
)
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from graph.types.scalars import ByteSize
from models.errors import NotFound, require_found
from models.store.keyset_pages import Cursor
from models.users.roles import Scope
from resolvers.filters import sieve_scripts
from resolvers.filters.sieve_scripts import ScriptCheck, SieveScriptListing

CONTENT_ARGUMENT = strawberry.argument(description="The script.")
USER_ARGUMENT = strawberry.argument(description="Whose; default: the viewer's.")
MESSAGE_ARGUMENT = strawberry.argument(
    description="One of the account: what would be done with it?"
)


@strawberry.type(description="Script of a user.")
class SieveScript(NodeView):
    name: str = attribute_field("1 to 128 characters; capital letters count.")
    content: str = attribute_field("The script.")
    active: bool = attribute_field("The one that runs when mail comes.")
    size: ByteSize = attribute_field("Bytes.")
    updated_at: datetime = attribute_field("Last change.")
    requires: list[str] = attribute_field("Extensions used.")
    last_error: str | None = attribute_field(
        "What it failed with last since it is as it is: nothing of it was done, and the message "
        "was kept; or what of it could not be done."
    )
    last_error_at: datetime | None = attribute_field("When; the same again is told once an hour.")

    load_batch = staticmethod(sieve_scripts.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("SieveScript")}


async def load_script_page(
    info: Info, user_id: int, first: int | None, after: str | None
) -> Connection[SieveScript]:
    """Load a page of the Sieve scripts of an account, by name."""
    ctx, requested_page = (
        info.context,
        page_request(sieve_scripts.CURSOR_KIND, first, after, None, None),
    )
    page_key = SieveScriptListing(user_id, requested_page, selected_columns(info, SieveScript))
    return await connection_of_page(
        info,
        SieveScript,
        await ctx.load(sieve_scripts.load_pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.name, row.id),
        lambda: ctx.load(sieve_scripts.count_listings, page_key),
    )


async def load_script_by_name(info: Info, user_id: int, name: str) -> SieveScript | None:
    """Load the Sieve script of an account by its name; None if there is none."""
    return SieveScript.from_row_or_none(
        await info.context.load(sieve_scripts.load_by_names, (user_id, name))
    )


@strawberry.type(description="A mistake in a script.")
class SieveProblem:
    line: int = attribute_field("Line, from 1.")
    column: int = attribute_field("Column, from 1.")
    message: str = attribute_field("What is wrong.")


@strawberry.type(description="What a command or a test of a script did.")
class SieveStep:
    line: int = attribute_field("Line, from 1.")
    column: int = attribute_field("Column, from 1.")
    script: str | None = attribute_field("Name of the included script, null = the script itself.")
    text: str = attribute_field("The command or test, and what it did or found.")


@strawberry.type(description="Result of compiling, and of a dry run.")
class SieveCheck:
    valid: bool = attribute_field("It compiles.")
    line: int | None = attribute_field(
        "Line of the first mistake, or of where the run failed; from 1."
    )
    column: int | None = attribute_field("Column of it, from 1.")
    message: str | None = attribute_field("What is wrong, null = nothing.")
    problems: list[SieveProblem] = attribute_field("All mistakes, at most 20.")
    requires: list[str] = attribute_field("Extensions used.")
    actions: list[str] = attribute_field("What would be done with the message, in order.")
    trace: list[SieveStep] = attribute_field("What each command and test did with the message.")

    @classmethod
    def from_result(cls, result: ScriptCheck) -> "SieveCheck":
        """Return the GraphQL object of a check's result."""
        first_problem = result.problems[0] if result.problems else None
        return cls(
            valid=not result.problems or result.runtime_error is not None,
            line=first_problem.line if first_problem else None,
            column=first_problem.column if first_problem else None,
            message=first_problem.message if first_problem else None,
            problems=[SieveProblem(**one._asdict()) for one in result.problems],
            requires=list(result.requires),
            actions=list(result.action_texts),
            trace=[
                SieveStep(
                    line=one.position.line,
                    column=one.position.column,
                    script=one.script_name or None,
                    text=one.text,
                )
                for one in result.trace_steps
            ],
        )


@strawberry.type
class SieveQuery:
    @query(
        "Compiles a script, and runs it dry against a message; nothing is done or remembered.",
        scope=Scope.READ,
    )
    async def sieve_check(
        self,
        info: Info,
        content: Annotated[str, CONTENT_ARGUMENT],
        user: Annotated[UserRef | None, USER_ARGUMENT] = UNSET,
        message: Annotated[MessageRef | None, MESSAGE_ARGUMENT] = UNSET,
    ) -> SieveCheck:
        owner = require_found(await load_user_or_viewer(info, user or None), path=["user"])
        key = await find_unchecked_message_id(info, message, path="message") if message else None
        if message and key is None:
            raise NotFound("", path=["message"])
        return SieveCheck.from_result(
            await sieve_scripts.compile_and_dry_run_script(info.context, content, owner.id, key)
        )
