"""Where things stand in a synthetic street: sky, ground, houses, traffic and people, composed at random from far to near."""

import math
from functools import partial
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.street_parts import (
    ID,
    Canvas,
    any_colour,
    bush,
    cyclist,
    lamp,
    leaf_colour,
    mix,
    person,
    shade,
    sign,
    smooth_noise,
    traffic_light,
    tree,
)
from segnas.street_vehicles import big_vehicle, car, crossing_car, house

Bytes = NDArray[np.uint8]
Variety = Literal["full", "core"]
FAR = 110.0  # metres; the street ends there

Thing = tuple[float, float, "partial[None]"]
"""Depth z, sideways place x, and what paints it."""


def compose(canvas: Canvas, variety: Variety = "full") -> None:
    """Paint a street on an empty canvas, everything from far to near.

    `core` leaves out what is rare: walls, fences, trucks, buses, trains, cyclists, traffic lights. Ten scored classes remain.
    """
    full = variety == "full"
    rnd = canvas.rnd
    _sky(canvas)
    _skyline(canvas)
    lanes, lane = rnd.choice((2, 2, 3, 4)), rnd.uniform(2.9, 3.6)
    own = rnd.randrange(lanes // 2, lanes)  # the lane of the camera, counted from the left
    left = -(own + 0.5) * lane + rnd.uniform(-0.3, 0.3)
    edges = (left, left + lanes * lane)
    crossing = rnd.uniform(14, 45) if rnd.random() < 0.35 else None
    walks = (rnd.uniform(1.6, 4.5), rnd.uniform(1.6, 4.5))
    lawns = tuple(rnd.uniform(1, 5) if rnd.random() < 0.3 else 0.0 for _ in range(2))
    _ground(canvas, edges, walks, crossing)
    _markings(canvas, edges, lanes, lane, crossing)
    for side in (0, 1):
        line = edges[side] + (-1, 1)[side] * (walks[side] + lawns[side])
        _frontage(canvas, line, crossing, full)
    things = _traffic(canvas, edges, lanes, lane, own, crossing, full) + _pavement_things(canvas, edges, walks, full)
    things = [thing for thing in things if canvas.sees(thing[1] - 3, thing[1] + 3, thing[0] + 3)]
    _shadows(canvas, things)
    for _, _, draw in _far_to_near(things):
        draw()
    _own_car(canvas)


def _length(thing: Thing) -> float:
    """How far a thing reaches along the street, in metres; 0 for all but vehicles that drive along it."""
    if "oncoming" not in thing[2].keywords:
        return 0.0
    return {"train": 26.0, "bus": 11.5, "truck": 8.0}.get(thing[2].keywords.get("name", ""), 4.5)


def _far_to_near(things: list[Thing]) -> list[Thing]:
    """In the order of painting: by near end, but beside a long vehicle what stands nearer to the camera's axis comes after it."""
    vehicles = [(z, x, z + _length((z, x, draw))) for z, x, draw in things if "oncoming" in draw.keywords]

    def depth(thing: Thing) -> float:
        z, x, _ = thing
        beside = [near for near, where, far in vehicles if near < z < far and x * where >= 0 and abs(x) + 0.9 < abs(where)]
        return min(beside) - 0.01 + z * 1e-5 if beside else z

    return sorted(things, key=depth, reverse=True)


def _sky(canvas: Canvas) -> None:
    """A gradient from zenith to horizon, blue to overcast, with clouds; the haze takes the colour of the horizon."""
    rnd = canvas.rnd
    zenith = mix((88, 138, 205), (188, 194, 202), rnd.random())
    horizon = mix(shade(mix(zenith, (235, 238, 240), 0.6), rnd.uniform(0.85, 1.05)), (240, 205, 170), rnd.random() ** 3 * 0.6)
    zenith, canvas.haze = shade(zenith, rnd.uniform(0.7, 1.15)), shade(horizon, rnd.uniform(0.75, 0.95))
    rows = int(canvas.v0) + 2
    ramp = np.linspace(0, 1, rows)[:, None, None] ** 0.8
    small = (rows // 4 + 2, canvas.width // 4 + 2)
    sky = np.asarray(zenith) * (1 - ramp) + np.asarray(horizon) * ramp  # (rows, 1, 3)
    sky = cv2.resize(np.broadcast_to(sky, (rows, 2, 3)).astype(np.float32), small[::-1], interpolation=cv2.INTER_AREA)
    clouds = smooth_noise(np.random.default_rng(rnd.getrandbits(64)), small, (5, 7)) + 0.5 * smooth_noise(
        np.random.default_rng(rnd.getrandbits(64)), small, (14, 18)
    )
    cover = np.clip((clouds - rnd.uniform(-0.4, 1.6)) * 0.9, 0, rnd.uniform(0.4, 0.9))[..., None]
    sky += (np.float32(rnd.uniform(205, 248)) - sky) * cover
    full = cv2.resize(np.clip(sky, 0, 255).astype(np.uint8), (canvas.width, rows), interpolation=cv2.INTER_LINEAR)
    canvas.pixels[:rows, :, :3] = full
    canvas.pixels[:, :, 3] = ID["sky"]


def _skyline(canvas: Canvas) -> None:
    """Far roofs and tree tops along the whole horizon."""
    rnd, u = canvas.rnd, 0
    leaves = leaf_colour(rnd)
    while u < canvas.width:
        wide = int(canvas.width * rnd.uniform(0.02, 0.1)) + 2
        tall = int(canvas.height * rnd.uniform(0.01, 0.085)) + 1
        bottom = int(canvas.v0) + canvas.height // 40
        if rnd.random() < 0.5:
            paint = canvas.paint(shade(leaves, rnd.uniform(0.7, 1.1)), 110, "vegetation")
            cv2.ellipse(canvas.pixels, (u + wide // 2, bottom), (wide, tall + canvas.height // 40), 0, 180, 360, paint, -1)
        else:
            paint = canvas.paint(any_colour(rnd, 0.7), 130, "building")
            cv2.rectangle(canvas.pixels, (u, bottom), (u + wide, bottom - tall - canvas.height // 40), paint, -1)
        u += wide


def _ground(canvas: Canvas, edges: tuple[float, float], walks: tuple[float, float], crossing: float | None) -> None:
    """Terrain or pavement everywhere, then the street with its kerbs, repairs and a crossing street."""
    rnd = canvas.rnd
    near = canvas.focal * canvas.eye / (canvas.height - canvas.v0) * 0.9
    asphalt = mix(any_colour(rnd, 1.0), (105, 105, 108), 0.72)
    slabs = mix(any_colour(rnd, 0.75), (150, 145, 140), 0.6)
    lawn = mix(leaf_colour(rnd), (150, 135, 100), rnd.random() * 0.7)
    row = int(canvas.v0) + 1
    canvas.pixels[row:] = canvas.paint(lawn, 30, "terrain")
    for step in range(8):  # towards the camera, so that the haze fades
        far, close = 480 * 0.5**step, max(near, 480 * 0.5 ** (step + 1)) if step < 7 else near
        canvas.flat(-300, 300, close, far, lawn, "terrain")
        canvas.flat(edges[0] - walks[0], edges[1] + walks[1], close, far, slabs, "sidewalk")
        canvas.flat(edges[0] - 0.15, edges[1] + 0.15, close, far, shade(slabs, 1.15), "sidewalk")
        canvas.flat(edges[0], edges[1], close, far, asphalt, "road")
    if crossing is not None:
        canvas.flat(-300, 300, crossing - 2.5, crossing + 9.5, slabs, "sidewalk")
        canvas.flat(-300, 300, crossing, crossing + 7, asphalt, "road")
        canvas.flat(*edges, crossing - 2.5, crossing + 9.5, asphalt, "road")
    for _ in range(rnd.randrange(5)):  # repairs, and covers of drains
        x, z = rnd.uniform(*edges), 4 + 30 * rnd.random() ** 2
        right = min(edges[1], x + rnd.uniform(0.4, 2.0))
        canvas.flat(x, right, z, z + rnd.uniform(0.6, 7), shade(asphalt, rnd.uniform(0.78, 1.15)), "road")


def _markings(canvas: Canvas, edges: tuple[float, float], lanes: int, lane: float, crossing: float | None) -> None:
    """Dashes between lanes, edge lines, and stripes or a stop line before a crossing street."""
    rnd = canvas.rnd
    white = mix((225, 225, 220), (120, 120, 120), rnd.random() * 0.6)
    clear = lambda z: crossing is not None and crossing - 5 < z < crossing + 9  # noqa: E731
    dash, gap = rnd.uniform(2, 4), rnd.uniform(3, 7)
    for k in range(1, lanes):
        z = 2 + rnd.uniform(0, gap)
        solid = lanes > 2 and k == lanes // 2
        while z < 90:
            if not clear(z):
                canvas.flat(edges[0] + k * lane - 0.07, edges[0] + k * lane + 0.07, z, z + dash, white, "road")
            z += dash + (0 if solid else gap)
    for x in (edges[0] + 0.25, edges[1] - 0.25) if rnd.random() < 0.5 else ():
        canvas.flat(x - 0.06, x + 0.06, 2, crossing - 5 if crossing else 90, white, "road")
    if crossing is not None and rnd.random() < 0.7:
        x = edges[0] + 0.3
        while x < edges[1] - 0.5:
            canvas.flat(x, x + 0.5, crossing - 4.2, crossing - 1.2, white, "road")
            x += 1.0
    elif crossing is not None:
        canvas.flat(*edges, crossing - 2.8, crossing - 2.3, white, "road")


def _frontage(canvas: Canvas, line: float, crossing: float | None, full: bool) -> None:
    """One side of the street, x = `line`, from far to near: houses, and gaps with trees behind a wall, a fence or nothing."""
    rnd, out = canvas.rnd, math.copysign(1.0, line)
    leaves, green = leaf_colour(rnd), rnd.choice((0.1, 0.25, 0.25, 0.8))
    usual = rnd.uniform(6, 17)
    plots: list[tuple[float, float]] = []
    z = rnd.uniform(0.8, 6)
    while z < FAR:
        end = z + rnd.uniform(8, 26)
        if crossing is None or end < crossing - 2 or z > crossing + 9:
            plots.append((z, end))
            z = end + (rnd.uniform(1, 6) if rnd.random() < 0.3 else 0)
        elif z < crossing - 8:
            plots.append((z, crossing - 3))
            z = crossing + 9.5
        else:
            z = crossing + 9.5
    for start, end in reversed(plots):
        if not canvas.sees(min(line, line + out * 9), max(line, line + out * 9), end):
            continue
        if rnd.random() >= green:
            house(canvas, line + out * rnd.choice((0, 0, 0.4, 1.5)), start, end, max(3.2, usual * rnd.uniform(0.65, 1.35)))
            continue
        for _ in range(3 if start < 60 else 1):
            z = rnd.uniform(start, end)
            tree(canvas, line + out * rnd.uniform(2, 9), z, rnd.uniform(5, 12), shade(leaves, rnd.uniform(0.8, 1.2)))
        for k in range(4 if start < 60 else 1):
            bush(canvas, line + out * rnd.uniform(0.8, 2), end - (end - start) * k / 4, rnd.uniform(1, 2.4), leaves)
        if full:
            _barrier(canvas, line, start, end)


def _barrier(canvas: Canvas, line: float, start: float, end: float) -> None:
    """A wall, a fence of bars (filled in the labels, as in Cityscapes) or nothing along a gap."""
    rnd, kind = canvas.rnd, canvas.rnd.random()
    height, colour = rnd.uniform(0.8, 2.3), any_colour(rnd, 0.65)
    if kind < 0.35:
        canvas.side(line, 0, height, start, end, colour, "wall")
        canvas.side(line, height - 0.12, height, start, end, shade(colour, 1.2), "wall")
    elif kind < 0.75:
        canvas.side(line, 0, height, start, end, mix(leaf_colour(rnd), (80, 80, 80), 0.5), "fence")
        steps = min(40, int((end - start) / 0.35), canvas.size(end - start, start) // 2)
        for k in range(steps):
            z = start + (end - start) * k / steps
            canvas.bar((line, 0, z), (line, height, z), 0.08, colour, "fence")
        for y in (0.2, height - 0.1):
            canvas.side(line, y, y + 0.1, start, end, colour, "fence")


def _traffic(canvas: Canvas, edges: tuple[float, float], lanes: int, lane: float, own: int, crossing: float | None, full: bool) -> list[Thing]:
    """Cars and larger vehicles in their lanes, parked ones at the kerbs, cyclists, and cars that cross."""
    rnd = canvas.rnd
    things: list[Thing] = []
    busy = rnd.uniform(8, 45)
    for k in range(lanes):
        oncoming = k < lanes // 2
        x, z = edges[0] + (k + 0.5) * lane, rnd.uniform(6, 12) if k == own else rnd.uniform(3, 14)
        z += rnd.expovariate(1 / busy)
        while z < 70:
            at, name, draw = x + rnd.uniform(-0.35, 0.35), rnd.random(), car
            long = 5.0
            if full and name < 0.13 and not (abs(at) < 1.6 and z < 14):
                kind = "truck" if name < 0.06 else "bus" if name < 0.11 else "train"
                draw, long = partial(big_vehicle, name=kind), 28.0 if kind == "train" else 13.0
            things.append((z, at, partial(draw, canvas, at, z, oncoming=oncoming)))
            z += long + rnd.uniform(2, 6) + rnd.expovariate(1 / busy)
    for side in (0, 1):
        z = rnd.uniform(3, 12)
        parked = rnd.random() < 0.45
        while parked and z < 60 and (crossing is None or z < crossing - 6):
            x = edges[side] + (0.75, -0.75)[side]
            if rnd.random() < 0.7 and abs(x) > 1.9:
                things.append((z, x, partial(car, canvas, x, z, oncoming=side == 0)))
            z += rnd.uniform(5.2, 7)
    for _ in range(rnd.choice((0, 0, 0, 1, 1, 2)) if full else 0):
        x, z = edges[1] - rnd.uniform(0.4, 1.2), 4 + 30 * rnd.random() ** 1.5
        things.append((z, x, partial(cyclist, canvas, x, z, rnd.choice(("bicycle", "bicycle", "motorcycle")))))
    for _ in range(rnd.randrange(3) if crossing is not None else 0):
        x, z = rnd.uniform(edges[0] - 1, edges[1] + 1), (crossing or 0) + rnd.uniform(1, 5)
        things.append((z, x, partial(crossing_car, canvas, x, z)))
    return things


def _pavement_things(canvas: Canvas, edges: tuple[float, float], walks: tuple[float, float], full: bool) -> list[Thing]:
    """People, trees, bushes, lamps, signs and traffic lights on both pavements; at times someone on the road."""
    rnd, leaves = canvas.rnd, leaf_colour(canvas.rnd)
    things: list[Thing] = []
    for side, out in ((0, -1), (1, 1)):
        kerb, avenue = edges[side] + out * 0.5, rnd.random() < 0.4
        z = rnd.uniform(6.5, 16)
        while z < 60:
            draw = rnd.choice((lamp, sign, traffic_light, lamp, sign) if full else (lamp, sign))
            if avenue and rnd.random() < 0.6:
                draw = partial(tree, height=rnd.uniform(4, 9), leaves=shade(leaves, rnd.uniform(0.8, 1.25)))
            things.append((z, kerb, partial(draw, canvas, kerb, z)))
            z += rnd.uniform(5, 24)
        for _ in range(rnd.randrange(6)):
            x, z = edges[side] + out * rnd.uniform(0.4, walks[side]), 4.5 + 40 * rnd.random() ** 1.6
            things.append((z, x, partial(person, canvas, x, z)))
            if rnd.random() < 0.3:  # in company
                things.append((z + 0.1, x + 0.55, partial(person, canvas, x + 0.55, z + 0.1)))
        for _ in range(rnd.choice((0, 0, 1, 2))):
            x, z = edges[side] + out * (walks[side] + rnd.uniform(-0.3, 0.6)), rnd.uniform(6, 40)
            things.append((z, x, partial(bush, canvas, x, z, rnd.uniform(0.5, 1.3), leaves)))
    for _ in range(rnd.choice((0, 0, 1, 2))):
        x, z = rnd.uniform(*edges), rnd.uniform(8, 30)
        things.append((z, x, partial(person, canvas, x, z)))
    return things


def _shadows(canvas: Canvas, things: list[Thing]) -> None:
    """Darkens the ground under what stands on it, and along one side of the street when the sun is low."""
    rnd = canvas.rnd
    dark = np.zeros(canvas.pixels.shape[:2], np.uint8)
    long = rnd.uniform(0.2, 2.5)
    for z, x, draw in things:
        vehicle = "oncoming" in draw.keywords
        half, depth = (1.0, 4.6) if vehicle else (0.18, 0.35)
        shift = -canvas.sun * long * (0.6 if vehicle else 1.0)
        low, high = min(x - half, x - half + shift), max(x + half, x + half + shift)
        corners = [canvas.at(a, 0, b) for a, b in ((low, z - 0.1), (high, z - 0.1), (high, z + depth), (low, z + depth))]
        cv2.fillConvexPoly(dark, np.array(corners, np.int32), 1)
    if rnd.random() < 0.4:
        reach = rnd.uniform(-3, 4)
        corners = [canvas.at(a, 0, b) for a, b in ((reach, 1.2), (canvas.sun * 60, 1.2), (canvas.sun * 60, FAR), (reach, FAR))]
        cv2.fillConvexPoly(dark, np.array(corners, np.int32), 1)
    ground = np.zeros(256, np.uint8)
    ground[[ID["road"], ID["sidewalk"], ID["terrain"]]] = 1
    below = np.s_[int(canvas.v0) :]
    pixels, dark = canvas.pixels[below], dark[below]
    dark = dark & ground[pixels[:, :, 3]]
    table = np.repeat(np.arange(256, dtype=np.uint8), 4).reshape(1, 256, 4)
    table[..., :3] = table[..., :3] * rnd.uniform(0.45, 0.85)
    cv2.copyTo(cv2.LUT(pixels, table), dark, pixels)


def _own_car(canvas: Canvas) -> None:
    """At times the bonnet of the own car and a black frame of the rectified image, both void."""
    rnd, height, width = canvas.rnd, canvas.height, canvas.width
    if rnd.random() < 0.5:
        tall, tone = int(height * rnd.uniform(0.04, 0.13)), any_colour(rnd, 0.85)
        centre = (width // 2 + int(width * rnd.uniform(-0.05, 0.05)), height + tall // 2)
        for inset, factor in ((0, 0.55), (max(2, tall // 8), 0.8), (max(4, tall // 3), 0.95)):
            red, green, blue = (min(255, int(value)) for value in shade(tone, factor))
            axes = (int(width * 0.62) - 2 * inset, max(0, tall + tall // 2 - inset))
            cv2.ellipse(canvas.pixels, centre, axes, 0, 180, 360, (red, green, blue, ID["ego vehicle"]), -1)
    if rnd.random() < 0.3:
        frame = max(2, height // 100)
        for part in (np.s_[:frame], np.s_[-frame:], np.s_[:, :frame], np.s_[:, -frame:]):
            canvas.pixels[part] = (0, 0, 0, ID["out of roi"])
