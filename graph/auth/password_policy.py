"""GraphQL types of password policies."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.types.errors import attribute_field
from resolvers.auth.passwords import password_policy

DEFAULT_DESCRIPTION = "Null: the platform's value applies."


@strawberry.type(
    description="Required strength of a new password. The policy does not apply to "
    "imported hashes and to passwords that are already set."
)
class PasswordPolicy:
    min_length: int = attribute_field(
        "Minimum length of a password in characters: the value of the domain, or else of the "
        "platform (8 by default)."
    )
    min_classes: int = attribute_field(
        "Minimum number of different character classes in a password: the value of the domain, or "
        "else of the platform (1 by default). The four classes are lower case, upper case, digits "
        "and other characters."
    )
    own_min_length: int | None = attribute_field(
        f"Minimum length that is set on the domain itself. {DEFAULT_DESCRIPTION}"
    )
    own_min_classes: int | None = attribute_field(
        "Minimum number of character classes that is set on the domain itself. "
        f"{DEFAULT_DESCRIPTION}"
    )

    @classmethod
    def from_policy(cls, policy: password_policy.EffectivePasswordPolicy) -> "PasswordPolicy":
        """Return the GraphQL object of a password policy."""
        return cls(
            min_length=policy.min_length,
            min_classes=policy.min_classes,
            own_min_length=policy.own_min_length,
            own_min_classes=policy.own_min_classes,
        )


@strawberry.input(
    description=(
        "Required strength of new passwords. An absent field leaves the value; in a new domain it "
        "means the platform's value."
    )
)
class PasswordPolicyInput:
    min_length: int | None = attribute_field(
        f"Minimum length of a password, 1 to 256 characters. {DEFAULT_DESCRIPTION}", default=UNSET
    )
    min_classes: int | None = attribute_field(
        "Minimum number of different character classes (lower case, upper case, "
        "digits, other characters) in a password, 1 to 4. NIST SP 800-63B advises "
        f"against more than 1. {DEFAULT_DESCRIPTION}",
        default=UNSET,
    )


def policy_column_values(policy_input: PasswordPolicyInput | None) -> dict[str, Any]:
    """Return the column values of a domain's password policy.

    Absent fields are left out. None as input resets every value to the platform's.
    """
    values = {
        "password_min": policy_input.min_length if policy_input else None,
        "password_classes": policy_input.min_classes if policy_input else None,
    }
    return {name: value for name, value in values.items() if value is not UNSET}
