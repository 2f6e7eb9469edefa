"""Descriptions name the defaults of Boolean inputs, and no default of a required argument."""

from graphql import GraphQLField, GraphQLInputObjectType, get_named_type, is_required_argument

from tests.support.schema.description_rules import iter_inputs
from tests.support.schema.printed_schema import SDL

# Fields of a patch that say how the new password is read: they aren't stored values.
PASSWORD_OPTIONS = {"UserPatch.allowUnsafe": "true", "UserPatch.hashedPassword": "false"}


def test_boolean_inputs_name_their_default() -> None:
    wrong = []
    for coordinate, _, member in iter_inputs(SDL):
        default = member.default.literal if member.default else None
        if get_named_type(member.type).name != "Boolean" or default is None:
            continue
        value = str(getattr(default, "value", None)).lower()
        if value in ("true", "false") and f"Default: {value}" not in (member.description or ""):
            wrong.append(coordinate)
    assert not wrong


def test_boolean_fields_of_patches_are_unchanged_by_default() -> None:
    patches = [
        kind
        for kind in SDL.type_map.values()
        if isinstance(kind, GraphQLInputObjectType) and kind.name.endswith("Patch")
    ]
    texts = {
        f"{kind.name}.{name}": field.description or ""
        for kind in patches
        for name, field in kind.fields.items()
        if get_named_type(field.type).name == "Boolean"
    }
    assert len(texts) > 40
    for name, default in PASSWORD_OPTIONS.items():
        assert f"Default: {default}. Null is refused." in texts.pop(name)
    assert not [name for name, text in texts.items() if "Default: unchanged." not in text]
    assert "Null is refused." in texts["TransportPatch.lookupMx"]
    assert "Null is refused." not in texts["ApiKeyPatch.active"]


def test_filters_by_boolean_return_both_by_default() -> None:
    kind = SDL.type_map["AddressFilter"]
    assert isinstance(kind, GraphQLInputObjectType)
    assert (kind.fields["active"].description or "").endswith("Default: both.")


def test_required_arguments_have_no_default() -> None:
    assert SDL.query_type
    trace: GraphQLField = SDL.query_type.fields["deliveryTrace"]
    assert is_required_argument(trace.args["filter"])
    wrong = [
        f"{kind.name}.{name}({argument_name}:)"
        for kind in SDL.type_map.values()
        for name, field in getattr(kind, "fields", {}).items()
        for argument_name, argument in getattr(field, "args", {}).items()
        if is_required_argument(argument) and "Default: " in (argument.description or "")
    ]
    assert not wrong


def test_second_scope_is_named_beside_the_first() -> None:
    assert SDL.mutation_type
    text = SDL.mutation_type.fields["messageRedirect"].description or ""
    assert "Requires a credential with scopes SUBMIT and MAIL_READ." in text
