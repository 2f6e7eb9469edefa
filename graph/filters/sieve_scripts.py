"""GraphQL types and queries of Sieve scripts."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import leaf
from graph.types.fields import Info, query
from graph.types.object_views import Made
from graph.types.references import MessageRef, UserRef, message_of, user_of
from graph.types.row_mapping import Shape, columns, identified
from graph.types.scalars import ByteSize
from models.errors import NotFound, found
from models.store.keyset_pages import Cursor
from models.users.roles import Scope
from resolvers.filters import sieve_scripts
from resolvers.filters.sieve_scripts import Checked, OfUser

CONTENT = strawberry.argument(description="The script.")
USER = strawberry.argument(description="Whose; default: the viewer's.")
MESSAGE = strawberry.argument(description="One of the account: what would be done with it?")


@strawberry.type(description="Script of a user.")
class SieveScript(Shape):
    name: str = leaf("1 to 128 characters; capital letters count.")
    content: str = leaf("The script.")
    active: bool = leaf("The one that runs when mail comes.")
    size: ByteSize = leaf("Bytes.")
    updated_at: datetime = leaf("Last change.")
    requires: list[str] = leaf("Extensions used.")
    last_error: str | None = leaf(
        "What it failed with last since it is as it is: nothing of it was done, and the message "
        "was kept; or what of it could not be done."
    )
    last_error_at: datetime | None = leaf("When; the same again is told once an hour.")

    batch = staticmethod(sieve_scripts.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("SieveScript")}


async def script_page(
    info: Info, user_id: int, first: int | None, after: str | None
) -> Connection[SieveScript]:
    """Load a page of the Sieve scripts of an account, by name."""
    ctx, requested_page = info.context, page_asked(sieve_scripts.ORDER, first, after, None, None)
    page_key = OfUser(user_id, requested_page, columns(info, SieveScript))
    return await connected(
        info,
        SieveScript,
        await ctx.load(sieve_scripts.pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.name, row.id),
        lambda: ctx.load(sieve_scripts.counts, page_key),
    )


async def script_named(info: Info, user_id: int, name: str) -> SieveScript | None:
    """Load the Sieve script of an account by its name; None if there is none."""
    return SieveScript.maybe(await info.context.load(sieve_scripts.named, (user_id, name)))


@strawberry.type(description="A mistake in a script.")
class SieveProblem:
    line: int = leaf("Line, from 1.")
    column: int = leaf("Column, from 1.")
    message: str = leaf("What is wrong.")


@strawberry.type(description="What a command or a test of a script did.")
class SieveStep:
    line: int = leaf("Line, from 1.")
    column: int = leaf("Column, from 1.")
    script: str | None = leaf("Name of the included script, null = the script itself.")
    text: str = leaf("The command or test, and what it did or found.")


@strawberry.type(description="Result of compiling, and of a dry run.")
class SieveCheck:
    valid: bool = leaf("It compiles.")
    line: int | None = leaf("Line of the first mistake, or of where the run failed; from 1.")
    column: int | None = leaf("Column of it, from 1.")
    message: str | None = leaf("What is wrong, null = nothing.")
    problems: list[SieveProblem] = leaf("All mistakes, at most 20.")
    requires: list[str] = leaf("Extensions used.")
    actions: list[str] = leaf("What would be done with the message, in order.")
    trace: list[SieveStep] = leaf("What each command and test did with the message.")

    @classmethod
    def of(cls, checked: Checked) -> "SieveCheck":
        """Return the GraphQL object of a check's result."""
        first_problem = checked.problems[0] if checked.problems else None
        return cls(
            valid=not checked.problems or checked.failed is not None,
            line=first_problem.line if first_problem else None,
            column=first_problem.column if first_problem else None,
            message=first_problem.message if first_problem else None,
            problems=[SieveProblem(**one._asdict()) for one in checked.problems],
            requires=list(checked.requires),
            actions=list(checked.actions),
            trace=[
                SieveStep(
                    line=one.place.line,
                    column=one.place.column,
                    script=one.script or None,
                    text=one.text,
                )
                for one in checked.trace
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
        content: Annotated[str, CONTENT],
        user: Annotated[UserRef | None, USER] = UNSET,
        message: Annotated[MessageRef | None, MESSAGE] = UNSET,
    ) -> SieveCheck:
        owner = found(await user_of(info, user or None), path=["user"])
        key = await message_of(info, message, path="message") if message else None
        if message and key is None:
            raise NotFound("", path=["message"])
        return SieveCheck.of(await sieve_scripts.check(info.context, content, owner.id, key))
