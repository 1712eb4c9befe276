"""A model on a split of a data set: captions by beam search, and what they score."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.comparison_scores import changes
from benchmarks.scoring import metric_scores, tokenised
from engine.backends.base import open_backend
from engine.captioner import Captioner, CaptionOptions
from saccade.bundle import MANIFEST, Bundle, Precision
from saccade.errors import ConfigError
from saccade.files import differences
from saccade.hypotheses import Hypothesis
from saccade.preprocessing import PreprocessSpec
from saccade.search import SearchOptions
from saccade.structure import unstructure
from saccade.vocabulary import Vocabulary
from training.checkpoint import Checkpoint, load_checkpoint, resolve_checkpoint
from training.data import Progress, Split
from training.decoding import TorchDecoder
from training.ensemble import Ensemble
from training.java_metrics import Metric
from training.scene_scores import Described, scene_scores

BATCH_IMAGES = 50

SplitName = Literal["validation", "test"]


class Search(Protocol):
    """What finds captions; `TorchDecoder.search` is one."""

    def __call__(
        self, pixels: NDArray[np.uint8], /, options: SearchOptions, *, with_alphas: bool
    ) -> list[list[Hypothesis]]:
        """Hypotheses of each image of pixels uint8 (B, S, S, 3), best first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A captioner ready to search, wherever it comes from.

    name : the bundle or checkpoint that was truly taken, or all of an ensemble
    runs_on : runtime, version, device, precision
    search_options : the model's own; callers replace the beam
    grid : rows and columns of the annotations
    provenance : of each checkpoint, how its weights came about
    """

    name: str
    runs_on: str
    search: Search
    vocabulary: Vocabulary
    preprocessing: PreprocessSpec
    search_options: SearchOptions
    grid: tuple[int, int]
    provenance: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """What a search found: the best hypothesis of each image, its text, and the seconds it all took."""

    hypotheses: Sequence[Hypothesis]
    captions: Sequence[str]
    seconds: float


@contextmanager
def open_model(*paths: Path, backend: str = "auto", precision: Precision | None = None) -> Iterator[Model]:
    """A bundle on a backend, or in eager PyTorch checkpoints or runs of training.

    Several of those are an ensemble: each word is chosen by the mean of their probabilities.
    backend, precision : of a bundle, as in `engine.backends.base.open_backend`
    Raises BundleError, BackendError, CheckpointError; ConfigError where models do not make an ensemble.
    """
    bundles = [path for path in paths if (path / MANIFEST).is_file()]
    if len(paths) > 1 and bundles:
        raise ConfigError(f"{bundles[0]} is a bundle; an ensemble takes the checkpoints or runs of its models")
    if bundles:
        with _open_bundle(bundles[0], backend, precision) as model:
            yield model
    elif backend != "auto" or precision:
        raise ConfigError(f"{paths[0]} is no bundle: it runs in eager PyTorch, without --backend and --precision")
    else:
        yield _load_checkpoints(paths)


def caption_split(model: Model, split: Split, beam: int, *, progress: Progress = lambda _: None) -> Captioned:
    """Caption every image by beam search, with the model's own options but for the beam."""
    options = replace(model.search_options, beam=beam)
    began = time.perf_counter()
    hypotheses: list[Hypothesis] = []
    for start in range(0, len(split), BATCH_IMAGES):
        pixels = split.images[start : start + BATCH_IMAGES]
        hypotheses += [best[0] for best in model.search(pixels, options, with_alphas=bool(split.objects))]
        progress(len(hypotheses))
    return Captioned(
        hypotheses=hypotheses,
        captions=[model.vocabulary.sentence(hypothesis.tokens) for hypothesis in hypotheses],
        seconds=time.perf_counter() - began,
    )


