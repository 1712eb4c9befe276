"""Captioned scenes for demonstrations and tests: a few objects in a place, five sentences, and where each word points.

A scene is a function of its seed alone; only the pixels depend on the size asked for.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.errors import DataError
from training.scene_backgrounds import Background, paint_background, random_background
from training.scene_drawing import PAINTS, Figure, draw_figure, hidden_fraction, visible_box
from training.scene_objects import SIZES, TEXTURES, Box, Relation, SceneObject, relations_between
from training.scene_sentences import SceneCaption, write_captions
from training.scene_shapes import OUTLINES, SUPPORTS

CAPTIONS_PER_SCENE = 5

_DOMAIN = 0x5ACCADE
"""Keeps these random streams apart from any other use of the same seeds."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """`pixels` uint8 (S, S, 3); `relations` are all that hold between the objects; five captions."""

    seed: int
    pixels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...]
    captions: tuple[SceneCaption, ...]


def generate_scene(seed: int, *, size: int = 224) -> Scene:
    """The scene of a seed (not negative), drawn at `size` pixels a side.

    Objects and captions are the same at every size; the pixels are the same whenever the size is.
    """
    rng = np.random.default_rng((_DOMAIN, seed))
    background = random_background(rng)
    colours = _colours_seen_on(background)
    while True:
        figures = _arrangement(rng, colours)
        if figures is None:
            continue
        objects = _objects(figures)
        relations = relations_between(objects)
        captions = write_captions(rng, objects, relations, CAPTIONS_PER_SCENE)
        if captions is not None:
            break
    canvas = paint_background(background, size)
    for figure in sorted(figures, key=lambda figure: figure.depth):
        draw_figure(canvas, figure)
    return Scene(seed=seed, pixels=np.array(canvas), objects=objects, relations=relations, captions=captions)


# What stands in the scene.


def _pick(rng: np.random.Generator, items: Sequence[_Item]) -> _Item:
    return items[int(rng.random() * len(items))]


def _colours_seen_on(background: Background) -> list[str]:
    """The colours that stand out from both tones of the background."""
    tones = np.array(background.tones)
    weights = np.array((0.6, 1.0, 0.5))
    bases = {name: np.array(paint.base) for name, paint in PAINTS.items()}
    return [name for name, base in bases.items() if np.sqrt((((tones - base) * weights) ** 2).sum(1)).min() > _CONTRAST]


_CONTRAST = 50.0


def _names(rng: np.random.Generator, colours: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Different pairs of colour and shape; in half of the scenes some share one of the two on purpose."""
    shapes = tuple(OUTLINES)
    if rng.random() < 0.42:
        some_colours = rng.permutation(len(colours))[:count].tolist()
        some_shapes = rng.permutation(len(shapes))[:count].tolist()
        return [(colours[c], shapes[s]) for c, s in zip(some_colours, some_shapes, strict=True)]
    names = [(_pick(rng, colours), _pick(rng, shapes))]
    while len(names) < count:
        colour, shape = _pick(rng, names)
        fate = rng.random()
        name = (_pick(rng, colours) if fate < 0.6 else colour, _pick(rng, shapes) if fate > 0.3 else shape)
        if name not in names:
            names.append(name)
    return names


def _figure(rng: np.random.Generator, name: tuple[str, str]) -> Figure:
    size = _pick(rng, tuple(SIZES))
    low, high = SIZES[size]
    return Figure(
        colour=name[0],
        shape=name[1],
        size=size,
        texture=_pick(rng, TEXTURES),
        centre=(0.0, 0.0),
        extent=low + (high - low) * rng.random(),
        angle=0.0 if rng.random() < 0.6 else 0.3 * (rng.random() - 0.5),
        texture_angle=_pick(rng, (0.0, 0.785, 1.571, 2.356)),
    )


# Where it stands.

_MARGIN = 0.02
"""Least distance to the edge of the image."""

_GAP = 0.03
"""Least distance between the boxes of two objects that do not touch or overlap."""

_TRIES = 16


