"""The components of this process: listeners, workers, and services that it depends on.

An operator or the state of the node can hold a component. A held component finishes its current
work, releases its leases and is stopped until no reason holds it any more.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum

log = logging.getLogger(__name__)


class ComponentKind(StrEnum):
    """The kind of a component."""

    DEPENDENCY = "DEPENDENCY"
    LISTENER = "LISTENER"
    WORKER = "WORKER"


class ComponentState(StrEnum):
    """The state of a component."""

    DISABLED = "DISABLED"
    FAILED = "FAILED"
    RUNNING = "RUNNING"
    STARTING = "STARTING"
    STOPPED = "STOPPED"
    STOPPING = "STOPPING"


class HoldReason(StrEnum):
    """The reason why a component is held."""

    COMPONENT_STOP = "COMPONENT_STOP"
    NODE_STATE = "NODE_STATE"


HTTP = "http"
LISTENER_NAMES = (HTTP, "lmtp", "smtp", "submission", "submissionTls", "acmeHttp")
WORKER_NAMES = (  # those that can be held
    "acme", "connectors", "dkimRotation", "housekeeping", "listHosts", "push", "queue",
    "searchIndex", "snooze", "spamTraining", "tasks", "webhooks",
)  # fmt: skip
HOLDABLE_NAMES = frozenset({*LISTENER_NAMES, *WORKER_NAMES} - {HTTP})
HoldRule = Callable[["Component"], bool]


class Component:
    """A component that runs, and can be held, in this process.

    Subclasses start and stop its work. Changes of its state run one after another in the
    background, so a hold survives the cancellation of its caller.
    """

    def __init__(
        self,
        name: str,
        kind: ComponentKind,
        now: Callable[[], datetime],
        *,
        address: str | None = None,
        can_be_held: bool = True,
    ) -> None:
        self.name = name
        self.kind = kind
        self.address = address
        self.can_be_held = can_be_held
        self.state = ComponentState.STOPPED
        self.state_changed_at = now()
        self.detail: str | None = None  # why it has this state
        self.version: str | None = None  # of the service, if it is a dependency
        self.latency_seconds: float | None = None  # of the last probe of a dependency
        self.probed_at: datetime | None = None  # end of the last probe of a dependency
        self.hold_reasons: set[HoldReason] = set()
        self._now = now
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def start_work(self) -> None:
        """Start the work of the component. Raises the error that prevents it."""
        raise NotImplementedError

    async def finish_work(self) -> None:
        """Finish the current work, accept no other, and release all leases."""
        raise NotImplementedError

    async def refuse_work(self) -> None:
        """Refuse work, since the component is held before its first start."""

    def set_state(self, state: ComponentState, detail: str | None = None) -> None:
        """Change the state. If it differs, its time is now."""
        if state is not self.state:
            self.state_changed_at = self._now()
        self.state, self.detail = state, detail

    async def start(self) -> None:
        """Start the component for the first time. A component that is held refuses work instead.

        Its state is then RUNNING, or STOPPED if it is held. Raises the error that prevents the
        start; the state is then still STARTING.
        """
        async with self._lock:
            if self.hold_reasons:
                await self.refuse_work()
                self.set_state(ComponentState.STOPPED, self._hold_detail())
                return
            self.set_state(ComponentState.STARTING)
            await self.start_work()
            self.set_state(ComponentState.RUNNING)

    async def hold(self, reason: HoldReason) -> None:
        """Hold the component, and wait until its work is finished and it is stopped.

        Raises ValueError if the component can't be held.
        """
        await asyncio.shield(self.begin_hold(reason))

    async def release(self, reason: HoldReason) -> None:
        """End a reason to hold the component. If it was the last one, wait until it has started."""
        await asyncio.shield(self.begin_release(reason))

    def begin_hold(self, reason: HoldReason) -> asyncio.Task[None]:
        """Hold the component, and return the task that ends when it is stopped.

        Raises ValueError if the component can't be held.
        """
        if not self.can_be_held:
            raise ValueError(f"The component {self.name} can't be held.")
        self.hold_reasons.add(reason)
        return self._begin_change()

    def begin_release(self, reason: HoldReason) -> asyncio.Task[None]:
        """End a reason to hold the component, and return the task that ends after its start."""
        self.hold_reasons.discard(reason)
        return self._begin_change()

    def ignore_holds(self) -> None:
        """Ignore later holds and releases, since the process ends."""
        self._is_closed = True

    def _begin_change(self) -> asyncio.Task[None]:
        if self.hold_reasons and self.state is ComponentState.RUNNING:
            self.set_state(ComponentState.STOPPING, self._hold_detail())
        task = asyncio.create_task(self._start_or_stop_as_held())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start_or_stop_as_held(self) -> None:
        """Start or stop the work, as the reasons require. An error is the FAILED state."""
        async with self._lock:
            if self._is_closed or self.state in (ComponentState.STARTING, ComponentState.DISABLED):
                return
            is_stopped = self.state in (ComponentState.STOPPED, ComponentState.FAILED)
            try:
                if not self.hold_reasons and is_stopped:
                    self.set_state(ComponentState.STARTING)
                    await self.start_work()
                    is_stopped = False
                elif self.hold_reasons and not is_stopped:
                    self.set_state(ComponentState.STOPPING, self._hold_detail())
                    await self.finish_work()
                    is_stopped = True
            except Exception as problem:
                log.exception("Component failed", extra={"component": self.name})
                self.set_state(ComponentState.FAILED, str(problem) or type(problem).__name__)
                return
            if (
                is_stopped
            ):  # the reasons may have changed meanwhile: the task of that change follows
                self.set_state(ComponentState.STOPPED, self._hold_detail() or None)
            else:
                self.set_state(ComponentState.RUNNING)

    def _hold_detail(self) -> str:
        texts = {
            HoldReason.COMPONENT_STOP: "Stopped by componentStop.",
            HoldReason.NODE_STATE: "Stopped because of the state of the node.",
        }
        return " ".join(texts[reason] for reason in sorted(self.hold_reasons))


class ComponentRegistry:
    """The components of this process by name, and the rules that hold them.

    A rule also applies to components that are added later.
    """

    def __init__(self) -> None:
        self._components: dict[str, Component] = {}
        self._rules: dict[HoldReason, HoldRule] = {}
        # by componentStop, also of other processes
        self.stopped_names: frozenset[str] = frozenset()
        self.rule_lock = asyncio.Lock()  # of those who read a rule and then set it
        self._created_at = time.monotonic()

    def __iter__(self) -> Iterator[Component]:
        return iter(list(self._components.values()))

    @property
    def age_seconds(self) -> float:
        """Seconds since the process created this registry, at its start."""
        return time.monotonic() - self._created_at

    def find(self, name: str) -> Component | None:
        """Return the component with this name; None without one."""
        return self._components.get(name)

    def add(self, component: Component) -> None:
        """Add a component before its first start. Rules can hold it."""
        self._components[component.name] = component
        for reason, is_held in self._rules.items():
            if component.can_be_held and is_held(component):
                component.hold_reasons.add(reason)

    def remove(self, component: Component) -> None:
        """Remove a component."""
        self._components.pop(component.name, None)

    def set_hold_rule_and_begin_changes(
        self, reason: HoldReason, is_held: HoldRule
    ) -> list[asyncio.Task[None]]:
        """Hold the components for which `is_held` is true for this reason, and release others.

        Returns the tasks of the components that change; each ends when its component has stopped
        or started.
        """
        self._rules[reason] = is_held
        tasks: list[asyncio.Task[None]] = []
        for component in self:
            is_to_be_held = component.can_be_held and is_held(component)
            if is_to_be_held and reason not in component.hold_reasons:
                tasks.append(component.begin_hold(reason))
            elif not is_to_be_held and reason in component.hold_reasons:
                tasks.append(component.begin_release(reason))
        return tasks
