"""What a synthetic street is made of: a pinhole camera that paints boxes and polygons given in metres, and the things built from them.

The world: x to the right, y up from the road, z ahead of the camera, in metres. Pixels are (H, W, 4) uint8: R, G, B and the
Cityscapes id, so that one drawing call paints a thing and its label. Colours are (R, G, B) in 0..255.
"""

import math
from collections.abc import Sequence
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.labels import CITYSCAPES

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float, float]
ID: dict[str, int] = {label.name: label.id for label in CITYSCAPES.labels}
NEAR = 0.6  # metres; nothing is drawn nearer to the camera


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker or lighter."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first."""
    (red, green, blue), rest = first, 1 - share
    return red * rest + second[0] * share, green * rest + second[1] * share, blue * rest + second[2] * share


class Canvas:
    """An image being painted from far to near through one camera; all randomness comes from `rnd`."""

    def __init__(self, height: int, width: int, rnd: Random) -> None:
        self.rnd = rnd
        self.height, self.width = height, width
        self.pixels: Bytes = np.zeros((height, width, 4), np.uint8)
        self.focal = width * rnd.uniform(0.75, 1.05)  # pixels
        self.eye = rnd.uniform(1.2, 1.7)  # metres above the road
        self.u0, self.v0 = width * rnd.uniform(0.36, 0.64), height * rnd.uniform(0.38, 0.5)  # vanishing point
        self.haze: Colour = (200, 205, 210)
        self.sight = rnd.uniform(120, 600)  # metres after which 63 % of a colour is haze
        self.sun = rnd.choice((-1, 1))  # the side that the light comes from
        self.contrast = rnd.uniform(0.55, 0.85)  # brightness of a face turned away from it

    def at(self, x: float, y: float, z: float) -> tuple[int, int]:
        """The pixel (column, row) of a point."""
        scale = self.focal / (z if z > NEAR else NEAR)
        return int(self.u0 + x * scale), int(self.v0 + (self.eye - y) * scale)

    def size(self, metres: float, z: float) -> int:
        """A length in pixels, at least 1."""
        return int(metres * self.focal / (z if z > NEAR else NEAR) + 0.5) or 1

    def sees(self, x1: float, x2: float, z: float) -> bool:
        """Whether something from x1 to x2 at depth z reaches into the picture."""
        return z > NEAR and self.at(x2, 0, z)[0] >= 0 and self.at(x1, 0, z)[0] < self.width

    def paint(self, colour: Colour, z: float, name: str) -> tuple[int, int, int, int]:
        """What drawing functions of OpenCV take: the colour in the haze of its depth, and the id."""
        (red, green, blue), haze, clear = colour, self.haze, math.exp(-z / self.sight)
        return (
            min(255, int(haze[0] + (red - haze[0]) * clear)),
            min(255, int(haze[1] + (green - haze[1]) * clear)),
            min(255, int(haze[2] + (blue - haze[2]) * clear)),
            ID[name],
        )

    def polygon(self, points: Sequence[Point], colour: Colour, name: str) -> None:
        """A convex polygon given in metres."""
        depth = sum(point[2] for point in points) / len(points)
        corners = np.array([self.at(*point) for point in points], np.int32)
        cv2.fillConvexPoly(self.pixels, corners, self.paint(colour, depth, name))

    def upright(self, x1: float, x2: float, y1: float, y2: float, z: float, colour: Colour, name: str) -> None:
        """A rectangle that faces the camera."""
        cv2.rectangle(self.pixels, self.at(x1, y1, z), self.at(x2, y2, z), self.paint(colour, z, name), -1)

    def flat(self, x1: float, x2: float, z1: float, z2: float, colour: Colour, name: str, y: float = 0.0) -> None:
        """A rectangle that lies on the ground or on top of something."""
        self.polygon([(x1, y, z1), (x2, y, z1), (x2, y, z2), (x1, y, z2)], colour, name)

    def side(self, x: float, y1: float, y2: float, z1: float, z2: float, colour: Colour, name: str) -> None:
        """A rectangle along the street, such as a facade; darker on the side turned away from the sun."""
        lit = shade(colour, 1.0 if x * self.sun < 0 else self.contrast)
        self.polygon([(x, y1, z1), (x, y2, z1), (x, y2, z2), (x, y1, z2)], lit, name)

    def box(self, x1: float, x2: float, y1: float, y2: float, z1: float, z2: float, colour: Colour, name: str) -> None:
        """A box along the street: its top if below the eye, the side that the camera sees, and its face."""
        if y2 < self.eye:
            self.flat(x1, x2, z1, z2, shade(colour, 1.12), name, y2)
        if x1 > 0 or x2 < 0:
            self.side(x1 if x1 > 0 else x2, y1, y2, z1, z2, colour, name)
        self.upright(x1, x2, y1, y2, z1, shade(colour, 0.9), name)

    def disc(self, x: float, y: float, z: float, radius: float, colour: Colour, name: str) -> None:
        """A filled circle that faces the camera."""
        cv2.circle(self.pixels, self.at(x, y, z), self.size(radius, z), self.paint(colour, z, name), -1)

    def bar(self, start: Point, end: Point, metres: float, colour: Colour, name: str) -> None:
        """A line of a thickness given in metres."""
        paint, width = self.paint(colour, start[2], name), self.size(metres, start[2])
        cv2.line(self.pixels, self.at(*start), self.at(*end), paint, width)


