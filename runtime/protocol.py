"""Protocol: how an engine is asked about an image, settled before the first one, so that results can say it and impossible wishes end at once."""

from dataclasses import replace

from segnas.errors import InputError
from segnas.report import ScoringProtocol, Sizes
from segnas.runtime.session import Session


def reads_images(session: Session) -> bool:
    """Whether the engine reads images (N, H, W, 3) uint8 and normalises by itself, rather than (N, 3, H, W) normalised."""
    return session.specification.input.dtype == "uint8"


def batch_of(session: Session) -> int:
    """The images that the engine takes at once; 1 where it takes any number."""
    return max(1, session.specification.input.shape[0])


def settled(session: Session, wish: ScoringProtocol, sizes: Sizes | None = None) -> ScoringProtocol:
    """The protocol with nothing left to choose; `sizes` are those of a dynamic engine.

    InputError for what this engine cannot do: another size or other scales than its own where it is static, flipping, several scales or aligned
    corners where it gives labels, an upsampling that is not for what it gives.
    """
    spec = session.specification
    if len(spec.input.shape) != 4 or spec.input.shape[3 if reads_images(session) else 1] != 3:
        raise InputError(f"the engine reads {spec.input}; one that reads images of 3 channels is needed")
    if not wish.scales or len(set(wish.scales)) < len(wish.scales) or not all(0.1 <= scale <= 4 for scale in wish.scales):
        given = ", ".join(f"{scale:g}" for scale in wish.scales)
        raise InputError(f"scales {given} were given; different ones from 0.1 to 4 are needed, such as 0.75,1,1.25")
    for asked, what in ((wish.scales != (1.0,), "several scales"), (wish.flip, "flipping"), (wish.align_corners, "aligned corners")):
        if asked and spec.gives_labels:
            raise InputError(f"{what} cannot be had of an engine that gives labels: it needs scores; export with --output logits")
    own = "none" if spec.gives_labels else "bilinear"
    allowed = ("none", "nearest") if spec.gives_labels else ("bilinear",)
    chosen = replace(wish, size=_size(session, wish), upsample=wish.upsample or own)
    if chosen.upsample not in allowed:
        what = "labels: none or nearest" if spec.gives_labels else "logits, which are resized bilinearly before the argmax"
        raise InputError(f"upsample {chosen.upsample!r} was asked for; this engine gives {what}")
    for scale in wish.scales:
        _require_size(session, scaled(chosen, scale), sizes)
    return chosen


def scaled(protocol: ScoringProtocol, scale: float) -> tuple[int, int]:
    """The size (height, width) that an image is resized to at that scale, of a settled protocol."""
    assert protocol.size is not None
    return max(1, round(protocol.size[0] * scale)), max(1, round(protocol.size[1] * scale))


def answer_size(session: Session, protocol: ScoringProtocol) -> tuple[int, int]:
    """The size (height, width) that the engine answers at, at scale 1 of a settled protocol; a dynamic one answers at what it reads."""
    own = session.specification.output.shape[-2:]
    height, width = (side if side > 0 else read for side, read in zip(own, scaled(protocol, 1.0), strict=True))
    return height, width


def described(session: Session, protocol: ScoringProtocol) -> str:
    """A settled protocol in a sentence, without which images it was applied to."""
    assert protocol.size is not None
    scales = ", ".join(f"{scale:g}" for scale in protocol.scales)
    views = "single scale" if protocol.scales == (1.0,) else f"scale{'s' if len(protocol.scales) > 1 else ''} {scales}"
    flip = "with flip" if protocol.flip else "no flip"
    flip += ", mean probabilities of all views" if protocol.flip or len(protocol.scales) > 1 else ""
    corners = "corners aligned" if protocol.align_corners else "half-pixel centres"
    answer = f"logits bilinear ({corners}) to the ground truth's size where it differs, then argmax"
    if session.specification.gives_labels:
        answer = f"argmax in the engine, labels at {'x'.join(map(str, answer_size(session, protocol)))}"
        answer += ", nearest-neighbour to the ground truth's size where it differs" if protocol.upsample == "nearest" else ""
    return (
        f"whole image, {views}, {flip}; image bilinear to {protocol.size[0]}x{protocol.size[1]} where it differs, normalised; {answer}; "
        "raw label ids, official Cityscapes semantics: void truth ignored, mean over classes that occur"
    )


def _size(session: Session, wish: ScoringProtocol) -> tuple[int, int]:
    """The size at scale 1: what was asked for, else the engine's own, which a dynamic one has from its target."""
    height, width = _own(session)
    if wish.size is not None:
        return wish.size
    return (height, width) if min(height, width) > 0 else (session.target.height, session.target.width)


def _own(session: Session) -> tuple[int, int]:
    shape = session.specification.input.shape
    return (shape[1], shape[2]) if reads_images(session) else (shape[2], shape[3])


def _require_size(session: Session, size: tuple[int, int], sizes: Sizes | None) -> None:
    """InputError where the engine does not take that size."""
    own, given = _own(session), f"{size[0]}x{size[1]}"
    if any(side > 0 and side != wanted for side, wanted in zip(own, size, strict=True)):
        raise InputError(
            f"the engine reads {session.specification.input}, and {given} was asked for; other scales and sizes need a dynamic engine: export one, "
            "or leave out --scales and --size"
        )
    if sizes is not None and any(not least <= side <= most for least, side, most in zip(sizes.least, size, sizes.most, strict=True)):
        low, high = ("x".join(map(str, side)) for side in (sizes.least, sizes.most))
        raise InputError(f"{given} was asked for; this dynamic engine takes {low} to {high}: choose other --scales or --size, or export it for more")
