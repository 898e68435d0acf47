"""Results as Markdown: the section of docs/performance.md and the snippet of the README. Pure, but for `update`."""

import pathlib

from bench import results, series
from bench.contenders import contract, glovebox

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
DASH = "\N{EN DASH}"
FLOOR_KEY = "floor"
TITLES = {contract.READY: "Create to ready", contract.FIRST_RESULT: "Create to the first result of `1+1`"}
# What the ratios are taken against: for the first result the SDK, because it is what users have, and the slower way.
BASELINE = {contract.READY: glovebox.HTTP_KEY, contract.FIRST_RESULT: glovebox.SDK_KEY}


def milliseconds(ns: float) -> str:
    """Three digits that mean something."""
    value = ns / 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ratio(value: int, to: int | None) -> str:
    """How many times `to`, or a dash."""
    if not to:
        return DASH
    times = value / to
    return f"{times:.2f} x" if times < 10 else f"{times:.0f} x"


def p50(data: results.Results, key: str, metric: str) -> int | None:
    """The median of one series, if there is one."""
    found = data.of(key, metric)
    summary = found.summary() if found else None
    return summary.p50_ns if summary else None


def ordered(data: results.Results, metric: str) -> list[tuple[results.Entry, series.Series | None]]:
    """The contenders of one metric, fastest first; those without a number last."""
    rows = [(entry, data.of(entry.key, metric)) for entry in data.contenders]
    rows = [(entry, found) for entry, found in rows if found is not None or entry.missing]
    if metric == contract.FIRST_RESULT:
        rows = [(entry, found) for entry, found in rows if entry.key != FLOOR_KEY]
    return sorted(rows, key=lambda row: p50(data, row[0].key, metric) or 1 << 62)


def rows(data: results.Results, metric: str) -> list[list[str]]:
    """The cells of one metric's table; a contender without a number has a row that says why."""
    baseline, floor = p50(data, BASELINE[metric], metric), p50(data, FLOOR_KEY, contract.READY)
    found_rows = []
    for entry, found in ordered(data, metric):
        summary = found.summary() if found else None
        if summary:
            times = [milliseconds(ns) for ns in (summary.p50_ns, summary.p90_ns, summary.p99_ns)]
            ratios = [ratio(summary.p50_ns, baseline), ratio(summary.p50_ns, floor)]
            found_rows.append([entry.name, *times, str(summary.runs), str(summary.failures), *ratios])
        else:
            failures = found.failures if found else []
            why = entry.missing or (failures[-1] if failures else "no runs")
            found_rows.append(
                [f"{entry.name}: {why}", *[DASH] * 3, str(len(failures)), str(len(failures)), *[DASH] * 2]
            )
    return found_rows


def table(data: results.Results, metric: str) -> str:
    """All contenders of one metric."""
    lines = [
        f"| {TITLES[metric]} | p50 ms | p90 ms | p99 ms | runs | failures | p50 to Glovebox | p50 to floor |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    own = {entry.name for entry in data.contenders if entry.key == BASELINE[metric]}
    for name, *cells in rows(data, metric):
        bold = f"**{name}**" if name in own else name
        lines.append(f"| {' | '.join(_cell(cell) for cell in (bold, *cells))} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Error texts too must stay one cell."""
    return text.replace("|", "/").replace("\n", " ")


def setting(data: results.Results) -> str:
    """Where and when, in one sentence."""
    host = data.machine
    kind = "virtual machine" if host["virtualized"] else "machine"
    return (
        f"Measured {data.date[:10]} at commit `{data.commit}` on a {kind} with {host['cpus']} CPUs ({host['cpu']}), "
        f"{host['memory_bytes'] / 2**30:.0f} GiB, {host['os']}, Linux {host['kernel']}, cgroups {host['cgroups']}; "
        f"{data.settings['runs']} interleaved rounds after {data.settings['warmup']} for warm-up, "
        f"load {host['load_1min_at_start']:.1f} at the start."
    )


def memory_text(data: results.Results) -> str:
    """The memory section."""
    found = data.memory
    if found is None:
        return f"Not measured: {data.memory_missing}."
    lines = [
        f"| {found.sandboxes} sandboxes at once | MiB |",
        "|---|---:|",
        f"| **each, idle: PSS** | {_mib(found.pss_bytes)} |",
        f"| each, after `1+1`: PSS | {_mib(found.pss_used_bytes)} |",
    ]
    if found.cgroup_bytes is not None:
        lines.append(
            f"| each, idle: charged to its cgroup (own pages, kernel memory, tmpfs) | {_mib(found.cgroup_bytes)} |"
        )
    lines += [
        f"| zygotes, together ({found.zygotes} processes): PSS | {_mib(found.zygotes_pss_bytes)} |",
        f"| server: PSS | {_mib(found.server_pss_bytes)} |",
    ]
    per = found.processes / found.sandboxes
    return "\n".join(lines) + f"\n\n{found.processes} processes were in the sandboxes' cgroups, {per:.1f} each."


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f}"


def details(data: results.Results) -> str:
    """What each row is, in which version."""
    lines = []
    for entry in data.contenders:
        version = f" ({entry.version})" if entry.version and not entry.missing else ""
        lines.append(f"- **{entry.name}**{version}: {entry.how}.")
    return "\n".join(lines)


def section(data: results.Results) -> str:
    """All that stands between the markers of docs/performance.md."""
    parts = [
        setting(data),
        table(data, contract.READY),
        table(data, contract.FIRST_RESULT),
        "![Medians and 99th percentiles](performance/bars.svg)",
        "![Cumulative distributions](performance/ecdf.svg)",
        "### Memory",
        memory_text(data),
        "### The rows",
        details(data),
    ]
    if startup := data.server_startup:
        quantiles = ", ".join(f"{name} {value * 1000:.2f} ms" for name, value in startup.items() if name != "count")
        parts.insert(
            3,
            f"The server's own histogram `sandbox_startup_time_seconds` over {startup['count']:.0f} creations "
            f"(estimated from its buckets): {quantiles}.",
        )
    if data.leaks:
        parts.append("**Left behind and then removed by the harness:** " + "; ".join(data.leaks) + ".")
    return "\n\n".join(parts)


def snippet(data: results.Results) -> str:
    """The README's short table: medians and 99th percentiles of both metrics."""
    lines = ["| p50 / p99, ms | ready | first result of `1+1` | failures |", "|---|---:|---:|---:|"]
    for entry in data.contenders:
        cells, failures = [], 0
        for metric in contract.METRICS:
            found = data.of(entry.key, metric)
            summary = found.summary() if found else None
            failures += len(found.failures) if found else 0
            pair = f"{milliseconds(summary.p50_ns)} / {milliseconds(summary.p99_ns)}" if summary else DASH
            cells.append(pair)
        name = f"**{entry.name}**" if entry.key in BASELINE.values() else entry.name
        lines.append(f"| {name}{': ' + entry.missing if entry.missing else ''} | {' | '.join(cells)} | {failures} |")
    chart = "![Medians and 99th percentiles](docs/performance/bars.svg)"
    return "\n\n".join(["\n".join(lines), chart, f"{setting(data)} [How it is measured](docs/performance.md)."])


def update(path: pathlib.Path, text: str) -> bool:
    """Put the text between the markers of a file; False, and nothing done, where there are none."""
    if not path.exists():
        return False
    before, found_begin, rest = path.read_text().partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not found_begin or not found_end:
        return False
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return True
