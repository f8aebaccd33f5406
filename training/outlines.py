"""The eight shapes as polygons: an outer outline and, for the ring, a hole."""

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
NEW_SHAPES = ("crescent",)  # unknown to the embedded checkpoint, for the example of fine-tuning


def _turn(n: int, start: float = -np.pi / 2) -> np.ndarray:
    """Unit vectors in n directions, by default starting upwards: [n, 2]."""
    angle = start + 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star(waist: float) -> np.ndarray:
    """Five-pointed star: [10, 2]. waist: inner radius / outer radius."""
    radius = np.where(np.arange(10) % 2, waist, 1.0)
    return _turn(10) * radius[:, None]


def _cross(arm: float) -> np.ndarray:
    """Cross: [12, 2]. arm: thickness / length of its bars."""
    quarter = np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])
    corners = [quarter]
    for _ in range(3):
        corners.append(np.stack([-corners[-1][:, 1], corners[-1][:, 0]], axis=1))
    return np.concatenate(corners)


def _heart() -> np.ndarray:
    """Heart-shaped sextic curve, point down: [40, 2]."""
    t = 2 * np.pi * np.arange(40) / 40
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1) / 16


def _crescent(inner: float) -> np.ndarray:
    """Crescent, open to the right: [80, 2]. inner: radius of the inner arc, whose ends are those of the outer arc."""
    tip = 1.2  # angle of the ends, seen from the centre of the outer arc
    outer = np.linspace(tip, 2 * np.pi - tip, 40)
    centre = np.cos(tip) + np.sqrt(inner**2 - np.sin(tip) ** 2)
    arc = np.pi - np.arcsin(np.sin(tip) / inner)
    inside = np.linspace(2 * np.pi - arc, arc, 40)
    return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1),
                           np.stack([centre + inner * np.cos(inside), inner * np.sin(inside)], axis=1)])


def outline(shape: str, rng: np.random.Generator, other: bool = False) -> list[np.ndarray]:
    """Create the polygons of a shape, centred at the origin, with a size of about 2.

    Args:
        shape: one of SHAPES or NEW_SHAPES.
        rng: random generator.
        other: use proportions that do not occur in training (thin crosses, blunt stars, tall hearts). The evaluation
            measures how much the detector depends on them.

    Returns:
        The outer polygon [n, 2] and, for the ring, the hole.
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
    if shape == "crescent":
        return [_crescent(rng.uniform(*((0.94, 0.945) if other else (0.95, 1.0))))]
    return [_heart() * (wide, 1.0)]


def rotate(polygons: list[np.ndarray], angle: float) -> list[np.ndarray]:
    """Rotate polygons by an angle in radians, clockwise in image coordinates."""
    c, s = np.cos(angle), np.sin(angle)
    return [p @ np.array([[c, s], [-s, c]]) for p in polygons]


def wobble(polygons: list[np.ndarray], rng: np.random.Generator, amount: float) -> list[np.ndarray]:
    """Imitate drawing by hand: split each edge in eight and bend it by slow sine waves.

    Args:
        polygons: [n, 2] each.
        rng: random generator.
        amount: amplitude / radius of the shape.

    Returns:
        polygons [8*n, 2].
    """
    phase = rng.uniform(0, 2 * np.pi, (2, 2))
    bent = []
    for polygon in polygons:
        step = np.arange(8)[None, :, None] / 8
        fine = (polygon[:, None] * (1 - step) + np.roll(polygon, -1, axis=0)[:, None] * step).reshape(-1, 2)
        swing = np.sin(fine[:, ::-1] * 3 + phase[0]) + 0.5 * np.sin(fine * 7 + phase[1])
        bent.append(fine + amount * swing)
    return bent
