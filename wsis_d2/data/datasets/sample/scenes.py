# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Small drawn scenes with exact labels: the pictures of the embedded sample.

A scene is two or three textured bands of stuff (sky, grass, water, brick) in any order and
direction, and two to five things (fish, tree, star) on them. What makes photographs hard is in
them on purpose: textures rather than plain colours, palettes shared by classes, things that take
the colour of their own background, scale changes, occlusion, touching instances of one class,
blur and sensor noise. Everything is a function of the random generator that is handed in.
"""

from dataclasses import dataclass

import cv2
import numpy as np

HEIGHT, WIDTH = 128, 160

THINGS = ("fish", "tree", "star")
STUFF = ("sky", "grass", "water", "brick")

# Classes share most of their colours on purpose: texture tells stuff apart, mean colour does not.
_BLUE, _GREY, _TAN = (112, 150, 190), (156, 158, 164), (186, 156, 124)
_TEAL, _OLIVE, _GREEN = (92, 146, 146), (140, 132, 78), (84, 126, 70)
PALETTES = {
    "sky": ((124, 166, 208), _GREY, _TAN, _TEAL),
    "grass": ((72, 120, 55), _OLIVE, _GREEN, _TAN),
    "water": (_BLUE, _TEAL, _GREEN, _GREY),
    "brick": ((172, 90, 80), _GREY, _OLIVE, _TAN),
    "fish": ((232, 122, 55), (70, 105, 205), (200, 204, 216), (222, 130, 150)),
    "tree": ((42, 105, 55), (140, 58, 62), (205, 165, 55), (45, 120, 118)),
    "star": ((228, 192, 62), (165, 90, 200), (62, 120, 205), (196, 198, 205)),
}


@dataclass(frozen=True)
class Difficulty:
    """What makes the scenes hard; the defaults are the sample's."""

    noise: float = 10.0  # standard deviation of the sensor noise, grey levels
    camouflage: float = 0.25  # share of things that take a background colour of their picture
    touching: float = 0.4  # chance that the next thing touches the last one, of the same class
    smallest: float = 28.0  # length of things in pixels, log-uniform between these two
    largest: float = 76.0


@dataclass(frozen=True)
class Scene:
    """A picture and its truth.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        stuff: (H, W) uint8, index into :data:`STUFF` of what lies behind the things.
        instance: (H, W) int32, 0 where no thing is, k for the k-th thing.
        things: index into :data:`THINGS` of thing 1, 2, ...
    """

    image: np.ndarray
    stuff: np.ndarray
    instance: np.ndarray
    things: tuple[int, ...]


def draw_scene(rng: np.random.Generator, difficulty: Difficulty | None = None) -> Scene:
    """Draw one scene of :data:`HEIGHT` x :data:`WIDTH` pixels.

    Args:
        rng: source of every random choice; the same state gives the same scene.
        difficulty: how hard the scene is; None means the sample's setting.
    """
    difficulty = difficulty or Difficulty()
    stuff = _draw_layout(rng)
    canvas = np.zeros((HEIGHT, WIDTH, 3))
    colours = []
    for index in np.unique(stuff):
        name = STUFF[index]
        colour = _pick_colour(rng, name)
        colours.append(colour)
        texture = _TEXTURES[name](rng)
        canvas[stuff == index] = (colour * texture[..., None])[stuff == index]
    instance, things = _draw_things(rng, canvas, colours, difficulty)

    # One light for the whole picture, the lens's blur, the sensor's noise.
    y, x = _grid()
    slope_y, slope_x = rng.uniform(-0.12, 0.12, 2)
    canvas *= (1 + slope_y * (y / HEIGHT - 0.5) * 2 + slope_x * (x / WIDTH - 0.5) * 2)[..., None]
    for axis in (0, 1):
        before = np.roll(canvas, 1, axis)
        after = np.roll(canvas, -1, axis)
        ends = [slice(None)] * 3
        ends[axis] = slice(0, 1)
        before[tuple(ends)] = canvas[tuple(ends)]
        ends[axis] = slice(-1, None)
        after[tuple(ends)] = canvas[tuple(ends)]
        canvas = (before + 2 * canvas + after) / 4
    canvas += rng.normal(0, difficulty.noise, canvas.shape)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, stuff, instance, things)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return y.astype(np.float64), x.astype(np.float64)


def _pick_colour(rng: np.random.Generator, name: str) -> np.ndarray:
    palette = PALETTES[name]
    return np.array(palette[rng.integers(len(palette))], float) + rng.normal(0, 8, 3)


