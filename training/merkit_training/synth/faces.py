"""Draws faces from action-unit-like parameters, shaded so that a real detector finds them.

A face encoder can only be demonstrated on faces that the pipeline's own detector accepts. Haar
looks for dark eye regions between a brighter forehead, nose bridge and cheeks, so the skin is
shaded accordingly. What never moves (skin, hair, shoulders) is painted once per identity; brows,
eyes, nose and mouth are drawn per frame.

All coordinates are in canvas units: the head's layer spans 160 x 160 of them, whatever its size
in pixels. Colours are RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from merkit_training.synth.model import UNITS, Floats

Pixels = NDArray[np.uint8]

UNIT_SIDE = 160.0
SHIFT = 4  # fractional bits of cv2's fixed-point coordinates: features move by 1/16 pixel
HAAR_CENTRE = (80.0, 82.0)  # where Haar's box lies on the upright head, measured on 200 renders
HAAR_SIDE = 99.0  # its scatter: 5 % in size, 1.2 % in place
SKINS = ((241, 206, 180), (231, 188, 155), (215, 166, 130), (190, 138, 102), (160, 112, 80))
HAIRS = ((24, 20, 18), (52, 36, 26), (92, 62, 38), (150, 112, 62), (120, 118, 116), (96, 44, 28))


@dataclass(frozen=True)
class Identity:
    """What makes a person: shapes in canvas units, colours in RGB."""

    number: int
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    shirt: tuple[float, float, float]
    width: float  # half-width of the face
    height: float  # half-height of the face
    jaw: float  # how much the face narrows downwards
    eye_gap: float  # half the distance between the eyes
    eye_size: float
    eye_line: float  # y of the eyes
    brow_weight: float
    nose: float  # length
    mouth_line: float  # y of the mouth
    mouth_width: float  # half-width at rest
    lip: float  # thickness
    redness: float  # of the lips
    hair_line: float  # y at which the hair begins
    hair_long: bool
    glasses: bool


def identity(number: int, seed: int) -> Identity:
    """The person with a number; the same for the same seed."""
    rng = np.random.default_rng([seed, 0x1D, number])

    def tint(colours: Sequence[tuple[int, int, int]], spread: float) -> tuple[float, float, float]:
        base = np.array(colours[int(rng.integers(len(colours)))]) + rng.normal(0, spread, 3)
        r, g, b = np.clip(base, 8, 250)
        return float(r), float(g), float(b)

    u = rng.uniform
    return Identity(
        number=number,
        skin=tint(SKINS, 5),
        hair=tint(HAIRS, 6),
        iris=tint(((60, 40, 25), (40, 70, 110), (60, 90, 60), (45, 35, 30)), 6),
        shirt=tint(((60, 70, 110), (120, 50, 50), (60, 90, 70), (200, 200, 205), (50, 50, 55)), 18),
        width=u(35, 40),
        height=u(47, 52),
        jaw=u(0.10, 0.30),
        eye_gap=u(14.5, 17.5),
        eye_size=u(7.2, 8.6),
        eye_line=u(70, 73),
        brow_weight=u(2.4, 4.2),
        nose=u(19, 23),
        mouth_line=u(106, 110),
        mouth_width=u(12.5, 15.5),
        lip=u(2.4, 3.8),
        redness=u(0.25, 0.6),
        hair_line=u(44, 50),
        hair_long=bool(rng.random() < 0.45),
        glasses=bool(rng.random() < 0.15),
    )


@dataclass(frozen=True)
class View:
    """How a camera sees a head: pose, light and background."""

    centre: tuple[float, float]  # output pixel on which the canvas point HAAR_CENTRE falls
    scale: float  # output pixels per canvas unit
    angle: float  # degrees, in the image plane
    light: tuple[float, float, float]  # gain, and its slopes over the width and the height
    background: tuple[tuple[float, float, float], tuple[float, float, float]]  # top, bottom


def random_view(rng: np.random.Generator, side: int, scale: float, jitter: float) -> View:
    """A view for a `side` x `side` picture; `jitter` is the head's displacement in pixels."""
    grey = rng.uniform(50, 210)
    top, bottom = (np.clip(grey + rng.normal(0, 22, 3), 10, 245) for _ in range(2))
    dx, dy = rng.normal(0, jitter, 2)
    return View(
        (side / 2 + dx, side / 2 + dy),
        scale,
        float(rng.normal(0, 3.0)),
        (rng.uniform(0.82, 1.12), rng.normal(0, 0.10), rng.normal(0, 0.06)),
        (tuple(top), tuple(bottom)),
    )


