"""Convert the items of a list in an input, each with its own errors."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from models.errors import RequestError

Item = TypeVar("Item")
Converted = TypeVar("Converted")


class ConvertedItems(NamedTuple, Generic[Converted]):
    """The converted items, and the errors of the others, by position in the list."""

    values: dict[int, Converted]
    errors: dict[int, RequestError]


async def convert_list_items(
    items: Sequence[Item], convert: Callable[[Item], Awaitable[Converted]]
) -> ConvertedItems[Converted]:
    """Convert the items together, so that what they refer to is loaded in batches."""
    converted: ConvertedItems[Converted] = ConvertedItems({}, {})
    results = await asyncio.gather(*map(convert, items), return_exceptions=True)
    for index, result in enumerate(results):
        if isinstance(result, RequestError):
            converted.errors[index] = result
        elif isinstance(result, BaseException):
            raise result
        else:
            converted.values[index] = result
    return converted
