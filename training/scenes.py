"""Captioned scenes for demonstrations and tests: a few objects in a place, five sentences, and where each word points.

A scene is a function of its seed alone; only the pixels depend on the size asked for.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.errors import DataError
from saccade.structure import structure
from training.scene_arrangement import arranged_figures, colours_seen_on, described_objects
from training.scene_backgrounds import Background, paint_background, random_background
from training.scene_chance import stream
from training.scene_drawing import Figure, draw_figure
from training.scene_objects import Relation, SceneObject, holds, is_plain, relations_between
from training.scene_sentences import SceneCaption, write_captions

__all__ = [
    "CAPTIONS_PER_SCENE",
    "Relation",
    "Scene",
    "SceneCaption",
    "SceneObject",
    "generate_scene",
    "holds",
    "write_scenes",
]

CAPTIONS_PER_SCENE = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """`pixels` uint8 (S, S, 3); `relations` are all that hold between the objects; five captions."""

    seed: int
    pixels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...]
    captions: tuple[SceneCaption, ...]


def generate_scene(seed: int, *, size: int = 224) -> Scene:
    """Make the scene of a seed, drawn at `size` pixels a side. Raises ValueError for a negative seed.

    Objects and captions are the same at every size; the pixels are the same whenever the size is.
    """
    plan = _planned(seed)
    return Scene(
        seed=seed,
        pixels=_drawn(plan.background, plan.figures, size),
        objects=plan.objects,
        relations=plan.relations,
        captions=plan.captions,
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything about a scene that does not depend on its size in pixels."""

    background: Background
    figures: tuple[Figure, ...]
    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...]
    captions: tuple[SceneCaption, ...]


def _planned(seed: int) -> _Plan:
    """Draw arrangements until one fits into the image and can be described in enough ways."""
    rng = stream(seed)
    background = random_background(rng)
    colours = colours_seen_on(background)
    while True:
        figures = arranged_figures(rng, colours)
        if figures is None:
            continue
        objects = described_objects(figures)
        relations = relations_between(objects)
        plain = [relation for relation in relations if is_plain(relation, objects)]
        captions = write_captions(rng, objects, plain, CAPTIONS_PER_SCENE)
        if captions is not None:
            return _Plan(background, tuple(figures), objects, relations, captions)


def _drawn(background: Background, figures: Sequence[Figure], size: int) -> NDArray[np.uint8]:
    canvas = paint_background(background, size)
    for figure in sorted(figures, key=lambda figure: figure.depth):
        draw_figure(canvas, figure)
    return np.array(canvas)


def write_scenes(
    folder: Path,
    *,
    first_seed: int,
    count: int,
    size: int,
    format: Literal["png", "jpg"] = "jpg",  # noqa: A002
) -> None:
    """Write a new folder: `images/`, `captions.json` in the COCO captions format, and `scenes.json`.

    An image is named by its seed, and its seed is its id. `scenes.json` adds objects, relations, words and mentions.
    The folder appears complete or not at all. Raises DataError if it exists already.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already: scenes are written to a new folder; name another or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        unfinished = Path(temporary) / folder.name
        _write_files(unfinished, range(first_seed, first_seed + count), size, format)
        unfinished.rename(folder)


def read_scenes(path: Path) -> dict[str, tuple[SceneObject, ...]]:
    """Objects by image file name, from the scenes.json that `write_scenes` wrote. Raises DataError."""
    try:
        scenes = json.loads(path.read_text(encoding="utf-8"))["scenes"]
        return {
            scene["file_name"]: structure(
                scene["objects"], tuple[SceneObject, ...], source=f"{path}: {scene['file_name']}", error=DataError
            )
            for scene in scenes
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected the scenes.json that `saccade scenes` writes ({error!r})") from error


def _write_files(folder: Path, seeds: range, size: int, suffix: Literal["png", "jpg"]) -> None:
    (folder / "images").mkdir(parents=True)
    images, annotations, scenes = [], [], []
    for seed in seeds:
        scene = generate_scene(seed, size=size)
        file_name = f"{seed:09d}.{suffix}"
        options: dict[str, Any] = {"quality": 92, "subsampling": 0} if suffix == "jpg" else {}
        Image.fromarray(scene.pixels).save(folder / "images" / file_name, **options)
        images.append({"id": seed, "file_name": file_name, "width": size, "height": size})
        annotations += [
            {"id": seed * CAPTIONS_PER_SCENE + index, "image_id": seed, "caption": caption.text}
            for index, caption in enumerate(scene.captions)
        ]
        scenes.append(
            {
                "id": seed,
                "file_name": file_name,
                "objects": [asdict(thing) for thing in scene.objects],
                "relations": scene.relations,
                "captions": [{"words": caption.words, "mentions": caption.mentions} for caption in scene.captions],
            }
        )
    _write_json(folder / "captions.json", {"images": images, "annotations": annotations})
    _write_json(folder / "scenes.json", {"scenes": scenes})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
