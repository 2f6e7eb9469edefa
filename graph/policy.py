"""How an operation is run: with what context, how long, and what its errors say to whom."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import strawberry
from graphql import GraphQLError, OperationType
from strawberry.exceptions import MissingQueryError, StrawberryInputCoercionError
from strawberry.extensions import SchemaExtension
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext
from strawberry.types import ExecutionContext, ExecutionResult

from graph import feeds
from graph.bodies import Question
from graph.documents import NO_NUL, Documents, Known, has_nul
from graph.limits import Limits
from models.errors import Code, Forbidden, Invalid, RateLimited, Refused, Unauthenticated
from models.roles import Role, opened
from resolvers.context import Context, Viewer

log = logging.getLogger(__name__)

# what a refused query says in extensions.code, by the rule it broke
RULES = {"id": "BAD_ID", "cursor": "BAD_CURSOR", "page": "BAD_PAGINATION"}
NO_LIMITS_SET = Limits()


@dataclass
class Operation(Context):
    """A context that knows its request or socket: what the log calls it, and what it came with."""

    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class DeadlineExceeded(Exception):
    """The operation took longer than it may."""


NO_BUGS = (Refused, DeadlineExceeded, MissingQueryError, StrawberryInputCoercionError)


class Unsuggesting(StrawberryGraphQLCoreExecutionContext):
    """Guesses nothing for names in variables: graphql-core fails at letters such as "İ"."""

    @classmethod
    def build(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the executor of one operation."""
        return super().build(*args, **{**kwargs, "hide_suggestions": True})


