"""Declaration of mutations, their payloads, idempotency keys, dry runs and `@atomic` requests."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol, cast

import strawberry
from graphql import DirectiveLocation, GraphQLError
from strawberry.types import ExecutionResult
from strawberry.types.base import StrawberryOptional
from strawberry.types.field import StrawberryField

from graph.execution.damaged_data import log_damage
from graph.types.error_references import public
from graph.types.errors import MutationError, MutationOptions, MutationPayload, Options, Warning  # noqa: A004
from graph.types.fields import Declare, Guard, Info
from graph.types.idempotent_payloads import restored, stored
from graph.types.input_conditions import check_conditions
from graph.types.scalars import STREAMS, Cursor
from mail.storage.blobs.errors import Corrupt
from models.errors import Damaged, Forbidden, Invalid, Refused, Unauthenticated, Unavailable
from models.store import cancel_safety
from models.store.database import crossed
from models.store.key_collision import TRIES, KeyCollision
from resolvers import idempotency
from resolvers.changes import stream_reader
from resolvers.context import Context, Needs
from resolvers.idempotency import Asked

LONGEST = 128  # characters of an idempotency key
WORDS = 255  # characters of a session ID or a reason
FIELDS = 25  # other requests wait for the end of an `@atomic` request
ABORTED = "given up with the other fields of this @atomic request"
# Fields of payloads whose values are valid only if the mutation is stored.
UNSTORED = {
    "challenge", "journal_cursor", "mobileconfig", "otpauth_url", "password", "qr_code",
    "recovery_codes", "secret", "seed", "token", "undo",
}  # fmt: skip
BUSY = "others changed the same at the same time, twice: send it once more"


@dataclass(frozen=True, slots=True)
class Alone:
    """A rule that excludes a mutation, or some of its inputs, from `@atomic`.

    Such a mutation waits for another server, or counts a failure even if the request is rolled
    back. With `forbids_idempotency_key` it accepts no key, since the stored payload would show a
    secret again.
    """

    what: str
    when: Callable[[Any], bool] = lambda _: True  # of the input
    once: bool = False

    def check(self, given: Options) -> None:
        """Raise InvalidInput for an idempotency key if this mutation accepts none."""
        if self.once and given.options and given.options.idempotency_key and self.when(given):
            raise Invalid(
                f"{self.what} is not repeated under a key",
                constraint="unsupported",
                path=["options", "idempotencyKey"],
            )


def mutation(description: str, *, alone: Alone | None = None, **needs: Any) -> Declare:
    """Declare a mutation with one `input`, a subclass of `Options`.

    Its payload extends MutationPayload. The field is nullable: an error of one field must not
    remove the payloads of the other fields of the request.
    """
    declare: Declare = strawberry.mutation(
        description=description, extensions=[Answer(Needs(**needs), alone)]
    )
    return declare


@strawberry.directive(
    locations=[DirectiveLocation.MUTATION],
    name="atomic",
    description="All fields are kept, or none: the first error takes all of them back, and every "
    f"other field answers ABORTED. At most {FIELDS} fields.",
)
def atomic() -> None:
    """Declare the directive. `execute_atomically` implements it."""


class Answer(Guard):
    """The extension of a mutation: guard, conversion of errors, dry run and idempotency key."""

    def __init__(self, needs: Needs, alone: Alone | None = None) -> None:
        super().__init__(needs)
        self.alone = alone

    def refuse(self, raw: Any) -> Any:
        """Return the payload with the error if the viewer may not run the mutation, else None.

        Raises Unauthenticated, in an `@atomic` request only at the stage that runs the fields.
        """
        batch: Batch | None = getattr(raw.context, "batch", None)
        try:
            raw.context.viewer.require(self.needs)
        except Unauthenticated:
            if batch is None or batch.stage is Stage.RUN:
                raise
            return self._refused(Unavailable(ABORTED, aborted=True))
        except Forbidden as refusal:
            payload = self._refused(refusal)
            if batch is not None:
                batch.refused[str(raw.path.key)] = payload
            return payload
        return None

    def apply(self, field: StrawberryField) -> None:
        super().apply(field)
        # a second schema applies it to the same fields, which are nullable already
        kind = field.type.of_type if isinstance(field.type, StrawberryOptional) else field.type
        self.name, self.payload = field.python_name, cast(type[MutationPayload], kind)
        field.type = StrawberryOptional(self.payload)

    async def resolve_async(
        self, next_: Callable[..., Any], source: Any, info: Info, **kwargs: Any
    ) -> MutationPayload:
        given = kwargs["input"]
        if (refusal := self.refuse(info)) is not None:  # for resolvers that are not bound
            return cast(MutationPayload, refusal)

        async def work() -> MutationPayload:
            payload: MutationPayload = await next_(source, info, **kwargs)
            return payload

        batch: Batch | None = getattr(info.context, "batch", None)
        if batch is None:
            return await self._answer(info, given, work)
        key = str(info.path.key)
        match batch.stage:
            case Stage.LOOK:
                return self._looked(batch, key, given)
            case Stage.RUN:
                batch.check()
                if not batch.refused:
                    payload = await self._answer(info, given, work)
                    if not payload.errors:
                        return payload
                    batch.refused[key] = payload
        return batch.refused.get(key) or self._refused(Unavailable(ABORTED, aborted=True))

    def _looked(self, batch: "Batch", key: str, given: Any) -> MutationPayload:
        """Count a field of an `@atomic` request and record why it can't run.

        Raises InvalidInput if the request has too many fields.
        """
        batch.fields += 1
        if batch.fields > FIELDS:
            text = f"an @atomic request has at most {FIELDS} fields"
            raise Invalid(text, constraint="max")
        batch.trial |= bool(given.options and given.options.validate_only)
        if self.alone and self.alone.when(given):
            refusal = Forbidden(f"{self.alone.what} takes no part in @atomic")
            batch.refused[key] = self._refused(refusal)
        return self.payload()

    async def _answer(
        self, info: Info, given: Any, work: Callable[[], Awaitable[MutationPayload]]
    ) -> MutationPayload:
        ctx, options = info.context, given.options or MutationOptions()

        async def told() -> MutationPayload:
            shared = ctx.viewer.user_id and ctx.viewer.reach.shared
            before = await stream_reader.standing(ctx) if shared else {}  # of shared streams
            payload = await work()
            payload.warnings += [
                Warning(code=one.code, message=one.message, path=one.path) for one in ctx.warnings
            ]
            reached = {**before, **ctx.reached} if ctx.reached else {}
            few = 0 < len(reached) <= STREAMS  # a longer cursor would be refused
            payload.journal_cursor = Cursor(reached) if few else None
            return _remove_unstored(payload) if ctx.trial else payload

        try:
            check_conditions(given)
            if self.alone:
                self.alone.check(given)
            key = options.idempotency_key or ""
            asked = Asked(key, f"{self.name} {_words(given)}" if key else "")
            _note(ctx, options)
            if options.validate_only:
                return await (told() if ctx.joined else _run_trial(ctx, told))
            for left in reversed(range(TRIES)):
                try:
                    return await (self._once(info, asked, told) if asked.key else told())
                except KeyCollision:  # an `@atomic` request runs all fields again
                    if ctx.joined or not left:
                        raise
                    _note(ctx, options)
            raise AssertionError("the last try returns or raises")
        except Unauthenticated:
            raise  # for the whole request: the client signs in and tries again
        except Refused as refusal:
            return self._refused(refusal, given)
        except Corrupt as damage:
            log_damage([damage], getattr(ctx, "request_id", ""), str(info.path.key))
            return self._refused(Damaged(), given)

    def _refused(self, refusal: Refused, given: Any = None) -> MutationPayload:
        errors = [MutationError.of(public(one, given)) for one in refusal.each]
        return self.payload(errors=errors)

    async def _once(
        self, info: Info, asked: Asked, work: Callable[[], Awaitable[MutationPayload]]
    ) -> MutationPayload:
        """Run the mutation and store its payload in one transaction, or restore a stored payload.

        Raises the mutation's typed error, or ConcurrentDuplicate inside an `@atomic` request.
        """
        ctx = info.context
        earlier = await idempotency.find(ctx, asked)
        if earlier is None:
            joined = ctx.joined
            try:
                async with ctx.together():
                    payload = await work()
                    await idempotency.keep(ctx, asked, stored(payload))
                if not joined:
                    ctx.world.fault("answer")
                return payload
            except Refused:
                async with ctx.write():  # wait for a concurrent request with the same key
                    earlier = await idempotency.find(ctx, asked)
                if earlier is None:
                    raise
                if joined:  # the changes are part of the `@atomic` request
                    raise Crossed from None
        return await restored(info, self.payload, earlier)


async def _run_trial(ctx: Any, work: Callable[[], Awaitable[MutationPayload]]) -> MutationPayload:
    """Return the payload of a mutation that is rolled back when its field is completed.

    Until then the objects of the payload are read as the mutation has left them.
    """
    trial: AsyncExitStack = ctx.trial_end
    try:
        await trial.enter_async_context(ctx.together(keep=False))
        return await work()
    except BaseException:
        await trial.aclose()
        raise


def _remove_unstored(payload: MutationPayload) -> MutationPayload:
    """Remove secrets and tokens from the payload of a trial, since they are not stored.

    If a task would do the work, the counts are those that the task would reach.
    """
    for name in vars(payload).keys() & UNSTORED:
        setattr(payload, name, [] if isinstance(getattr(payload, name), list) else None)
    task = vars(payload).get("task")
    if task is not None and task.row.total is not None:
        for name, value in vars(payload).items():
            if name.endswith("_count") and not value:
                setattr(payload, name, type(value)(task.row.total))
    return payload


class Stage(Enum):
    """The stage of an `@atomic` request."""

    LOOK = auto()  # all fields are checked before the first one runs
    RUN = auto()
    TELL = auto()  # payloads of the fields that are rolled back


class Crossed(Exception):
    """A concurrent request with the same idempotency key was stored: run this one again."""


class Request(Protocol):
    """An `@atomic` request that can be executed several times."""

    @property
    def context(self) -> Any: ...

    async def execute(self) -> ExecutionResult:
        """Execute all fields once and return the result."""


@dataclass
class Batch:
    """The state of an `@atomic` request.

    The request is executed twice, and a third time if it is rolled back, so that each payload has
    the selected fields under any alias, fragment or condition.
    """

    stage: Stage = Stage.LOOK
    fields: int = 0
    trial: bool = False  # if one field is a dry run, all are
    refused: dict[str, MutationPayload] = field(default_factory=dict)  # by response name
    broken: bool = False  # a field of a payload raised an error
    result: ExecutionResult | None = None  # of the execution that is being committed

    @staticmethod
    def check() -> None:
        """Raise CancelledError if the task is cancelled."""
        if cancel_safety.called_off():
            raise asyncio.CancelledError


async def together(request: Request) -> ExecutionResult:
    """Run an `@atomic` request: all fields in one transaction, each in its own savepoint.

    It runs a second time after a conflict with a concurrent request. A second conflict gives a
    result with the error UNAVAILABLE.
    """
    result = await _tried(request)
    if _has_crossed(result):
        result = await _tried(request)
        if _has_crossed(result):
            busy = GraphQLError(BUSY, original_error=Unavailable(BUSY, component="store"))
            return ExecutionResult(None, [busy])
    return result


async def _tried(request: Request) -> ExecutionResult:
    batch = request.context.batch = Batch()
    looked = await request.execute()
    if looked.errors:
        return ExecutionResult(None, looked.errors)
    result = looked
    if not batch.refused:
        batch.stage = Stage.RUN
        async with request.context.together(keep=not batch.trial) as unit:
            result = await request.execute()
            batch.check()
            batch.broken = bool(result.errors)
            unit.keep &= not (batch.refused or batch.broken)
            batch.result = result if unit.keep else None
    if result.data is None or not (batch.refused or batch.broken):
        return result
    batch.stage = Stage.TELL
    told = await request.execute()
    return ExecutionResult(told.data, result.errors)


def _has_crossed(result: ExecutionResult) -> bool:
    """True if the transaction was rolled back because of a concurrent one."""
    causes = [error.original_error for error in result.errors or ()]
    return any(isinstance(cause, Crossed) or crossed(cause) for cause in causes)


def _words(given: Any) -> str:
    """Return the input as text, without the options, which may differ in a repeated call."""
    return repr({name: value for name, value in vars(given).items() if name != "options"})


def _note(ctx: Context, options: MutationOptions) -> None:
    """Set origin, reason and session of the context from the options.

    IP address and session for the logs are only taken from a trusted front end. Raises
    InvalidInput if a text is too long.
    """
    for name, text, most in (
        ("idempotencyKey", options.idempotency_key, LONGEST),
        ("sessionId", options.session_id, WORDS),
        ("reason", options.reason, WORDS),
    ):
        if text and (len(text) > most or not text.isprintable()):
            raise Invalid(
                f"at most {most} printable characters", constraint="length", path=["options", name]
            )
    ctx.reached, ctx.warnings = None, []
    ctx.origin = options.session_id or options.idempotency_key or ctx.session_id
    ctx.reason = options.reason or None
    if ctx.viewer.speaks_for_others:
        ctx.client_ip = options.client_ip or ctx.client_ip
        ctx.session_id = options.session_id or ctx.session_id
