"""Probes of services in the background, while somebody asks for their states.

A state that is shown is at most STATE_LIFETIME old: a probe ends after `timeout`, with the answer
of the service or as FAILED, and the next one begins after `pause`. States of ACME directories are
older.
"""

import asyncio
import time
from weakref import WeakKeyDictionary

from models.runtime.components import Component, ComponentKind, ComponentRegistry, ComponentState
from models.runtime.environment import Environment
from resolvers.health.dependencies import (
    DEPENDENCIES,
    PROBE_PAUSE,
    PROBE_TIMEOUT,
    DependencyDefinition,
    ProbedElsewhere,
    failure_text,
)

STATE_LIFETIME = PROBE_TIMEOUT + PROBE_PAUSE  # seconds
FOLLOW_SECONDS = 3.0  # for which probes are repeated after a request
# A process must answer within one second. It may take half of it until it sees the request.
WAIT_TIMEOUT = 0.25  # seconds
MAX_VERSION_LENGTH = 80  # characters


async def probe_dependencies_and_update_states(environment: Environment) -> None:
    """Bring the states of all services in `environment.components` up to date.

    Waits at most WAIT_TIMEOUT for services that nobody has asked for in the last seconds. The state
    of a slower one is STARTING until its probe ends: its former state is too old to be shown.
    """
    probers = _PROBERS.get(environment.components)
    if probers is None:
        probers = [_DependencyProber(environment, definition) for definition in DEPENDENCIES]
        _PROBERS[environment.components] = probers
    for prober in probers:
        prober.start_or_extend_probing()
    if late_probers := [prober for prober in probers if not prober.has_new_state.is_set()]:
        waits = [asyncio.create_task(prober.has_new_state.wait()) for prober in late_probers]
        _, pending_waits = await asyncio.wait(waits, timeout=WAIT_TIMEOUT)
        for wait in pending_waits:
            wait.cancel()
        for prober in late_probers:
            prober.set_state_if_no_answer()


async def stop_probing(environment: Environment) -> None:
    """Cancel the probes of this process, and wait for their end."""
    for prober in _PROBERS.pop(environment.components, ()):
        await prober.stop()


class _DependencyProber:
    """Probes one service, and stores the results in its component."""

    def __init__(self, environment: Environment, definition: DependencyDefinition) -> None:
        self.has_new_state = asyncio.Event()  # of a probe that ended within the lifetime
        self._environment = environment
        self._definition = definition
        self._task: asyncio.Task[None] | None = None
        self._followed_until = 0.0  # this and the others: seconds of the monotonic clock
        self._began_at = 0.0
        self._ended_at = 0.0

    def start_or_extend_probing(self) -> None:
        """Repeat the probe for FOLLOW_SECONDS. The former state counts as old after its lifetime.

        A probe that has begun is not repeated before its end and the pause.
        """
        now, definition = time.monotonic(), self._definition
        self._followed_until = now + FOLLOW_SECONDS
        if now - self._ended_at > definition.timeout + definition.pause:
            self.has_new_state.clear()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._probe_while_followed())

    def set_state_if_no_answer(self) -> None:
        """Show that the service has not answered since its probe began, unless it has."""
        if not self.has_new_state.is_set():
            seconds = time.monotonic() - self._began_at
            is_late = seconds > self._definition.timeout
            state = ComponentState.FAILED if is_late else ComponentState.STARTING
            self._component.set_state(state, f"No answer for {seconds:.1f} s.")

    async def stop(self) -> None:
        """Cancel the probe, and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _probe_while_followed(self) -> None:
        while time.monotonic() < self._followed_until:
            self._began_at = time.monotonic()
            await self._probe_and_set_state()
            self._ended_at = time.monotonic()
            self.has_new_state.set()
            await asyncio.sleep(self._definition.pause)

    @property
    def _component(self) -> Component:
        """The component of the service, which is created at the first probe."""
        registry = self._environment.components
        component = registry.find(self._definition.name)
        if component is None:
            component = Component(
                self._definition.name,
                ComponentKind.DEPENDENCY,
                self._environment.now,
                can_be_held=False,
            )
            component.set_state(ComponentState.STARTING, "The first probe has not ended.")
            registry.add(component)
        return component

    async def _probe_and_set_state(self) -> None:
        component, definition = self._component, self._definition
        address = definition.address(self._environment)
        if not address:
            component.address = component.version = component.latency_seconds = None
            component.probed_at = None
            component.set_state(ComponentState.DISABLED, "Not configured.")
            return
        component.address = address
        began_at = time.perf_counter()
        try:
            async with asyncio.timeout(definition.timeout):
                version = await definition.probe(self._environment)
        except ProbedElsewhere:
            component.set_state(ComponentState.DISABLED, "Another process probes it.")
        except Exception as problem:  # noqa: BLE001 - any error means that the service has failed
            component.latency_seconds = None
            component.set_state(ComponentState.FAILED, failure_text(problem, definition.timeout))
        else:
            component.latency_seconds = time.perf_counter() - began_at
            component.version = version and version[:MAX_VERSION_LENGTH]
            component.set_state(ComponentState.RUNNING)
        component.probed_at = self._environment.now()


_PROBERS: WeakKeyDictionary[ComponentRegistry, list[_DependencyProber]] = WeakKeyDictionary()