class Schema(strawberry.Schema):
    """Runs documents it has seen before, within limits, and speaks of errors with care.

    Give it `extensions=EXTENSIONS`.
    """

    def __init__(self, *args: Any, limits: Limits = NO_LIMITS_SET, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execution_context_class = Unsuggesting
        self.limits = limits
        self.documents = Documents(self._schema, limits)

    async def execute(
        self,
        query: str | None,
        variable_values: dict[str, Any] | None = None,
        context_value: Any | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> ExecutionResult:
        """Run a query or mutation; its errors are ready to be sent."""
        result = await super().execute(query, variable_values, context_value, *args, **kwargs)
        settle(result, context_value)
        return result

    async def stream(
        self,
        query: str | None,
        variable_values: dict[str, Any] | None = None,
        context_value: Any | None = None,
        root_value: Any | None = None,
        operation_name: str | None = None,
        operation_extensions: dict[str, Any] | None = None,
        allowed_operation_types: object = None,
    ) -> Any:
        """The results of an operation of any kind."""
        asked = Question(query or "", variable_values, operation_name, operation_extensions)
        return self._results(asked, context_value)

    async def _results(self, asked: Question, context: Any) -> AsyncGenerator[ExecutionResult]:
        async with aclosing(feeds.stream(self, asked, context)) as results:
            async for told in results:
                yield told.result

    def refusals(
        self, known: Known, variables: dict[str, Any] | None, context: Context
    ) -> list[GraphQLError]:
        """What speaks against a document that is right, before anything of it is run."""
        if has_nul(variables):
            return [_error(NO_NUL, "BAD_USER_INPUT")]
        viewer = context.viewer
        return _refusals(known, viewer, self.limits, _price(known, variables, self.limits, viewer))

    def finish(self, result: ExecutionResult, context: Context) -> None:
        """Log the bugs of a result, and make its errors ready to be sent."""
        if result.errors:
            report(result.errors, context)
            settle(result, context)

    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Log the first bug of a result with its traceback."""
        report(errors, execution_context.context if execution_context else None)


class FreshContext(SchemaExtension):
    """A context for each operation: a socket has one for all."""

    def on_operation(self) -> Iterator[None]:
        self.execution_context.context = self.execution_context.context.fresh()
        yield


class Prepared(SchemaExtension):
    """The document comes from the cache, with its verdict and its price."""

    known: Known | None = None
    cost: dict[str, int] | None = None

    def on_parse(self) -> Iterator[None]:
        asked = self.execution_context
        documents = _schema(asked).documents
        if asked.query:
            # no document is set yet, so this is the name that the request gave
            self.known = documents.find(asked.query, asked.operation_name)
            asked.graphql_document = self.known.document
        yield

    def on_validate(self) -> Iterator[None]:
        if self.known:
            faults = [fault.error() for fault in self.known.faults]
            nul = has_nul(self.execution_context.variables)
            unfit = [_error(NO_NUL, "BAD_USER_INPUT")] if nul else []
            refusals = faults or unfit or self._refusals(self.known)
            self.execution_context.pre_execution_errors = refusals
        yield

    def _refusals(self, known: Known) -> list[GraphQLError]:
        asked = self.execution_context
        viewer, limits = asked.context.viewer, _schema(asked).limits
        self.cost = _price(known, asked.variables, limits, viewer)
        return _refusals(known, viewer, limits, self.cost)

    def get_results(self) -> dict[str, Any]:
        return {} if self.cost is None else {"cost": self.cost}


class Deadline(SchemaExtension):
    """Queries and mutations end after some seconds, done or not."""

    async def on_execute(self) -> AsyncIterator[None]:
        asked = self.execution_context
        limits = _schema(asked).limits
        try:
            async with asyncio.timeout(limits.deadline) as running:
                yield
        except TimeoutError:
            if not running.expired():
                raise
            raise DeadlineExceeded from None


EXTENSIONS: list[type[SchemaExtension]] = [FreshContext, Prepared, Deadline]


def _schema(asked: ExecutionContext) -> Schema:
    if not isinstance(asked.schema, Schema):
        raise TypeError("these extensions work with graph.policy.Schema only")
    return asked.schema


def _price(
    known: Known, variables: dict[str, Any] | None, limits: Limits, viewer: Viewer
) -> dict[str, int]:
    return {"requested": known.cost(variables), "maximum": limits.budget(viewer.role)}


def _refusals(
    known: Known, viewer: Viewer, limits: Limits, cost: dict[str, int]
) -> list[GraphQLError]:
    """What speaks against this document from this viewer, at this price."""
    if viewer.read_only and known.kind is OperationType.MUTATION:
        return [_error("this credential is for reading only", "FORBIDDEN")]
    for scope in sorted(known.scopes - opened(viewer.scopes)):
        if viewer.role is Role.PUBLIC:
            return [_error("sign in first: no valid credential was sent", "UNAUTHENTICATED")]
        return [_error(f"this needs the scope {scope}", "FORBIDDEN")]
    if known.introspects and viewer.role is Role.PUBLIC and not limits.open_introspection:
        return [_error("sign in first: introspection is not public", "UNAUTHENTICATED")]
    if cost["requested"] > cost["maximum"]:
        message = "the operation costs {requested}, {maximum} are allowed"
        return [_error(message.format(**cost), "QUERY_TOO_COMPLEX")]
    return []


def _error(message: str, code: str) -> GraphQLError:
    return GraphQLError(message, extensions={"code": code})


def report(errors: list[GraphQLError], context: object) -> None:
    """Log the first bug among the errors with its traceback. Clients' mistakes are theirs."""
    extra = {"request_id": getattr(context, "request_id", "")}
    if any(isinstance(error.original_error, DeadlineExceeded) for error in errors):
        log.warning("an operation was ended at its deadline", extra=extra)
    bugs = [error for error in errors if is_bug(error)]
    if bugs:
        path = ".".join(map(str, bugs[0].path or ()))
        extra |= {"path": path, "errors": len(bugs)}
        log.error("a field broke", exc_info=bugs[0].original_error, extra=extra)


def is_bug(error: GraphQLError) -> bool:
    """Say whether an error is ours: neither a refusal, nor something that the client wrote."""
    cause = error.original_error
    if cause is None or isinstance(cause, NO_BUGS):
        return False
    if isinstance(cause, GraphQLError):  # of a type: of an argument's, or of our own answer's
        inside = error.path is not None and not error.message.startswith("Argument '")
        return inside and "code" not in (error.extensions or {})
    return True


def settle(result: Any, context: object) -> None:
    """Make the errors of a result ready for the one who asked: codes, and nothing of our inside."""
    errors: list[GraphQLError] | None = getattr(result, "errors", None)
    if errors:
        result.errors = [_settled(error, context) for error in errors]


def _settled(error: GraphQLError, context: object) -> GraphQLError:
    message, extensions = error.message, error.extensions or {}
    viewer = getattr(context, "viewer", None)
    if is_bug(error):
        message = "Something broke on our side."
        extensions = {
            "code": "INTERNAL_SERVER_ERROR",
            "requestId": getattr(context, "request_id", ""),
        }
    elif isinstance(error.original_error, Refused):
        extensions = facts(error.original_error)
    elif isinstance(error.original_error, DeadlineExceeded):
        message = "The operation took too long."
        extensions = {"code": "DEADLINE_EXCEEDED"}
    elif isinstance(error.original_error, StrawberryInputCoercionError):
        message = "A member of an input is null that may be left out, but not be null."
        extensions = {"code": "BAD_USER_INPUT"}
    elif "code" not in extensions:  # a variable or an argument that its type refuses
        extensions = {"code": "BAD_USER_INPUT"}
    if viewer is None or viewer.role is Role.PUBLIC:
        message = message.partition(" Did you mean ")[0]
    made = GraphQLError(message, path=error.path, extensions=extensions)
    made.locations = error.locations
    return made


def facts(refusal: Refused) -> dict[str, Any]:
    """What the extensions of an error say of a refusal: its code, and what goes with that."""
    match refusal:
        case Unauthenticated():
            return {"code": "UNAUTHENTICATED"}
        case Forbidden():
            return {"code": "FORBIDDEN"}
        case Invalid():
            return {"code": RULES.get(refusal.constraint, "BAD_USER_INPUT")}
        case RateLimited():
            seconds = max(1, round(refusal.retry_after.total_seconds()))
            return {"code": "RATE_LIMITED", "retryAfterSeconds": seconds}
        case _ if refusal.code is Code.VALIDATION:
            return {"code": "BAD_USER_INPUT"}
        case _:
            return {"code": str(refusal.code)}
