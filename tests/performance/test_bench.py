"""The benchmark harness: its statistics, its rendering, its cleaning up; and that the kernel's floor runs here."""

import dataclasses
import http.server
import json
import math
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import footprint, groups, leaks, plots, render, results, rounds, series, server, spawn, startup
from bench.contenders import command, contract, docker, floor, glovebox, oci

MACHINE = {
    "cpu": "Some CPU",
    "cpus": 2,
    "memory_bytes": 4 << 30,
    "kernel": "6.1.0",
    "os": "Debian",
    "virtualized": True,
    "cgroups": "v1",
    "harness_python": "3.11.7",
    "load_1min_at_start": 0.1,
}


def entry(key: str, name: str, missing: str | None = None) -> results.Entry:
    return results.Entry(key, name, "how it is done", "1.0", missing)


@pytest.fixture
def data() -> results.Results:
    """Made-up numbers, for the rendering alone."""
    fast, slow = [1_000_000 + i * 10_000 for i in range(200)], [200_000_000 + i for i in range(199)]
    return results.Results(
        date="2026-01-02T03:04:05+00:00",
        commit="abc",
        machine=MACHINE,
        settings={"runs": 200, "warmup": 3, "settle_ms": 20, "sandboxes": 100},
        contenders=[
            entry("floor", "kernel floor (C)"),
            entry(glovebox.HTTP_KEY, "Glovebox (HTTP)"),
            entry(glovebox.SDK_KEY, "Glovebox (E2B Python SDK)"),
            entry("docker", "Docker"),
            entry("bubblewrap", "bubblewrap", "not installed: apt-get install bubblewrap"),
            entry("runc", "runc"),
        ],
        measured=[
            series.Series("floor", contract.READY, fast),
            series.Series(glovebox.HTTP_KEY, contract.READY, [2 * ns for ns in fast]),
            series.Series(glovebox.SDK_KEY, contract.FIRST_RESULT, [4 * ns for ns in fast]),
            series.Series("docker", contract.READY, slow, ["it | broke\nbadly"]),
            series.Series("runc", contract.READY, [], ["no such thing"]),
        ],
        memory=footprint.Footprint(100, 200, 5 << 20, 8 << 20, 6 << 20, 1, 60 << 20, 90 << 20),
        server_startup={"count": 200.0, "p50": 0.002},
    )


# ---- statistics ----


def test_quantiles_are_measured_values_by_rank() -> None:
    values = list(range(1, 201))
    assert [series.quantile(values, q) for q in (0.5, 0.9, 0.99, 1.0)] == [100, 180, 198, 200]
    assert series.quantile([7], 0.01) == 7


@given(st.lists(st.integers(1, 10**12), min_size=1), st.floats(0.001, 1.0))
def test_a_quantile_has_its_share_of_values_below_it(values: list[int], q: float) -> None:
    found = series.quantile(values, q)
    assert found in values
    assert sum(value <= found for value in values) >= q * len(values)
    assert sum(value < found for value in values) < q * len(values)


def test_a_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        series.quantile([], 0.5)
    with pytest.raises(ValueError, match="lies in"):
        series.quantile([1], 0)


@given(st.lists(st.integers(1, 1000), min_size=1), st.integers(0, 9))
def test_a_distribution_rises_to_the_share_that_worked(values: list[int], failed: int) -> None:
    points = series.ecdf(values, len(values) + failed)
    assert [value for value, _ in points] == sorted(values)
    assert points[-1][1] == len(values) / (len(values) + failed)


def test_failures_are_runs_that_are_not_timed() -> None:
    found = series.Series("x", contract.READY, [3, 1, 2], ["broke"]).summary()
    assert found is not None
    assert (found.p50_ns, found.runs, found.failures) == (2, 4, 1)
    assert series.Series("x", contract.READY, [], ["broke"]).summary() is None


def test_histogram_quantiles_are_linear_in_their_bucket() -> None:
    buckets = [(0.001, 0.0), (0.002, 50.0), (0.004, 100.0), (math.inf, 101.0)]
    assert series.histogram_quantile(buckets, 0.25) == pytest.approx(0.001505)
    assert series.histogram_quantile(buckets, 1.0) is None
    assert series.histogram_quantile([], 0.5) is None


def test_the_servers_histogram_is_read_over_the_time_of_the_run() -> None:
    page = "# TYPE x_sandbox_startup_time_seconds histogram\n"
    page += (
        'x_sandbox_startup_time_seconds_bucket{le="0.002"} %d\nx_sandbox_startup_time_seconds_bucket{le="+Inf"} %d\n'
    )
    before, after = startup.parse(page % (1, 5)), startup.parse(page % (11, 15))
    found = startup.between(before, after)
    assert found == pytest.approx({"count": 10, "p50": 0.001, "p90": 0.0018, "p99": 0.00198})
    assert startup.between(after, after) is None
    assert startup.parse("") == {}


# ---- rounds ----