def any_colour(rnd: Random, grey: float, darkest: float = 35) -> Colour:
    """A colour as things of a street have it: with probability `grey` nearly grey, else a muted hue."""
    value = rnd.uniform(darkest, 228)
    if rnd.random() < grey:
        return value + rnd.uniform(-9, 9), value + rnd.uniform(-6, 6), value + rnd.uniform(-9, 9)
    hue, depth = rnd.random() * 6, 0.1 + 0.6 * rnd.random() ** 1.6
    red, green, blue = (value * (1 - depth * min(1.0, abs((hue + k) % 6 - 3) / 1.5)) for k in (0, 2, 4))
    return red, green, blue


def leaf_colour(rnd: Random) -> Colour:
    """Green, at times brownish, yellow or nearly grey."""
    value = rnd.uniform(45, 115)
    return value * rnd.uniform(0.6, 1.15), value, value * rnd.uniform(0.35, 0.75)


def tree(canvas: Canvas, x: float, z: float, height: float, leaves: Colour) -> None:
    """A trunk and a crown of discs, lighter towards the top; all of it is vegetation."""
    rnd, crown = canvas.rnd, height * canvas.rnd.uniform(0.24, 0.36)
    bark = shade((96, 80, 66), rnd.uniform(0.6, 1.3))
    canvas.bar((x, 0, z), (x + rnd.uniform(-0.3, 0.3), height - crown, z), height * 0.035, bark, "vegetation")
    pixels = canvas.size(crown, z) / canvas.height
    count = 6 if pixels < 0.05 else 11 if pixels < 0.15 else 18
    for k in range(count):
        level = k / (count - 1)  # 0 at the bottom of the crown
        spread = crown * math.sin(math.pi * (0.18 + 0.72 * level))
        y = height - 2 * crown + 1.75 * crown * level
        tone = shade(leaves, (0.62 + 0.5 * level) * rnd.uniform(0.85, 1.15))
        canvas.disc(x + rnd.uniform(-1, 1) * spread, y, z, crown * rnd.uniform(0.34, 0.56) * (1 if count < 18 else 0.85), tone, "vegetation")


def bush(canvas: Canvas, x: float, z: float, height: float, leaves: Colour) -> None:
    """A low heap of leaves on the ground."""
    rnd = canvas.rnd
    for k in range(5):
        tone = shade(leaves, rnd.uniform(0.7, 1.1))
        canvas.disc(x + (k - 2) * height * 0.5, height * rnd.uniform(0.3, 0.5), z, height * rnd.uniform(0.4, 0.55), tone, "vegetation")


