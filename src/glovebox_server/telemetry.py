"""Metrics for Prometheus, and how the server's log lines look.

Label values are ours and few: states, runtimes, kinds, routes by pattern. Guest text, ids and paths are never labels.
"""

import logging
import sys
from typing import Any, TextIO

import prometheus_client as prometheus
import structlog

from glovebox_server.model import lifecycle, resources

#: What an attempt to get out can be called; anything else counts as "other".
ESCAPE_KINDS = frozenset(("syscall", "protocol", "network", "path", "mount", "device", "privilege"))
_METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"))
_MAX_ROUTES = 200

_STARTUP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_EXECUTION_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 30, 120, 600, 3600)
_REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10)


class Telemetry:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._startup = prometheus.Histogram(
            "sandbox_startup_time_seconds",
            "From the request to a sandbox that is ready",
            ("runtime",),
            buckets=_STARTUP_BUCKETS,
            registry=self.registry,
        )
        self._execution = prometheus.Histogram(
            "sandbox_execution_time_seconds",
            "How long programs and code ran",
            ("kind",),
            buckets=_EXECUTION_BUCKETS,
            registry=self.registry,
        )
        self._memory = prometheus.Gauge(
            "sandbox_memory_usage_bytes",
            "Memory that all sandboxes use together, paused ones too",
            registry=self.registry,
        )
        self._cpu = prometheus.Counter(
            "sandbox_cpu_usage_seconds",
            "CPU time that sandboxes have used, those that ended included",
            registry=self.registry,
        )
        self._escapes = prometheus.Counter(
            "sandbox_escape_attempts", "What was tried to get out", ("kind",), registry=self.registry
        )
        self._refusals = prometheus.Counter(
            "sandbox_refusals", "Requests that guest agents refused", ("code",), registry=self.registry
        )
        self._unauthenticated = prometheus.Counter(
            "authentication_failures",
            "Requests that did not say rightly who they are, by where they went",
            ("plane",),
            registry=self.registry,
        )
        self._ended = prometheus.Counter(
            "sandbox_ended", "Sandboxes that ended, by why", ("reason",), registry=self.registry
        )
        self._paused = prometheus.Counter(
            "sandbox_paused", "Sandboxes that were paused, by why", ("reason",), registry=self.registry
        )
        self._resumed = prometheus.Counter(
            "sandbox_resumed", "Sandboxes that were resumed, by why", ("reason",), registry=self.registry
        )
        self._sandboxes = prometheus.Gauge("sandboxes", "Sandboxes now, by state", ("state",), registry=self.registry)
        self._requests = prometheus.Histogram(
            "http_request_duration_seconds",
            "HTTP requests, until the answer's head was sent",
            ("method", "route", "status"),
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self._routes: set[str] = set()
        for state in lifecycle.State:
            if state is not lifecycle.State.KILLED:
                self._sandboxes.labels(state.value)

    def started(self, runtime: str, seconds: float) -> None:
        """A sandbox became ready."""
        self._startup.labels(runtime).observe(seconds)

    def ended(self, reason: str) -> None:
        """A sandbox ended; `reason` is one of the manager's."""
        self._ended.labels(reason).inc()

    def paused(self, reason: str) -> None:
        """A sandbox was paused; `reason` is one of the manager's."""
        self._paused.labels(reason).inc()

    def resumed(self, reason: str) -> None:
        """A sandbox was resumed; `reason` is one of the manager's."""
        self._resumed.labels(reason).inc()

    def moved(self, before: lifecycle.State | None, after: lifecycle.State) -> None:
        """A sandbox changed its state (None: it is new, or was taken back)."""
        if before is not None:
            self._sandboxes.labels(before.value).dec()
        if after is not lifecycle.State.KILLED:
            self._sandboxes.labels(after.value).inc()

    def executed(self, kind: str, seconds: float) -> None:
        """A program ("process") or code ("code") has ended."""
        self._execution.labels(kind).observe(seconds)

    def refused(self, code: str) -> None:
        """A guest agent refused a request; `code` is one of `wire.ERROR_CODES`."""
        self._refusals.labels(code).inc()

    def unauthenticated(self, plane: str) -> None:
        """A key, a token or a signature was missing or wrong; `plane` is "control" or "sandbox"."""
        self._unauthenticated.labels(plane).inc()

    def escape_attempt(self, kind: str) -> None:
        """Something inside tried what only an attack tries."""
        self._escapes.labels(kind if kind in ESCAPE_KINDS else "other").inc()

    def memory(self, total_bytes: int) -> None:
        """What all sandboxes use now."""
        self._memory.set(total_bytes)

    def used(self, usage: resources.Usage, before: resources.Usage | None) -> None:
        """A sandbox was measured: count the CPU time since the measurement before."""
        spent = usage.cpu_seconds - (before.cpu_seconds if before else 0.0)
        self._cpu.inc(max(0.0, spent))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """An HTTP request was answered. `route` is the pattern that matched, never the path."""
        if route not in self._routes:
            if len(self._routes) >= _MAX_ROUTES:
                route = "other"
            else:
                self._routes.add(route)
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).observe(seconds)

    def render(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return prometheus.generate_latest(self.registry)


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """One line per event: JSON, or for people where they look at it. Called once, by main."""
    stream = stream or sys.stderr
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if stream.isatty():
        last: list[Any] = [structlog.dev.ConsoleRenderer()]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=shared + last,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,  # main configures after modules have made their loggers
    )
