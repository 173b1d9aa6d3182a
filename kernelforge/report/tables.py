"""The report's tables. Page, markdown and CSV all print these cells: the numbers cannot differ."""

from __future__ import annotations

import math

from kernelforge.report.cells import NONE, Column, Table, microseconds, number, percent
from kernelforge.report.comparisons import PeerRow, ProductRow
from kernelforge.report.families import family_tables
from kernelforge.report.fft import FAR
from kernelforge.report.formats import format_table
from kernelforge.report.frame import Frame
from kernelforge.report.kernels import KernelRow
from kernelforge.report.models import ModelRow
from kernelforge.report.operations import operation_table
from kernelforge.report.serving import serving_table

KERNEL_COLUMNS = (
    Column("family", "family", False),
    Column("precision", "type", False),
    Column("problem", "problem", False),
    Column("variant", "variant", False),
    Column("median_us", "median µs"),
    Column("spread_percent", "spread %"),
    Column("samples", "samples"),
    Column("default_us", "default µs"),
    Column("generic_us", "generic µs"),
    Column("speedup", "speedup"),
    Column("gbps", "GB/s"),
    Column("gflops", "GFLOP/s"),
    Column("share_percent", "share %"),
    Column("bound", "bound", False),
    Column("trials", "trials"),
    Column("failed", "failed"),
    Column("good_trial", "95 % at trial"),
    Column("origin", "winner from", False),
)
MODEL_COLUMNS = (
    Column("model", "model", False),
    Column("sizes", "sizes", False),
    Column("weights", "weights", False),
    Column("bundle", "kernels", False),
    Column("test", "test", False),
    Column("tok_per_s", "tok/s"),
    Column("spread_percent", "spread %"),
    Column("repetitions", "reps"),
    Column("ratio_to_generic", "× generic"),
    Column("ratio_interval", "95 % interval", False),
    Column("host_us_per_token", "host µs/token"),
    Column("touched_mb_per_token", "weights MB/token"),
    Column("gbps", "GB/s"),
    Column("read_share_percent", "of read bandwidth %"),
    Column("weights_mb", "all weights MB"),
    Column("state_kb", "state kB"),
    Column("dispatches_per_token", "dispatches"),
)
CEILING_COLUMNS = (
    Column("ceiling", "ceiling", False),
    Column("value", "measured"),
    Column("unit", "unit", False),
)
PEER_COLUMNS = (
    Column("model", "model", False),
    Column("weights", "weights", False),
    Column("test", "test", False),
    Column("tok_per_s", "tok/s"),
    Column("peer", "other engine", False),
    Column("peer_model", "its model", False),
    Column("peer_weights", "its weights", False),
    Column("peer_tok_per_s", "its tok/s"),
    Column("ratio", "ratio"),
    Column("ratio_interval", "95 % interval", False),
)
LEFT_OUT_COLUMNS = (
    Column("peer", "other engine", False),
    Column("reason", "reason", False),
)
PRODUCT_COLUMNS = (
    Column("family", "family", False),
    Column("precision", "type", False),
    Column("size", "M = N = K"),
    Column("default_gflops", "default GFLOP/s"),
    Column("tuned_gflops", "tuned GFLOP/s"),
    Column("ratio", "tuned / default"),
    Column("torch_f32_gflops", "torch f32 GFLOP/s"),
    Column("share_percent", "share %"),
)
FFT_COLUMNS = (
    Column("what", "what", False),
    Column("tokens", "tokens or length"),
    Column("form", "form", False),
    Column("value", "measured"),
    Column("unit", "unit", False),
    Column("remark", "error or flag", False),
)
HISTORY_COLUMNS = (
    Column("family", "family", False),
    Column("precision", "type", False),
    Column("problem", "problem", False),
    Column("trial", "trial"),
    Column("us", "µs"),
    Column("best_us", "best µs"),
)


TABLES = (
    "kernels", "models", "peers", "products", "ceilings", "history", "families", "importance",
    "heat", "operations", "formats", "fft",
    "serving", "left_out",
)  # fmt: skip
"""Names of all tables that a report can have."""


def tables(frame: Frame) -> list[Table]:
    """Every table with rows."""
    makers = (kernel_table, model_table, peer_table, product_table, ceiling_table, history_table)
    found = [make(frame) for make in makers]
    found += family_tables(frame.families)
    found += [operation_table(frame.tokens), serving_table(frame.serving)]
    found += [format_table(frame.formats), fft_table(frame), left_out_table(frame)]
    return [table for table in found if table.rows]


def kernel_table(frame: Frame) -> Table:
    """A row per tuned problem."""
    return Table(
        "kernels",
        "Kernels",
        KERNEL_COLUMNS,
        tuple(_kernel(row) for row in frame.kernels),
        "Times are medians per dispatch; the spread is the median absolute deviation. "
        "Share is of the lower of the two measured ceilings, memory or compute: above 100 where "
        "data stays in a cache. Default is the family's default variant, timed in turns with the "
        "winner; generic is the kernel that ships for every device.",
    )


def model_table(frame: Frame) -> Table:
    """A row per model bench."""
    return Table(
        "models",
        "Models",
        MODEL_COLUMNS,
        tuple(_model(row) for row in frame.models),
        "pp is prefill of a prompt of so many tokens, tg is decoding of so many, one by one; "
        "tok/s is the median, by the wall clock. Host time is what Python adds to each token.",
    )


