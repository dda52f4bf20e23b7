"""Predictions as a plain table and as Markdown."""

from __future__ import annotations

from prediction.record import SHARES, Record, Row


def plain(record: Record) -> str:
    lines = [
        f"Predicted share of a copy's bandwidth, {record['elements']:,} elements, "
        f"model {record['model']}. Not measured.",
        f"{'chip':8} {'kernel':34} {'latency':>9} {'share':>6} {'loop':>6} {'issue':>6} "
        f"{'KB/SM':>6} {'us':>8}",
    ]
    lines += [
        f"{r['chip']:8} {r['kernel']:34} {r['latency_ns']:6.0f} ns {r['share']:6.3f} "
        f"{r['loop']:6.3f} {r['issue']:6.2f} {r['kb_in_flight']:6.1f} {r['us']:8.2f}"
        for r in record["predictions"]
    ]
    return "\n".join(lines) + "\n"


def markdown(record: Record) -> str:
    """A table for each chip: a row for each kernel, a column for each latency, and the ranges."""
    of = f" of the code at {record['commit']}" if record["commit"] else ""
    parts = [
        f"Predictions{of}, not measurements (issue model {record['model']}, "
        f"{record['elements']:,} elements): the share of a copy's bandwidth that a launch reaches, "
        "by the latency of a load, its range, and that of the hot loop alone, which launches "
        "approach as tensors grow. The clock and the copy's bandwidth are assumptions.\n"
    ]
    for name, chip in record["chips"].items():
        rows = [r for r in record["predictions"] if r["chip"] == name]
        latencies = sorted({r["latency_ns"] for r in rows})
        parts.append(
            f"**{chip['name']}** ({chip['sms']} SMs, {chip['ghz']} GHz, copy {chip['copy_tb_s']} "
            "TB/s)\n"
        )
        parts.append(_table(rows, latencies))
    return "\n".join(parts)


def _table(rows: list[Row], latencies: list[float]) -> str:
    head = ["kernel", *(f"{ns:.0f} ns" for ns in latencies), "range", "loop alone"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for kernel in sorted({r["kernel"] for r in rows}):
        found = {r["latency_ns"]: r for r in rows if r["kernel"] == kernel}
        cells = [f"{found[ns]['share']:.2f}" for ns in latencies]
        ranges = (_range([r[what] for r in found.values()]) for what in SHARES)
        lines.append("| " + " | ".join([f"`{kernel}`", *cells, *ranges]) + " |")
    return "\n".join(lines) + "\n"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"