def lamp(canvas: Canvas, x: float, z: float) -> None:
    """A street lamp: a pole with an arm over the road."""
    rnd, colour = canvas.rnd, any_colour(canvas.rnd, 1.0)
    height, reach = rnd.uniform(5, 9), -math.copysign(rnd.uniform(0.8, 2.2), x)
    canvas.bar((x, 0, z), (x, height, z), 0.13, colour, "pole")
    canvas.bar((x, height, z), (x + reach, height + 0.3, z), 0.1, colour, "pole")
    canvas.bar((x + reach * 0.7, height + 0.2, z), (x + reach, height + 0.3, z), 0.2, shade(colour, 1.2), "pole")


def traffic_light(canvas: Canvas, x: float, z: float) -> None:
    """A pole with a dark box of three lamps, one of them lit."""
    rnd, colour = canvas.rnd, any_colour(canvas.rnd, 1.0)
    height = rnd.uniform(2.4, 3.4)
    canvas.bar((x, 0, z), (x, height + 0.5, z), 0.12, colour, "pole")
    canvas.upright(x - 0.2, x + 0.2, height - 0.5, height + 0.55, z, shade((40, 42, 40), rnd.uniform(0.5, 1.6)), "traffic light")
    lit = rnd.randrange(3)
    for k, lamp_colour in enumerate(((235, 50, 40), (240, 180, 40), (60, 220, 120))):
        canvas.disc(x, height + 0.35 - 0.33 * k, z, 0.12, lamp_colour if k == lit else (28, 28, 28), "traffic light")


def sign(canvas: Canvas, x: float, z: float) -> None:
    """A pole with one or two signs: round, triangular or a board, in the colours of European roads."""
    rnd = canvas.rnd
    height = rnd.uniform(1.9, 3.0)
    canvas.bar((x, 0, z), (x, height, z), 0.08, any_colour(rnd, 1.0), "pole")
    for y in (height, height - 0.75)[: rnd.choice((1, 1, 2))]:
        kind, rim = rnd.randrange(4), rnd.choice(((200, 30, 35), (30, 80, 180), (200, 30, 35)))
        inner = rnd.choice(((235, 235, 235), rim, (240, 240, 240)))
        if kind == 0:
            canvas.polygon([(x - 0.42, y - 0.3, z), (x + 0.42, y - 0.3, z), (x, y + 0.42, z)], rim, "traffic sign")
            canvas.polygon([(x - 0.26, y - 0.21, z), (x + 0.26, y - 0.21, z), (x, y + 0.24, z)], (235, 235, 235), "traffic sign")
        elif kind == 1:
            board = rnd.choice(((30, 90, 190), (225, 190, 40), (235, 235, 235)))
            canvas.upright(x - 0.5, x + 0.5, y - 0.3, y + 0.35, z, board, "traffic sign")
            canvas.upright(x - 0.35, x + 0.3, y - 0.02, y + 0.12, z, mix(board, (255, 255, 255), 0.7), "traffic sign")
        else:
            canvas.disc(x, y, z, 0.37, rim, "traffic sign")
            canvas.disc(x, y, z, 0.25, inner, "traffic sign")