class Scripted(contract.Contender):
    key, name, how = "scripted", "scripted", "counts"

    def __init__(self, fails: range) -> None:
        self.calls = 0
        self.fails = fails

    def missing(self) -> str | None:
        return None

    def measure(self, metric: str) -> int:
        self.calls += 1
        if self.calls in self.fails:
            raise contract.MeasureError("asked to")
        return self.calls


def test_rounds_leave_the_warm_up_out_and_count_failures() -> None:
    subject = Scripted(range(5, 7))
    ready, first = rounds.run([subject], 10, 1, 0, lambda number, current: None)
    assert subject.calls == 22
    assert (ready.runs, first.runs) == (10, 10)
    assert len(ready.failures) + len(first.failures) == 2
    assert not {1, 2} & {*ready.samples_ns, *first.samples_ns}


def test_rounds_give_up_on_what_never_works() -> None:
    subject = Scripted(range(10**6))
    for found in rounds.run([subject], 100, 0, 0, lambda number, current: None):
        assert (len(found.samples_ns), len(found.failures)) == (0, 10)


# ---- results and rendering ----


def test_results_come_back_from_json_as_they_were(data: results.Results, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "latest.json"
    data.save(path)
    assert results.load(path) == data
    path.write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="schema 99"):
        results.load(path)


def test_the_table_holds_what_was_measured(data: results.Results) -> None:
    lines = render.table(data, contract.READY).splitlines()
    assert lines[2] == "| kernel floor (C) | 1.99 | 2.79 | 2.97 | 200 | 0 | 0.50 x | 1.00 x |"
    assert lines[3] == "| **Glovebox (HTTP)** | 3.98 | 5.58 | 5.94 | 200 | 0 | 1.00 x | 2.00 x |"
    assert lines[4] == "| Docker | 200 | 200 | 200 | 200 | 1 | 50 x | 101 x |"
    assert {len(line.split(" | ")) for line in lines[2:]} == {8}
    assert "not installed: apt-get install bubblewrap" in lines[5] + lines[6]
    assert "runc: no such thing" in lines[5] + lines[6]


def test_an_error_text_stays_in_its_cell(data: results.Results) -> None:
    broken = dataclasses.replace(data, measured=[series.Series("docker", contract.READY, [], ["it | broke\nbadly"])])
    assert "| Docker: it / broke badly |" in render.table(broken, contract.READY)


def test_the_section_and_the_snippet_name_everything(data: results.Results) -> None:
    section, snippet = render.section(data), render.snippet(data)
    for text in ("commit `abc`", "| **each, idle: PSS** | 5.00 |", "p50 2.00 ms", "performance/bars.svg"):
        assert text in section
    for contender in data.contenders:
        assert contender.name in section
        assert contender.name in snippet


