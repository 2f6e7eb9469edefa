"""Input fields that give somebody else lasting access to mail, or a copy of it.

An administrator who acts as a user (`userImpersonate`) can't set them: a short-lived token would
leave access behind. The security log of the user records the attempt. Where an administrator may
give such access, a direct mutation with its own permission does, which tells the user.
"""

from collections.abc import Mapping
from typing import Any

from strawberry.types.field import StrawberryField

from graph.types.input_fields import (
    has_input_field,
    mutation_input_type,
    present_input_fields,
)
from models.errors import Forbidden
from resolvers.auth import impersonation
from resolvers.context import Context
from resolvers.viewer import GuardRule

# metadata of an input field that gives access
GIVES_ACCESS: Mapping[Any, Any] = {"gives_access": True}
REQUIRED_CALLER = "the user"


def gives_access(field: StrawberryField) -> bool:
    """True if an input field gives somebody else lasting access, or a copy."""
    return bool(field.metadata.get("gives_access"))


def refuse_access_grants_of_acting_viewer(ctx: Context, mutation: str, input_value: Any) -> None:
    """Raise Forbidden if an acting administrator sets a field that gives access, and log it.

    A field that is omitted, null or empty gives no access. `mutation` is the GraphQL name.
    """
    if not ctx.viewer.is_acting:
        return
    for field in present_input_fields(input_value):
        if gives_access(field.definition):
            impersonation.log_refused_grant_in_background(ctx, mutation, field.path)
            raise Forbidden(
                "An administrator who acts as the user can't give others access to its mail.",
                requires=REQUIRED_CALLER,
                path=field.path,
            )


def log_refused_mutation_of_acting_viewer(raw_info: Any, rule: GuardRule) -> None:
    """Log a mutation that its rule refuses to an administrator who acts as a user.

    These are mutations that the user itself may call, which change its credentials or Sieve
    scripts, and mutations of administrators with a field that gives access.
    """
    viewer = raw_info.context.viewer
    if not viewer.is_acting:
        return
    if viewer.role.includes((rule.signed_in or rule).role) or has_input_field(
        mutation_input_type(raw_info), gives_access
    ):
        impersonation.log_refused_grant_in_background(raw_info.context, raw_info.field_name, ())