def _value_noise(rng: np.random.Generator, cell_y: float, cell_x: float) -> np.ndarray:
    """Smooth noise in [-1, 1] whose grains are ``cell_y`` x ``cell_x`` pixels; (H, W)."""
    rows, columns = int(HEIGHT / cell_y) + 3, int(WIDTH / cell_x) + 3
    lattice = rng.uniform(-1, 1, (rows, columns))
    shift_y, shift_x = rng.uniform(0, 1, 2)
    v = np.arange(HEIGHT) / cell_y + shift_y
    u = np.arange(WIDTH) / cell_x + shift_x
    i, j = v.astype(int), u.astype(int)
    fade_v, fade_u = v - i, u - j
    fade_v = (fade_v * fade_v * (3 - 2 * fade_v))[:, None]
    fade_u = (fade_u * fade_u * (3 - 2 * fade_u))[None]
    i, j = i[:, None], j[None]
    top = lattice[i, j] * (1 - fade_u) + lattice[i, j + 1] * fade_u
    bottom = lattice[i + 1, j] * (1 - fade_u) + lattice[i + 1, j + 1] * fade_u
    return top * (1 - fade_v) + bottom * fade_v


def _draw_layout(rng: np.random.Generator) -> np.ndarray:
    """Two or three wavy bands in a random order and direction; (H, W) uint8 index of STUFF."""
    y, x = _grid()
    angle = rng.normal(0, 0.35) + (np.pi / 2 if rng.random() < 0.25 else 0)
    across = (y - HEIGHT / 2) * np.cos(angle) + (x - WIDTH / 2) * np.sin(angle)
    across += rng.uniform(4, 9) * _value_noise(rng, 40, 40)
    extent = HEIGHT / 2 * abs(np.cos(angle)) + WIDTH / 2 * abs(np.sin(angle))
    place = across / (2 * extent) + 0.5
    if rng.random() < 0.5:
        cuts = [rng.uniform(0.35, 0.65)]
    else:
        cuts = [rng.uniform(0.25, 0.4), rng.uniform(0.58, 0.75)]
    order = rng.permutation(len(STUFF))[: len(cuts) + 1]
    return order[np.digitize(place, cuts)].astype(np.uint8)


def _sky(rng: np.random.Generator) -> np.ndarray:
    return 1 + 0.13 * _value_noise(rng, 34, 48) + 0.07 * _value_noise(rng, 14, 24)


def _grass(rng: np.random.Generator) -> np.ndarray:
    size = rng.uniform(0.8, 1.3)
    blades = _value_noise(rng, 11 * size, 2.2 * size) + 0.5 * _value_noise(
        rng, 7 * size, 1.6 * size
    )
    return 1 + 0.26 * blades + 0.08 * _value_noise(rng, 30, 30)


def _water(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid()
    size = rng.uniform(0.8, 1.3)
    bend = 5 * size * _value_noise(rng, 22 * size, 26 * size)
    ripple = 1.5 * np.sin(x / (4.5 * size) + rng.uniform(0, 6))
    wave = np.sin((y + bend + ripple) * 2 * np.pi / (8.5 * size))
    return 1 + 0.2 * wave + 0.06 * _value_noise(rng, 24, 40)


def _brick(rng: np.random.Generator) -> np.ndarray:
    y, x = _grid()
    tall = rng.uniform(8, 13)
    wide = tall * rng.uniform(1.8, 2.3)
    offset_y, offset_x = rng.uniform(0, tall), rng.uniform(0, wide)
    row = np.floor((y + offset_y) / tall).astype(int)
    along = (x + offset_x + (row % 2) * wide / 2) / wide
    column = np.floor(along).astype(int)
    joint = 1.8
    mortar = ((y + offset_y) % tall < joint) | ((along - column) * wide < joint)
    shade = rng.uniform(-1, 1, (row.max() + 1, column.max() + 1))[row, column]
    mortar_shade = 1.3 if rng.random() < 0.7 else 0.7
    return np.where(mortar, mortar_shade, 1 + 0.1 * shade) + 0.05 * _value_noise(rng, 4, 4)


_TEXTURES = {"sky": _sky, "grass": _grass, "water": _water, "brick": _brick}


def _fish(rng: np.random.Generator) -> np.ndarray:
    """Outline of unit length, head to the right; (N, 2) x, y."""
    t = np.linspace(np.radians(158), np.radians(-158), 28)
    fat = rng.uniform(0.13, 0.18)
    body = np.stack([0.17 + 0.33 * np.cos(t), fat * np.sin(t) * (1 - 0.15 * np.cos(t))], 1)
    spread = rng.uniform(0.22, 0.28)
    tail = np.array([[-0.5, -spread], [-0.38, 0.0], [-0.5, spread]])
    return np.concatenate([body, tail])


def _tree(rng: np.random.Generator) -> np.ndarray:
    widths = np.sort(rng.uniform(0.2, 0.38, 3))
    levels, right = [-0.5, -0.22, 0.06, 0.34], [(0.0, -0.5)]
    for k, width in enumerate(widths):
        right.append((width, levels[k + 1] + 0.03))
        right.append((width * 0.36, levels[k + 1]))
    trunk = rng.uniform(0.05, 0.08)
    right[-1] = (trunk, levels[-1])
    right.append((trunk, 0.5))
    half = np.array(right)
    return np.concatenate([half, half[:0:-1] * [-1, 1]])


def _star(rng: np.random.Generator) -> np.ndarray:
    inner = rng.uniform(0.2, 0.25)
    angle = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, inner, 0.5)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], 1)


