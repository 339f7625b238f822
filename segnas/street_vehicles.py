"""The vehicles and the houses of a synthetic street, painted on a `segnas.street_parts.Canvas`."""

import math

import cv2
import numpy as np

from segnas.street_parts import Canvas, Colour, any_colour, mix, shade

GLASS: Colour = (52, 60, 68)
TYRE: Colour = (24, 24, 26)


def _wheel(canvas: Canvas, x: float, z: float, radius: float, name: str) -> None:
    """A wheel seen on the side of a vehicle that drives along the street."""
    turn = [(math.cos(k * math.pi / 5), math.sin(k * math.pi / 5)) for k in range(10)]
    canvas.polygon([(x, radius + radius * b, z + radius * a) for a, b in turn], TYRE, name)
    canvas.polygon([(x, radius + radius * 0.5 * b, z + radius * 0.5 * a) for a, b in turn], (125, 125, 128), name)


def car(canvas: Canvas, x: float, z: float, *, oncoming: bool) -> None:
    """A car along the street, its near end at z: seen from behind, or from the front when `oncoming`."""
    rnd = canvas.rnd
    colour, glass = any_colour(rnd, 0.65), mix(GLASS, canvas.haze, rnd.uniform(0, 0.45))
    half, length, tall = rnd.uniform(0.82, 0.95), rnd.uniform(3.6, 4.9), rnd.uniform(1.38, 1.75)
    waist, x1, x2, seen = tall * 0.6, x - half, x + half, x - math.copysign(half, x)
    start = z + (length * 0.27 if oncoming else rnd.uniform(0.05, 0.5))  # where the cabin begins and ends
    end = start + length * rnd.uniform(0.5, 0.6)
    canvas.upright(x1 + 0.03, x1 + 0.25, 0, 0.4, z + 0.1, TYRE, "car")
    canvas.upright(x2 - 0.25, x2 - 0.03, 0, 0.4, z + 0.1, TYRE, "car")
    canvas.box(x1, x2, 0.22, waist, z, z + length, colour, "car")
    if x1 > 0 or x2 < 0:
        for axle in (0.78, length - 0.85):
            _wheel(canvas, seen, z + axle, 0.33, "car")
        inner = seen + math.copysign(0.14, x)
        slope = [(seen, waist, start - 0.1), (inner, tall, start + 0.35), (inner, tall, end - 0.5), (seen, waist, end + 0.1)]
        canvas.polygon(slope, shade(colour, canvas.contrast if x * canvas.sun > 0 else 1.0), "car")
        pane = [(seen, waist + 0.06, start + 0.2), (inner, tall - 0.1, start + 0.5), (inner, tall - 0.1, end - 0.65), (seen, waist + 0.06, end - 0.2)]
        canvas.polygon(pane, glass, "car")
    if tall < canvas.eye:
        canvas.flat(x1 + 0.14, x2 - 0.14, start + 0.35, end - 0.5, shade(colour, 1.1), "car", tall)
    top = start + 0.3
    canvas.polygon([(x1 + 0.02, waist, start), (x2 - 0.02, waist, start), (x2 - 0.16, tall, top), (x1 + 0.16, tall, top)], shade(colour, 0.95), "car")
    canvas.polygon(
        [(x1 + 0.14, waist + 0.06, start), (x2 - 0.14, waist + 0.06, start), (x2 - 0.24, tall - 0.09, top), (x1 + 0.24, tall - 0.09, top)],
        glass,
        "car",
    )
    lights: Colour = (245, 245, 235) if oncoming else (190, 30, 28)
    for left in (x1 + 0.04, x2 - 0.34):
        canvas.upright(left, left + 0.3, waist - 0.26, waist - 0.1, z, lights, "car")
    canvas.upright(x - 0.26, x + 0.26, 0.42, 0.53, z, (225, 225, 215), "car")
    canvas.upright(x1, x2, 0.22, 0.34, z, shade(colour, 0.45), "car")


