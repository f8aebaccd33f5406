"""Random backgrounds: flat, gradient, textured and photograph-like."""

import numpy as np
from PIL import Image

KINDS = ("flat", "gradient", "texture", "photo")

# Typical colours of blurred photographs: earth, foliage, sky, stone, wood, sand, water, dusk.
NATURE = (
    (96, 74, 52),
    (70, 96, 52),
    (150, 186, 214),
    (128, 126, 122),
    (140, 104, 70),
    (206, 188, 150),
    (62, 92, 112),
    (82, 70, 92),
)


def _paint(rng: np.random.Generator) -> np.ndarray:
    """Random background colour [3] in 0..1, usually of low saturation."""
    grey = rng.uniform(0.1, 0.95)
    return np.clip(grey + rng.normal(0, 0.12, 3), 0, 1).astype(np.float32)


def _stretch(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a float map by bicubic interpolation: [h, w] -> [height, width]."""
    return np.asarray(Image.fromarray(grid.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))


def _clouds(rng: np.random.Generator, height: int, width: int, coarse: int) -> np.ndarray:
    """Noise of several octaves with decreasing amplitude, as in natural images: [height, width] in about 0..1."""
    total = np.zeros((height, width), np.float32)
    for octave in range(5):
        cells = coarse * 2**octave
        if cells > 2 * min(height, width):
            break
        total += _stretch(rng.normal(0, 1, (cells, cells)), height, width) / 1.7**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low + 1e-6)


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Linear gradient from 0 to 1 in a random direction: [height, width]."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    along = x / width * np.cos(angle) + y / height * np.sin(angle)
    return ((along - along.min()) / np.ptp(along)).astype(np.float32)


def _mix(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Interpolate from a to b, colours [3] or images, by t [H, W]: [H, W, 3]."""
    return a + (b - a) * t[..., None]


def _pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Stripes, checks, dots or grain: [height, width] in 0..1."""
    unit = min(height, width) * rng.uniform(0.04, 0.15)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    u = (x * np.cos(angle) + y * np.sin(angle)) * np.pi / unit
    v = (y * np.cos(angle) - x * np.sin(angle)) * np.pi / unit
    kind = rng.integers(4)
    if kind == 0:
        return (np.sin(u) > rng.uniform(-0.5, 0.5)).astype(np.float32)
    if kind == 1:
        return (np.sin(u) * np.sin(v) > 0).astype(np.float32)
    if kind == 2:
        return (np.cos(u) * np.cos(v) > 0.6).astype(np.float32)
    return _clouds(rng, height, width, coarse=max(4, int(min(height, width) / unit)))


def _photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Ground and sky, blurred blobs, light from one side and fine texture: [H, W, 3]."""
    chosen = np.array(NATURE, np.float32)[rng.choice(len(NATURE), 3, replace=False)] / 255
    near, far, mass = chosen + rng.normal(0, 0.05, (3, 3)).astype(np.float32)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    horizon = rng.uniform(0.2, 0.8) + 0.15 * (_clouds(rng, height, width, 2) - 0.5)
    scene = _mix(far, near, 1 / (1 + np.exp((horizon - y) * rng.uniform(6, 40))))
    blobs = np.clip(4 * (_clouds(rng, height, width, 3) - rng.uniform(0.5, 0.7)), 0, 1)
    scene = scene + (mass - scene) * (0.8 * blobs)[..., None]
    light = 0.75 + 0.35 * _ramp(rng, height, width) + 0.25 * (_clouds(rng, height, width, 8) - 0.5)
    return scene * light[..., None]


def background(kind: str, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw a random background.

    Args:
        kind: one of KINDS.
        rng: random generator.
        height: pixels.
        width: pixels.

    Returns:
        [height, width, 3] float32 in 0..1.
    """
    if kind == "photo":
        picture = _photo(rng, height, width)
    else:
        first, second = _paint(rng), _paint(rng)
        if kind == "flat":
            blend = np.zeros((height, width), np.float32)
        elif kind == "gradient":
            blend = _ramp(rng, height, width)
        else:
            blend = _pattern(rng, height, width) * rng.uniform(0.3, 0.9)
        picture = _mix(first, second, blend)
    return np.clip(picture, 0, 1).astype(np.float32)
