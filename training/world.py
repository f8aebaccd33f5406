"""Synthetic scenes: coloured shapes on backgrounds, with their boxes. One random generator determines a scene."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from training.backgrounds import KINDS, background
from training.outlines import SHAPES, outline, rotate, wobble

# Ranges of hue in degrees, of saturation and of value in 0..1. The ranges of two colours do not overlap, even
# after the lighting of `photograph`, so jitter never changes the name of a colour.
COLOURS = {
    "red": ((-7, 6), (0.8, 1.0), (0.72, 1.0)),
    "green": ((100, 145), (0.6, 1.0), (0.45, 0.85)),
    "blue": ((212, 238), (0.7, 1.0), (0.6, 1.0)),
    "yellow": ((51, 60), (0.75, 1.0), (0.92, 1.0)),
    "orange": ((24, 34), (0.85, 1.0), (0.94, 1.0)),
    "purple": ((270, 288), (0.6, 0.95), (0.45, 0.72)),
    "pink": ((325, 345), (0.28, 0.5), (0.95, 1.0)),
    "brown": ((18, 30), (0.6, 0.85), (0.3, 0.48)),
    "black": ((0, 360), (0.0, 0.2), (0.0, 0.1)),
    "white": ((0, 360), (0.0, 0.03), (0.95, 1.0)),
}
# A colour that the embedded checkpoint does not know, for the example of fine-tuning.
NEW_COLOURS = {"turquoise": ((168, 182), (0.65, 1.0), (0.65, 0.95))}

# Pairs that are neither drawn nor named in training: the zero-shot test.
HELD_OUT = (
    ("purple", "star"),
    ("green", "heart"),
    ("orange", "square"),
    ("blue", "ring"),
    ("red", "cross"),
    ("yellow", "diamond"),
    ("pink", "triangle"),
    ("brown", "circle"),
)
SEEN = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)

TILT = 0.5  # largest rotation in radians; a square that is rotated further looks like a diamond
SUPERSAMPLE = 4  # masks are drawn larger by this factor, then averaged


@dataclass
class Thing:
    """One drawn object; its box is xyxy in pixels, clipped to the image."""

    colour: str
    shape: str
    box: tuple[float, float, float, float]


@dataclass
class Scene:
    """An image [H, W, 3] uint8 and its objects."""

    image: np.ndarray
    things: list[Thing]


def tint(colour: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a colour of that name: [3] float32 in 0..1."""
    hue, saturation, value = (rng.uniform(*bounds) for bounds in {**COLOURS, **NEW_COLOURS}[colour])
    sector = (hue % 360) / 60 + np.array([5.0, 3.0, 1.0])
    wave = np.clip(np.minimum(sector % 6, 4 - sector % 6), 0, 1)
    return (value - value * saturation * wave).astype(np.float32)


def silhouette(polygons: list[np.ndarray], width: int, height: int) -> np.ndarray:
    """Compute the share of each pixel covered by the first polygon minus the second: [height, width] in 0..1."""
    mask = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE))
    pen = ImageDraw.Draw(mask)
    for fill, polygon in zip((255, 0), polygons, strict=False):
        pen.polygon([(x * SUPERSAMPLE - 0.5, y * SUPERSAMPLE - 0.5) for x, y in polygon], fill=fill)
    return np.asarray(mask.reduce(SUPERSAMPLE), np.float32) / 255


