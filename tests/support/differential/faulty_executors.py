"""Executors with a fault each: the comparison is good for something if it finds them."""

from typing import Any

from graphql import GraphQLError, OperationType, is_leaf_type, located_error

from graph.execution.compiled_executor import CompiledExecutor
from graph.execution.resolver_plans import OperationPlans


class Unordered(CompiledExecutor):
    """Fields in the order in which they became ready: those with resolvers last."""

    def execute_fields(self, parent_type: Any, *rest: Any) -> Any:
        found = super().execute_fields(parent_type, *rest)
        if isinstance(found, dict):
            return dict(sorted(found.items(), key=lambda item: isinstance(item[1], dict)))
        return found


class Twice(CompiledExecutor):
    """A field that gave nothing is resolved once more."""

    def execute_field(self, *given: Any) -> Any:
        found = super().execute_field(*given)
        mutation = self.operation.operation is OperationType.MUTATION
        return super().execute_field(*given) if found is None and mutation else found


class Permissive(CompiledExecutor):
    """Null where none may be, with an error beside it."""

    def handle_field_error(self, raw_error: Any, return_type: Any, details: Any, path: Any) -> None:
        nodes = [one.node for one in details]
        self.collected_errors.add(located_error(raw_error, nodes, path.as_list()), path)


class Trusting(CompiledExecutor):
    """Leaves go out as they are."""

    def complete_value(self, return_type: Any, *rest: Any) -> Any:
        result = rest[3]
        if is_leaf_type(return_type) and type(result) is int:
            return result
        return super().complete_value(return_type, *rest)


class Misplaced(CompiledExecutor):
    """Errors of merged fields tell of the first one only."""

    def handle_field_error(self, raw_error: Any, return_type: Any, details: Any, path: Any) -> None:
        super().handle_field_error(raw_error, return_type, details[:1], path)


class Forgetful(CompiledExecutor):
    """Errors without what they carry."""

    def handle_field_error(self, raw_error: Any, *rest: Any) -> None:
        if isinstance(raw_error, GraphQLError):
            raw_error.extensions = {}
        super().handle_field_error(raw_error, *rest)


class Stubborn(CompiledExecutor):
    """The plans of other variables: what was skipped once is skipped always."""

    first: dict[int, tuple[Any, OperationPlans]] = {}  # noqa: RUF012 - a test's

    def __init__(self, *given: Any, plans: OperationPlans | None = None, **more: Any) -> None:
        super().__init__(*given, plans=plans, **more)
        _, known = self.first.setdefault(id(self.operation), (self.operation, self.plans))
        self.plans = known
        self._relevant_sub_fields = known.collected_subfields


class Hasty(CompiledExecutor):
    """What a function cannot complete is null."""

    def complete_value(self, return_type: Any, details: Any, *rest: Any) -> Any:
        plan = (
            self.plans.value_plan(return_type, details) if details[0].node.selection_set else None
        )
        if plan is None:
            return super().complete_value(return_type, details, *rest)
        try:
            return plan.complete(rest[2], self.response_budget)
        except Exception:  # noqa: BLE001 - the fault
            return None


FAULTS: list[type[CompiledExecutor]] = [
    Unordered, Twice, Permissive, Trusting, Misplaced, Forgetful, Stubborn, Hasty,
]  # fmt: skip