_OUTLINES = {"fish": (_fish, 0.3), "tree": (_tree, 0.1), "star": (_star, 0.6)}


def _paint(rng: np.random.Generator, name: str, local: np.ndarray) -> np.ndarray:
    """Brightness inside a thing, from its own (2, H, W) coordinates of unit length."""
    along, up = local
    if name == "fish":
        return 1 + 0.12 * np.sign(np.sin(along * 2 * np.pi * rng.uniform(4, 6)))
    if name == "tree":
        return 0.95 + 0.2 * _value_noise(rng, 4, 4)
    return 1.15 - 0.7 * np.hypot(along, up)


def _rasterise(outline: np.ndarray) -> np.ndarray:
    """Coverage of each pixel by a polygon with 4 x 4 samples; (H, W) float in [0, 1]."""
    fine = np.zeros((HEIGHT * 4, WIDTH * 4), np.uint8)
    cv2.fillPoly(fine, [np.rint(outline * 4).astype(np.int32)], 1)
    return fine.reshape(HEIGHT, 4, WIDTH, 4).mean((1, 3))


def _draw_things(rng, canvas, colours, difficulty):
    """Draw the things on ``canvas`` in place; return the instance map and the classes."""
    instance = np.zeros((HEIGHT, WIDTH), np.int32)
    things: list[int] = []
    full_areas: list[int] = []
    last = None
    y, x = _grid()
    wanted = int(rng.integers(2, 6))
    for _ in range(wanted * 12):
        if len(things) == wanted:
            break
        kind = int(rng.integers(len(THINGS)))
        length = np.exp(rng.uniform(np.log(difficulty.smallest), np.log(difficulty.largest)))
        centre = rng.uniform([0.06 * WIDTH, 0.08 * HEIGHT], [0.94 * WIDTH, 0.92 * HEIGHT])
        if last is not None and rng.random() < difficulty.touching:
            kind, last_length, last_centre = last
            length = last_length * rng.uniform(0.75, 1.3)
            direction = rng.uniform(0, 2 * np.pi)
            apart = rng.uniform(0.32, 0.42) * (length + last_length)
            centre = last_centre + apart * np.array([np.cos(direction), np.sin(direction)])
        name = THINGS[kind]
        shape, tilt = _OUTLINES[name]
        angle = rng.normal(0, tilt)
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        outline = shape(rng) * [mirror, 1]
        coverage = _rasterise(outline @ turn * length + centre)
        mask = coverage >= 0.5
        area = int(mask.sum())
        # Most of it in the picture, and what it covers still to be seen.
        if area < 90 or area < 0.72 * _polygon_area(outline) * length**2:
            continue
        seen = np.bincount(instance[~mask], minlength=len(things) + 1)[1:]
        if any(s < max(0.5 * f, 80) for s, f in zip(seen, full_areas, strict=True)):
            continue
        if rng.random() < difficulty.camouflage:
            colour = colours[rng.integers(len(colours))] + rng.normal(0, 10, 3)
        else:
            colour = _pick_colour(rng, name)
        local = np.stack([x - centre[0], y - centre[1]], -1) / length @ turn.T
        shade = _paint(rng, name, np.moveaxis(local, -1, 0))
        alpha = coverage[..., None]
        canvas[:] = canvas * (1 - alpha) + colour * shade[..., None] * alpha
        things.append(kind)
        full_areas.append(area)
        instance[mask] = len(things)
        last = (kind, length, centre)
    return instance, tuple(things)


def _polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