class _Placed:
    """A figure with the box around its whole outline, computed once."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        outline = figure.outline()[0]
        (x0, y0), (x1, y1) = outline.min(0).tolist(), outline.max(0).tolist()
        self.box: Box = (x0, y0, x1, y1)

    def centred_at(self, x: float, y: float) -> "_Placed":
        """The figure moved so that the middle of its box is at (x, y)."""
        x0, y0, x1, y1 = self.box
        dx, dy = x - (x0 + x1) / 2, y - (y0 + y1) / 2
        moved = object.__new__(_Placed)
        centre = self.figure.centre
        moved.figure = replace(self.figure, centre=(centre[0] + dx, centre[1] + dy))
        moved.box = (x0 + dx, y0 + dy, x1 + dx, y1 + dy)
        return moved

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    def inside(self) -> bool:
        return min(self.box) >= _MARGIN and max(self.box) <= 1 - _MARGIN

    def clear_of(self, other: "_Placed") -> bool:
        a, b = self.box, other.box
        return a[2] + _GAP <= b[0] or b[2] + _GAP <= a[0] or a[3] + _GAP <= b[1] or b[3] + _GAP <= a[1]


def _arrangement(rng: np.random.Generator, colours: Sequence[str]) -> list[Figure] | None:
    """Two to four figures, each placed next to, on, behind or before an earlier one; None if they do not fit."""
    count = int(rng.choice((2, 3, 4), p=(0.22, 0.4, 0.38)))
    placed: list[_Placed] = []
    stacked: set[int] = set()
    overlapping: set[int] = set()
    for name in _names(rng, colours, count):
        newcomer = _Placed(_figure(rng, name))
        if not placed:
            x = _MARGIN + newcomer.width / 2 + (1 - 2 * _MARGIN - newcomer.width) * rng.random()
            y = _MARGIN + newcomer.height / 2 + (1 - 2 * _MARGIN - newcomer.height) * rng.random()
            placed.append(newcomer.centred_at(x, y))
            continue
        for _ in range(_TRIES):
            anchor = int(rng.random() * len(placed))
            way = _pick(rng, _WAYS)
            # One object overlaps at most one other, and none that carries or rests: every box stays easy to see.
            if anchor in overlapping or (way is _overlapping and anchor in stacked):
                way = _beside
            candidate = way(rng, newcomer, placed[anchor])
            others = placed if way is _beside else placed[:anchor] + placed[anchor + 1 :]
            if candidate is not None and candidate.inside() and all(candidate.clear_of(other) for other in others):
                if way is not _beside:
                    (stacked if way is _stacked else overlapping).update((anchor, len(placed)))
                placed.append(candidate)
                break
        else:
            return None
    return [one.figure for one in placed]


def _beside(rng: np.random.Generator, newcomer: _Placed, anchor: _Placed) -> _Placed:
    """Left, right, above or below, at some distance."""
    x0, y0, x1, y1 = anchor.box
    gap = _GAP + 0.35 * rng.random()
    slant = 1.2 * (rng.random() - 0.5)
    sign = 1 if rng.random() < 0.5 else -1
    if rng.random() < 0.5:
        along = gap + (newcomer.width + anchor.width) / 2
        return newcomer.centred_at((x0 + x1) / 2 + sign * along, (y0 + y1) / 2 + slant * along)
    along = gap + (newcomer.height + anchor.height) / 2
    return newcomer.centred_at((x0 + x1) / 2 + slant * along, (y0 + y1) / 2 + sign * along)


def _stacked(rng: np.random.Generator, newcomer: _Placed, anchor: _Placed) -> _Placed | None:
    """Resting on the anchor; None if the two shapes do not carry each other."""
    if anchor.figure.shape not in SUPPORTS or anchor.figure.angle:
        return None
    newcomer = _Placed(replace(newcomer.figure, angle=0.0))
    x0, x1 = _contact(anchor, top=True)
    foot0, foot1 = _contact(newcomer, top=False)
    middle = (newcomer.box[0] + newcomer.box[2]) / 2
    if OUTLINES[newcomer.figure.shape].hollow_base or (x1 - x0 > foot1 - foot0):
        # Both feet on the surface.
        low, high = x0 - foot0 + middle, x1 - foot1 + middle
    else:
        low, high = x1 - foot1 + middle, x0 - foot0 + middle
    if low > high:
        return None
    x = (low + high) / 2 + 0.6 * (high - low) * (rng.random() - 0.5)
    return newcomer.centred_at(x, anchor.box[1] - newcomer.height / 2 + 0.004)


def _contact(one: _Placed, *, top: bool) -> tuple[float, float]:
    """The range of x where the outline reaches the top or the bottom of its box."""
    outline = one.figure.outline()[0]
    level = one.box[1] if top else one.box[3]
    x = outline[np.abs(outline[:, 1] - level) < 0.02 * one.figure.extent, 0]
    return float(x.min()), float(x.max())


def _overlapping(rng: np.random.Generator, newcomer: _Placed, anchor: _Placed) -> _Placed | None:
    """Partly behind or in front of the anchor; None if too much or too little of the back one would be hidden."""
    if newcomer.figure.colour == anchor.figure.colour:
        return None
    turn = 2 * np.pi * rng.random()
    share = 0.5 + 0.35 * rng.random()
    x = (anchor.box[0] + anchor.box[2]) / 2 + np.cos(turn) * share * (anchor.width + newcomer.width) / 2
    y = (anchor.box[1] + anchor.box[3]) / 2 + np.sin(turn) * share * (anchor.height + newcomer.height) / 2
    moved = newcomer.centred_at(float(x), float(y))
    nearer = rng.random() < 0.5
    moved.figure = replace(moved.figure, depth=anchor.figure.depth + (1 if nearer else -1))
    if not moved.inside():
        return None
    back, front = (anchor, moved) if nearer else (moved, anchor)
    hidden = hidden_fraction(back.figure, front.figure)
    return moved if _LEAST_HIDDEN <= hidden <= _MOST_HIDDEN else None


_LEAST_HIDDEN, _MOST_HIDDEN = 0.08, 0.32

_WAYS = (_beside, _beside, _stacked, _stacked, _stacked, _overlapping)


def _objects(figures: Sequence[Figure]) -> tuple[SceneObject, ...]:
    """The figures as they are described, with the box of what is visible of each."""
    placed = [_Placed(figure) for figure in figures]
    objects = []
    for one in placed:
        box = one.box
        for other in placed:
            if other.figure.depth > one.figure.depth and not one.clear_of(other):
                box = visible_box(one.figure, other.figure)
        figure = one.figure
        objects.append(
            SceneObject(
                colour=figure.colour,
                shape=figure.shape,
                size=figure.size,
                texture=figure.texture,
                box=box,
                whole=one.box,
                depth=figure.depth,
            )
        )
    return tuple(objects)


# On disk.


def write_scenes(
    folder: Path, *, first_seed: int, count: int, size: int, format: Literal["png", "jpg"] = "jpg"
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


def _write_files(folder: Path, seeds: range, size: int, format: Literal["png", "jpg"]) -> None:
    (folder / "images").mkdir(parents=True)
    images, annotations, scenes = [], [], []
    for seed in seeds:
        scene = generate_scene(seed, size=size)
        file_name = f"{seed:09d}.{format}"
        options: dict[str, Any] = {"quality": 92, "subsampling": 0} if format == "jpg" else {}
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