def split_scores(model: Model, split: Split, found: Captioned, metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Metric name to value; for generated scenes also what `training.scene_scores` tells.

    Captions are tokenised from their text, as `saccade score` does, so it finds the same scores in what was written.
    """
    scores = metric_scores(tokenised(found.captions), split.captions, metrics)
    scores["truncated"] = sum(hypothesis.truncated for hypothesis in found.hypotheses) / len(found.hypotheses)
    if split.objects:
        scores |= scene_scores(
            Described(model.vocabulary.decode(best.tokens), objects, best.alphas, model.grid)
            for objects, best in zip(split.objects, found.hypotheses, strict=True)
        )
    return scores


def compared(found: Captioned, earlier: Mapping[str | int, str], split: Split) -> dict[str, float]:
    """The share of captions that are those of before, and how CIDEr-D changed, with its 95 % interval.

    earlier : captions by id of their image
    """
    before = [earlier[image] for image in split.ids]
    change = changes(before, found.captions, split.captions)["CIDEr-D"]
    same = sum(one == other for one, other in zip(before, found.captions, strict=True)) / len(split)
    return {
        "same_captions": same,
        "CIDEr-D_change": change.change,
        "CIDEr-D_change_low": change.low,
        "CIDEr-D_change_high": change.high,
    }


def coco_results(ids: Sequence[int | str], captions: Sequence[str]) -> list[dict[str, int | str]]:
    """The JSON values of a COCO results file."""
    return [{"image_id": image, "caption": caption} for image, caption in zip(ids, captions, strict=True)]


@contextmanager
def _open_bundle(path: Path, name: str, precision: Precision | None) -> Iterator[Model]:
    bundle = Bundle.open(path)
    with open_backend(name, bundle, precision=precision) as backend:

        def find(pixels: NDArray[np.uint8], options: SearchOptions, *, with_alphas: bool) -> list[list[Hypothesis]]:
            chosen = CaptionOptions(search=options, attention=with_alphas)
            return Captioner(bundle, backend, chosen).caption_pixels(pixels)

        yield Model(
            name=str(path),
            runs_on=backend.description,
            search=find,
            vocabulary=bundle.vocabulary,
            preprocessing=bundle.manifest.preprocessing,
            search_options=Captioner(bundle, backend, CaptionOptions()).search_options,
            grid=(bundle.manifest.dimensions.rows, bundle.manifest.dimensions.columns),
            provenance=[bundle.manifest.provenance],
        )


def _load_checkpoints(paths: Sequence[Path]) -> Model:
    checkpoints = [load_checkpoint(path) for path in paths]
    for path, other in zip(paths[1:], checkpoints[1:], strict=True):
        _check_together(paths[0], checkpoints[0], path, other)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The reference is float32: convolutions would run in TF32 on a GPU otherwise.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    captioners = [checkpoint.captioner.to(device) for checkpoint in checkpoints]
    vocabulary, spec = checkpoints[0].vocabulary, checkpoints[0].description.preprocessing
    alone = TorchDecoder(captioners[0], vocabulary)
    return Model(
        name=" + ".join(str(resolve_checkpoint(path)) for path in paths),
        runs_on=f"PyTorch {torch.__version__}, {device.type.upper()}, float32, eager",
        search=alone.search if len(captioners) == 1 else Ensemble(captioners, vocabulary).search,
        vocabulary=vocabulary,
        preprocessing=spec,
        search_options=SearchOptions(max_length=max(one.description.max_length for one in checkpoints)),
        grid=captioners[0].encoder.grid(spec.size),
        provenance=[checkpoint.description.provenance for checkpoint in checkpoints],
    )


def _check_together(path: Path, first: Checkpoint, other_path: Path, other: Checkpoint) -> None:
    """Raise ConfigError where two checkpoints cannot write one caption of the same pixels."""
    spec = first.description.preprocessing
    seen = replace(other.description.preprocessing, mean=spec.mean, std=spec.std)  # those a captioner brings with it
    problems = differences(first.vocabulary.as_json(), other.vocabulary.as_json(), "vocabulary")
    problems += differences(unstructure(spec), unstructure(seen), "preprocessing")
    if problems:
        raise ConfigError(
            f"{path} and {other_path} are no ensemble, for they have not the same words or pixels "
            f"({', '.join(problems)}): evaluate them one by one"
        )
