"""Executors with one fault each, which the comparison must find."""

from typing import Any

from graphql import GraphQLError, OperationType, is_leaf_type, located_error

from graph.execution.compiled_executor import CompiledExecutor
from graph.execution.resolver_plans import OperationPlans


class UnorderedFieldsExecutor(CompiledExecutor):
    """Returns fields out of order: fields with object values last."""

    def execute_fields(self, parent_type: Any, *rest: Any) -> Any:
        values = super().execute_fields(parent_type, *rest)
        if isinstance(values, dict):
            return dict(sorted(values.items(), key=lambda item: isinstance(item[1], dict)))
        return values


class RepeatedResolverExecutor(CompiledExecutor):
    """Resolves a field of a mutation again if its value is null."""

    def execute_field(self, *arguments: Any) -> Any:
        value = super().execute_field(*arguments)
        is_mutation = self.operation.operation is OperationType.MUTATION
        return super().execute_field(*arguments) if value is None and is_mutation else value


class NullForNonNullExecutor(CompiledExecutor):
    """Returns null for non-null fields, with an error."""

    def handle_field_error(self, raw_error: Any, return_type: Any, details: Any, path: Any) -> None:
        nodes = [detail.node for detail in details]
        self.collected_errors.add(located_error(raw_error, nodes, path.as_list()), path)


class UnserializedIntExecutor(CompiledExecutor):
    """Returns integers without serialization."""

    def complete_value(self, return_type: Any, *rest: Any) -> Any:
        result = rest[3]
        if is_leaf_type(return_type) and type(result) is int:
            return result
        return super().complete_value(return_type, *rest)


class FirstLocationExecutor(CompiledExecutor):
    """Reports only the location of the first of several merged fields."""

    def handle_field_error(self, raw_error: Any, return_type: Any, details: Any, path: Any) -> None:
        super().handle_field_error(raw_error, return_type, details[:1], path)


class LostExtensionsExecutor(CompiledExecutor):
    """Drops the extensions of errors."""

    def handle_field_error(self, raw_error: Any, *rest: Any) -> None:
        if isinstance(raw_error, GraphQLError):
            raw_error.extensions = {}
        super().handle_field_error(raw_error, *rest)


class FirstPlansExecutor(CompiledExecutor):
    """Uses the plans of the first variables, so that a skipped field is always skipped."""

    plans_by_operation_id: dict[int, tuple[Any, OperationPlans]] = {}  # noqa: RUF012 - a test's

    def __init__(
        self, *arguments: Any, plans: OperationPlans | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, plans=plans, **options)
        _, first_plans = self.plans_by_operation_id.setdefault(
            id(self.operation), (self.operation, self.plans)
        )
        self.plans = first_plans
        self._relevant_sub_fields = first_plans.collected_subfields


class NullOnErrorExecutor(CompiledExecutor):
    """Returns null if a compiled function raises an error."""

    def complete_value(self, return_type: Any, details: Any, *rest: Any) -> Any:
        plan = (
            self.plans.value_plan_or_none(return_type, details)
            if details[0].node.selection_set
            else None
        )
        if plan is None:
            return super().complete_value(return_type, details, *rest)
        try:
            return plan.complete(rest[2], self.response_budget)
        except Exception:  # noqa: BLE001 - the fault
            return None


FAULTY_EXECUTORS: list[type[CompiledExecutor]] = [
    UnorderedFieldsExecutor,
    RepeatedResolverExecutor,
    NullForNonNullExecutor,
    UnserializedIntExecutor,
    FirstLocationExecutor,
    LostExtensionsExecutor,
    FirstPlansExecutor,
    NullOnErrorExecutor,
]