def person(canvas: Canvas, x: float, z: float, base: float = 0.0, name: str = "person") -> None:
    """Someone who stands or walks, 1.1 to 1.9 m tall, in any clothes; `base` is the height of the ground under the feet."""
    rnd = canvas.rnd
    unit = rnd.uniform(1.1, 1.4) / 1.75 if rnd.random() < 0.12 else rnd.uniform(1.55, 1.9) / 1.75
    coat, trousers = any_colour(rnd, 0.45), shade(any_colour(rnd, 0.5), 0.75)
    skin = shade((225, 178, 150), rnd.uniform(0.4, 1.05))
    stride, turn = rnd.uniform(0.02, 0.28) * unit, rnd.uniform(0.75, 1.1)

    def y(metres: float) -> float:
        return base + metres * unit

    for foot in (-1, 1):
        canvas.bar((x + foot * 0.08, y(0.85), z), (x + foot * (0.06 + stride), y(0.05), z), 0.17 * unit, trousers, name)
    half = 0.24 * unit * turn
    canvas.polygon([(x - half * 0.85, y(0.78), z), (x + half * 0.85, y(0.78), z), (x + half, y(1.42), z), (x - half, y(1.42), z)], coat, name)
    for arm in (-1, 1):
        hand = (x + arm * half * rnd.uniform(1.0, 1.5), y(rnd.uniform(0.75, 1.0)), z)
        canvas.bar((x + arm * half * 0.95, y(1.36), z), hand, 0.11 * unit, shade(coat, 0.85), name)
    canvas.disc(x, y(1.6), z, 0.125 * unit, skin, name)
    canvas.disc(x, y(1.66), z, 0.1 * unit, shade((70, 55, 45), rnd.uniform(0.4, 2.2)), name)
    if rnd.random() < 0.3:
        side = rnd.choice((-1, 1)) * half
        canvas.upright(x + side * 0.9, x + side * 1.7, y(0.7), y(1.05), z, any_colour(rnd, 0.4), name)


def cyclist(canvas: Canvas, x: float, z: float, name: str = "bicycle") -> None:
    """A rider seen from the side or along the road, on a bicycle or a motorcycle."""
    rnd, colour = canvas.rnd, any_colour(canvas.rnd, 0.4)
    across, heavy = rnd.random() < 0.5, name == "motorcycle"
    reach = 0.52 if across else 0.1
    for end in (-1, 1) if across else (0,):
        hub, radius = canvas.at(x + end * reach, 0.34, z), (canvas.size(0.33 if across else 0.06, z), canvas.size(0.34, z))
        tone = canvas.paint((120, 120, 120) if across and not heavy else (30, 30, 30), z, name)
        cv2.ellipse(canvas.pixels, hub, radius, 0, 0, 360, tone, -1)
        cv2.ellipse(canvas.pixels, hub, radius, 0, 0, 360, canvas.paint((25, 25, 25), z, name), canvas.size(0.06, z))
    tube = 0.3 if heavy else 0.07
    canvas.bar((x - reach * 0.6, 0.45, z), (x + reach * 0.6, 0.75, z), tube, colour, name)
    canvas.bar((x + reach, 0.35, z), (x + reach * 0.75, 0.95, z), 0.07, colour, name)
    canvas.bar((x + reach * 0.75 - 0.22, 1.0, z), (x + reach * 0.75 + 0.22, 1.0, z), 0.06, (40, 40, 40), name)
    coat, trousers = any_colour(rnd, 0.4), shade(any_colour(rnd, 0.5), 0.7)
    lean = 0.25 if across else 0.0
    for knee in (-0.1, 0.12):
        canvas.bar((x - lean, 0.92, z), (x + knee, 0.42, z), 0.15, trousers, "rider")
    canvas.polygon(
        [(x - lean - 0.17, 0.88, z), (x - lean + 0.17, 0.88, z), (x + lean * 0.5 + 0.22, 1.45, z), (x + lean * 0.5 - 0.22, 1.45, z)], coat, "rider"
    )
    canvas.bar((x + lean * 0.5, 1.35, z), (x + reach * 0.75, 1.02, z), 0.1, shade(coat, 0.85), "rider")
    canvas.disc(x + lean * 0.8, 1.63, z, 0.13, shade((225, 178, 150), rnd.uniform(0.4, 1.0)), "rider")
    canvas.disc(x + lean * 0.8, 1.68, z, 0.12, any_colour(rnd, 0.5), "rider")


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> Floats:
    """Smooth noise of about unit variance: `size` (H, W) from a grid of `cells`."""
    grid = rng.standard_normal(cells, np.float32)
    return cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32, copy=False)