def crossing_car(canvas: Canvas, x: float, z: float) -> None:
    """A car that drives across, seen from its side."""
    rnd = canvas.rnd
    colour, glass = any_colour(rnd, 0.65), mix(GLASS, canvas.haze, rnd.uniform(0, 0.4))
    half, tall, way = rnd.uniform(1.8, 2.4), rnd.uniform(1.38, 1.7), rnd.choice((-1, 1))
    waist = tall * 0.58

    def outline(points: list[tuple[float, float]], tone: Colour) -> None:
        canvas.polygon([(x + way * half * a, b, z) for a, b in points], tone, "car")

    outline([(-0.98, 0.25), (1.0, 0.25), (0.98, waist * 0.85), (0.5, waist), (-0.95, waist)], colour)
    outline([(-0.85, waist), (0.42, waist), (0.12, tall), (-0.6, tall)], shade(colour, 0.95))
    outline([(-0.7, waist + 0.05), (-0.2, waist + 0.05), (-0.2, tall - 0.1), (-0.55, tall - 0.1)], glass)
    outline([(-0.14, waist + 0.05), (0.32, waist + 0.05), (0.08, tall - 0.1), (-0.14, tall - 0.1)], glass)
    for axle in (-0.62, 0.62):
        canvas.disc(x + way * half * axle, 0.33, z, 0.33, TYRE, "car")
        canvas.disc(x + way * half * axle, 0.33, z, 0.17, (130, 130, 132), "car")


def big_vehicle(canvas: Canvas, x: float, z: float, name: str, *, oncoming: bool) -> None:
    """A "truck", "bus" or "train" (tram) along the street, its near end at z."""
    rnd, colour = canvas.rnd, any_colour(canvas.rnd, 0.5)
    half, length, tall = {"truck": (1.2, 8.0, 3.4), "bus": (1.27, 11.5, 3.1), "train": (1.3, 26.0, 3.5)}[name]
    tall *= rnd.uniform(0.85, 1.1)
    x1, x2, seen = x - half, x + half, x - math.copysign(half, x)
    for left in (x1 + 0.1, x2 - 0.45):
        canvas.upright(left, left + 0.35, 0, 0.6, z + 0.1, TYRE, name)
    canvas.box(x1, x2, 0.35, tall, z, z + length, colour, name)
    beside, glass = x1 > 0 or x2 < 0, mix(GLASS, canvas.haze, rnd.uniform(0, 0.4))
    if beside:
        for axle in (1.6, length - 1.8):
            _wheel(canvas, seen, z + axle, 0.48, name)
    if name != "truck":
        panes = int(length / 1.6)
        for k in range(panes if beside else 0):
            begin = z + 0.4 + k * 1.6
            canvas.side(seen, tall * 0.45, tall * 0.8, begin, begin + 1.35, glass, name)
        canvas.upright(x1 + 0.12, x2 - 0.12, tall * 0.42, tall * 0.82, z, glass, name)
    elif oncoming:
        canvas.upright(x1 + 0.15, x2 - 0.15, tall * 0.42, tall * 0.68, z, glass, name)
    else:
        canvas.upright(x - 0.03, x + 0.03, 0.7, tall - 0.1, z, shade(colour, 0.6), name)
    for left in (x1 + 0.08, x2 - 0.33):
        canvas.upright(left, left + 0.25, 0.6, 0.8, z, (245, 245, 235) if oncoming else (190, 30, 28), name)


