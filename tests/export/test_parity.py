"""Parity figures against hand counts, and what is refused."""

import numpy as np
import pytest

from segnas.errors import InputError, VerificationError
from segnas.export.parity import Truths, parity, require_parity
from segnas.labels import CAMVID

LOGITS = np.array([[[[1.0, 4.0], [0.0, -2.0]], [[3.0, 1.0], [0.0, 5.0]]]], np.float32)  # (1, 2, 2, 2): winners 1 0 / 0 (a tie) 1
IMAGE = np.zeros((1, 3, 2, 2), np.float32)


def compare(candidate: np.ndarray, contract: str, reference: np.ndarray = LOGITS, **options):
    return parity(lambda x: reference, lambda x: candidate, [IMAGE], output_contract=contract, reference_name="torch", **options)


def test_equal_logits_pass():
    found = compare(LOGITS.copy(), "logits")
    assert found.passed
    assert (found.max_abs, found.mean_abs, found.non_finite, found.argmax_agreement, found.images) == (0, 0, 0, 1, 1)
    assert found.cosine == pytest.approx(1)
    assert require_parity(found) is found


def test_differences_of_logits_are_counted():
    other = LOGITS.copy()
    other[0, 0, 0, 0] = 3.5  # class 0 wins there now
    found = compare(other, "logits", required_agreement=0.75)
    assert (found.max_abs, found.mean_abs, found.argmax_agreement) == (2.5, 2.5 / 8, 0.75)
    a, b = LOGITS.ravel().astype(float), other.ravel().astype(float)
    assert found.cosine == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert found.passed
    assert not compare(other, "logits", required_agreement=0.76).passed


def test_a_labels_engine_is_compared_by_class_and_by_what_its_choice_costs():
    right = np.array([[[1, 0], [0, 1]]], np.uint8)
    assert compare(right, "labels").passed
    assert compare(right, "labels").max_abs == 0
    wrong = np.array([[[0, 0], [1, 1]]], np.uint8)  # the second one is the tie: costs nothing, yet is another class
    found = compare(wrong, "labels")
    assert (found.argmax_agreement, found.max_abs, found.mean_abs, found.passed) == (0.5, 2.0, 0.5, False)


def test_several_images_are_added_up():
    answers = iter([np.array([[[1, 0], [0, 1]]], np.uint8), np.array([[[0, 1], [1, 0]]], np.uint8)])
    found = parity(lambda x: LOGITS, lambda x: next(answers), [IMAGE, IMAGE], output_contract="labels", reference_name="torch")
    assert (found.images, found.argmax_agreement) == (2, 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails_on_either_side(value):
    broken = LOGITS.copy()
    broken[0, 1, 1, 1] = value
    for found in (compare(broken, "logits", required_agreement=0.0), compare(LOGITS, "logits", broken, required_agreement=0.0)):
        assert found.non_finite == 1
        assert not found.passed
        assert np.isfinite([found.max_abs, found.mean_abs, found.cosine]).all()


def test_a_failure_is_an_error_with_the_figures():
    with pytest.raises(VerificationError, match=r"25\.0000 % of the pixels.*99\.9900 % are required.*\.rejected") as caught:
        require_parity(compare(np.array([[[0, 1], [0, 0]]], np.uint8), "labels"))
    assert caught.value.exit_code == 5


def test_other_shapes_and_labels_are_refused():
    with pytest.raises(VerificationError, match="shape"):
        compare(LOGITS[:, :, :1], "logits")
    with pytest.raises(VerificationError, match="shape"):
        compare(LOGITS, "labels")
    with pytest.raises(VerificationError, match="label 7"):
        compare(np.full((1, 2, 2), 7, np.uint8), "labels")
    with pytest.raises(InputError, match="0 images"):
        parity(lambda x: LOGITS, lambda x: LOGITS, [], output_contract="logits", reference_name="torch")


def test_the_change_of_miou_by_hand():
    """Train ids are raw ids in CamVid, 11 is void. Truth 1 0 / 0 void; the reference says 1 0 / 0 1, the candidate 1 1 / 0 1."""
    truth = np.array([[1, 0], [0, 11]], np.uint8)
    found = compare(np.array([[[1, 1], [0, 1]]], np.uint8), "labels", truths=Truths(CAMVID, [truth]), required_agreement=0.5)
    assert found.miou_change == pytest.approx((1 / 2 + 1 / 2) / 2 - 1)  # sky: 1 hit of 2; building: 1 hit of 2; the void pixel is free
    assert not found.passed
    with pytest.raises(VerificationError, match=r"mIoU differs by -50\.00 points, of which -1\.00 are allowed"):
        require_parity(found)
    enlarged = np.kron(truth, np.ones((3, 2), np.uint8))
    assert compare(np.array([[[1, 1], [0, 1]]], np.uint8), "labels", truths=Truths(CAMVID, [enlarged])).miou_change == found.miou_change


def test_only_images_with_truth_count_for_miou():
    answers = iter([np.array([[[0, 1], [1, 0]]], np.uint8), np.array([[[1, 0], [0, 1]]], np.uint8)])
    truths = Truths(CAMVID, [None, np.array([[1, 0], [0, 1]], np.uint8)])
    found = parity(
        lambda x: LOGITS,
        lambda x: next(answers),
        [IMAGE, IMAGE],
        output_contract="labels",
        reference_name="torch",
        truths=truths,
        required_agreement=0.4,
    )
    assert (found.miou_change, found.passed, found.argmax_agreement) == (0.0, True, 0.5)
    assert compare(LOGITS, "logits").miou_change is None
    assert compare(LOGITS, "logits", truths=Truths(CAMVID, [None])).miou_change is None


@pytest.mark.parametrize(("lost", "passes"), [(0.0, True), (0.009, True), (0.011, False)])
def test_one_point_of_miou_may_be_lost(lost, passes):
    """A thousand pixels of two classes, of which some change sides."""
    truth = np.repeat(np.array([0, 1], np.uint8), 10_000).reshape(100, 200)
    logits = np.stack([1 - truth, truth])[None].astype(np.float32)
    answer = truth[None].copy()
    answer.reshape(-1)[: round(lost * 10_000)] = 1
    found = compare(answer, "labels", logits, truths=Truths(CAMVID, [truth]), required_agreement=0.5)
    assert found.miou_change == pytest.approx(-lost, rel=0.02, abs=1e-9)
    assert found.passed == passes
