"""A page for each topic of settings."""

import re
from collections.abc import Iterator, Sequence

from merganser.settings.settings_page import SettingDescription, describe_settings_by_topic
from resolvers.admin.setting_definitions import DEFINITIONS

INTRODUCTION = """\
The most important settings come first. [Change settings](../../operating/settings.md) explains how
to set them. [Settings](../../settings.md) lists all settings and explains the units.
"""


def setting_pages() -> dict[str, str]:
    """Return the pages by their path below docs/reference."""
    return {
        page_path(topic): _page(topic, group)
        for topic, group in describe_settings_by_topic().items()
    }


def setting_topics() -> Iterator[tuple[str, str]]:
    """Yield the title and path of each page."""
    return ((topic, page_path(topic)) for topic in describe_settings_by_topic())


def page_path(topic: str) -> str:
    """The path of the page of a topic below docs/reference."""
    return f"settings/{re.sub('[^a-z]+', '-', topic.lower())}.md"


def _page(topic: str, settings: Sequence[SettingDescription]) -> str:
    lines = [f"# {topic}", "", INTRODUCTION]
    for setting in settings:
        lines += [
            f"## `{setting.variable}`",
            "",
            setting.meaning,
            "",
            f"- Value: {setting.values}",
            f"- Default: {setting.default}",
            f"- Change: {_change_text(setting.key)}",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _change_text(key: str | None) -> str:
    if key is None:
        return "restart the server"
    if DEFINITIONS[key].restart_required:
        return f"stored setting `{key}`, or the variable. Both need a restart"
    return f"stored setting `{key}` while the server runs, or the variable with a restart"
