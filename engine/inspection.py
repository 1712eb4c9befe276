"""`saccade inspect`: what a bundle is, in words."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from saccade.bundle import Bundle, GraphSpec, manifest_as_json


def describe(bundle: Bundle, *, as_json: bool = False) -> str:
    """A page for people, or the manifest as JSON, of an opened bundle."""
    if as_json:
        return json.dumps(manifest_as_json(bundle.manifest), ensure_ascii=False, indent=2)
    console = Console(width=110, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(_summary(bundle))
        for name, graph in bundle.manifest.graphs.items():
            console.print(_tensors(f"{name} ({graph.file}, opset {bundle.manifest.opset})", graph))
        console.print(_figures("largest difference from eager PyTorch at export", bundle.manifest.errors, "{:.1e}"))
        if bundle.manifest.scores:
            console.print(_figures("scores measured by training", bundle.manifest.scores, "{:.4f}"))
    return capture.get().rstrip()


def _summary(bundle: Bundle) -> Table:
    manifest, sizes, spec = bundle.manifest, bundle.manifest.dimensions, bundle.manifest.preprocessing
    table = Table(show_header=False, box=None, title=str(bundle.path), title_justify="left")
    table.add_column(style="bold")
    cells = f" of {sizes.source_cells} cells" if sizes.source_cells else ""
    rows = {
        "model": f"{manifest.encoder} encoder, {manifest.attention} attention ({manifest.decode_mode} context)",
        "annotations": f"{sizes.rows} x {sizes.columns} places{cells}, {sizes.annotation_width} wide",
        "widths": f"attention {sizes.attention_width}, hidden {sizes.hidden_width}",
        "vocabulary": f"{sizes.words} words; captions of up to {manifest.max_length} words",
        "images": f"{spec.size} x {spec.size}, {spec.geometry}, "
        + ("turned upright by EXIF" if spec.exif_transpose else "EXIF orientation ignored"),
        "files": ", ".join(f"{name} ({entry.bytes / 1e6:.2f} MB)" for name, entry in manifest.files.items()),
        "fingerprint": bundle.fingerprint,
        "checks": "version, sizes and SHA-256 of every file, vocabulary: all right",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _tensors(title: str, graph: GraphSpec) -> Table:
    table = Table("", "tensor", "type", "shape", title=title, title_justify="left")
    for kind, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        for tensor in tensors:
            table.add_row(kind, tensor.name, tensor.dtype, " x ".join(map(str, tensor.shape)))
    return table


def _figures(title: str, figures: dict[str, float], form: str) -> Table:
    table = Table(show_header=False, title=title, title_justify="left")
    for name, value in figures.items():
        table.add_row(name, form.format(value))
    return table