def crop_view(rng: np.random.Generator, side: int) -> View:
    """A view framed as Haar's box frames a face in a clip, with Haar's own scatter."""
    scale = side / (HAAR_SIDE * float(np.clip(rng.normal(1, 0.05), 0.88, 1.14)))
    return random_view(rng, side, scale, 0.015 * side)


def render(who: Identity, units: Floats, blink: float, view: View, side: int) -> Pixels:
    """A picture uint8 [side, side, 3] RGB of `who` with the face parameters `units` (UNITS)."""
    pixels = 2 * UNIT_SIDE if view.scale > 1.3 else UNIT_SIDE
    layer = _head(who, int(pixels)).copy()
    _draw_features(_Brush(layer), who, np.clip(units, -1.4, 1.4), blink)
    zoom = pixels / UNIT_SIDE
    matrix = cv2.getRotationMatrix2D(
        (HAAR_CENTRE[0] * zoom, HAAR_CENTRE[1] * zoom), view.angle, view.scale / zoom
    )
    matrix[0, 2] += view.centre[0] - HAAR_CENTRE[0] * zoom
    matrix[1, 2] += view.centre[1] - HAAR_CENTRE[1] * zoom
    if view.scale < 0.8 * zoom:
        layer = cv2.GaussianBlur(layer, (3, 3), 0.6)
    warped = cv2.warpAffine(layer, matrix, (side, side), flags=cv2.INTER_LINEAR)
    scene, light = _scene(view.background, view.light, side)
    alpha = warped[:, :, 3:].astype(np.float32) / 255
    picture = (warped[:, :, :3] * alpha + scene * (1 - alpha)) * light
    return np.asarray(np.clip(picture, 0, 255), np.uint8)


