"""Results as tables that fit 100 columns. They are rich renderables: the caller's console draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text

from slimgpu.report.drawing import new_table, safe_text
from slimgpu.slim.result import rule_totals
from slimgpu.units import format_size, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from slimgpu.analysis.analysis import Analysis, Finding
    from slimgpu.analysis.gpu_code import GpuCodeSummary
    from slimgpu.slim.plan import Held, Plan
    from slimgpu.slim.result import BuildResult, RuleTotal, WeightsResult

_SHORT: Final = 12
_SHORTER: Final = 7
_EFFECTS: Final = {
    "drop": "drops",
    "link": "links",
    "keep": "keeps",
    "edit": "edits",
    "shrink": "shrinks",
    "add": "adds",
}


def analysis_tables(analysis: Analysis, *, show_all: bool) -> Iterator[RenderableType]:
    """An analysis on one screen, or all of it."""
    limit = None if show_all else _SHORT
    yield Text.assemble(
        (printable(analysis.image), "bold"),
        f"  {printable(analysis.platform)}\n"
        f"{format_size(analysis.stored)} to pull, {format_size(analysis.unpacked)} unpacked in {analysis.files} files, "
        f"{format_size(analysis.hidden)} pulled and never seen",
    )
    yield _layers(analysis, limit)
    yield _groups(analysis, limit)
    if show_all:
        yield _owners(analysis)
    if analysis.gpu_code.bytes:
        yield from _gpu_code(analysis.gpu_code, None if show_all else _SHORTER)
    yield _findings(analysis.findings, limit)
    if not show_all and _hides_something(analysis):
        yield Text("--all shows every layer, package and finding; --json has the evidence.", style="dim")


def _hides_something(analysis: Analysis) -> bool:
    return max(len(analysis.layers), len(analysis.findings), len(analysis.owners)) > _SHORT


def _layers(analysis: Analysis, limit: int | None) -> Table:
    table = new_table(
        "Layers",
        "#>",
        "to pull>",
        "unpacked>",
        "hidden later>",
        "made by",
    )
    largest = sorted(analysis.layers, key=lambda layer: -layer.stored)[:limit]
    for layer in sorted(largest, key=lambda layer: layer.number):
        table.add_row(
            str(layer.number),
            format_size(layer.stored),
            format_size(layer.unpacked),
            format_size(layer.hidden) if layer.hidden else "",
            safe_text(_one_line(layer.step)),
        )
    return table


def _one_line(step: str) -> str:
    text = " ".join(step.split())
    for prefix in ("/bin/sh -c #(nop) ", "/bin/sh -c "):
        text = text.removeprefix(prefix)
    return text


def _groups(analysis: Analysis, limit: int | None) -> Table:
    table = new_table("What the bytes are", "bytes>", "share>", "files>", "group")
    for group in analysis.groups[:limit]:
        share = 100 * group.bytes / analysis.unpacked if analysis.unpacked else 0
        table.add_row(format_size(group.bytes), f"{share:.1f} %", str(group.files), group.name)
    return table


def _owners(analysis: Analysis) -> Table:
    table = new_table("Packages", "bytes>", "files>", "from", "package")
    for owner in analysis.owners:
        table.add_row(
            format_size(owner.bytes), str(owner.files), owner.kind, safe_text(f"{owner.name} {owner.version}")
        )
    return table


def _gpu_code(code: GpuCodeSummary, limit: int | None) -> Iterator[RenderableType]:
    """Bytes by architecture and, when GPUs are named, by library."""
    stays = f"stays for {', '.join(code.targets)}>" if code.targets else ""
    table = new_table("GPU code", "bytes>", *([stays] if stays else []), "for")
    for row in code.architectures[:limit]:
        table.add_row(format_size(row.bytes), *([format_size(row.kept)] if stays else []), safe_text(row.name))
    yield table
    if stays:
        table = new_table("Libraries with GPU code", "bytes>", "stays>", "how", "file")
        for library in code.libraries[:limit]:
            how = library.method or ("left alone" if library.untouched or library.scattered else "nothing to drop")
            name = library.path.rpartition("site-packages/")[2]
            what = f"{name}: {library.untouched}" if library.untouched else name
            table.add_row(format_size(library.bytes), format_size(library.kept), how, safe_text(what))
        yield table
        missing = sum(len(library.missing) for library in code.libraries)
        if missing:
            yield Text(
                f"{missing} kernels have nothing but PTX for these GPUs: a build with --gpu-native refuses that."
            )


def _findings(findings: Sequence[Finding], limit: int | None) -> Table:
    table = new_table("Findings", "bytes>", "files>", "rule", "build", "what")
    for finding in findings[:limit]:
        what = f"{finding.title}: {finding.held_by[0]}" if finding.held_by else finding.title
        effect = _EFFECTS[finding.effect]
        table.add_row(format_size(finding.bytes), str(finding.files), finding.rule, effect, safe_text(what))
    return table


def plan_tables(plan: Plan) -> Iterator[RenderableType]:
    """A plan in short."""
    saved = sum(action.bytes for action in plan.actions)
    yield safe_text(f"{plan.image}: {len(plan.actions)} actions save {format_size(saved)} unpacked")
    yield Text()
    yield _rules(list(rule_totals(plan)))
    if plan.held:
        yield _held(plan.held)


def _rules(totals: Sequence[RuleTotal]) -> Table:
    table = new_table("Actions", "bytes>", "files>", "build", "rule")
    for total in totals:
        table.add_row(format_size(total.bytes), str(total.files), _EFFECTS[total.do], safe_text(total.rule))
    return table


def _held(held: Sequence[Held]) -> Table:
    table = new_table("Kept all the same", "bytes>", "files>", "rule", "because")
    for item in held[:_SHORT]:
        table.add_row(format_size(item.bytes), str(item.files), safe_text(item.rule), safe_text(item.reason))
    return table


def result_tables(result: BuildResult) -> Iterator[RenderableType]:
    """A build's before and after."""
    table = new_table("Before and after", "", "before>", "after>", "saved")
    rows = (
        ("to pull", result.before.stored, result.after.stored),
        ("unpacked", result.before.unpacked, result.after.unpacked),
    )
    for name, before, after in rows:
        saved = f"{100 * (before - after) / before:.1f} %" if before else ""
        table.add_row(name, format_size(before), format_size(after), saved)
    table.add_row("files", str(result.before.files), str(result.after.files), "")
    table.add_row("layers", str(result.before.layers), str(result.after.layers), "")
    yield _rules(result.rules)
    if result.held:
        yield _held(result.held)
    yield table
    if result.weights is not None:
        yield Text()
        yield _weights(result.weights)


def _weights(weights: WeightsResult) -> Text:
    """What left as weights, and where it is."""
    files = "1 file" if weights.files == 1 else f"{weights.files} files"
    left = f"{files} of weights, {format_size(weights.bytes)}, left the image"
    if not weights.ref:
        return safe_text(left)
    return safe_text(f"{left} for {weights.ref} ({format_size(weights.stored)} to fetch): {weights.digest}")
