"""How the objects of a scene are drawn: antialiased, textured, softly lit, each with its shadow."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from training.scene_objects import Box
from training.scene_shapes import OUTLINES, Points, placed

Rgb = tuple[int, int, int]

OVERSAMPLING = 3
"""Masks are drawn this many times larger and averaged down: Pillow's polygons have hard edges."""

RIM = 0.035
"""Width of the darker rim of an object, as a fraction of its longer side."""

OCCLUSION_SIDE = 400
"""Side of the canvas on which occlusion is measured: fixed, so that a scene does not depend on the image's size."""


@dataclass(frozen=True, slots=True)
class Paint:
    """A named colour: the surface of an object and the ink of the texture on it."""

    base: Rgb
    ink: Rgb

    @property
    def rim(self) -> Rgb:
        """The darker tone around the object; of a very dark one, the lighter tone."""
        if max(self.base) < 80:
            return (96, 98, 108)
        red, green, blue = (int(0.66 * channel) for channel in self.base)
        return red, green, blue


PAINTS = {
    "red": Paint((221, 43, 48), (255, 226, 214)),
    "orange": Paint((244, 124, 20), (255, 240, 220)),
    "yellow": Paint((246, 200, 10), (255, 252, 226)),
    "green": Paint((44, 156, 66), (218, 246, 200)),
    "blue": Paint((38, 98, 216), (206, 228, 255)),
    "purple": Paint((128, 58, 178), (236, 214, 250)),
    "pink": Paint((247, 126, 184), (255, 240, 247)),
    "brown": Paint((120, 72, 40), (226, 190, 148)),
    "white": Paint((248, 248, 245), (150, 160, 178)),
    "black": Paint((40, 41, 47), (160, 162, 172)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One object as it is drawn; lengths are fractions of the image side, angles radians."""

    colour: str
    shape: str
    size: str
    texture: str
    centre: tuple[float, float]
    extent: float
    angle: float
    texture_angle: float
    depth: int = 0

    def outline(self) -> tuple[Points, ...]:
        """Return the outer boundary and the holes, float64 (N, 2) each, in fractions of the image side."""
        return tuple(placed(ring, self.centre, self.extent, self.angle) for ring in OUTLINES[self.shape].rings)


def hidden_fraction(back: Figure, front: Figure) -> float:
    """Measure how much of the area of `back` the figure in front of it covers."""
    _, mask, cover = _occlusion(back, front)
    return float((mask & cover).sum() / mask.sum())


def visible_box(back: Figure, front: Figure) -> Box:
    """Return the box around what `front` leaves visible of `back`, to within 1 / `OCCLUSION_SIDE`."""
    corner, mask, cover = _occlusion(back, front)
    rows, columns = np.nonzero(mask & ~cover)
    x, y = (columns + corner[0]) / OCCLUSION_SIDE, (rows + corner[1]) / OCCLUSION_SIDE
    pixel = 1 / OCCLUSION_SIDE
    return float(x.min()), float(y.min()), float(x.max()) + pixel, float(y.max()) + pixel


def draw_figure(canvas: Image.Image, figure: Figure) -> None:
    """Draw the figure and its shadow on the square RGB canvas, in place."""
    side = canvas.width
    rings = figure.outline()
    margin = 2.0 / side
    left, top = (int(side * value) for value in rings[0].min(0) - margin)
    right, bottom = (int(side * value) + 1 for value in rings[0].max(0) + margin)
    patch = _Patch(side, left, top, right - left, bottom - top)
    paint = PAINTS[figure.colour]
    whole, inner = patch.masks(rings, RIM * figure.extent)
    _cast_shadow(canvas, whole, patch)
    corner = (left, top)
    canvas.paste(paint.rim, corner, whole)
    canvas.paste(paint.base, corner, inner)
    if figure.texture != "plain":
        canvas.paste(paint.ink, corner, ImageChops.multiply(inner, patch.texture(figure)))
    light, shade = _lighting(*inner.size)
    canvas.paste((255, 255, 255), corner, ImageChops.multiply(inner, light))
    canvas.paste((20, 10, 40), corner, ImageChops.multiply(inner, shade))


@dataclass(frozen=True, slots=True)
class _Patch:
    """A rectangle of the canvas in pixels, where masks are drawn oversampled."""

    side: int
    left: int
    top: int
    width: int
    height: int

    def masks(self, rings: tuple[Points, ...], rim: float) -> tuple[Image.Image, Image.Image]:
        """Return the coverage of the polygon without its holes, and without its rim too; L (height, width) each."""
        image, draw = self._blank()
        pixels = [self._pixels(ring).ravel().tolist() for ring in rings]
        for index, ring in enumerate(pixels):
            draw.polygon(ring, fill=0 if index else 255)
        whole = image.reduce(OVERSAMPLING)
        for ring in pixels:
            draw.line(ring + ring[:2], fill=0, width=round(2 * rim * self.side * OVERSAMPLING))
        return whole, image.reduce(OVERSAMPLING)

    def texture(self, figure: Figure) -> Image.Image:
        """Return the coverage of the ink, L (height, width); the pattern is centred on the figure."""
        image, draw = self._blank()
        pieces = _TEXTURES[figure.texture](figure.extent)
        corners = placed(pieces.reshape(-1, 2), figure.centre, 1.0, figure.texture_angle)
        for polygon in self._pixels(corners).reshape(len(pieces), -1).tolist():
            draw.polygon(polygon, fill=255)
        return image.reduce(OVERSAMPLING)

    def _blank(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (self.width * OVERSAMPLING, self.height * OVERSAMPLING))
        return image, ImageDraw.Draw(image)

    def _pixels(self, points: Points) -> Points:
        # Pillow puts integer coordinates at the centres of pixels.
        pixels: Points = (points * self.side - (self.left, self.top)) * OVERSAMPLING - 0.5
        return pixels


def _cast_shadow(canvas: Image.Image, mask: Image.Image, patch: _Patch) -> None:
    reach = max(1, round(patch.side * 0.02))
    soft = Image.new("L", (patch.width + 2 * reach, patch.height + 2 * reach))
    soft.paste(mask, (reach, reach))
    soft = soft.filter(ImageFilter.BoxBlur(patch.side * 0.012)).point(_SHADOW)
    shift = round(patch.side * 0.012)
    canvas.paste((24, 20, 44), (patch.left - reach + shift, patch.top - reach + round(1.4 * shift)), soft)


_SHADOW = [round(0.36 * value) for value in range(256)]


@lru_cache(maxsize=512)
def _lighting(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Return how much light falls from the upper left and how much shade lies at the lower right, L (height, width)."""
    ramp = np.linspace(-1, 1, height)[:, None] * 0.75 + np.linspace(-1, 1, width)[None, :] * 0.35
    light = np.clip(-ramp, 0, 1) ** 1.5 * 75
    shade = np.clip(ramp, 0, 1) ** 1.5 * 60
    return Image.fromarray(light.astype(np.uint8)), Image.fromarray(shade.astype(np.uint8))


def _occlusion(back: Figure, front: Figure) -> tuple[Points, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the corner (x, y) of the window around `back`, and there the masks of both, bool (height, width)."""
    outline = back.outline()[0] * OCCLUSION_SIDE
    corner = np.floor(outline.min(0))
    width, height = (np.ceil(outline.max(0)) - corner + 1).astype(int).tolist()
    masks = []
    for figure in (back, front):
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        for index, ring in enumerate(figure.outline()):
            draw.polygon((ring * OCCLUSION_SIDE - corner - 0.5).ravel().tolist(), fill=0 if index else 255)
        masks.append(np.asarray(image, dtype=np.bool_))
    return corner, masks[0], masks[1]


def _period(extent: float) -> float:
    """Return the distance between stripes: at least six pixels of 128, a little more on larger objects."""
    return 0.04 + 0.05 * extent


def _stripes(extent: float) -> Points:
    period = _period(extent)
    reach, half = 0.75 * extent, 0.23 * period
    stripe = np.array([(-reach, -half), (reach, -half), (reach, half), (-reach, half)])
    count = int(reach / period) + 1
    stripes: Points = stripe + (np.arange(-count, count) + 0.5)[:, None, None] * (0, period)
    return stripes


def _dots(extent: float) -> Points:
    period = 1.1 * _period(extent)
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    dot = 0.31 * period * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cells = _cells(extent, period)
    dots: Points = dot + (period * (cells + cells[:, 1:] % 2 * (0.5, 0.0)) * (1, 0.87))[:, None]
    return dots


def _checks(extent: float) -> Points:
    side = 0.85 * _period(extent)
    cells = _cells(extent, side)
    square = side * np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    checks: Points = square + side * cells[cells.sum(1) % 2 == 1][:, None]
    return checks


def _cells(extent: float, period: float) -> Points:
    """Return the whole (column, row) numbers of the cells that reach into a disc around the figure."""
    count = int(0.75 * extent / period) + 1
    cells = np.stack(np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1)), axis=-1).reshape(-1, 2)
    near: Points = cells[np.hypot(*cells.T) * period < 0.75 * extent + period].astype(np.float64)
    return near


_TEXTURES = {"striped": _stripes, "dotted": _dots, "checkered": _checks}
"""The pattern around the origin of a figure of a given extent: polygons float64 (N, corners, 2)."""