def test_only_what_is_between_the_markers_changes(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n")
    assert render.update(page, "new")
    assert page.read_text() == f"before\n{render.BEGIN}\nnew\n{render.END}\nafter\n"
    page.write_text("no markers")
    assert not render.update(page, "new")
    assert page.read_text() == "no markers"


def test_the_figures_are_the_same_for_the_same_results(data: results.Results, tmp_path: pathlib.Path) -> None:
    first, second = plots.write(data, tmp_path / "a"), plots.write(data, tmp_path / "b")
    assert [path.name for path in first] == ["bars.svg", "ecdf.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.read_text().rstrip().endswith("</svg>")


# ---- contenders ----


def test_a_command_is_timed_and_what_it_prints_is_checked() -> None:
    assert spawn.time_to_output(["/bin/sh", "-c", "echo ready"], b"ready") > 0
    with pytest.raises(contract.MeasureError, match="no wonder"):
        spawn.time_to_output(["/bin/sh", "-c", "echo no wonder >&2; exit 3"], b"ready")
    with pytest.raises(contract.MeasureError, match="in time"):
        spawn.time_to_output(["/bin/sh", "-c", "exec sleep 60"], b"ready", timeout_s=0.05)


def test_a_missing_program_says_how_to_get_it() -> None:
    assert contract.not_installed(sh="dash", no_such_program="some-package") == (
        "not installed: apt-get install some-package"
    )
    assert contract.not_installed(sh="dash") is None


def test_a_bundle_is_what_runc_wrote_with_our_program() -> None:
    written = {"process": {"args": ["sh"], "terminal": True}, "mounts": [], "linux": {"namespaces": [{"type": "pid"}]}}
    made = oci.adapt(written, ("/bin/true",))
    assert made["process"]["args"] == ["/bin/true"]
    assert made["process"]["terminal"] is False
    assert {"type": "pid"} in made["linux"]["namespaces"]
    assert made["mounts"][0]["options"] == ["rbind", "ro"]


def test_a_plain_process_is_measured_for_both_metrics() -> None:
    subject = command.Process()
    if missing := subject.missing():
        pytest.skip(missing)
    assert all(subject.measure(metric) > 0 for metric in contract.METRICS)


def test_the_image_holds_the_loader_of_its_programs() -> None:
    names = [path.name for path in docker.libraries(pathlib.Path("/bin/sh").resolve())]
    assert any(name.startswith("ld-") for name in names)
    assert any(name.startswith("libc.") for name in names)


@pytest.mark.skipif(os.geteuid() != 0, reason="id maps of 65536 ids need root")
def test_the_floor_runs_and_leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    subject = floor.Floor()
    if missing := subject.missing():
        pytest.skip(missing)
    # Not tmp_path: pytest keeps it to its owner, and root inside the user namespace is someone else.
    work = pathlib.Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        subject.prepare(work)
        pid = subject._process.pid if subject._process else 0
        times = [subject.measure(contract.READY) for _ in range(3)]
        assert all(0 < ns < 5_000_000_000 for ns in times)
    finally:
        subject.close()
        subprocess.run(["rm", "-r", str(work)], check=True)
    assert not pathlib.Path(f"/proc/{pid}").exists()
    assert not groups.find_groups([f"glovebox-floor-{pid}"])


# ---- the server's side, with a server that only pretends ----


class Pretender(http.server.BaseHTTPRequestHandler):
    """The few answers of the E2B API that the harness asks for. It runs nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    alive: set[str] = set()
    result = "2"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/execute":
            assert self.headers["E2b-Sandbox-Id"] in self.alive
            lines = [{"type": "result", "text": self.result, "is_main_result": True}, {"type": "end_of_execution"}]
            self.answer(200, "\n".join(json.dumps(line) for line in lines))
            return
        name = f"i{len(self.alive)}x"
        self.alive.add(name)
        about = {"sandboxID": name, "templateID": "t", "clientID": "c", "envdVersion": "9.9.9", "envdAccessToken": "s"}
        self.answer(201, json.dumps(about))

    def do_DELETE(self) -> None:
        self.alive.discard(self.path.rpartition("/")[2])
        self.answer(204, "")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        """Silent."""


@pytest.fixture
def pretended() -> Iterator[server.Server]:
    Pretender.alive, Pretender.result = set(), "2"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pretender) as listener:
        listener.daemon_threads = True
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        subject = server.Server()
        subject.url, subject.key = f"http://127.0.0.1:{listener.server_address[1]}", "key"
        yield subject
        listener.shutdown()
        thread.join()


def http_contender(subject: server.Server) -> glovebox.Http:
    contender = glovebox.Http(subject)
    contender._client = server.Client(subject)
    return contender


def test_sandboxes_are_measured_over_http_and_then_killed(pretended: server.Server) -> None:
    contender = http_contender(pretended)
    ready, first = (contender.measure(metric) for metric in contract.METRICS)
    contender.close()
    assert ready > 0
    assert first > 0
    assert Pretender.alive == set()
    assert len(pretended.created) == 2


def test_sandboxes_are_measured_with_the_sdk_and_then_killed(pretended: server.Server) -> None:
    contender = glovebox.Sdk(pretended)
    assert contender.measure(contract.READY) > 0
    assert contender.measure(contract.FIRST_RESULT) > 0
    assert Pretender.alive == set()


def test_a_wrong_result_is_a_failure_and_the_sandbox_goes(pretended: server.Server) -> None:
    Pretender.result = "3"
    contender = http_contender(pretended)
    with pytest.raises(contract.MeasureError, match="no result"):
        contender.measure(contract.FIRST_RESULT)
    contender.close()
    assert Pretender.alive == set()


# ---- memory and leaks ----


def test_memory_is_summed_over_the_processes_of_the_groups(tmp_path: pathlib.Path) -> None:
    for hierarchy in ("memory", "pids"):
        inner = tmp_path / hierarchy / "glovebox-x" / "isandbox" / "inner"
        inner.mkdir(parents=True)
        (inner.parent / "cgroup.procs").write_text(f"{os.getpid()}\n")
        (inner / "cgroup.procs").write_text("1\n")
    found = groups.find_groups(["isandbox"], tmp_path)
    assert len(found) == 2
    assert groups.members(found) == {os.getpid(), 1}
    assert footprint.pss({os.getpid()}) > 1 << 20


_LEAKER = """
import pathlib, subprocess, sys
from bench import leaks, server
leaks.adopt_orphans()
subprocess.run(["/bin/sh", "-c", "sleep 600 & exit 0"])
for line in leaks.sweep(pathlib.Path(sys.argv[1]), server.Server()): print(line)
"""


def test_a_process_that_is_left_behind_is_found_and_ended(tmp_path: pathlib.Path) -> None:
    argv = [sys.executable, "-c", _LEAKER, str(tmp_path)]
    root = pathlib.Path(leaks.__file__).parent.parent
    said = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    assert said[0] == "process"
    assert said[2] in ("(sleep)", "(sh)")  # the fork may be met before its exec
    assert not pathlib.Path(f"/proc/{said[1]}").exists()
