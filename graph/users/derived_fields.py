"""Fields of users that are computed from columns."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from graph.types.object_views import DerivedField, WholeSourceField, return_unchanged
from graph.types.row_mapping import global_id_field
from graph.users.part_types import (
    SPAM_COLUMNS,
    openpgp_key_from_json_or_none,
    spam_policy_from_columns,
)
from models.users.roles import AdminPermission, UserPermission
from models.users.tables import ProtocolScope, SubaddressAction
from resolvers.auth.second_factors.second_factor_check import enabled_methods


def _enum_list_reader(enum_type: Any) -> Callable[[list[str]], list[Any]]:
    """Return a function that converts stored values to members of an enum."""
    return lambda values: [enum_type(value) for value in values]


USER_DERIVED_FIELDS: Mapping[str, DerivedField] = {
    "id": global_id_field("User"),
    "activated": DerivedField(
        ("password", "temporary_password", "active", "suspended"),
        lambda password, temporary, active, suspended: (
            bool(password or temporary) and active and not suspended
        ),
    ),
    "two_factor_methods": WholeSourceField(("second_factors",), enabled_methods),
    "metadata": DerivedField(("public_metadata",), return_unchanged),
    "forward_to": DerivedField(("forward_to",), list),
    "subaddress_action": DerivedField(("subaddress_action",), SubaddressAction),
    "has_password": DerivedField(
        ("password", "temporary_password"),
        lambda password, temporary: bool(password or temporary),
    ),
    "disabled_scopes": DerivedField(("disabled_scopes",), _enum_list_reader(ProtocolScope)),
    "retention": DerivedField(
        ("retention",), lambda life: None if life is None else timedelta(seconds=life)
    ),
    "openpgp_key": DerivedField(("openpgp_key",), openpgp_key_from_json_or_none),
    "spam": DerivedField(SPAM_COLUMNS, spam_policy_from_columns),
    "permissions": DerivedField(("permissions",), _enum_list_reader(UserPermission)),
    "admin_permissions": DerivedField(("admin_permissions",), _enum_list_reader(AdminPermission)),
}