def house(canvas: Canvas, x: float, z1: float, z2: float, height: float) -> None:
    """A house at the side of the street: its gable towards the camera, its facade from z1 to z2 at x with rows of windows, and a roof."""
    rnd, out = canvas.rnd, math.copysign(1.0, x)
    colour = any_colour(rnd, 0.6, darkest=80)
    canvas.upright(x, x + out * 14, 0, height, z1, shade(colour, rnd.uniform(0.7, 0.95)), "building")
    canvas.side(x, 0, height, z1, z2, colour, "building")
    if rnd.random() < 0.45:
        slope = shade(rnd.choice(((130, 70, 55), (80, 80, 88), (105, 85, 75))), rnd.uniform(0.7, 1.2))
        rise = rnd.uniform(1.2, 3.0)
        far = x + out * rise * 1.1
        canvas.polygon([(x, height, z1), (x, height, z2), (far, height + rise, z2), (far, height + rise, z1)], slope, "building")
        canvas.polygon([(x, height, z1), (far, height + rise, z1), (x + out * 14, height, z1)], shade(colour, 0.85), "building")
    else:
        canvas.side(x, height - 0.5, height + 0.15, z1, z2, shade(colour, rnd.uniform(0.6, 1.25)), "building")
    _windows(canvas, x, z1, z2, height, colour)


def _windows(canvas: Canvas, x: float, z1: float, z2: float, height: float, wall: Colour) -> None:
    """Rows of windows over a ground floor, which may be shops."""
    rnd = canvas.rnd
    storey, pitch = rnd.uniform(2.8, 3.6), rnd.uniform(1.8, 3.4)
    ground = rnd.uniform(3.0, 4.2)
    if canvas.size(1.2, z1) < canvas.height / 80:
        return
    glass = mix(shade(GLASS, rnd.uniform(0.7, 1.8)), canvas.haze, rnd.uniform(0, 0.3))
    if rnd.random() < 0.4:  # shops
        canvas.side(x, 0.4, ground - 0.7, z1 + 0.5, z2 - 0.5, shade(glass, 0.8), "building")
        canvas.side(x, ground - 0.7, ground - 0.2, z1 + 0.3, z2 - 0.3, any_colour(rnd, 0.2), "building")
        bottom = ground
    else:
        canvas.side(x, 0, rnd.uniform(0.4, 1.0), z1, z2, shade(wall, 0.7), "building")
        bottom = 0.6
    rows, columns = int((height - 0.6 - bottom) / storey), int((z2 - z1 - 0.6) / pitch)
    if rows < 1 or columns < 1:
        return
    wide, tall = pitch * rnd.uniform(0.4, 0.7), storey * rnd.uniform(0.45, 0.65)
    base = bottom + storey * 0.25 + storey * np.arange(rows)  # (rows,)
    begin = z1 + 0.5 + pitch * np.arange(columns)  # (columns,)
    frame = shade(wall, rnd.choice((0.75, 1.25)))
    far = float(begin.mean())
    trim = rnd.uniform(0.06, 0.18)
    for grow, tone in ((trim, frame), (0.0, glass)):
        quads = _quads(canvas, x, base - grow, base + tall + grow, begin - grow, begin + wide + grow)
        lit = shade(tone, 1.0 if x * canvas.sun < 0 else canvas.contrast)
        cv2.fillPoly(canvas.pixels, list(quads), canvas.paint(lit, far, "building"))
    blinds = quads[[rnd.random() < 0.2 for _ in range(len(quads))]]
    if len(blinds):
        cv2.fillPoly(canvas.pixels, list(blinds), canvas.paint(mix(glass, (225, 215, 190), rnd.uniform(0.3, 0.8)), far, "building"))


def _quads(canvas: Canvas, x: float, low: np.ndarray, high: np.ndarray, near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """The corners of rows x columns upright rectangles at x: (rows * columns, 4, 2) int32."""
    corners = np.empty((len(low), len(near), 4, 2))
    for k, (y, z) in enumerate(((low, near), (high, near), (high, far), (low, far))):
        scale = canvas.focal / np.maximum(z, 0.6)
        corners[:, :, k, 0] = canvas.u0 + x * scale
        corners[:, :, k, 1] = canvas.v0 + (canvas.eye - y[:, None]) * scale
    return corners.reshape(-1, 4, 2).round().astype(np.int32)
