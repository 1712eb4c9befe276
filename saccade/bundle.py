"""The bundle: a folder with two ONNX graphs, the vocabulary and a manifest that says exactly what they are.

manifest.json          what this module reads and checks
vocabulary.json        words by id
encoder.onnx           pixels to annotations, keys, hidden, cell
step.onnx              one step of beam search
*.fp16.onnx, ...       the same graphs in other precisions; optional
checkpoint.safetensors the weights once more, for the PyTorch reference; optional
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from saccade.errors import BundleError, SaccadeError
from saccade.files import sha256
from saccade.glimpses import DecodeMode
from saccade.preprocessing import PreprocessSpec
from saccade.structure import structure, unstructure
from saccade.vocabulary import Vocabulary

FORMAT_VERSION = 1
Precision = Literal["fp32", "bf16", "fp16", "int8"]
"""Of the arithmetic; "int8" is 8-bit integers in the encoder, with the step in a float precision."""

MANIFEST, VOCABULARY, ENCODER, STEP = "manifest.json", "vocabulary.json", "encoder.onnx", "step.onnx"
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A graph's input or output; an axis is a number, or a name where it varies."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """A graph file and its tensors, in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """What a file of the bundle must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """Sizes in the letters of the design: rows x columns = L, then D, A, H and V.

    source_cells : C, whose annotations stand for those of the places, which are pooled from them; 0 where there is one
        for each place
    """

    rows: int
    columns: int
    annotation_width: int
    attention_width: int
    hidden_width: int
    words: int
    source_cells: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Graphs in another precision than float32; one that is not among them is used as it is.

    accuracy : what it costs, measured at export against eager PyTorch in float32
    """

    graphs: dict[str, GraphSpec]
    accuracy: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """manifest.json.

    attention : kind of attention; decode_mode : default of the search
    special : ids of pad, start, end and unk, as in the vocabulary
    max_length : default of the search, in steps
    graphs : "encoder" and "step", in float32; variants : other precisions of them
    errors : largest absolute difference of each output from eager PyTorch in float32, measured at export
    model : the options the PyTorch reference is built from
    provenance, scores : where the weights come from, and what training measured
    """

    format_version: int
    encoder: str
    attention: str
    decode_mode: DecodeMode
    dimensions: Dimensions
    preprocessing: PreprocessSpec
    special: dict[str, int]
    max_length: int
    opset: int
    graphs: dict[str, GraphSpec]
    files: dict[str, FileEntry]
    errors: dict[str, float]
    model: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    variants: dict[Precision, Variant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = [f"graph {name!r} is missing" for name in ("encoder", "step") if name not in self.graphs]
        problems += [f"file {name!r} leaves the bundle" for name in self.files if not _is_inside(name)]
        variants = [graph for variant in self.variants.values() for graph in variant.graphs.values()]
        listed = [VOCABULARY, *(graph.file for graph in (*self.graphs.values(), *variants))]
        problems += [f"{name} is not listed under files" for name in listed if name not in self.files]
        if self.max_length < 1:
            problems.append(f"max_length must be at least 1, got {self.max_length}")
        if problems:
            raise BundleError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened, checked bundle."""

    path: Path
    manifest: Manifest
    vocabulary: Vocabulary

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Read and check a bundle: version, every file's size and hash, and that its parts fit together.

        Raises BundleError saying what was found, what was expected and what to do.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        _check_shapes(path, manifest)
        for name, entry in manifest.files.items():
            _check_file(path, name, entry)
        try:
            vocabulary = Vocabulary.load(path / VOCABULARY)
        except SaccadeError as error:
            raise BundleError(str(error)) from error
        _check_vocabulary(path, manifest, vocabulary)
        return cls(path, manifest, vocabulary)

    def graph(self, name: str, precision: Precision = "fp32") -> GraphSpec:
        """Graph "encoder" or "step" in a precision. Raises BundleError if the bundle was exported without it."""
        if precision == "fp32":
            return self.manifest.graphs[name]
        if precision not in self.manifest.variants:
            have = ", ".join(("fp32", *self.manifest.variants))
            raise BundleError(
                f"{self.path} has no {precision} graphs, it has {have}: export it again "
                f'with "--precision {precision}", or choose another --precision'
            )
        return (self.manifest.graphs | self.manifest.variants[precision].graphs)[name]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the contents: equal for equal bundles wherever they lie."""
        files = {name: entry.sha256 for name, entry in self.manifest.files.items()}
        content = {"files": files, "preprocessing": self.manifest.preprocessing.fingerprint()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Sizes and hashes of the files in a bundle that is being written, without the manifest."""
    names = sorted(file.name for file in folder.iterdir() if file.name != MANIFEST)
    return {name: FileEntry(bytes=(folder / name).stat().st_size, sha256=sha256(folder / name)) for name in names}


def manifest_as_json(manifest: Manifest) -> Mapping[str, Any]:
    """Plain values for manifest.json."""
    values: dict[str, Any] = unstructure(manifest)
    return values


def _read_manifest(path: Path) -> Manifest:
    try:
        values = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = "no manifest.json in it" if path.is_dir() else "no such folder"
        raise BundleError(f"{path} is no bundle ({what}): give a folder that `saccade export` wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST} cannot be read as JSON ({error}): export the bundle again") from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: bundle format {version!r}, this version of saccade reads format {FORMAT_VERSION}: "
            "export the checkpoint again, or use the version that wrote the bundle"
        )
    return structure(values, Manifest, source=str(path / MANIFEST), error=BundleError)


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    file = path / name
    if not file.is_file():
        raise BundleError(f"{file} is missing: the bundle is incomplete, copy it again or export it again")
    size = file.stat().st_size
    if size != entry.bytes:
        raise BundleError(f"{file} has {size} bytes, the manifest says {entry.bytes}: copy the bundle again")
    found = sha256(file)
    if found != entry.sha256:
        raise BundleError(
            f"{file} is damaged or was changed: SHA-256 {found[:12]}..., the manifest says {entry.sha256[:12]}...: "
            "copy the bundle again or export it again"
        )


def _check_vocabulary(path: Path, manifest: Manifest, vocabulary: Vocabulary) -> None:
    words = manifest.dimensions.words
    if len(vocabulary) != words:
        raise BundleError(
            f"{path / VOCABULARY} has {len(vocabulary)} words, the graphs were exported for {words}: "
            "it belongs to another model, export the bundle again"
        )
    special = {name: getattr(vocabulary, name) for name in ("pad", "start", "end", "unk")}
    if manifest.special != special:
        raise BundleError(f"{path / VOCABULARY} has special ids {special}, the manifest says {manifest.special}")


def _check_shapes(path: Path, manifest: Manifest) -> None:
    """Compare the tensors of the graphs, but for the axes that vary, with the sizes everything else relies on."""
    sizes, side = manifest.dimensions, manifest.preprocessing.size
    locations = sizes.rows * sizes.columns
    annotations = (sizes.source_cells or locations, sizes.annotation_width)
    keys = (locations, sizes.attention_width)
    expected = {
        ("encoder", "pixels"): (side, side, 3),
        ("encoder", "annotations"): annotations,
        ("encoder", "keys"): keys,
        ("step", "annotations"): annotations,
        ("step", "keys"): keys,
        ("encoder", "hidden"): (sizes.hidden_width,),
        ("step", "word_bias"): (sizes.words,),
    }
    problems = []
    for (graph, name), shape in expected.items():
        tensors = (*manifest.graphs[graph].inputs, *manifest.graphs[graph].outputs)
        found = next((tensor.shape for tensor in tensors if tensor.name == name), ())
        if found[-len(shape) :] != shape:
            problems.append(f"{name} of the {graph} graph is {found}, dimensions and preprocessing say {shape}")
    if problems:
        raise BundleError(f"{path / MANIFEST} contradicts itself: {'; '.join(problems)}: export the bundle again")


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name not in ("", ".")
