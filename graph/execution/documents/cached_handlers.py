"""Validation rules that find the handlers of a kind of node once, not in each validation.

graphql-core looks up four names of methods for each rule and kind of node in each validation. Most
rules handle few kinds, so most names don't exist, and a failed lookup is the slowest.
"""

from functools import cache

from graphql import ASTValidationRule
from graphql.language.visitor import EnterLeaveVisitor


def with_cached_handlers(rule: type[ASTValidationRule]) -> type[ASTValidationRule]:
    """Return the same rule with cached names of its handlers."""

    def first_existing_name(*names: str) -> str | None:
        return next((name for name in names if getattr(rule, name, None)), None)

    @cache
    def handler_names(kind: str) -> tuple[str | None, str | None]:
        enter = first_existing_name(f"enter_{kind}", "enter")
        return enter, first_existing_name(f"leave_{kind}", "leave")

    def get_enter_leave_for_kind(visitor: ASTValidationRule, kind: str) -> EnterLeaveVisitor:
        enter, leave = handler_names(kind)
        return EnterLeaveVisitor(
            getattr(visitor, enter) if enter else None, getattr(visitor, leave) if leave else None
        )

    method = {"get_enter_leave_for_kind": get_enter_leave_for_kind}
    return type(rule.__name__, (rule,), method)
