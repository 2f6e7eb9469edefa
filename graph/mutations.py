"""How mutations are declared, and how their payloads are made."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.types.field import StrawberryField

from graph.errors import MutationError, MutationOptions, MutationPayload, Options
from graph.fields import Declare, Guard, Info
from graph.kept import restored, stored
from graph.scalars import STREAMS, Cursor
from models.errors import Forbidden, Invalid, Refused, Unauthenticated
from resolvers import changes, replays
from resolvers.context import Context, Needs
from resolvers.replays import Asked

LONGEST = 128  # characters of an idempotency key
WORDS = 255  # characters of a session id, and of a reason


def mutation(description: str, **needs: Any) -> Declare:
    """A mutation with one `input`, made of `Options`; its payload extends MutationPayload."""
    declare: Declare = strawberry.mutation(
        description=description, extensions=[Guard(Needs(**needs)), Answer()]
    )
    return declare


class Answer(FieldExtension):
    """Make the payload: refusals as `errors`; tried, kept, or given once more."""

    def apply(self, field: StrawberryField) -> None:
        self.name, self.payload = field.python_name, cast(type[MutationPayload], field.type)

    async def resolve_async(
        self, next_: Callable[..., Any], source: Any, info: Info, **kwargs: Any
    ) -> MutationPayload:
        ctx, given = info.context, kwargs["input"]
        options = given.options or MutationOptions()

        async def work() -> MutationPayload:
            shared = ctx.viewer.user_id and ctx.viewer.reach.shared
            before = await changes.standing(ctx) if shared else {}  # what is heard besides
            payload: MutationPayload = await next_(source, info, **kwargs)
            reached = {**before, **ctx.reached} if ctx.reached else {}
            told = 0 < len(reached) <= STREAMS  # longer ones nobody could go on from
            payload.journal_cursor = Cursor(reached) if told else None
            return payload

        try:
            asked = Asked(options.idempotency_key or "", f"{self.name} {_words(given)}")
            _note(ctx, options)
            if options.validate_only:
                async with ctx.together(keep=False):
                    await work()
                return self.payload()
            return await (self._once(info, asked, work) if asked.key else work())
        except Unauthenticated:
            raise  # of the whole request: the client signs in and tries again
        except Refused as refusal:
            return self.payload(errors=[MutationError.of(one) for one in refusal.each])

    async def _once(
        self, info: Info, asked: Asked, work: Callable[[], Awaitable[MutationPayload]]
    ) -> MutationPayload:
        """Do the work and keep its answer in the same unit, or give the one kept before."""
        ctx = info.context
        earlier = await replays.find(ctx, asked)
        if earlier is None:
            try:
                async with ctx.together():
                    payload = await work()
                    await replays.keep(ctx, asked, stored(payload))
                return payload
            except Refused:
                async with ctx.write():  # behind whoever makes the same call at this moment
                    earlier = await replays.find(ctx, asked)
                if earlier is None:
                    raise
        return await restored(info, self.payload, earlier)


def alone(info: Info, given: Options, what: str) -> None:
    """Refuse to do `what`, such as a sign-in, as part of something else.

    Failures are counted whatever becomes of the rest, which a surrounding unit could not
    wait for. And an answer that is kept would tell whoever sends the key again.
    """
    if any(directive.name.value == "atomic" for directive in info.operation.directives or ()):
        raise Forbidden(f"{what} takes no part in @atomic")
    if given.options and given.options.idempotency_key:
        raise Invalid(
            f"{what} is not repeated under a key",
            constraint="unsupported",
            path=["options", "idempotencyKey"],
        )


def _words(given: Any) -> str:
    """The input in words, without the options: they may differ when a call is repeated."""
    return repr({name: value for name, value in vars(given).items() if name != "options"})


def _note(ctx: Context, options: MutationOptions) -> None:
    """Take over what the caller says of itself; for the logs only where it is trusted."""
    for name, text, most in (
        ("idempotencyKey", options.idempotency_key, LONGEST),
        ("sessionId", options.session_id, WORDS),
        ("reason", options.reason, WORDS),
    ):
        if text and (len(text) > most or not text.isprintable()):
            raise Invalid(
                f"at most {most} printable characters", constraint="length", path=["options", name]
            )
    ctx.reached = None
    ctx.origin = options.session_id or options.idempotency_key or ctx.session_id
    ctx.reason = options.reason or None
    if ctx.viewer.speaks_for_others:
        ctx.client_ip = options.client_ip or ctx.client_ip
        ctx.session_id = options.session_id or ctx.session_id
