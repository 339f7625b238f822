"""The network that SparseMask's authors released: their mask, decoded, over MobileNet-v2 (wuhuikai/SparseMask, commit 2d65213)."""

from segnas.arch import Architecture
from segnas.search.spaces.sparsemask import genotype, sparsemask

STAGES = 9
WIRING: dict[int, tuple[str, ...]] = {
    7: ("e8", "g"),
    6: ("e6", "g"),
    5: ("e5", "g"),
    0: ("e8", "e7", "e6", "e5", "e0", "g", "d7", "d6", "d5"),
}
"""Of each decoder stage that is left what it reads, 15 of 90 links. Stages are numbered from the finest; the encoder's have 32, 16, 24, 32, 64, 96,
160, 320 and 1280 channels.
"""


def sparsemask_released(classes: int) -> Architecture:
    """The released mask: published with 2.22 M parameters in the encoder, .56 M in the decoder, and 73.18 % on VOC 2012 val."""
    return sparsemask(classes).decode(genotype(WIRING, STAGES)).architecture
