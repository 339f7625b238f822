"""Asking: one engine, of whatever input contract and batch, about single images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnas.data import engine_input
from segnas.errors import InputError
from segnas.report import ScoringProtocol
from segnas.runtime.protocol import batch_of, reads_images, scaled
from segnas.runtime.session import Session
from segnas.runtime.upsample import argmax_at, bilinear, nearest

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def tensor_of(session: Session, image: Bytes, size: tuple[int, int]) -> NDArray[Any]:
    """(H, W, 3) RGB -> what the engine reads of one image, resized to `size`: (1, 3, h, w) or (1, h, w, 3)."""
    tensor = engine_input(image, "image" if reads_images(session) else "normalised", *size)
    return tensor.astype(session.specification.input.dtype, copy=False)


def answers(session: Session, tensors: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """The engine's answer to each of at most a batch of images: labels (h, w) or logits (C, h, w).

    A batch that is not full is filled with its last image, and what comes of the filling is thrown away. Needs sessions whose `run` gives memory of
    its own, as all of segnas do: answers are still read while the next is made.
    """
    missing = batch_of(session) - len(tensors)
    if missing < 0 or not tensors:
        raise InputError(f"{len(tensors)} images were given at once; the engine takes {batch_of(session)}")
    given = tensors[0] if len(tensors) == 1 and not missing else np.concatenate([*tensors, *[tensors[-1]] * missing])
    return list(session.run(given)[: len(tensors)])


def labels_at(answer: NDArray[Any], size: tuple[int, int], protocol: ScoringProtocol) -> Bytes:
    """Train ids (H, W) at `size` from labels (h, w) or logits (C, h, w); InputError for labels of another size, unless by protocol `nearest`."""
    if answer.ndim == 3:
        return argmax_at(answer, size, align_corners=protocol.align_corners)
    labels = answer if answer.dtype == np.uint8 else _narrowed(answer)
    if labels.shape == size:
        return labels
    given, wanted = ("x".join(map(str, sides)) for sides in (labels.shape, size))
    if protocol.upsample != "nearest":
        raise InputError(
            f"the engine gives labels at {given}, and {wanted} is needed; labels are not resized silently: export with --output logits, export for "
            f"{wanted}, or say --upsample nearest"
        )
    return nearest(labels, size)


def labels_of_views(session: Session, image: Bytes, size: tuple[int, int], protocol: ScoringProtocol) -> Bytes:
    """Train ids (H, W) at `size`: the class of the largest mean probability over the protocol's scales and mirror images.

    Each view's logits are mirrored back and resized before the softmax, as in the multi-scale evaluation of mmsegmentation and of CoinCheung's
    BiSeNet.
    """
    total: Floats | None = None
    for scale in protocol.scales:
        tensor = tensor_of(session, image, scaled(protocol, scale))
        for mirrored in (False, True)[: 1 + protocol.flip]:
            logits = answers(session, [_mirrored(tensor, reads_images(session)) if mirrored else tensor])[0]
            found = _probabilities(logits[..., ::-1] if mirrored else logits, size, align_corners=protocol.align_corners)
            total = found if total is None else np.add(total, found, out=total)
    assert total is not None
    return argmax_at(total, size)


def _probabilities(logits: NDArray[Any], size: tuple[int, int], *, align_corners: bool) -> Floats:
    """(C, h, w) -> softmax over the classes at `size`, (C, H, W)."""
    scores = np.stack([bilinear(plane, size, align_corners=align_corners) for plane in logits])
    scores -= scores.max(axis=0)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=0)
    return scores


def _mirrored(tensor: NDArray[Any], channels_last: bool) -> NDArray[Any]:
    return np.ascontiguousarray(tensor[:, :, ::-1] if channels_last else tensor[..., ::-1])


def _narrowed(labels: NDArray[Any]) -> Bytes:
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) <= 255:
        raise InputError(f"the engine gives labels {int(labels.min())} to {int(labels.max())}; train ids 0 to 255 are needed")
    return labels.astype(np.uint8)
