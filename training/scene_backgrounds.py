"""The places where a scene is set: flat illustrations in random colours."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from training.scene_chance import pick

Rgb = tuple[int, int, int]

OVERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class Background:
    """A kind of place, its two main tones, and the seed of its details."""

    kind: str
    tones: tuple[Rgb, Rgb]
    details: int


def random_background(rng: np.random.Generator) -> Background:
    """Choose a kind of place and its tones."""
    kind = pick(rng, tuple(_KINDS))
    first, second, _ = _KINDS[kind]
    tones = (_jittered(rng, pick(rng, first)), _jittered(rng, pick(rng, second)))
    return Background(kind, tones, int(rng.integers(2**32)))


def paint_background(background: Background, side: int) -> Image.Image:
    """Paint the place as an RGB image (side, side), with the same details at every side."""
    large = side * OVERSAMPLING
    rng = np.random.default_rng(background.details)
    canvas = _KINDS[background.kind][2](large, background.tones, rng)
    return canvas.reduce(OVERSAMPLING)


def _jittered(rng: np.random.Generator, tone: Rgb) -> Rgb:
    red, green, blue = (
        min(255, max(0, channel + shift)) for channel, shift in zip(tone, rng.integers(-9, 10, 3).tolist(), strict=True)
    )
    return red, green, blue


def _mixed(a: Rgb, b: Rgb, share: float) -> Rgb:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _lighter(tone: Rgb, share: float) -> Rgb:
    return _mixed(tone, (255, 255, 255), share)


def _darker(tone: Rgb, share: float) -> Rgb:
    return _mixed(tone, (20, 16, 36), share)


def _faded(side: int, top: Rgb, bottom: Rgb) -> Image.Image:
    """Paint a vertical gradient."""
    column = np.linspace(top, bottom, side).astype(np.uint8)[:, None]
    return Image.fromarray(column).resize((side, side), Image.Resampling.NEAREST)


Tones = tuple[Rgb, Rgb]


def _gradient(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    canvas = _faded(side, *tones)
    turn = pick(rng, (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180))
    return canvas if turn is None else canvas.transpose(turn)


def _hill(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, height: float, tone: Rgb) -> None:
    """Fill everything below a soft slope at about `height`."""
    phase, swing = rng.random() * 6.3, 0.02 + 0.03 * rng.random()
    x = np.linspace(0, 1, 40)
    y = height + swing * np.sin(phase + x * (3 + 3 * rng.random()))
    points = np.concatenate([np.stack([x, y], axis=1), [(1.0, 1.0), (0.0, 1.0)]]) * side
    draw.polygon(points.ravel().tolist(), fill=tone)


def _cloud(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, tone: Rgb) -> None:
    x, y, width = rng.random(), 0.05 + 0.25 * rng.random(), 0.07 + 0.05 * rng.random()
    for offset, radius in ((-0.9, 0.45), (0.0, 0.7), (0.9, 0.5)):
        centre, r = x + offset * width, radius * width
        draw.ellipse([(centre - r) * side, (y - r) * side, (centre + r) * side, (y + 0.6 * r) * side], fill=tone)


def _meadow(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    sky, grass = tones
    canvas = _faded(side, sky, _lighter(sky, 0.55))
    draw = ImageDraw.Draw(canvas)
    for _ in range(3):
        _cloud(draw, side, rng, _lighter(sky, 0.7))
    horizon = 0.5 + 0.2 * rng.random()
    _hill(draw, side, rng, horizon - 0.06, _mixed(grass, sky, 0.4))
    _hill(draw, side, rng, horizon, grass)
    _hill(draw, side, rng, horizon + 0.18, _darker(grass, 0.07))
    return canvas


def _beach(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    sky, sand = tones
    canvas = _faded(side, sky, _lighter(sky, 0.6))
    draw = ImageDraw.Draw(canvas)
    for _ in range(2):
        _cloud(draw, side, rng, _lighter(sky, 0.75))
    horizon = 0.42 + 0.15 * rng.random()
    sea = _mixed(sky, (60, 150, 190), 0.55)
    draw.rectangle([0, horizon * side, side, side], fill=sea)
    _hill(draw, side, rng, horizon + 0.17, _lighter(sea, 0.6))
    _hill(draw, side, rng, horizon + 0.2, sand)
    return canvas


def _hills_at_dusk(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    top, bottom = tones
    canvas = _faded(side, top, bottom)
    draw = ImageDraw.Draw(canvas)
    for step in range(4):
        _hill(draw, side, rng, 0.48 + 0.13 * step, _mixed(bottom, top, 0.3 + 0.2 * step))
    return canvas


def _night(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    sky, ground = tones
    canvas = _faded(side, sky, _lighter(sky, 0.22))
    draw = ImageDraw.Draw(canvas)
    for x, y, r in rng.random((45, 3)).tolist():
        radius = (0.002 + 0.004 * r) * side
        draw.ellipse([x * side - radius, y * side - radius, x * side + radius, y * side + radius], fill=(236, 232, 205))
    _hill(draw, side, rng, 0.78, ground)
    _hill(draw, side, rng, 0.88, _darker(ground, 0.2))
    return canvas


def _planks(
    draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator, wood: Rgb, top: float, height: float
) -> None:
    """Lay boards from `top` down, each of a slightly different tone, with staggered joints."""
    y = top
    while y < 1:
        edges = [0.0, 0.15 + 0.35 * rng.random(), 0.55 + 0.35 * rng.random(), 1.0]
        for left, right in pairwise(edges):
            tone = _mixed(wood, (70, 40, 20), 0.14 * rng.random())
            draw.rectangle([left * side, y * side, right * side, (y + height) * side], fill=tone)
            draw.line([left * side, y * side, left * side, (y + height) * side], fill=_darker(wood, 0.22), width=2)
            for grain in rng.random(2).tolist():
                level = (y + grain * height) * side
                draw.line([left * side, level, right * side, level], fill=_darker(tone, 0.06), width=2)
        draw.line([0, y * side, side, y * side], fill=_darker(wood, 0.25), width=max(2, side // 200))
        y += height


def _room(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    wall, floor = tones
    canvas = _faded(side, _lighter(wall, 0.15), wall)
    draw = ImageDraw.Draw(canvas)
    if rng.random() < 0.5:
        width = 0.05 + 0.04 * rng.random()
        for index in range(0, int(1 / width) + 1, 2):
            draw.rectangle([index * width * side, 0, (index + 1) * width * side, side], fill=_lighter(wall, 0.22))
    edge = 0.58 + 0.16 * rng.random()
    _planks(draw, side, rng, floor, edge, 0.075)
    draw.rectangle([0, (edge - 0.035) * side, side, edge * side], fill=_lighter(wall, 0.6))
    draw.line([0, edge * side, side, edge * side], fill=_darker(floor, 0.3), width=max(2, side // 120))
    return canvas


def _table(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    canvas = Image.new("RGB", (side, side), tones[0])
    _planks(ImageDraw.Draw(canvas), side, rng, tones[0], 0.0, 0.14 + 0.08 * rng.random())
    return canvas


def _paper(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    paper, ink = tones
    canvas = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(canvas)
    step = 0.06 + 0.05 * rng.random()
    squared = rng.random() < 0.5
    width = max(2, side // 220)
    for index in range(1, int(1 / step) + 1):
        level = index * step * side
        draw.line([0, level, side, level], fill=_mixed(paper, ink, 0.5), width=width)
        if squared:
            draw.line([level, 0, level, side], fill=_mixed(paper, ink, 0.5), width=width)
    if not squared:
        draw.line([0.09 * side, 0, 0.09 * side, side], fill=_mixed(paper, (230, 90, 100), 0.5), width=width)
    return canvas


def _tiles(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    first, second = tones
    canvas = Image.new("RGB", (side, side), _lighter(first, 0.5))
    draw = ImageDraw.Draw(canvas)
    count = 4 + int(rng.integers(4))
    step, joint = side / count, max(1.0, side * 0.006)
    mixed = rng.random() < 0.5
    for row in range(count):
        for column in range(count):
            share = rng.random() if mixed else float((row + column) % 2)
            box = [column * step + joint, row * step + joint, (column + 1) * step - joint, (row + 1) * step - joint]
            draw.rectangle(box, fill=_mixed(first, second, share))
    return canvas


def _wallpaper(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    ground, motif = tones
    canvas = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(canvas)
    count = 6 + int(rng.integers(4))
    step = side / count
    radius = step * (0.12 + 0.12 * rng.random())
    angles = np.linspace(0, 2 * np.pi, pick(rng, (4, 16)), endpoint=False)
    motif_outline = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    tone = _mixed(ground, motif, 0.55)
    for row in range(-1, 2 * count):
        for column in range(-1, count + 1):
            x, y = (column + row % 2 / 2 + 0.25) * step, (row + 0.5) * step / 2
            draw.polygon((motif_outline + np.array((x, y))).ravel().tolist(), fill=tone)
    return canvas


def _rays(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    first, second = tones
    canvas = Image.new("RGB", (side, side), first)
    draw = ImageDraw.Draw(canvas)
    x, y = (0.2 + 0.6 * rng.random()) * side, (0.3 + 0.9 * rng.random()) * side
    count = 9 + int(rng.integers(6))
    for index in range(count):
        start = 2 * np.pi / count * index
        ends = [(x + 2 * side * np.cos(a), y + 2 * side * np.sin(a)) for a in (start, start + np.pi / count)]
        draw.polygon([(x, y), *ends], fill=_mixed(first, second, 0.6))
    return canvas


def _lights(side: int, tones: Tones, rng: np.random.Generator) -> Image.Image:
    """Paint large pale discs out of focus."""
    canvas = _faded(side, *tones)
    glow = Image.new("L", (side, side))
    draw = ImageDraw.Draw(glow)
    for x, y, r, strength in rng.random((14, 4)).tolist():
        radius = (0.04 + 0.09 * r) * side
        box = [x * side - radius, y * side - radius, x * side + radius, y * side + radius]
        draw.ellipse(box, fill=int(15 + 45 * strength))
    canvas.paste((255, 255, 255), (0, 0), glow)
    return canvas


_PASTELS: list[Rgb] = [
    (196, 222, 240),
    (250, 226, 200),
    (214, 236, 208),
    (240, 214, 226),
    (224, 216, 240),
    (246, 240, 208),
    (206, 232, 230),
]
_MUTED: list[Rgb] = [
    (126, 160, 178),
    (188, 168, 152),
    (150, 172, 142),
    (176, 150, 176),
    (160, 160, 168),
    (204, 178, 140),
]
_SKIES: list[Rgb] = [(128, 196, 236), (156, 212, 240), (120, 180, 224), (168, 214, 226)]
_WOODS: list[Rgb] = [(214, 172, 122), (196, 152, 108), (226, 194, 152), (178, 140, 106)]

_Painter = Callable[[int, Tones, np.random.Generator], Image.Image]
_KINDS: dict[str, tuple[list[Rgb], list[Rgb], _Painter]] = {
    "gradient": (_PASTELS, _MUTED, _gradient),
    "meadow": (_SKIES, [(150, 204, 104), (172, 212, 120), (134, 190, 110)], _meadow),
    "beach": (_SKIES, [(242, 220, 170), (236, 208, 160)], _beach),
    "dusk": ([(92, 84, 140), (110, 96, 150), (76, 100, 150)], [(250, 190, 150), (246, 176, 168)], _hills_at_dusk),
    "night": ([(24, 30, 74), (36, 26, 78), (16, 44, 80)], [(44, 72, 88), (58, 60, 100)], _night),
    "room": (_PASTELS + _MUTED, _WOODS, _room),
    "table": (_WOODS, _WOODS, _table),
    "paper": ([(252, 249, 238), (246, 246, 248), (250, 244, 224)], [(160, 190, 220), (190, 190, 200)], _paper),
    "tiles": (_PASTELS, _MUTED, _tiles),
    "wallpaper": (_PASTELS, _MUTED, _wallpaper),
    "rays": (_PASTELS, _MUTED, _rays),
    "lights": (_MUTED, [(92, 104, 140), (120, 92, 120), (84, 120, 122)], _lights),
}
