"""The endpoints /Users of SCIM."""

from typing import Any

from scim2_models import InvalidValueException, ResponseParameters
from starlette.responses import Response

from graph.scim.errors import not_modified_response, resource_response, scim_response
from graph.scim.queries import load_account_page_and_charge
from graph.scim.representation import (
    account_json,
    account_location,
    decode_user_id,
    entity_tag,
    list_json,
)
from graph.scim.requests import (
    ScimQuery,
    if_match_version_check,
    is_version_known,
    member_of_object,
    parse_query_from_url,
    query_from_body,
    read_json_object,
    response_parameters,
)
from graph.scim.service import PASSWORD_POINTS, ScimCall
from resolvers.scim.account_create import create_account
from resolvers.scim.account_patch import account_patch_from_json
from resolvers.scim.account_update import (
    ResourceChange,
    change_account,
    change_from_put_resource,
    delete_account,
)
from resolvers.scim.accounts import ScimAccount, account_version, require_account
from resolvers.scim.resources import TOLERANT_POLICY, AccountResource


async def list_accounts(call: ScimCall) -> Response:
    """Respond with a page of accounts."""
    return await _respond_with_page(call, parse_query_from_url(call.request))


async def search_accounts(call: ScimCall) -> Response:
    """Respond with a page of accounts that a SearchRequest selects."""
    return await _respond_with_page(call, query_from_body(await read_json_object(call.request)))


async def _respond_with_page(call: ScimCall, query: ScimQuery) -> Response:
    parameters = response_parameters(AccountResource, query)
    page = await load_account_page_and_charge(call, query.search)
    resources = [account_json(account, call.base_url, parameters) for account in page.accounts]
    return scim_response(list_json(page.total_count, query.search.start_index, resources))


async def create_account_from_body(call: ScimCall) -> Response:
    """Create an account and respond with it."""
    parameters = _parameters(call)
    resource = _account_from_json(await read_json_object(call.request))
    _charge_for_password(call, is_written=bool(resource.password))
    user_id = await create_account(call.ctx, resource)
    account = await require_account(call.ctx, user_id)
    location = account_location(call.base_url, user_id)
    return _account_response(call, account, parameters, 201, location)


def _account_from_json(body: dict[str, Any]) -> AccountResource:
    """Return the account of a request body. Read-only and unknown attributes are dropped.

    Raises ValidationError for wrong types, and InvalidValueException without a username.
    """
    resource = AccountResource.model_validate(body, scim_policy=TOLERANT_POLICY)
    if not (resource.user_name or "").strip():
        raise InvalidValueException(detail="userName is required.")
    return resource


async def serve_account(call: ScimCall) -> Response:
    """Respond with an account, or with status 304 if the client has its version."""
    parameters = _parameters(call)
    account = await require_account(call.ctx, _user_id(call))
    if is_version_known(call.request, version := account_version(account)):
        return not_modified_response(entity_tag(version))
    return _account_response(call, account, parameters)


async def replace_account(call: ScimCall) -> Response:
    """Replace an account and respond with it."""
    resource = _account_from_json(await read_json_object(call.request))
    _charge_for_password(call, is_written=bool(resource.password))
    return await _change_account_and_respond(call, change_from_put_resource(resource))


async def patch_account(call: ScimCall) -> Response:
    """Apply the operations of a PATCH to an account and respond with it."""
    patch = account_patch_from_json(
        member_of_object(await read_json_object(call.request), "Operations")
    )
    _charge_for_password(call, is_written=patch.writes_password)
    return await _change_account_and_respond(call, patch.patched_resource)


def _charge_for_password(call: ScimCall, *, is_written: bool) -> None:
    """Charge for the hash of a new password. Raises RateLimited."""
    if is_written:
        call.charge(PASSWORD_POINTS)


async def _change_account_and_respond(call: ScimCall, change: ResourceChange) -> Response:
    parameters = _parameters(call)
    check = if_match_version_check(call.request)
    user_id = await change_account(call.ctx, _user_id(call), change, check)
    account = await require_account(call.ctx, user_id)
    return _account_response(call, account, parameters)


async def delete_account_of_path(call: ScimCall) -> Response:
    """Delete an account."""
    await delete_account(call.ctx, _user_id(call), if_match_version_check(call.request))
    return Response(status_code=204)


def _user_id(call: ScimCall) -> int | None:
    return decode_user_id(call.request.path_params["id"])


def _parameters(call: ScimCall) -> ResponseParameters[Any]:
    return response_parameters(AccountResource, parse_query_from_url(call.request))


def _account_response(
    call: ScimCall,
    account: ScimAccount,
    parameters: ResponseParameters[Any],
    status: int = 200,
    location: str | None = None,
) -> Response:
    version = account_version(account)
    body = account_json(account, call.base_url, parameters, version)
    return resource_response(body, entity_tag(version), status, location)
