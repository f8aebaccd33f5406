"""The eight shapes as polygons: an outer outline and, for the ring, a hole."""

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")


def _turn(n: int, start: float = -np.pi / 2) -> np.ndarray:
    """n directions round the circle, the first one up -> [n, 2]"""
    angle = start + 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star(waist: float) -> np.ndarray:
    """Five points; waist: inner radius over outer radius -> [10, 2]"""
    radius = np.where(np.arange(10) % 2, waist, 1.0)
    return _turn(10) * radius[:, None]


def _cross(arm: float) -> np.ndarray:
    """arm: half the thickness over half the length -> [12, 2]"""
    quarter = np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])
    corners = [quarter]
    for _ in range(3):
        corners.append(np.stack([-corners[-1][:, 1], corners[-1][:, 0]], axis=1))
    return np.concatenate(corners)


def _heart() -> np.ndarray:
    """The classic sextic curve, point down -> [40, 2]"""
    t = 2 * np.pi * np.arange(40) / 40
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 16


def outline(shape: str, rng: np.random.Generator, other: bool = False) -> list[np.ndarray]:
    """The polygons of a shape, about the origin, of size about 2.

    other: proportions outside those of the usual drawing (thin crosses, blunt stars, tall hearts),
    for measuring how far the detector depends on them.
    """
    wide = rng.uniform(*((0.72, 0.8) if other else (0.85, 1.0)))
    if shape == "circle":
        return [_turn(40)]
    if shape == "ring":
        return [_turn(40), _turn(40) * rng.uniform(*((0.68, 0.74) if other else (0.45, 0.65)))]
    if shape == "square":
        return [_turn(4, np.pi / 4)]
    if shape == "diamond":
        return [_turn(4) * (rng.uniform(*((0.68, 0.72) if other else (0.5, 0.66))), 1.0)]
    if shape == "triangle":
        return [_turn(3) * (wide, 1.0)]
    if shape == "star":
        return [_star(rng.uniform(*((0.5, 0.56) if other else (0.36, 0.48))))]
    if shape == "cross":
        return [_cross(rng.uniform(*((0.17, 0.22) if other else (0.26, 0.38))))]
    return [_heart() * (wide, 1.0)]


def rotate(polygons: list[np.ndarray], angle: float) -> list[np.ndarray]:
    """angle in radians, clockwise on the picture"""
    c, s = np.cos(angle), np.sin(angle)
    return [p @ np.array([[c, s], [-s, c]]) for p in polygons]


def wobble(polygons: list[np.ndarray], rng: np.random.Generator, amount: float) -> list[np.ndarray]:
    """As if drawn by hand: edges split in eight and bent by slow waves; amount over the shape's radius."""
    phase = rng.uniform(0, 2 * np.pi, (2, 2))
    bent = []
    for polygon in polygons:
        step = np.arange(8)[None, :, None] / 8
        fine = (polygon[:, None] * (1 - step) + np.roll(polygon, -1, axis=0)[:, None] * step).reshape(-1, 2)
        swing = np.sin(fine[:, ::-1] * 3 + phase[0]) + 0.5 * np.sin(fine * 7 + phase[1])
        bent.append(fine + amount * swing)
    return bent
