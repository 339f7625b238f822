"""SparseMask (Wu, Zhang and Huang, ICCV 2019): which features of a fully dense decoder are read at all.

From the paper and the released code (wuhuikai/SparseMask, commit 2d65213): MobileNet-v2 with nine stages; a decoder stage at each of them, which may
read every encoder stage that is as deep or deeper, every deeper decoder stage, and the global mean of the last feature; an edge is a 1x1
convolution to 64 channels with a normalisation, a bilinear resize (corners aligned) and a gate; a stage is the sum of its edges; a classifier on the
finest one. L (L + 1) edges, 90, 2^90 wirings; the operation is fixed.
Ours: the convolution, its normalisation and ReLU6 in this order (the paper has ReLU6 first); no normalisation behind the sum, which has none to
undo; the global mean is pooled by each edge that reads it; of the finest stage's links from the encoder and the mean at least one is on, so that
every genotype is a network.
"""

from dataclasses import dataclass

from segnas.kinds import kind
from segnas.search.draft import Draft
from segnas.search.slots import Link
from segnas.search.space import Space
from segnas.search.spaces.backbone import mobilenet_v2

EDGE = kind("conv", kernel=1, activation="relu6")
MEAN = kind("grid_pool", activation="relu6")


@dataclass(frozen=True, slots=True)
class Decoder:
    """A dense decoder in the making: the encoder's stages, the finest first, and the width of every edge."""

    draft: Draft
    stages: tuple[int, ...]
    width: int

    def edge(self, stage: int, feature: int, name: str) -> int:
        """One edge into a stage: a 1x1 unit (behind the global mean for `g`), resized to the stage."""
        unit = self.draft.node(MEAN if name == "g" else EDGE, feature, channels=self.width, label=f"stage{stage}.{name}")
        deeper = self.draft.level(unit) - self.draft.level(self.stages[stage])
        if deeper == 0:
            return unit
        return self.draft.node(kind("resize", align_corners=True), unit, up=2**deeper, label=f"stage{stage}.{name}.up")

    def finish(self, feature: int, classes: int) -> None:
        """The classifier on the finest stage, and its resize to the image."""
        logits = self.draft.node(kind("classifier"), feature, channels=classes, label="classifier")
        self.draft.resize(logits, 0, "output")


def sparsemask(classes: int) -> Space:
    """The paper's search network: the nine stages of MobileNet-v2, 1/2 to 1/32, 90 links, 64 channels."""
    draft = Draft("sparsemask")
    return dense_decoder(draft, mobilenet_v2(draft, last=True), classes, width=64)


def sparsemask_small(classes: int) -> Space:
    """The preset that a CPU can search: MobileNet-v2 of half the width from 1/4 on, six stages, 42 links, 32 channels; our choice."""
    draft = Draft("sparsemask-small")
    return dense_decoder(draft, mobilenet_v2(draft, width=0.5)[2:], classes, width=32)


def dense_decoder(draft: Draft, stages: tuple[int, ...], classes: int, *, width: int) -> Space:
    """A decoder stage at each of the encoder's, the deepest first; the decisions are `link.STAGE.SOURCE`.

    Stages are numbered as the encoder's, 0 the finest; a source is `eN` (encoder), `dN` (decoder) or `g` (the global mean).
    """
    decoder, made = Decoder(draft, stages, width), dict[int, int]()
    for stage in reversed(range(len(stages))):
        features = {name: made[int(name[1:])] if name[0] == "d" else stages[int(name[1:] or -1)] for name in sources(stage, len(stages))}
        links = [Link(decoder.edge(stage, feature, name), f"link.{stage}.{name}") for name, feature in features.items()]
        made[stage] = draft.node("add", *links, label=f"stage{stage}")
    sure = [f"link.0.{name}" for name in sources(0, len(stages)) if name[0] != "d"]
    draft.keep(sure, 1, len(sure))
    decoder.finish(made[0], classes)
    return draft.space()


def sources(stage: int, stages: int) -> tuple[str, ...]:
    """What a decoder stage may read, in the order of its links: encoder stages, decoder stages, the global mean."""
    return (*(f"e{i}" for i in range(stage, stages)), *(f"d{i}" for i in range(stage + 1, stages)), "g")


def genotype(wiring: dict[int, tuple[str, ...]], stages: int) -> dict[str, int]:
    """The decisions under which each stage reads what the wiring says, and nothing else is on."""
    return {f"link.{stage}.{name}": int(name in wiring.get(stage, ())) for stage in reversed(range(stages)) for name in sources(stage, stages)}