def peer_table(frame: Frame) -> Table:
    """A row per test that another engine took turns in."""
    return Table(
        "peers",
        "Beside other engines",
        PEER_COLUMNS,
        tuple(_peer(row) for row in frame.peers),
        "Both on this machine, A B A B; the ratio is the median of the pairs, above 1 where ours "
        "is faster. An engine that does not know the version runs another model of the same sizes.",
    )


def left_out_table(frame: Frame) -> Table:
    """A row per engine that could not be run."""
    return Table(
        "left_out",
        "Other engines that were left out",
        LEFT_OUT_COLUMNS,
        frame.left_out,
        "What the last run beside other engines said of those that it could not use.",
    )


def product_table(frame: Frame) -> Table:
    """A row per square product."""
    label = f" It is {frame.matmul.label}." if frame.matmul else ""
    return Table(
        "products",
        "Square matrix products",
        PRODUCT_COLUMNS,
        tuple(_product(row) for row in frame.products),
        "Multiply and add count as two. The share is of torch's float32 product of that size."
        + label,
    )


def ceiling_table(frame: Frame) -> Table:
    """What the device can do at best."""
    c = frame.ceilings
    rows = () if c is None else (
        ("memory read", number(c.read_gbps), "GB/s"),
        ("memory copy, read plus written", number(c.copy_gbps), "GB/s"),
        ("float32 multiply-add", number(c.fma_gflops), "GFLOP/s"),
        ("one more dispatch in a plan", number(c.dispatch_us), "µs"),
        ("submit and wait", number(c.submit_us), "µs"),
    )  # fmt: skip
    note = "Each is the best of a few variants of a kernel that does one thing only."
    return Table("ceilings", "Measured ceilings", CEILING_COLUMNS, rows, note)


def fft_table(frame: Frame) -> Table:
    """VkFFT's bandwidth by length, and what the forms of a recurrence take."""
    fft = frame.fft
    rows: list[tuple[str, ...]] = []
    if fft is not None:
        rows += [
            ("bandwidth", str(length), "VkFFT", number(gbps), "GB/s", NONE)
            for length, gbps in fft.gbps.items()
        ]
        rows.append(("bandwidth", NONE, "our copy", number(fft.copy_gbps), "GB/s", NONE))
        far = number(100 * fft.difference)
        flag = f"over {100 * FAR:.0f} %" if fft.flagged else NONE
        rows.append(("bandwidth", NONE, "VkFFT beyond our copy", far, "%", flag))
        rows += [(*row[:3], row[3], "ms", row[4]) for row in fft.rows()]
    said = " ".join(f"{line}." for line in (fft.sentence(), *fft.crossovers())) if fft else ""
    return Table(
        "fft",
        "Beside VkFFT",
        FFT_COLUMNS,
        tuple(rows),
        "Bytes are those read and written. Forms of the recurrences whose decays do not depend on "
        f"the data{f', {fft.sizes}' if fft else ''}; of the transforms only they and their product "
        f"are timed, in float32, and the error is from an oracle in float64. {said}",
    )


def history_table(frame: Frame) -> Table:
    """A row per trial."""
    rows = []
    for kernel in frame.kernels:
        best = math.inf
        for i, ns in enumerate(kernel.history, 1):
            best = min(best, ns) if math.isfinite(ns) else best
            place = kernel.family, kernel.precision, kernel.problem
            rows.append((*place, str(i), microseconds(ns), microseconds(best)))
    return Table("history", "Tuning history", HISTORY_COLUMNS, tuple(rows))


def _kernel(row: KernelRow) -> tuple[str, ...]:
    return (
        row.family,
        row.precision,
        row.problem,
        row.variant,
        microseconds(row.median_ns),
        percent(row.spread_ns / row.median_ns),
        str(row.samples) if row.samples else NONE,
        microseconds(row.default_ns),
        microseconds(row.generic_ns),
        number(row.speedup),
        number(row.rate.gbps),
        number(row.rate.gflops),
        percent(row.rate.share),
        row.rate.bound or NONE,
        str(row.trials),
        str(row.failed),
        str(row.good_trial) if row.good_trial else NONE,
        row.origin or NONE,
    )


def _peer(row: PeerRow) -> tuple[str, ...]:
    several = len(row.ours.tok_per_s) > 1
    return (
        row.ours.model,
        row.ours.weights,
        row.ours.test,
        number(row.ours.median),
        row.theirs.bundle,
        row.theirs.model,
        row.theirs.weights,
        number(row.theirs.median),
        number(row.ratio),
        f"{number(row.low)} to {number(row.high)}" if several else NONE,
    )


def _product(row: ProductRow) -> tuple[str, ...]:
    return (
        row.row.family,
        row.row.precision,
        str(row.size),
        number(row.default),
        number(row.tuned),
        number(row.tuned / row.default),
        number(row.limit),
        percent(row.tuned / row.limit),
    )


def _model(row: ModelRow) -> tuple[str, ...]:
    record = row.record
    interval = f"{number(row.low)} to {number(row.high)}" if row.in_turns else NONE
    decodes = record.decodes and record.dispatches > 0
    return (
        record.model,
        record.sizes,
        record.weights,
        record.bundle,
        record.test,
        number(record.median),
        percent(record.spread / record.median),
        str(len(record.tok_per_s)),
        number(row.ratio),
        interval,
        number(record.host_us, 1) if decodes else NONE,
        number(record.touched_bytes / 1e6) if decodes else NONE,
        number(record.gbps) if decodes else NONE,
        percent(record.read_share) if decodes else NONE,
        number(record.weight_bytes / 1e6) if record.weight_bytes else NONE,
        number(record.state_bytes / 1e3, 1),
        str(record.dispatches) if decodes else NONE,
    )
