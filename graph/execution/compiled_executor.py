"""graphql-core's executor with generated functions for selections of attribute fields.

A value that a function can't complete goes to graphql-core with the resolved value: no resolver
runs twice.
"""

import inspect
import logging
from collections.abc import Awaitable
from functools import partial
from typing import Any, cast

from graphql import (
    GraphQLError,
    GraphQLObjectType,
    GraphQLOutputType,
    OperationType,
    default_field_resolver,
    default_type_resolver,
)
from graphql.execution import Executor
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet
from graphql.execution.values import VariableValues, get_argument_values
from graphql.pyutils import Path
from strawberry.execution import optimized_is_awaitable

from graph.execution.list_steps import LONG_LIST
from graph.execution.plain_executor import PlainExecutor
from graph.execution.resolver_plans import Book, Plan, Plans
from graph.execution.response_size import AnswerBudget, AnswerTooLarge
from graph.http.admission_control import Guards
from resolvers.context import Context

log = logging.getLogger(__name__)

KNOWN = {  # of the methods that the compiled executor overrides or calls
    "complete_value": (
        "self", "return_type", "field_details_list", "info", "path", "result", "position_context",
    ),
    "execute_fields": (
        "self", "parent_type", "source_value", "path", "grouped_field_set", "position_context",
    ),
    "execute_fields_serially": (
        "self", "parent_type", "source_value", "path", "grouped_field_set", "position_context",
    ),
    "execute_operation": ("self", "serially"),
    "complete_iterable_value": (
        "self", "item_type", "field_details_list", "info", "path", "items", "position_context",
    ),
    "complete_list_item_value": (
        "self", "item", "complete_results", "item_type", "field_details_list", "info",
        "item_path", "position_context",
    ),
    "complete_awaitable_list_item_value": (
        "self", "item", "item_type", "field_details_list", "info", "item_path",
        "position_context",
    ),
    "settle_in_background": ("self", "awaitables"),
    "complete_leaf_value": ("return_type", "result"),
    "handle_field_error": ("self", "raw_error", "return_type", "field_details_list", "path"),
    "collect_subfields": ("self", "return_type", "field_details_list"),
    "execute_field": (
        "self", "parent_type", "source", "field_details_list", "path", "position_context",
    ),
}  # fmt: skip