@lru_cache(maxsize=4)
def _scene(
    colours: tuple[tuple[float, float, float], tuple[float, float, float]],
    light: tuple[float, float, float],
    side: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Background and light of a view; cached because all frames of a clip share them."""
    ramp = np.linspace(0, 1, side, dtype=np.float32)
    top, bottom = (np.array(c, np.float32) for c in colours)
    scene = top + (bottom - top) * ramp[:, None, None] + 14 * (ramp[None, :, None] - 0.5)
    gain, across, down = light
    lit = gain + across * 2 * (ramp[None, :] - 0.5) + down * 2 * (ramp[:, None] - 0.5)
    return scene.astype(np.float32), lit[:, :, None].astype(np.float32)


@lru_cache(maxsize=512)
def _head(who: Identity, pixels: int) -> Pixels:
    """The still layer uint8 [pixels, pixels, 4]: RGB and opacity of shoulders, hair and skin."""
    step = UNIT_SIDE / pixels
    y, x = np.mgrid[0:pixels, 0:pixels].astype(np.float32) * step + step / 2
    layer = np.zeros((pixels, pixels, 4), np.float32)

    def paint(mask: Any, colour: Any) -> None:
        opacity = np.clip(mask, 0, 1)[..., None]
        layer[..., :3] = layer[..., :3] * (1 - opacity) + np.asarray(colour) * opacity
        layer[..., 3:] = np.maximum(layer[..., 3:], 255 * opacity)

    def inside(cx: float, cy: float, rx: Any, ry: float) -> Any:
        distance = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
        return (1 - distance) * min(float(np.min(rx)), ry) / (0.9 * max(step, 1.0)) + 0.5

    def blob(cx: float, cy: float, rx: float, ry: float) -> Any:
        return np.exp(-(((x - cx) / rx) ** 2) - ((y - cy) / ry) ** 2)

    skin, hair = np.array(who.skin), np.array(who.hair)
    shade = 0.92 + 0.10 * np.sin(x * 0.9 + who.number)[..., None] * blob(80, 40, 60, 40)[..., None]
    if who.hair_long:
        paint(inside(80, 88, who.width + 11, 66), hair * 0.8)
    paint(inside(80, 176, 66, 42), who.shirt)
    paint(inside(80, 138, 16, 26), skin * 0.72)
    for side in (-1, 1):
        paint(inside(80 + side * (who.width - 0.5), 80, 5.5, 9.5), skin * 0.8)
    narrowing = 1 - who.jaw * np.clip((y - 88) / 50, 0, 1) ** 1.5
    face = inside(80, 83, who.width * narrowing, who.height)
    if not who.hair_long:
        paint(inside(80, 66, who.width + 4.5, 44), hair[None, None] * shade)
    depth = np.clip(1 - ((x - 80) / (who.width * 1.25)) ** 2 - ((y - 78) / 74) ** 2, 0, 1)
    tone = 0.70 + 0.34 * np.sqrt(depth)
    tone += 0.09 * blob(80, 58, 24, 9)  # forehead
    tone += 0.10 * blob(80, 84, 5, 16) - 0.05 * blob(80, 98, 9, 3)  # bridge, under the nose
    tone -= 0.10 * blob(80, 116, 10, 2.5)  # under the lower lip
    for side in (-1, 1):
        tone += 0.10 * blob(80 + side * 20, 92, 10, 8)  # cheek
        tone -= 0.27 * blob(80 + side * who.eye_gap, who.eye_line - 1, 11, 6.5)  # socket
        tone -= 0.07 * blob(80 + side * 6, 92, 3, 9)  # side of the nose
    paint(face, skin * tone[..., None])
    fringe = np.minimum(face, (who.hair_line + 5 * ((x - 80) / who.width) ** 2 - y) * 0.9 + 0.5)
    paint(fringe, hair[None, None] * shade)
    return np.clip(layer, 0, 255).astype(np.uint8)


class _Brush:
    """Antialiased shapes in canvas units on the RGB channels of a layer."""

    def __init__(self, layer: Pixels) -> None:
        self.layer = layer
        self.zoom = layer.shape[0] / UNIT_SIDE

    def points(self, points: Any) -> NDArray[np.int32]:
        """Canvas coordinates as cv2's fixed-point ones."""
        fixed = np.round((np.asarray(points) * self.zoom - 0.5) * 2**SHIFT)
        return np.asarray(fixed, np.int32)

    def fill(self, points: Any, colour: Sequence[float]) -> None:
        """Fills a polygon."""
        cv2.fillPoly(self.layer, [self.points(points)], (*colour, 255), cv2.LINE_AA, SHIFT)

    def line(self, points: Any, colour: Sequence[float], width: float, shut: bool = False) -> None:
        """Draws a polyline."""
        thick = max(1, round(width * self.zoom))
        corners = [self.points(points)]
        cv2.polylines(self.layer, corners, shut, (*colour, 255), thick, cv2.LINE_AA, SHIFT)

    def disc(self, centre: tuple[float, float], radius: float, colour: Sequence[float]) -> None:
        """Fills a circle."""
        x, y = self.points(centre).tolist()
        size = round(radius * self.zoom * 2**SHIFT)
        cv2.circle(self.layer, (x, y), size, (*colour, 255), -1, cv2.LINE_AA, SHIFT)

    def soften(self, points: Any, colour: Sequence[float], opacity: float, width: float) -> None:
        """Draws a translucent crease; nothing when its opacity is not positive."""
        if opacity <= 0.02:
            return
        corners = self.points(points)
        margin = round(2 * width * self.zoom) + 2
        low = np.maximum((corners.min(0) >> SHIFT) - margin, 0)
        high = (corners.max(0) >> SHIFT) + margin
        window = self.layer[low[1] : high[1], low[0] : high[0]]
        over = window.copy()
        shifted = [corners - (low << SHIFT).astype(np.int32)]
        thick = max(1, round(width * self.zoom))
        cv2.polylines(over, shifted, False, (*colour, 255), thick, cv2.LINE_AA, SHIFT)
        mix = min(opacity, 0.9)
        window[:] = cv2.addWeighted(over, mix, window, 1 - mix, 0)


ARC = np.linspace(-1, 1, 13)


def _draw_features(brush: _Brush, who: Identity, values: Floats, blink: float) -> None:
    u = dict(zip(UNITS, values.tolist(), strict=True))
    skin = np.array(who.skin)
    crease = (skin * 0.55).tolist()
    raised = max(u["brow_raise"], 0)
    for i in range(3):  # forehead
        y = who.hair_line + 6 + 3.6 * i - raised
        brush.soften([(64, y + 0.8), (80, y), (96, y + 0.8)], crease, 0.6 * raised, 1.0)
    frown = max(u["brow_lower"], 0)
    for side in (-1, 1):
        _draw_eye(brush, who, u, blink, side)
        x = 80 + side * 3.2
        top = who.eye_line - 9
        brush.soften([(x, top - 5), (x - side, top + 3)], crease, 0.75 * frown, 1.4)
    _draw_nose(brush, who, u)
    _draw_mouth(brush, who, u)
    if who.glasses:
        for side in (-1, 1):
            x, y = 80 + side * who.eye_gap, who.eye_line + 0.5
            turn = np.linspace(0, 2 * np.pi, 20)
            ring = np.stack([x + 11 * np.cos(turn), y + 8.5 * np.sin(turn)], 1)
            brush.line(ring, (45, 40, 40), 1, shut=True)
        y = who.eye_line - 1.5
        brush.line([(80 - who.eye_gap + 11, y), (80 + who.eye_gap - 11, y)], (45, 40, 40), 1)


def _draw_eye(brush: _Brush, who: Identity, u: dict[str, float], blink: float, side: int) -> None:
    skin = np.array(who.skin)
    x, y, half = 80 + side * who.eye_gap, who.eye_line, who.eye_size
    squint = max(u["squint"], 0)
    upper = np.clip(3.9 + 2.3 * u["lid_open"] - 1.1 * squint - 0.5 * u["brow_lower"], 0.6, 7.0)
    lower = np.clip(3.0 - 1.7 * squint + 0.5 * u["lid_open"], 0.7, 4.0)
    upper, lower = upper * (1 - blink), lower * (1 - 0.85 * blink)
    curve = 1 - ARC**2
    droop = 0.9 * u["brow_slant"] * side * ARC * 1.0  # outer corners sink as the brows slant
    top = np.stack([x + half * ARC, y - upper * curve + droop], 1)
    low = np.stack([x + half * ARC, y + lower * curve + droop], 1)
    almond = np.concatenate([top, low[::-1]])
    if upper + lower > 1.2:
        brush.fill(almond, (238, 236, 232))
        radius = min(3.6, 0.62 * (upper + lower) + 0.4)
        middle = y + 0.5 * (lower - upper) * 0.6
        brush.disc((x, middle), radius, who.iris)
        brush.disc((x, middle), radius * 0.5, (12, 10, 10))
        brush.disc((x + 1.1, middle - 1.1), 0.6, (245, 245, 245))
    brush.line(top, (skin * 0.28).tolist(), 1.6)
    brush.line(low, (skin * 0.55).tolist(), 1.0)
    brush.soften(low + np.array([0, 3.0]), (skin * 0.6).tolist(), 0.55 * squint, 1.2)
    lift = 4.6 * u["brow_raise"] - 3.8 * u["brow_lower"]
    slant = 4.2 * u["brow_slant"] - 2.4 * max(u["brow_lower"], 0)
    inward = -ARC * side  # 1 at the inner end
    pinch = 1.6 * max(u["brow_lower"], 0) * (inward > 0) * inward
    brow_y = y - 10.5 - lift - slant * inward - 1.6 * (1 - ARC**2)
    brow = np.stack([x + 1.25 * half * ARC - side * pinch, brow_y], 1)
    brush.line(brow, (np.array(who.hair) * 0.8).tolist(), who.brow_weight)


def _draw_nose(brush: _Brush, who: Identity, u: dict[str, float]) -> None:
    skin = np.array(who.skin)
    wrinkle = max(u["nose_wrinkle"], 0)
    tip = who.eye_line + 4 + who.nose - 1.8 * wrinkle
    wing = 6.2 + 1.2 * wrinkle
    for side in (-1, 1):
        brush.line(
            [(80 + side * wing, tip - 2.4), (80 + side * (wing + 0.4), tip + 0.4),
             (80 + side * 3, tip + 1.2)],
            (skin * 0.55).tolist(),
            1.2,
        )  # fmt: skip
        brush.disc((80 + side * 3.0, tip + 0.6), 1.2, (skin * 0.35).tolist())
        for i in range(2):
            y = who.eye_line + 5 + 3.4 * i
            line = [(80 + side * 1.0, y), (80 + side * 5.5, y - 2.4)]
            brush.soften(line, (skin * 0.5).tolist(), 0.85 * wrinkle, 1.2)
        smile = max(u["mouth_corner"], 0)
        fold = [(80 + side * (wing + 1.5), tip - 1), (80 + side * (wing + 8), tip + 6),
                (80 + side * (wing + 9.5), tip + 12)]  # fmt: skip
        brush.soften(fold, (skin * 0.6).tolist(), 0.5 * smile + 0.55 * wrinkle, 1.4)


def _draw_mouth(brush: _Brush, who: Identity, u: dict[str, float]) -> None:
    skin = np.array(who.skin)
    lips = skin * (1 - who.redness) + np.array([150, 60, 62]) * who.redness
    half = who.mouth_width * (1 + 0.28 * u["mouth_width"])
    opening = max(u["mouth_open"], 0) * 6.5
    press = np.clip(u["lip_press"], -0.5, 1)
    lip = who.lip * (1 - 0.62 * press)
    rise = 5.0 * u["mouth_corner"]
    y = who.mouth_line
    curve = 1 - ARC**2
    x = 80 + half * ARC
    line = y - rise * (ARC**2 - 0.45)
    cupid = 0.5 * np.cos(ARC * np.pi * 2.2) * curve
    inner_top, inner_low = line - opening * 0.75 * curve, line + opening * 1.25 * curve
    outer_top = inner_top - lip * curve + cupid * 0.6
    outer_low = inner_low + 1.25 * lip * curve

    def band(top: Any, low: Any) -> Any:
        return np.concatenate([np.stack([x, top], 1), np.stack([x, low], 1)[::-1]])

    brush.fill(band(outer_top, inner_top + 0.2), (lips * 0.78).tolist())
    brush.fill(band(inner_low - 0.2, outer_low), (lips * 0.92).tolist())
    if opening > 0.6:
        brush.fill(band(inner_top, inner_low), (60, 22, 22))
        teeth = np.minimum(inner_low, inner_top + min(opening * 0.55, 3.0) * curve**0.5)
        brush.fill(band(inner_top, teeth), (232, 228, 220))
    brush.line(np.stack([x, inner_top], 1), (lips * 0.45).tolist(), 1.2)
    crease = (skin * 0.55).tolist()
    brush.soften([(72, y + 8), (80, y + 7), (88, y + 8)], crease, 0.7 * max(press, 0), 1.4)
    for side in (-1, 1):  # corners pulled in or down
        corner = (80 + side * half, y - rise * 0.55)
        tail = (80 + side * (half + 2.2), y - rise * 0.95 + 1.0)
        depth = 0.5 * abs(u["mouth_corner"]) + 0.3 * max(press, 0)
        brush.soften([corner, tail], crease, depth, 1.4)
