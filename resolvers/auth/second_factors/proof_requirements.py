"""Require a proof of a second factor, or a reason, before the factors of a user change."""

from models.errors import AuthenticationFailed, Forbidden, InvalidInput
from models.store.columns import ColumnRow
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers.auth.second_factors.second_factor_check import (
    SecondFactorProof,
    TwoFactorMethod,
    enabled_methods,
    verify_and_use_up_second_factor,
)
from resolvers.context import Context

NO_PROOF = SecondFactorProof()


async def require_proof_or_reason(ctx: Context, user: ColumnRow, proof: SecondFactorProof) -> None:
    """Check a proof of a second factor that is on, since the viewer's credential may be stolen.

    A viewer who is another user can give a reason instead of a proof. Raises AuthenticationFailed
    without a right proof, InvalidInput without a reason, and Forbidden if only the factor
    EXTERNAL is on.
    """
    if proof.is_given:
        await verify_and_use_up_second_factor(ctx, user, proof)
    elif ctx.viewer.user_id != user.id:
        if not ctx.reason:
            raise InvalidInput(
                "A reason is required.",
                constraint=ValidationConstraint.REQUIRED,
                path=["options", "reason"],
            )
    elif enabled_methods(user) == [TwoFactorMethod.EXTERNAL]:
        text = "Only the application that checks this factor can turn it off."
        raise Forbidden(text, requires=Role.DOMAIN_ADMIN)
    else:
        raise AuthenticationFailed(
            "A proof of an active second factor is required.", path=["proof"]
        )


async def require_proof_from_owner_of_factors(
    ctx: Context, user: ColumnRow, proof: SecondFactorProof
) -> None:
    """Require a proof from the user who adds a further factor, and check one that is given.

    A person who adds a factor can sign in with it. An administrator needs no proof.
    """
    if enabled_methods(user) and (proof.is_given or ctx.viewer.user_id == user.id):
        await require_proof_or_reason(ctx, user, proof)
