"""GraphQL types and queries of Sieve scripts."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.object_references import ObjectRef
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

CONTENT_ARGUMENT = strawberry.argument(description="Sieve script (RFC 5228) to compile.")
USER_ARGUMENT = strawberry.argument(description="User to test for. Default: the signed-in user.")
MESSAGE_ARGUMENT = strawberry.argument(
    description="Stored message of the user to run the script on. Default: the script is only "
    "compiled."
)


@strawberry.type(description="Sieve script of a user (RFC 5228).")
class SieveScript(NodeView):
    name: str = attribute_field("Name of the script, 1 to 128 characters. Case matters.")
    content: str = attribute_field("Text of the script.")
    active: bool = attribute_field(
        "True if the script runs on received messages. At most one script of a user is active."
    )
    size: ByteSize = attribute_field("Size of the script in bytes.")
    updated_at: datetime = attribute_field("Time of the last change of the script.")
    requires: list[str] = attribute_field("Sieve extensions that the script uses.")
    last_error: str | None = attribute_field(
        "Last error of this version of the script. After an error the message is kept in INBOX, "
        "or the failed action is skipped. Null: there was none."
    )
    last_error_at: datetime | None = attribute_field(
        "Time of the last error. A repeated error is recorded once an hour. Null: there was none."
    )

    load_batch = staticmethod(sieve_scripts.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("SieveScript")}


async def load_script_page(
    info: Info, user_id: int, page_arguments: PageArguments
) -> Connection[SieveScript]:
    """Load a page of the Sieve scripts of an account, by name."""
    ctx, requested_page = info.context, page_request(sieve_scripts.CURSOR_KIND, *page_arguments)
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


@strawberry.input(one_of=True, description="Reference to one Sieve script.")
class SieveScriptRef(ObjectRef):
    name: strawberry.Maybe[str] = attribute_field("Name of the script. Case matters.")


@strawberry.type(description="Error in a Sieve script.")
class SieveProblem:
    line: int = attribute_field("Line of the error, counted from 1.")
    column: int = attribute_field("Column of the error, counted from 1.")
    message: str = attribute_field("Text of the error.")


@strawberry.type(description="Step of a Sieve script: a command or a test with its result.")
class SieveStep:
    line: int = attribute_field("Line of the command or test, counted from 1.")
    column: int = attribute_field("Column of the command or test, counted from 1.")
    script: str | None = attribute_field(
        "Name of the included script. Null: the tested script itself."
    )
    text: str = attribute_field("Command or test with its effect or result.")


@strawberry.type(description="Result of compiling a Sieve script and of its dry run.")
class SieveTestResult:
    valid: bool = attribute_field("True if the script compiles.")
    line: int | None = attribute_field(
        "Line of the first error of the compilation or the run, counted from 1. Null: there is "
        "none."
    )
    column: int | None = attribute_field(
        "Column of the first error, counted from 1. Null: there is none."
    )
    message: str | None = attribute_field("Text of the first error. Null: there is none.")
    problems: list[SieveProblem] = attribute_field("All errors of the script, at most 20.")
    requires: list[str] = attribute_field("Sieve extensions that the script uses.")
    actions: list[str] = attribute_field(
        "Actions on the message in their order. Empty without a message."
    )
    trace: list[SieveStep] = attribute_field(
        "Steps of the run on the message. Empty without a message."
    )

    @classmethod
    def from_result(cls, result: ScriptCheck) -> "SieveTestResult":
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
        "Returns the result of compiling a Sieve script and running it on a message, without any "
        "effect.",
        scope=Scope.READ,
    )
    async def sieve_test(
        self,
        info: Info,
        content: Annotated[str, CONTENT_ARGUMENT],
        user: Annotated[UserRef | None, USER_ARGUMENT] = UNSET,
        message: Annotated[MessageRef | None, MESSAGE_ARGUMENT] = UNSET,
    ) -> SieveTestResult:
        owner = require_found(await load_user_or_viewer(info, user or None), path=["user"])
        key = await find_unchecked_message_id(info, message, path="message") if message else None
        if message and key is None:
            raise NotFound("", path=["message"])
        return SieveTestResult.from_result(
            await sieve_scripts.compile_and_dry_run_script(info.context, content, owner.id, key)
        )
