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
from graphql.execution.values import VariableValues
from graphql.pyutils import Path
from strawberry.execution import optimized_is_awaitable

from graph.execution.list_steps import MAX_ITEMS_PER_CALL
from graph.execution.plain_executor import PlainExecutor, ScopeCheckingExecutor
from graph.execution.resolver_plans import CompiledPlan, OperationPlans, PlanCache
from graph.execution.response_size import ResponseBudget, ResponseTooLarge
from graph.http.admission_control import AdmissionControl
from models.users.roles import Scope
from resolvers.context import Context

log = logging.getLogger(__name__)

EXPECTED_SIGNATURES = {  # of the methods that the compiled executor overrides or calls
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

    def __init__(self, *args: Any, plans: OperationPlans | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if plans is None:
            plans = OperationPlans(
                self.schema, self.fragments, self.operation, self.variable_values
            )
        self.plans = plans
        self._relevant_sub_fields = plans.collected_subfields
        self._can_compile = not (self.middleware_manager and self.middleware_manager.middlewares)

    def execute_operation(self, serially: bool | None = None) -> Any:
        """Execute the operation. Returns the response, or an awaitable of it."""
        kind = self.operation.operation
        if self.abort_signal is not None or self.hooks is not None:
            return super().execute_operation(serially)
        try:
            grouped, deferred, _ = self.plans.root_fields
            root = self.schema.get_root_type(kind)
            assert root is not None  # noqa: S101 - there are fields, so there is a type
            in_turn = kind is OperationType.MUTATION if serially is None else serially
            result = self.execute_collected_root_fields(
                root, self.root_value, grouped, in_turn, deferred
            )
        except GraphQLError as error:
            self.collected_errors.add(error, None)
            return self.build_response(None)
        if self.is_awaitable(result):
            return self._await_data_and_build_response(result)
        return self.build_response(cast("dict[str, Any]", result))

    async def _await_data_and_build_response(self, pending_data: Awaitable[dict[str, Any]]) -> Any:
        try:
            return self.build_response(await pending_data)
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
        call = self.plans.field_call_or_none(parent_type, field_details_list)
        if call is None or not self._can_compile:
            return super().execute_field(
                parent_type, source, field_details_list, path, position_context
            )
        if path.prev is None:
            self.response_budget.start_root_field()
        kind = call.field.type
        info = self.build_resolve_info(call.field, call.nodes, parent_type, path)
        try:
            result = call.resolve(source, info, **call.arguments(self.variable_values))
            if self.is_awaitable(result):
                return self._complete_awaited_result(kind, field_details_list, info, path, result)
            completed = self.complete_value(
                kind, field_details_list, info, path, result, position_context
            )
            if self.is_awaitable(completed):
                return self._await_or_record_field_error(kind, field_details_list, path, completed)
        except Exception as error:  # noqa: BLE001 - it becomes an error of the field
            self.handle_field_error(error, kind, field_details_list, path)
            return None
        return completed

    async def _complete_awaited_result(
        self,
        return_type: GraphQLOutputType,
        details: FieldDetailsList,
        info: Any,
        path: Path,
        result: Awaitable[Any],
    ) -> Any:
        try:
            completed = self.complete_value(return_type, details, info, path, await result, None)
            if self.is_awaitable(completed):
                completed = await completed
        except Exception as error:  # noqa: BLE001 - it becomes an error of the field
            self.handle_field_error(error, return_type, details, path)
            return None
        return completed

    async def _await_or_record_field_error(
        self,
        return_type: GraphQLOutputType,
        details: FieldDetailsList,
        path: Path,
        completed: Awaitable[Any],
    ) -> Any:
        try:
            return await completed
        except Exception as error:  # noqa: BLE001 - it becomes an error of the field
            self.handle_field_error(error, return_type, details, path)
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
        if field_details_list[0].node.selection_set is not None and self._can_compile:
            plan = self.plans.value_plan_or_none(return_type, field_details_list)
            if plan is not None and not plan.is_given_up:
                plan.count_use()
                if type(result) is list and len(result) > MAX_ITEMS_PER_CALL:
                    arguments = return_type, field_details_list, info, path, result
                    return self._complete_list_in_steps(plan, *arguments)
                budget_left = self.response_budget.left
                try:
                    return plan.complete(result, self.response_budget)
                except ResponseTooLarge:
                    raise
                except Exception as error:  # noqa: BLE001 - graphql-core finds out what is wrong
                    self.response_budget.left = budget_left
                    plan.count_fallback_or_give_up(error)
        return super().complete_value(
            return_type, field_details_list, info, path, result, position_context
        )

    async def _complete_list_in_steps(
        self,
        plan: CompiledPlan,
        return_type: GraphQLOutputType,
        details: FieldDetailsList,
        info: Any,
        path: Path,
        items: list[Any],
    ) -> Any:
        """Complete a list by the generated function of its selection, in several steps."""
        completed: list[Any] = []
        counted = 0
        for begin in range(0, len(items), MAX_ITEMS_PER_CALL):
            budget_left = self.response_budget.left
            try:
                completed += plan.complete(
                    items[begin : begin + MAX_ITEMS_PER_CALL], self.response_budget
                )
                counted += budget_left - self.response_budget.left
            except ResponseTooLarge:
                raise
            except Exception as error:  # noqa: BLE001 - graphql-core finds out what is wrong
                self.response_budget.left = budget_left + counted
                plan.count_fallback_or_give_up(error)
                result = super().complete_value(return_type, details, info, path, items, None)
                return await result if self.is_awaitable(result) else result
            if self.step_clock.start_step_or_check_if_over():
                await self.step_clock.yield_to_event_loop()
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
        if path is None or not self._can_compile:
            return ordinary(parent_type, source_value, path, grouped_field_set, position_context)
        plan = self.plans.object_plan_or_none(parent_type, grouped_field_set)
        if plan is None or plan.is_given_up:
            return ordinary(parent_type, source_value, path, grouped_field_set, position_context)
        plan.count_use()
        budget_left = self.response_budget.left
        try:
            results: dict[str, Any] = plan.complete(source_value, self.response_budget)
        except ResponseTooLarge:
            raise
        except Exception as error:  # noqa: BLE001 - graphql-core finds out what is wrong
            self.response_budget.left = budget_left
            plan.count_fallback_or_give_up(error)
            return ordinary(parent_type, source_value, path, grouped_field_set, position_context)
        if not plan.remaining_fields:
            return results
        remaining_results: Any = ordinary(
            parent_type, source_value, path, plan.remaining_fields, position_context
        )
        if self.is_awaitable(remaining_results):
            return _fill_in_awaited_fields(results, remaining_results)
        return results | remaining_results


async def _fill_in_awaited_fields(
    completed: dict[str, Any], pending_fields: Awaitable[dict[str, Any]]
) -> dict[str, Any]:
    completed.update(await pending_fields)
    return completed


def supported_executor_class(*, is_compiled: bool) -> type[PlainExecutor]:
    """Return the class of the executor.

    Returns PlainExecutor, with a warning, if graphql-core's methods have other parameters.
    """
    if not is_compiled:
        return PlainExecutor
    for name, parameters in EXPECTED_SIGNATURES.items():
        method = getattr(Executor, name, None)
        if method is None or tuple(inspect.signature(method).parameters) != parameters:
            log.warning("Unknown executor of graphql-core; compiled execution is off")
            return PlainExecutor
    return CompiledExecutor


def create_executor_and_set_budget_in_context(
    plan_cache: PlanCache,
    variable_values: VariableValues,
    root_value: object,
    context: Context,
    extensions: dict[str, Any] | None = None,
    missing_scopes: frozenset[Scope] = frozenset(),
) -> PlainExecutor:
    """Create the executor of one run of an operation or of one event of a subscription.

    It is a CompiledExecutor if the operation has plans. Each executor has its own response budget.
    `missing_scopes` are those that types of the document require and the viewer doesn't have.
    """
    guards: AdmissionControl | None = getattr(context, "guards", None)
    answer = guards.new_response_budget_charging_viewer(context) if guards else ResponseBudget()
    context.charge_bytes = answer.charge_read_bytes
    executor_type: Any = PlainExecutor
    if missing_scopes:
        executor_type = partial(ScopeCheckingExecutor, missing_scopes=missing_scopes)
    elif plans := plan_cache.count_run_or_create_plans(variable_values):
        context.selection_cache = plans.selection_cache
        executor_type = partial(CompiledExecutor, plans=plans)
    executor: PlainExecutor = executor_type(
        plan_cache.schema,
        plan_cache.definitions,
        plan_cache.fragments,
        root_value,
        context,
        plan_cache.operation,
        variable_values,
        default_field_resolver,
        default_type_resolver,
        default_field_resolver,
        is_awaitable=optimized_is_awaitable,
        hide_suggestions=True,
        operation_extensions=extensions,
        response_budget=answer,
    )
    return executor
