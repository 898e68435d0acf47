import io
import json

import pytest
import structlog

from glovebox_server import telemetry
from glovebox_server.model import resources


def test_labels_are_bounded():
    metrics = telemetry.Telemetry()
    for number in range(1000):
        metrics.escape_attempt(f"kind {number}")
        metrics.request(f"M{number}", f"/route/{number}", 200, 0.01)
    text = metrics.render().decode()
    assert 'sandbox_escape_attempts_total{kind="other"} 1000.0' in text
    assert text.count("http_request_duration_seconds_count{") <= 201
    assert 'method="other"' in text
    assert "M7" not in text


def test_cpu_counts_what_was_spent_since():
    metrics = telemetry.Telemetry()
    first, second = (resources.Usage(seconds, 0, 0, 0, 0) for seconds in (1.0, 3.5))
    metrics.used(first, None)
    metrics.used(second, first)
    metrics.used(first, second)  # a counter never goes back
    assert "sandbox_cpu_usage_seconds_total 3.5" in metrics.render().decode()


def test_two_servers_have_their_own_numbers():
    first, second = telemetry.Telemetry(), telemetry.Telemetry()
    first.escape_attempt("syscall")
    assert 'kind="syscall"' not in second.render().decode()


@pytest.fixture
def restored():
    old = structlog.get_config()
    yield
    structlog.configure(**old)


def test_logs_are_json_where_nobody_looks(restored):
    stream = io.StringIO()
    telemetry.configure_logging("info", stream)
    log = structlog.get_logger("x")
    log.debug("hidden")
    log.info("sandbox started", sandbox_id="i1", guest="\x1b[2J\n")
    [line] = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["event"], fields["level"], fields["guest"]) == ("sandbox started", "info", "\x1b[2J\n")
    assert "\x1b" not in line
