"""graphql-core's executor with limits on the response size and on the time of a step."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from graphql import (
    FieldNode,
    GraphQLField,
    GraphQLLeafType,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLResolveInfoHelpers,
    OperationType,
    is_non_null_type,
    located_error,
)
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet
from graphql.execution.executor_throwing_on_incremental import ExecutorThrowingOnIncremental
from graphql.pyutils import Path, Undefined
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from graph.execution.concurrency import gather_results
from graph.execution.deadlines import DeadlineExceeded, FieldDeadline
from graph.execution.documents.required_scopes import scopes_of_type
from graph.execution.list_steps import StepClock, close_unstarted_coroutines
from graph.execution.response_size import FIELD_OVERHEAD_BYTES, ResponseBudget, estimated_json_size
from graph.types.object_views import ViewList
from models.users.roles import Scope


def _ignore_pending_work(_awaitables: Sequence[Any]) -> None:
    """Ignore pending awaitables: a cancelled operation cancels its own tasks."""


RESOLVE_INFO_HELPERS = GraphQLResolveInfoHelpers(gather=gather_results, track=_ignore_pending_work)


@dataclass
class _CompletedValues:
    """The completed items of a list or fields of an object; some may be coroutines."""

    results: Any  # a list, or a dict by name
    pending_keys: list[Any]  # indexes or names of the coroutines

    @property
    def pending(self) -> list[Any]:
        return [self.results[key] for key in self.pending_keys]

    def results_or_coroutine(self) -> Any:
        """Return the results, or a coroutine that returns them if some are coroutines."""
        return (
            _await_pending_in_place(self.results, self.pending_keys)
            if self.pending_keys
            else self.results
        )


async def _await_pending_in_place(results: Any, pending_keys: list[Any]) -> Any:
    """Replace each coroutine by its result and return `results`.

    A single coroutine is awaited without a task.

    The parameters are a list or dict so that `close_unstarted_coroutines` finds the coroutines in
    them.
    """
    if len(pending_keys) == 1:
        results[pending_keys[0]] = await results[pending_keys[0]]
        return results
    values = await gather_results([results[key] for key in pending_keys])
    for key, value in zip(pending_keys, values, strict=True):
        results[key] = value
    return results


class PlainExecutor(ExecutorThrowingOnIncremental):
    """graphql-core's executor with a response limit, long lists in steps and deadlines.

    It makes no suggestions for names in variables: graphql-core fails at characters such as "İ".
    """

    def __init__(
        self,
        *args: Any,
        operation_extensions: Any = None,
        response_budget: ResponseBudget | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.response_budget = response_budget or ResponseBudget()
        self.step_clock = StepClock()
        self.operation_extensions = operation_extensions
        # graphql-core's helpers refer to the executor: a response would not be freed at once
        self.async_helpers = RESOLVE_INFO_HELPERS

    def build_resolve_info(
        self,
        field_def: GraphQLField,
        field_nodes: list[FieldNode],
        parent_type: GraphQLObjectType,
        path: Path,
    ) -> Any:
        """Create the `info` of a resolver in Strawberry's form."""
        base = StrawberryGraphQLCoreExecutionContext.build_resolve_info
        return base(cast("Any", self), field_def, field_nodes, parent_type, path)

    def complete_leaf_value(  # type: ignore[override]
        self, return_type: GraphQLLeafType, result: Any
    ) -> Any:
        """Complete a scalar or enum and count its bytes."""
        completed = super().complete_leaf_value(return_type, result)
        self.response_budget.add_response_bytes(estimated_json_size(completed))
        return completed

    def execute_fields(
        self,
        parent_type: GraphQLObjectType,
        source_value: Any,
        path: Path | None,
        grouped_field_set: GroupedFieldSet,
        position_context: Any,
    ) -> Any:
        """Execute the fields of an object concurrently, and count their names in the response size.

        Returns a dict, or a coroutine that returns it if a field is awaited. Values are counted
        where they are completed. Raises ResponseTooLarge.
        """
        self.response_budget.add_response_bytes(
            FIELD_OVERHEAD_BYTES * len(grouped_field_set) + sum(map(len, grouped_field_set))
        )
        completed = _CompletedValues({}, [])
        try:
            for name, details in grouped_field_set.items():
                field_path = Path(path, name, parent_type.name)
                result = self.execute_field(
                    parent_type, source_value, details, field_path, position_context
                )
                if result is Undefined:
                    continue
                completed.results[name] = result
                if self.is_awaitable(result):
                    completed.pending_keys.append(name)
        except Exception:
            if completed.pending_keys:
                self.settle_in_background(completed.pending)
            raise
        return completed.results_or_coroutine()

    def execute_field(
        self,
        parent_type: GraphQLObjectType,
        source: Any,
        field_details_list: FieldDetailsList,
        path: Path,
        position_context: Any,
    ) -> Any:
        """Resolve and complete a field."""
        if path.prev is None:
            self.response_budget.start_root_field()
        return super().execute_field(
            parent_type, source, field_details_list, path, position_context
        )

    def complete_iterable_value(
        self,
        item_type: GraphQLOutputType,
        field_details_list: FieldDetailsList,
        info: Any,
        path: Path,
        items: Iterable[Any],
        position_context: Any,
    ) -> Any:
        """Complete a list, in several steps of the event loop if one would take too long."""
        if not isinstance(items, list | ViewList):
            ordinary = super().complete_iterable_value
            return ordinary(item_type, field_details_list, info, path, items, position_context)
        completed = _CompletedValues([], [])

        def complete_item(index: int) -> None:
            item, results = items[index], completed.results
            item_path = path.add_key(index, None)
            arguments = item_type, field_details_list, info, item_path, position_context
            if self.is_awaitable(item):
                results.append(self.complete_awaitable_list_item_value(item, *arguments))
                completed.pending_keys.append(index)
            elif self.complete_list_item_value(item, results, *arguments):
                completed.pending_keys.append(index)

        last = len(items) - 1
        indexes = iter(range(len(items)))
        try:
            for index in indexes:
                complete_item(index)
                if index < last and self.step_clock.start_step_or_check_if_over():
                    return self._complete_remaining_items(complete_item, items, indexes, completed)
        except Exception:
            self._settle_remaining_in_background(items, indexes, completed)
            raise
        return completed.results_or_coroutine()

    async def _complete_remaining_items(
        self,
        complete_item: Callable[[int], None],
        items: Sequence[Any],
        indexes: Iterator[int],
        completed: _CompletedValues,
    ) -> Any:
        """Complete the items with these indexes in further steps of the event loop."""
        try:
            await self.step_clock.yield_to_event_loop()
            for index in indexes:
                complete_item(index)
                if self.step_clock.start_step_or_check_if_over():
                    await self.step_clock.yield_to_event_loop()
        except Exception:
            self._settle_remaining_in_background(items, indexes, completed)
            raise
        except BaseException:  # the operation is cancelled: nothing of it may start any more
            close_unstarted_coroutines(completed.pending)
            raise
        settled = completed.results_or_coroutine()
        return await settled if completed.pending_keys else settled

    def _settle_remaining_in_background(
        self, items: Sequence[Any], indexes: Iterator[int], completed: _CompletedValues
    ) -> None:
        """Await the remaining awaitables in the background after an error, like graphql-core."""
        pending = completed.pending
        with suppress(Exception):  # a second error must not replace the one that ended the list
            pending.extend(items[index] for index in indexes if self.is_awaitable(items[index]))
        if pending:
            self.settle_in_background(pending)

    def handle_field_error(
        self,
        raw_error: Exception,
        return_type: GraphQLOutputType,
        field_details_list: FieldDetailsList,
        path: Path,
    ) -> None:
        """Add the error of a field to the response. A response that is too large ends here.

        The response of a query then has only this error. In a mutation the nullable root field
        becomes null, since the other fields have run too.
        """
        if self.response_budget.is_exceeded:
            mutates = self.operation.operation is OperationType.MUTATION
            if path.prev is not None or not mutates or is_non_null_type(return_type):
                nodes = [details.node for details in field_details_list]
                raise located_error(raw_error, nodes, path.as_list())
            self.response_budget.discard_root_field()
        super().handle_field_error(raw_error, return_type, field_details_list, path)

    def execute_fields_serially(
        self,
        parent_type: GraphQLObjectType,
        source_value: Any,
        path: Path | None,
        grouped_field_set: GroupedFieldSet,
        position_context: Any,
    ) -> Any:
        """Execute the root fields of a mutation one after another, each until the deadline.

        At the deadline the completed fields keep their payloads. Each other field is null and has
        an error.
        """
        deadline: FieldDeadline | None = getattr(self.context_value, "field_deadline", None)
        if deadline is None:
            ordinary = super().execute_fields_serially
            return ordinary(parent_type, source_value, path, grouped_field_set, position_context)
        return self._execute_serially_until_deadline(
            deadline, parent_type, source_value, grouped_field_set
        )

    async def _execute_serially_until_deadline(
        self,
        deadline: FieldDeadline,
        parent_type: GraphQLObjectType,
        source: Any,
        grouped_fields: GroupedFieldSet,
    ) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for name, details in grouped_fields.items():
            field = self.schema.get_field(parent_type, details[0].node.name.value)
            if field is None:
                continue
            path = Path(None, name, parent_type.name)
            arguments = parent_type, source, details, path, None
            run = partial(
                self._execute_root_field_ending_dry_run, partial(self.execute_field, *arguments)
            )
            if is_non_null_type(field.type):  # `__typename`, which takes no time
                results[name] = self.execute_field(*arguments)
                continue
            try:
                results[name] = await deadline.run_field_until_deadline(run)
            except DeadlineExceeded as late:
                self.handle_field_error(late, field.type, details, path)
                results[name] = None
        return results

    async def _execute_root_field_ending_dry_run(self, execute_field: Callable[[], Any]) -> Any:
        """Execute a root field, then roll back its dry run (`validateOnly`) if there is one.

        The payload is completed before, so that it shows what the dry run has written.
        """
        async with AsyncExitStack() as trial:
            self.context_value.trial_end = trial
            result = execute_field()
            return await result if isinstance(result, Awaitable) else result

    @classmethod
    def build(cls, *args: Any, **kwargs: Any) -> Any:
        """Create the executor of one operation."""
        return super().build(*args, **{**kwargs, "hide_suggestions": True})


class ScopeCheckingExecutor(PlainExecutor):
    """An executor for a viewer without some of the scopes that types of the document require.

    A field that returns an object of such a type fails. The other fields are not affected.
    """

    def __init__(self, *args: Any, missing_scopes: frozenset[Scope], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.missing_scopes = missing_scopes

    def execute_fields(
        self, parent_type: GraphQLObjectType, source_value: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Execute the fields of an object; raise Forbidden if its type needs a missing scope."""
        if missing := self.missing_scopes & scopes_of_type(parent_type):
            self.context_value.viewer.require_scope(min(missing))
        return super().execute_fields(parent_type, source_value, *args, **kwargs)