class CompiledExecutor(PlainExecutor):
    """An executor that runs one operation by its plans. It creates plans if it gets none."""

    def __init__(self, *args: Any, plans: Plans | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if plans is None:
            plans = Plans(self.schema, self.fragments, self.operation, self.variable_values)
        self.plans = plans
        self._relevant_sub_fields = plans.collected
        self._compiles = not (self.middleware_manager and self.middleware_manager.middlewares)

    def execute_operation(self, serially: bool | None = None) -> Any:
        """Execute the operation. Returns the response, or an awaitable of it."""
        kind = self.operation.operation
        if self.abort_signal is not None or self.hooks is not None:
            return super().execute_operation(serially)
        try:
            grouped, deferred, _ = self.plans.root
            root = self.schema.get_root_type(kind)
            assert root is not None  # noqa: S101 - there are fields, so there is a type
            in_turn = kind is OperationType.MUTATION if serially is None else serially
            found = self.execute_collected_root_fields(
                root, self.root_value, grouped, in_turn, deferred
            )
        except GraphQLError as error:
            self.collected_errors.add(error, None)
            return self.build_response(None)
        if self.is_awaitable(found):
            return self._response(found)
        return self.build_response(cast("dict[str, Any]", found))

    async def _response(self, found: Awaitable[dict[str, Any]]) -> Any:
        try:
            return self.build_response(await found)
        except GraphQLError as error:
            self.collected_errors.add(error, None)
            return self.build_response(None)

    def execute_field(
        self,
        parent_type: GraphQLObjectType,
        source: Any,
        field_details_list: FieldDetailsList,
        path: Path,
        position_context: Any,
    ) -> Any:
        """Resolve a field like graphql-core, with arguments prepared in its plan."""
        call = self.plans.call(parent_type, field_details_list)
        if call is None or not self._compiles:
            return super().execute_field(
                parent_type, source, field_details_list, path, position_context
            )
        if path.prev is None:
            self.answer.begin_field()
        kind = call.field.type
        info = self.build_resolve_info(call.field, call.nodes, parent_type, path)
        try:
            given = call.given
            if given is None:
                given = get_argument_values(
                    call.field, call.nodes[0], self.variable_values, None, self.hide_suggestions
                )
            result = call.resolve(source, info, **given)
            if self.is_awaitable(result):
                return self._awaited(kind, field_details_list, info, path, result)
            completed = self.complete_value(
                kind, field_details_list, info, path, result, position_context
            )
            if self.is_awaitable(completed):
                return self._settled(kind, field_details_list, path, completed)
        except Exception as error:  # noqa: BLE001 - it becomes an error of the field
            self.handle_field_error(error, kind, field_details_list, path)
            return None
        return completed

    async def _awaited(
        self,
        kind: GraphQLOutputType,
        details: FieldDetailsList,
        info: Any,
        path: Path,
        result: Awaitable[Any],
    ) -> Any:
        try:
            completed = self.complete_value(kind, details, info, path, await result, None)
            if self.is_awaitable(completed):
                completed = await completed
        except Exception as error:  # noqa: BLE001 - it becomes an error of the field
            self.handle_field_error(error, kind, details, path)
            return None
        return completed

    async def _settled(
        self,
        kind: GraphQLOutputType,
        details: FieldDetailsList,
        path: Path,
        completed: Awaitable[Any],
    ) -> Any:
        try:
            return await completed
        except Exception as error:  # noqa: BLE001 - it becomes an error of the field
            self.handle_field_error(error, kind, details, path)
            return None

    def complete_value(
        self,
        return_type: GraphQLOutputType,
        field_details_list: FieldDetailsList,
        info: Any,
        path: Path,
        result: Any,
        position_context: Any,
    ) -> Any:
        """Complete a value by the generated function of its selection, or by graphql-core."""
        if field_details_list[0].node.selection_set is not None and self._compiles:
            plan = self.plans.value(return_type, field_details_list)
            if plan is not None and not plan.off:
                plan.use()
                if type(result) is list and len(result) > LONG_LIST:
                    given = return_type, field_details_list, info, path, result
                    return self._complete_long_list(plan, *given)
                left = self.answer.left
                try:
                    return plan.complete(result, self.answer)
                except AnswerTooLarge:
                    raise
                except Exception as error:  # noqa: BLE001 - graphql-core finds out what is wrong
                    self.answer.left = left
                    plan.fell(error)
        return super().complete_value(
            return_type, field_details_list, info, path, result, position_context
        )

    async def _complete_long_list(
        self,
        plan: Plan,
        return_type: GraphQLOutputType,
        details: FieldDetailsList,
        info: Any,
        path: Path,
        items: list[Any],
    ) -> Any:
        """Complete a list by the generated function of its selection, in several steps."""
        completed: list[Any] = []
        counted = 0
        for begin in range(0, len(items), LONG_LIST):
            left = self.answer.left
            try:
                completed += plan.complete(items[begin : begin + LONG_LIST], self.answer)
                counted += left - self.answer.left
            except AnswerTooLarge:
                raise
            except Exception as error:  # noqa: BLE001 - graphql-core finds out what is wrong
                self.answer.left = left + counted
                plan.fell(error)
                found = super().complete_value(return_type, details, info, path, items, None)
                return await found if self.is_awaitable(found) else found
            if self.step.is_over():
                await self.step.pause()
        return completed

    def execute_fields(
        self,
        parent_type: GraphQLObjectType,
        source_value: Any,
        path: Path | None,
        grouped_field_set: GroupedFieldSet,
        position_context: Any,
    ) -> Any:
        """Read the attribute fields of an object by one function and execute the others."""
        ordinary = super().execute_fields
        if path is None or not self._compiles:
            return ordinary(parent_type, source_value, path, grouped_field_set, position_context)
        plan = self.plans.object(parent_type, grouped_field_set)
        if plan is None or plan.off:
            return ordinary(parent_type, source_value, path, grouped_field_set, position_context)
        plan.use()
        left = self.answer.left
        try:
            made: dict[str, Any] = plan.complete(source_value, self.answer)
        except AnswerTooLarge:
            raise
        except Exception as error:  # noqa: BLE001 - graphql-core finds out what is wrong
            self.answer.left = left
            plan.fell(error)
            return ordinary(parent_type, source_value, path, grouped_field_set, position_context)
        if not plan.rest:
            return made
        others: Any = ordinary(parent_type, source_value, path, plan.rest, position_context)
        if self.is_awaitable(others):
            return _filled(made, others)
        return made | others


async def _filled(made: dict[str, Any], others: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    made.update(await others)
    return made


def executor_class(*, compiled: bool) -> type[PlainExecutor]:
    """Return the class of the executor.

    Returns PlainExecutor, with a warning, if graphql-core's methods have other parameters.
    """
    if not compiled:
        return PlainExecutor
    for name, parameters in KNOWN.items():
        method = getattr(Executor, name, None)
        if method is None or tuple(inspect.signature(method).parameters) != parameters:
            log.warning("graphql-core's executor is not the known one: nothing is compiled")
            return PlainExecutor
    return CompiledExecutor


def executor_of(
    book: Book,
    values: VariableValues,
    root: object,
    context: Context,
    extensions: dict[str, Any] | None = None,
) -> PlainExecutor:
    """Create the executor of one run of an operation or of one event of a subscription.

    It is a CompiledExecutor if the operation has plans. Each executor has its own response budget.
    """
    guards: Guards | None = getattr(context, "guards", None)
    answer = guards.answer_budget(context) if guards else AnswerBudget()
    context.charge = answer.charge
    made: Any = PlainExecutor
    if plans := book.plans(values):
        context.memo = plans.memo
        made = partial(CompiledExecutor, plans=plans)
    found: PlainExecutor = made(
        book.schema,
        book.definitions,
        book.fragments,
        root,
        context,
        book.operation,
        values,
        default_field_resolver,
        default_type_resolver,
        default_field_resolver,
        is_awaitable=optimized_is_awaitable,
        hide_suggestions=True,
        operation_extensions=extensions,
        answer=answer,
    )
    return found
