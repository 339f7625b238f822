"""The decoders that Fast-NAS published, as members of our space (nn/micro_decoders.py and the tests of the released code)."""

from segnas.arch import Architecture
from segnas.search.designs import Design
from segnas.search.spaces.fastnas import fast_nas

ARCH0 = Design(8, ((0, 0, 5, 2), (0, 2, 8, 8), (0, 5, 1, 4)), ((3, 3), (3, 2), (3, 0)))
"""78.0 % mean IoU on VOC's validation set, 2.6 M parameters, 4.47 B multiply-adds and 109 ms at 512x512 on a Jetson TX2 (all recalled)."""
ARCH1 = Design(2, ((1, 0, 3, 6), (0, 1, 2, 8), (2, 0, 6, 1)), ((2, 3), (3, 1), (4, 4)))
"""77.1 %, 2.8 M, 2.95 B, 67.6 ms. Its first layer reads entry 1, which one version of the released controller cannot choose."""
ARCH2 = Design(5, ((0, 0, 4, 1), (3, 2, 0, 1), (5, 6, 5, 0)), ((1, 3), (4, 3), (2, 2)))
"""77.3 %, 2.9 M, 3.47 B, 64.6 ms."""


def fast_nas_0(classes: int) -> Architecture:
    """MobileNet-v2 with the first published decoder."""
    return _published(ARCH0, classes)


def fast_nas_1(classes: int) -> Architecture:
    """MobileNet-v2 with the second published decoder."""
    return _published(ARCH1, classes)


def fast_nas_2(classes: int) -> Architecture:
    """MobileNet-v2 with the third published decoder."""
    return _published(ARCH2, classes)


def _published(design: Design, classes: int) -> Architecture:
    return fast_nas(classes).decode(design.genotype).architecture
