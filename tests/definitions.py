"""Operations of the papers as plain loops, independent of the package. Tests compare the network with them.

Parameters are branches of the checkpoint: {"weight", "bias"} for a linear map or a norm.
"""

from __future__ import annotations

import math

import numpy as np


def linear(x, p):
    """x W^T + b"""
    return x @ p["weight"].T + p["bias"]


def norm(x, p, eps=1e-5):
    """Layer Normalization, Eq. 4 of arXiv 1607.06450, row by row."""
    rows = [(row - row.mean()) / math.sqrt(row.var() + eps) for row in x]
    return np.stack(rows) * p["weight"] + p["bias"]


def attention(queries, keys, values, p, heads, mask=None):
    """Multi-head attention, section 3.2.2 of arXiv 1706.03762: a loop over heads and queries."""
    q, k, v = linear(queries, p["query"]), linear(keys, p["key"]), linear(values, p["value"])
    D = q.shape[1] // heads
    out = np.zeros_like(q)
    for m in range(heads):
        head = slice(m * D, (m + 1) * D)
        for i in range(len(q)):
            seen = np.flatnonzero(mask[i]) if mask is not None else np.arange(len(k))
            e = np.exp(k[seen, head] @ q[i, head] / math.sqrt(D))
            out[i, head] = e / e.sum() @ v[seen, head]
    return linear(out, p["out_proj"])


def feed_forward(x, fc1, fc2, activation):
    """Eq. 2 of arXiv 1706.03762, with ReLU or GELU."""
    hidden = linear(x, fc1)
    if activation == "relu":
        return linear(np.maximum(hidden, 0), fc2)
    return linear(hidden * 0.5 * np.vectorize(math.erfc)(-hidden / math.sqrt(2)), fc2)


def mlp(x, layers):
    """Linear maps with ReLU between them."""
    for layer in layers[:-1]:
        x = np.maximum(linear(x, layer), 0)
    return linear(x, layers[-1])


def bilinear(image, x, y):
    """image [H, W, D] at one point, in fractions of its width and height; zero outside. -> [D]"""
    H, W, D = image.shape
    column, row, total = x * W - 0.5, y * H - 0.5, np.zeros(D)
    for r in range(H):
        for c in range(W):
            total += max(0, 1 - abs(row - r)) * max(0, 1 - abs(column - c)) * image[r, c]
    return total


def deformable_attention(queries, references, memory, sizes, p, heads, points):
    """Multi-scale deformable attention, Eq. 3 of arXiv 2010.04159: a loop over queries, heads, levels and points."""
    Q, L, value = len(queries), len(sizes), linear(memory, p["value_proj"])
    D = value.shape[1] // heads
    offsets = linear(queries, p["sampling_offsets"]).reshape(Q, heads, L, points, 2)
    scores = np.exp(linear(queries, p["attention_weights"]).reshape(Q, heads, L * points))
    weights = (scores / scores.sum(axis=2, keepdims=True)).reshape(Q, heads, L, points)
    starts = np.cumsum([0, *(H * W for H, W in sizes)])
    out = np.zeros((Q, heads * D))
    for q in range(Q):
        for m in range(heads):
            head = slice(m * D, (m + 1) * D)
            for level, (H, W) in enumerate(sizes):
                image = value[starts[level] : starts[level + 1], head].reshape(H, W, D)
                for point in range(points):
                    x, y = references[q, :2]
                    dx, dy = offsets[q, m, level, point]
                    if references.shape[1] == 2:  # offsets are in pixels of the level
                        x, y = x + dx / W, y + dy / H
                    else:  # offsets are in fractions of half the box
                        x, y = x + dx / points * references[q, 2] / 2, y + dy / points * references[q, 3] / 2
                    out[q, head] += weights[q, m, level, point] * bilinear(image, x, y)
    return linear(out, p["output_proj"])


def probability(logit):
    """The logistic function of one number."""
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def focal(logit, target, alpha, gamma):
    """Focal loss of one logit, Eq. 2 and 5 of arXiv 1708.02002."""
    right = logit if target else -logit
    weight = alpha if target else 1 - alpha
    return -weight * (1 - probability(right)) ** gamma * math.log(probability(right))


def giou(a, b):
    """Generalised IoU of two boxes (cx, cy, w, h), Algorithm 1 of arXiv 1902.09630."""
    (al, at, ar, ab), (bl, bt, br, bb) = ((x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b))
    intersection = max(0, min(ar, br) - max(al, bl)) * max(0, min(ab, bb) - max(at, bt))
    union = a[2] * a[3] + b[2] * b[3] - intersection
    hull = (max(ar, br) - min(al, bl)) * (max(ab, bb) - min(at, bt))
    return intersection / union - (hull - union) / hull


def class_cost(logits, tokens, alpha, gamma, eps):
    """Class cost of one query and one box: as transformers computes it, and as MMDetection does."""
    p = [probability(logit) for logit in logits]
    yes = [-alpha * (1 - x) ** gamma * math.log(x + eps) for x in p]
    no = [-(1 - alpha) * x**gamma * math.log(1 - x + eps) for x in p]
    mean = sum(y - n for y, n, wanted in zip(yes, no, tokens) if wanted) / sum(tokens)
    return mean, sum(y if wanted else n for y, n, wanted in zip(yes, no, tokens))
