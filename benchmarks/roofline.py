"""Where the time of both graphs goes in OpenVINO, and how far that is from what the machine could do.

    python -m benchmarks.roofline

Measured: milliseconds of every operator of the encoder and of the step graph, by OpenVINO's own counters, while the
engine captions pictures in batches; they are added up to the parts of a graph (`benchmarks.graph_parts`). Beside them
stands the bound of each part (its roofline): the time for its multiply-adds at the rate of one large matrix product, or
for its bytes at the rate of a copy between two large arrays, whichever is longer. Both rates are measured in the same
run, by the same runtime, arithmetic and number of threads. A part near its bound can only become faster by doing less.
Milliseconds are means over eight batches, of which the first is a cold one. All of this, rates too, is done three times
over for each precision and beam, and the quickest counts: other work on the machine can only slow it down.

The model is the one of `benchmarks.imported`, or a bundle of one's own.

Left out: the search between the steps and the way to the pictures, which `saccade benchmark` tells; operators that only
prepare weights, once. Arithmetic other than multiply-adds has no bound here, so that parts made of it, such as tanh and
the choice of words, are many times theirs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset11 as ops

from benchmarks.graph_parts import PARTS, Work, parts_of, work_of
from benchmarks.imported import ModelSizes, import_and_export, random_model, random_pixels
from benchmarks.machine import this_machine
from benchmarks.throughput import export_options, write_photographs
from engine.backends.base import BACKENDS
from engine.captioner import Captioner, CaptionOptions
from saccade.bundle import Bundle, Precision
from saccade.errors import BackendError, BundleError
from saccade.search import SearchOptions

if TYPE_CHECKING:
    from engine.backends.buffers import BufferedBackend
    from engine.backends.ovino import Graph

_SIDE = 2048
_COPIED = 1 << 28
_SHOWN = 0.01
_CALIBRATION = 48
_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the machine does at best: multiply-adds per second in an arithmetic, and bytes read or written a second."""

    multiply_adds_per_s: float
    bytes_per_s: float

    def bound_ms(self, work: Work) -> float:
        """The least that the work can take."""
        return 1000 * max(work.multiply_adds / self.multiply_adds_per_s, work.bytes / self.bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Of one run of a graph; its bound is that of its multiply-adds and bytes.

    kinds : milliseconds by kind of operator and what it computes in, the longest first
    """

    name: str
    ms: float
    multiply_adds: int
    bytes: int
    kinds: Mapping[str, float]

    def bound_ms(self, best: Ceilings) -> float:
        """The least that it can take."""
        return best.bound_ms(Work(self.multiply_adds, self.bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Of one graph on one set of shapes, a run.

    arithmetic : of its multiply-adds, "fp32", "bf16" or "int8"
    """

    graph: str
    precision: Precision
    arithmetic: str
    batch: int
    beam: int
    parts: Sequence[Part]

    @property
    def ms(self) -> float:
        """By the counters."""
        return sum(part.ms for part in self.parts)


def quickest(
    bundle: Bundle,
    precision: Precision,
    pixels: NDArray[np.uint8],
    ceilings: MeasuredCeilings,
    *,
    beam: int,
    threads: int,
) -> list[Profile]:
    """Of each graph, the quickest of several profiles; see `profile`. After each, the ceilings are measured again."""
    runs = []
    for _ in range(_RUNS):
        runs.append(profile(bundle, precision, pixels, beam=beam, threads=threads))
        for arithmetic in {one.arithmetic for one in runs[-1]}:
            ceilings.measure(arithmetic)
    return [min(alike, key=lambda one: one.ms) for alike in zip(*runs, strict=True)]


def profile(
    bundle: Bundle,
    precision: Precision,
    pixels: NDArray[np.uint8],
    *,
    beam: int,
    threads: int,
) -> list[Profile]:
    """Caption the pixels uint8 (B, S, S, 3) as one batch, some times over, and read the counters of both graphs.

    Raises BackendError where OpenVINO has no such arithmetic here.
    """
    entry = replace(BACKENDS["openvino"], arguments={"counters": True})
    backend = cast("BufferedBackend", entry.open(bundle, threads=threads, precision=precision))
    with Captioner(bundle, backend, CaptionOptions(search=SearchOptions(beam=beam), batch=len(pixels))) as captioner:
        for _ in range(8):
            captioner.caption_pixels(pixels)
        return [
            Profile(
                graph=name,
                precision=precision,
                arithmetic=_arithmetic(name, graph, precision),
                batch=len(pixels),
                beam=beam,
                parts=_parts(name, graph),
            )
            for name, graph in cast("Mapping[str, Graph]", backend.executors).items()
        ]


def _arithmetic(name: str, graph: Graph, precision: Precision) -> str:
    if (name, precision) == ("encoder", "int8"):  # a step has no 8-bit integers
        return "int8"
    return "bf16" if graph.is_bfloat16 else "fp32"


def _parts(name: str, graph: Graph) -> list[Part]:
    ((shapes, compiled),) = graph.compiled.items()
    model = graph.model(dict(zip((tensor.name for tensor in graph.spec.inputs), shapes, strict=True)))
    parts = parts_of(model, name)
    work = work_of(model, parts, float_bytes=2 if graph.is_bfloat16 else 4)
    kinds: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for part, kind, ms in _counted(compiled.get_runtime_model(), parts):
        kinds[part][kind] += ms
    return [
        Part(
            name=part,
            ms=sum(kinds[part].values()),
            kinds=dict(sorted(kinds[part].items(), key=lambda item: -item[1])),
            **work[part]._asdict(),
        )
        for part in PARTS[name]
        if part in work
    ]


def _counted(runtime: openvino.Model, parts: Mapping[str, str]) -> Iterator[tuple[str, str, float]]:
    """Part, kind and milliseconds of each operator that ran.

    An operator that OpenVINO put together counts for the first part it has something of. One that it added, to change
    an order or a type, counts for the part of whatever reads it.
    """
    ordered = runtime.get_ordered_ops()
    readers: dict[str, str] = {}
    for node in reversed(ordered):
        name = node.get_friendly_name()
        known = (parts[one] for one in _told(node, "originalLayersNames").split(",") if one in parts)
        part = next(known, readers.get(name, ""))
        for value in node.input_values():
            readers.setdefault(value.get_node().get_friendly_name(), part)
        readers[name] = part
    fixed = _fixed(ordered)
    for node in ordered:
        name, taken = node.get_friendly_name(), _told(node, "execTimeMcs")
        if taken.isdigit() and name not in fixed and readers[name]:
            yield readers[name], f"{_told(node, 'layerType')}, {_told(node, 'runtimePrecision')}", int(taken) / 1000


def _fixed(ordered: Sequence[openvino.Node]) -> set[str]:
    """What depends on no input: weights, and what was made of them before the first run."""
    found = set[str]()
    for node in ordered:
        makers = [value.get_node().get_friendly_name() for value in node.input_values()]
        if _told(node, "layerType") == "Const" or (makers and found.issuperset(makers)):
            found.add(node.get_friendly_name())
    return found


def _told(node: openvino.Node, about: str) -> str:
    """What OpenVINO tells of an operator that it runs."""
    return str(node.get_rt_info()[about].astype(str))


class MeasuredCeilings(dict[str, Ceilings]):
    """By arithmetic, the best that was measured so far."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads

    def measure(self, arithmetic: str) -> None:
        """Measure once more."""
        found = measure_ceilings(arithmetic, threads=self._threads)
        best = self.get(arithmetic, found)
        self[arithmetic] = Ceilings(
            multiply_adds_per_s=max(best.multiply_adds_per_s, found.multiply_adds_per_s),
            bytes_per_s=max(best.bytes_per_s, found.bytes_per_s),
        )


def measure_ceilings(precision: str, *, threads: int) -> Ceilings:
    """Of this machine, now."""
    return Ceilings(multiply_adds_per_s=_product_rate(precision, threads), bytes_per_s=_copy_rate(threads))


def _product_rate(precision: str, threads: int) -> float:
    given = ops.parameter((_SIDE, _SIDE), np.float32)
    weight = ops.constant(np.random.default_rng(0).uniform(-1, 1, (_SIDE, _SIDE)).astype(np.float32))
    sides = [_in_8_bits(one) if precision == "int8" else one for one in (given, weight)]
    model = openvino.Model([ops.matmul(*sides, False, False)], [given])
    settings = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    values = np.random.default_rng(1).uniform(-1, 1, (_SIDE, _SIDE)).astype(np.float32)
    request.set_input_tensor(openvino.Tensor(values, shared_memory=True))
    return _SIDE**3 / _best_seconds(request.infer)


def _in_8_bits(node: openvino.Node) -> openvino.Node:
    low, high = (ops.constant(np.float32(value)) for value in (-1, 127 / 128))
    return ops.fake_quantize(node, low, high, low, high, 256)


def _copy_rate(threads: int) -> float:
    here, there = (np.ones(_COPIED, np.uint8) for _ in range(2))
    with ThreadPoolExecutor(threads) as pool:
        slices = [slice(place * _COPIED // threads, (place + 1) * _COPIED // threads) for place in range(threads)]
        return 2 * _COPIED / _best_seconds(lambda: list(pool.map(lambda one: np.copyto(there[one], here[one]), slices)))


def _best_seconds(run: Callable[[], object], *, runs: int = 8) -> float:
    found = []
    for _ in range(1 + runs):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def table(profiles: Sequence[Profile], ceilings: Mapping[str, Ceilings]) -> str:
    """A line for each part, and below it what kinds of operators it is made of."""
    lines = [f"{'':<44}{'ms':>9}{'share':>8}{'bound ms':>10}{'times it':>10}{'Mmadd':>9}{'MB':>8}"]
    for one in profiles:
        lines.append(f"{one.graph}, {one.precision}, {one.batch} images, beam {one.beam}: {one.ms:.2f} ms")
        for part in one.parts:
            bound = part.bound_ms(ceilings[one.arithmetic])
            figures = f"{part.ms:>9.3f}{part.ms / one.ms:>8.0%}{bound:>10.3f}{part.ms / bound:>10.1f}"
            size = f"{part.multiply_adds / 1e6:>9.0f}{part.bytes / 1e6:>8.1f}"
            lines.append(f"  {part.name:<42}{figures}{size}")
            kinds = ((kind, ms) for kind, ms in part.kinds.items() if ms > _SHOWN * one.ms)
            lines.extend(f"    {kind:<40}{ms:>9.3f}{ms / one.ms:>8.0%}" for kind, ms in kinds)
    return "\n".join(lines)


@click.command()
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="Of one's own.  [default: ResNet-101]")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "bf16", "int8"]),
    default=("fp32", "bf16", "int8"),
    show_default=True,
    help="May be repeated.",
)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images a run.")
@click.option("--beam", "beams", multiple=True, type=int, default=(1, 3, 5), show_default=True, help="May be repeated.")
@click.option("--threads", type=click.IntRange(min=1), help="Of OpenVINO.  [default: one for each core]")
def main(
    bundle: Path | None, precisions: tuple[Precision, ...], batch: int, beams: tuple[int, ...], threads: int | None
) -> None:
    """Where the time of both graphs goes in OpenVINO. The last line is JSON."""
    machine = this_machine()
    threads = threads or machine.cores
    found: list[Profile] = []
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        opened = Bundle.open(bundle) if bundle else _imported(Path(folder), precisions)
        pixels = random_pixels(batch, opened.manifest.preprocessing.size)
        ceilings = MeasuredCeilings(threads)
        for precision in precisions:
            try:
                for beam in beams:
                    now = quickest(opened, precision, pixels, ceilings, beam=beam, threads=threads)
                    found += now if beam == beams[0] else now[1:]  # the encoder is the same at every beam
            except (BackendError, BundleError) as error:
                click.echo(f"{precision}: not available here: {error}", err=True)
                absent[precision] = str(error)
    click.echo(table(found, ceilings))
    about = {"ceilings": {name: asdict(one) for name, one in ceilings.items()}, "unavailable": absent}
    options = {"batch": batch, "beam": list(beams), "threads": threads}
    model = {"encoder": opened.manifest.encoder} | asdict(opened.manifest.dimensions)
    record = {"benchmark": "roofline", "model": model, "profiles": _as_json(found, ceilings), "options": options}
    click.echo(json.dumps(record | about | {"machine": asdict(machine)}))


def _as_json(profiles: Sequence[Profile], ceilings: Mapping[str, Ceilings]) -> list[dict[str, object]]:
    return [
        asdict(one)
        | {"parts": [asdict(part) | {"bound_ms": part.bound_ms(ceilings[one.arithmetic])} for part in one.parts]}
        for one in profiles
    ]


def _imported(folder: Path, precisions: Sequence[Precision]) -> Bundle:
    sizes = ModelSizes()
    pixels = random_pixels(8, sizes.image_size)
    photographs = write_photographs(folder / "photographs", _CALIBRATION)
    options = export_options(photographs, int8="int8" in precisions)
    model = random_model(sizes, pixels)
    return Bundle.open(import_and_export(*model, folder, image_size=sizes.image_size, options=options))


if __name__ == "__main__":
    main()
