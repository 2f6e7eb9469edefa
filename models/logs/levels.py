"""The setting `logs.levels`: from which level the entries of each component are stored."""

from collections.abc import Mapping
from functools import lru_cache

from models.logs.entries import LogComponent, LogLevel

OFF_RANK = 99  # above all levels: nothing is stored
OFF = "OFF"
LEVEL_NAMES = (*LogLevel, OFF)


@lru_cache(maxsize=16)
def parse_levels(text: str) -> Mapping[LogComponent, int]:
    """Return the lowest stored rank of each component.

    `text` is a level for all components, then exceptions: `INFO API=WARNING SPAM=OFF`. Raises
    ValueError for another text.
    """
    default, *exceptions = text.split() or [""]
    ranks = dict.fromkeys(LogComponent, _rank_of_name(default))
    for exception in exceptions:
        component, _, level = exception.partition("=")
        if component not in LogComponent.__members__:
            raise ValueError(f"{component[:40]} is no component: {', '.join(LogComponent)}")
        ranks[LogComponent(component)] = _rank_of_name(level)
    return ranks


def _rank_of_name(name: str) -> int:
    if name not in LEVEL_NAMES:
        raise ValueError(
            f"write a level, then exceptions such as API=WARNING; levels: {', '.join(LEVEL_NAMES)}"
        )
    return OFF_RANK if name == OFF else LogLevel(name).rank
