"""Scatter plots: every point, name and label is in the picture, and the same input gives the same bytes."""

import re

import cv2
import numpy as np
import pytest

from segnas.errors import InputError
from segnas.scatter_figures import Cloud, Panel, panels_picture

CLOUDS = (
    Cloud("searched", (1.0, 2.0), (50.0, 51.0), ("run $a$", "run b")),
    Cloud("random", (1.5, 1.6, 1.7), (40.0, 41.0, 42.0)),
    Cloud("given", (5.0,), (49.0,), ("fast-scnn",)),
)


def texts(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def test_every_point_name_and_label_is_drawn() -> None:
    svg = panels_picture([Panel("one schedule", "measured latency, ms", CLOUDS)], "mIoU, %", form="svg")
    assert {"one schedule", "measured latency, ms", "mIoU, %", "searched", "random", "given", "run $a$", "run b", "fast-scnn"} <= set(texts(svg))
    points = svg.decode().count('<use xlink:href="#m')
    legend, ticks = 3, points - 3 - 6
    assert points - legend - ticks == 6
    without = panels_picture([Panel("one schedule", "measured latency, ms", (CLOUDS[0], CLOUDS[2]))], "mIoU, %", form="svg")
    assert points - without.decode().count('<use xlink:href="#m') >= 3 + 1


def test_several_panels_share_one_key() -> None:
    panels = [Panel(f"panel {i}", f"x {i}", CLOUDS[:2]) for i in range(5)]
    found = texts(panels_picture(panels, "mIoU, %", form="svg"))
    assert [found.count(f"panel {i}") for i in range(5)] == [1] * 5
    assert found.count("searched") == 1
    assert found.count("mIoU, %") == 2  # once a row


def test_a_png_opens_and_is_the_same_each_time() -> None:
    panels = [Panel("one", "x", CLOUDS)]
    png = panels_picture(panels, "y")
    assert png == panels_picture(panels, "y")
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.std() > 5


def test_a_constant_predictor_and_a_single_point_are_drawn() -> None:
    panels_picture([Panel("one", "x", (Cloud("a", (1.0,), (2.0,)), Cloud("b", (), ())))], "y", form="svg")


def test_no_panel_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 is needed"):
        panels_picture([], "y")
