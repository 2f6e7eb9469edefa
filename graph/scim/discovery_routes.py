"""The endpoints by which clients discover what the SCIM service supports (RFC 7644, section 4)."""

from collections.abc import Sequence
from typing import Any

from scim2_models import (
    AuthenticationScheme,
    Bulk,
    ChangePassword,
    ETag,
    Filter,
    ForbiddenException,
    Meta,
    NotFoundException,
    Pagination,
    Patch,
    Resource,
    ServiceProviderConfig,
    Sort,
)
from scim2_models import Context as ScimContext
from starlette.responses import Response

from graph.scim.errors import scim_response
from graph.scim.representation import list_json
from graph.scim.requests import MAX_BODY_BYTES
from graph.scim.service import ScimCall
from resolvers.scim.resources import resource_schemas, resource_types
from resolvers.scim.search_parameters import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE


def _service_provider_config() -> ServiceProviderConfig:
    """Return what the service supports."""
    return ServiceProviderConfig(
        patch=Patch(supported=True),
        bulk=Bulk(supported=False, max_operations=0, max_payload_size=MAX_BODY_BYTES),
        filter=Filter(supported=True, max_results=MAX_PAGE_SIZE),
        change_password=ChangePassword(supported=True),
        sort=Sort(supported=True),
        etag=ETag(supported=True),
        pagination=Pagination(
            cursor=False,
            index=True,
            default_pagination_method=Pagination.DefaultPaginationMethod.index,
            default_page_size=DEFAULT_PAGE_SIZE,
            max_page_size=MAX_PAGE_SIZE,
        ),
        authentication_schemes=[
            AuthenticationScheme(
                type=AuthenticationScheme.Type.oauthbearertoken,
                name="API key",
                description="API key with the scope SCIM that is restricted to domains, as a "
                "bearer token.",
                primary=True,
            )
        ],
    )


def _resource_json(resource: Resource[Any], call: ScimCall, path: str) -> dict[str, Any]:
    """Return a resource of discovery with its URL."""
    copy = resource.model_copy()
    copy.meta = Meta(resource_type=type(resource).__name__, location=f"{call.base_url}/{path}")
    return copy.model_dump(scim_ctx=ScimContext.RESOURCE_QUERY_RESPONSE)


async def serve_service_provider_config(call: ScimCall) -> Response:
    """Respond with what the service supports."""
    _refuse_filter(call)
    name = "ServiceProviderConfig"
    return scim_response(_resource_json(_service_provider_config(), call, name))


async def list_schemas(call: ScimCall) -> Response:
    """Respond with the schemas of all resource types."""
    return _list_response(call, "Schemas", resource_schemas())


async def serve_schema(call: ScimCall) -> Response:
    """Respond with the schema of a resource type."""
    return _item_response(call, "Schemas", resource_schemas())


async def list_resource_types(call: ScimCall) -> Response:
    """Respond with all resource types."""
    return _list_response(call, "ResourceTypes", resource_types())


async def serve_resource_type(call: ScimCall) -> Response:
    """Respond with a resource type."""
    return _item_response(call, "ResourceTypes", resource_types())


def _refuse_filter(call: ScimCall) -> None:
    """Raise ForbiddenException for a filter, as RFC 7644 requires for discovery."""
    if "filter" in call.request.query_params:
        raise ForbiddenException(detail="The discovery endpoints have no filter.")


def _list_response(call: ScimCall, path: str, items: Sequence[Resource[Any]]) -> Response:
    _refuse_filter(call)
    resources = [_resource_json(item, call, f"{path}/{item.id}") for item in items]
    return scim_response(list_json(len(resources), 1, resources))


def _item_response(call: ScimCall, path: str, items: Sequence[Resource[Any]]) -> Response:
    name = call.request.path_params["id"]
    for item in items:
        if item.id == name:
            return scim_response(_resource_json(item, call, f"{path}/{item.id}"))
    raise NotFoundException(detail=f"{path} has no resource with this ID.")
