"""GraphQL types and queries of Sieve scripts."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.filters.dry_run_messages import MessageSourceInput, resolve_message_source_or_raise
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.object_access import ACCOUNTS
from graph.types.object_references import ObjectRef
from graph.types.object_views import DerivedField
from graph.types.references import (
    UserRef,
    load_visible_user_or_require_viewer,
)
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from graph.types.scalars import ByteSize
from models.errors import require_found
from models.users.roles import Scope
from resolvers.filters import sieve_scripts
from resolvers.filters.sieve_scripts import ScriptCheck, SieveScriptOrder
from resolvers.list_orders import OwnerPageKey

CONTENT_ARGUMENT = strawberry.argument(description="Sieve script (RFC 5228) to compile.")
USER_ARGUMENT = strawberry.argument(description="User to test for. Default: the signed-in user.")
MESSAGE_ARGUMENT = strawberry.argument(
    description=(
        "Message to run the script on. A stored message must belong to the user that the script is "
        "tested for. If that is another user, the message must be in a mailbox that is shared with "
        "the caller. Default: the script is only compiled."
    )
)


@strawberry.type(description="Sieve script of a user (RFC 5228).")
class SieveScript(NodeView):
    name: str = attribute_field("Name of the script, 1 to 128 characters. Case matters.")
    content: str = attribute_field("Source text of the script (RFC 5228).")
    active: bool = attribute_field(
        "True if the script runs on received messages. At most one script of a user is active."
    )
    size: ByteSize = attribute_field("Size of the script in bytes.")
    updated_at: datetime = attribute_field("Time of the last change of the script.")
    requires: list[str] = attribute_field(
        "Names of the Sieve extensions that the script uses, as in `require`."
    )
    last_error: str | None = attribute_field(
        "Last error of this version of the script. If the script stops with an error, "
        "the message is delivered as without the script. A missing mailbox and a failed "
        "redirect do not stop it: INBOX replaces the mailbox, and a message that would "
        "only be redirected is stored. "
        "Null: there was none."
    )
    last_error_at: datetime | None = attribute_field(
        "Time of the last error of this version of the script. While the same error repeats, the "
        "time changes at most once an hour. Null: there was none."
    )

    load_batch = staticmethod(sieve_scripts.load_visible_by_ids)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("SieveScript")}


async def load_script_page(
    info: Info, user_id: int, order_by: SieveScriptOrder, page_arguments: PageArguments
) -> Connection[SieveScript]:
    """Load a page of the Sieve scripts of an account."""
    ctx, list_order = info.context, sieve_scripts.LIST_ORDERS[order_by]
    requested_page = page_request(f"sieve-scripts-{order_by}", *page_arguments)
    page_key = OwnerPageKey(
        user_id, requested_page, list_order, selected_columns(info, SieveScript)
    )
    return await connection_of_page(
        info,
        SieveScript,
        await ctx.load(sieve_scripts.load_visible_script_pages, page_key),
        lambda row: list_order.cursor_of_row(row, requested_page.ordering),
        lambda: ctx.load(sieve_scripts.count_visible_scripts, page_key),
    )


async def find_script_by_name(info: Info, user_id: int, name: str) -> SieveScript | None:
    """Load the Sieve script of an account by its name; None if there is none."""
    return SieveScript.from_row_or_none(
        await info.context.load(sieve_scripts.load_visible_scripts_by_names, (user_id, name))
    )


@strawberry.input(one_of=True, description="Reference to one Sieve script.")
class SieveScriptRef(ObjectRef):
    name: strawberry.Maybe[str] = attribute_field("Name of the script. Case matters.")


@strawberry.type(description="Error in a Sieve script.")
class SieveProblem:
    line: int = attribute_field("Line of the error, counted from 1.")
    column: int = attribute_field("Column of the error, counted from 1.")
    message: str = attribute_field("Text of the error, in English.")


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
    valid: bool = attribute_field(
        "True if the script compiles without errors, also if the run on the message then fails."
    )
    line: int | None = attribute_field(
        "Line of the first error of the compilation or the run, counted from 1. Null: there is "
        "none."
    )
    column: int | None = attribute_field(
        "Column of the first error, counted from 1. Null: there is none."
    )
    message: str | None = attribute_field(
        "Text of the first error, in English. Null: there is none."
    )
    problems: list[SieveProblem] = attribute_field(
        "Errors of the compilation, at most the first 20 in the order of the script, or the error "
        "that stopped the run. A syntax error is the only item, since it ends the compilation. "
        "Empty: there is no error."
    )
    requires: list[str] = attribute_field(
        "Names of the Sieve extensions that the script uses, as in `require`. Empty if "
        "the script does not compile."
    )
    actions: list[str] = attribute_field(
        "Actions that the script would do with the message, in their order, as Sieve commands. "
        "Empty without a message, or if the script has an error. At most 32."
    )
    trace: list[SieveStep] = attribute_field(
        "Steps of the run on the message; after an error in the run, those before it. Empty "
        "without a message, or if the script does not compile. At most 5,000."
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
            problems=[SieveProblem(**problem._asdict()) for problem in result.problems],
            requires=list(result.requires),
            actions=list(result.action_texts),
            trace=[
                SieveStep(
                    line=step.position.line,
                    column=step.position.column,
                    script=step.script_name or None,
                    text=step.text,
                )
                for step in result.trace_steps
            ],
        )


@strawberry.type
class SieveQuery:
    @query(
        "Compiles a Sieve script, and runs it on a message if one is given, without changing "
        "anything. Errors of the script are in the result; they are not errors of the request. "
        "The run uses the mailboxes and addresses of `user`, and those scripts of this user that "
        "the caller can see.",
        scope=Scope.READ,
        access=ACCOUNTS,
    )
    async def sieve_test(
        self,
        info: Info,
        content: Annotated[str, CONTENT_ARGUMENT],
        user: Annotated[UserRef | None, USER_ARGUMENT] = UNSET,
        message: Annotated[MessageSourceInput | None, MESSAGE_ARGUMENT] = UNSET,
    ) -> SieveTestResult:
        owner = require_found(
            await load_visible_user_or_require_viewer(info, user or None), path=["user"]
        )
        tested = await resolve_message_source_or_raise(info, message) if message else None
        return SieveTestResult.from_result(
            await sieve_scripts.compile_and_dry_run_script(info.context, content, owner.id, tested)
        )