def _extent(polygons: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the bounding box: lowest [2] and highest [2] coordinates."""
    return polygons[0].min(axis=0), polygons[0].max(axis=0)


def _place(shape: str, rng: np.random.Generator, width: int, height: int, other: bool) -> list[np.ndarray]:
    """Place a shape in the image, in pixels; its longer side is 0.1 to 0.5 of the shortest edge of the image."""
    polygons = outline(shape, rng, other)
    if other:
        polygons = wobble(polygons, rng, amount=0.03)
    polygons = rotate(polygons, rng.uniform(-TILT, TILT))
    low, high = _extent(polygons)
    scale = rng.uniform(0.1, 0.5) * min(width, height) / (high - low).max()
    half = (high - low) * scale / 2
    centre = rng.uniform(half * 0.9, (width, height) - half * 0.9)  # at most a twentieth of a side is outside
    return [(p - (low + high) / 2) * scale + centre for p in polygons]


def _crowded(box: np.ndarray, things: list[Thing]) -> bool:
    """Return whether the overlap of a box [4] with another one exceeds a fifth of the smaller area."""
    for thing in things:
        other = np.array(thing.box)
        side = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
        area = min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2]))
        if side.min() > 0 and side.prod() > 0.2 * area:
            return True
    return False


def _draw(
    canvas: np.ndarray, polygons: list[np.ndarray], paint: np.ndarray, rng: np.random.Generator, other: bool
) -> bool:
    """Draw the polygons on canvas [H, W, 3] in place; return False, without drawing, if the contrast is too low."""
    low, high = _extent(polygons)
    x0, y0 = np.maximum(np.floor(low).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(high).astype(int), canvas.shape[1::-1])
    patch = canvas[y0:y1, x0:x1]
    local = [p - (x0, y0) for p in polygons]
    cover = silhouette(local, x1 - x0, y1 - y0)[..., None]
    hidden = np.linalg.norm(patch - paint, axis=-1) < 0.25
    if hidden.mean() > 0.2:
        return False
    shade = np.linspace(1 - 0.08 * rng.random(), 1, y1 - y0, dtype=np.float32)[:, None, None]
    patch += cover * (paint * shade - patch)
    if other:  # an outline that is darker than the fill, or lighter if the fill is dark
        line = Image.new("L", (x1 - x0, y1 - y0))
        stroke = max(1, round(0.03 * max(line.size)))
        for p in local:
            ImageDraw.Draw(line).polygon([tuple(q) for q in p], outline=255, width=stroke)
        edge = np.asarray(line, np.float32)[..., None] / 255 * cover
        patch += edge * (paint * 0.55 + 0.3 * (paint.max() < 0.25) - patch)
    return True


def photograph(canvas: np.ndarray, rng: np.random.Generator, jpeg: int | None = None) -> np.ndarray:
    """Apply lighting, blur, noise and JPEG compression at random.

    Args:
        canvas: [H, W, 3] in 0..1.
        rng: random generator.
        jpeg: always compress, with this quality.

    Returns:
        [H, W, 3] uint8.
    """
    gain = rng.uniform(0.82, 1.12) * rng.uniform(0.96, 1.04, 3)
    picture = Image.fromarray((np.clip(canvas * gain, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0) * min(picture.size) / 128))
    pixels = np.asarray(picture)
    if rng.random() < 0.5:
        pixels = pixels + rng.normal(0, rng.uniform(1, 10), pixels.shape)
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    quality = jpeg or (int(rng.integers(40, 96)) if rng.random() < 0.4 else None)
    if quality is None:
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def draw_scene(
    rng: np.random.Generator,
    pairs: tuple[tuple[str, str], ...] = SEEN,
    size: tuple[int, int] = (128, 128),
    count: int | None = None,
    kind: str | None = None,
    other: bool = False,
    jpeg: int | None = None,
    each: bool = False,
) -> Scene:
    """Draw a random scene. Objects without space or contrast are left out.

    Args:
        rng: random generator.
        pairs: (colour, shape) of the objects to choose from.
        size: (height, width) in pixels.
        count: largest number of objects; None draws one to six.
        kind: background, one of `backgrounds.KINDS`; None draws one.
        other: use the second drawing style.
        jpeg: always compress as JPEG with this quality.
        each: draw the pairs in order, each once, instead of a random choice.
    """
    height, width = size
    canvas = background(kind or KINDS[rng.integers(len(KINDS))], rng, height, width)
    wanted = count or int(rng.integers(1, 7))
    things: list[Thing] = []
    for _ in range(4 * wanted):
        if len(things) == wanted:
            break
        colour, shape = pairs[len(things) if each else rng.integers(len(pairs))]
        polygons = _place(shape, rng, width, height, other)
        low, high = _extent(polygons)
        box = np.concatenate([np.maximum(low, 0), np.minimum(high, (width, height))])
        if not _crowded(box, things) and _draw(canvas, polygons, tint(colour, rng), rng, other):
            things.append(Thing(colour, shape, tuple(box.tolist())))
    return Scene(photograph(canvas, rng, jpeg), things)
