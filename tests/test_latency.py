"""Targets and latency tables: what a missing entry says, estimates as hand sums, the calibration, and that no two targets mix."""

import math
import random
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.arch import Architecture, Node, Operation, Shape, argmax_operation
from segnas.errors import IncompatibleError, InputError
from segnas.kinds import kind
from segnas.latency import Calibration, Entry, LatencyTable, Probe, priced_operations
from segnas.latency_tables.compose import most_telling
from segnas.target import Target, parse_size

TARGET = Target("a cpu", "onnxruntime", "1.27.0", "fp32", 64, 96, threads=2, options=(("spinning", "off"),))
NETWORK = Architecture(
    (
        Node(kind("image"), (), 3),
        Node(kind("stem"), (0,), 16, 4),
        Node(kind("skip"), (1,), 16),
        Node(kind("conv"), (2,), 16),
        Node(kind("add"), (3, 1), 16),
        Node(kind("conv"), (4,), 16),
        Node(kind("classifier"), (5,), 19),
        Node(kind("resize"), (6,), 19, up=4),
    )
)
PRICES = {"stem": 1.25, "conv": 0.5, "add": 0.125, "classifier": 0.0625, "resize": 2.0, "argmax": 4.0}
"""ms; the convolution stands twice in the network, the skip costs nothing."""
SUM_MS = 1.25 + 2 * 0.5 + 0.125 + 0.0625 + 2.0 + 4.0


def table(target: Target = TARGET, **changes) -> LatencyTable:
    operations = (*NETWORK.operations(64, 96), argmax_operation(Shape(19, 64, 96)))
    entries = {o: Entry(o, "block", PRICES[o.op], 0.01, 20, "chain", "0" * 64) for o in operations if o.op in PRICES}
    return replace(LatencyTable("cas-tiny", target, tuple(entries.values())), **changes)


def test_an_estimate_is_the_hand_sum() -> None:
    estimate = table(overhead_ms=0.25).estimate(NETWORK)
    assert estimate.total_ms == SUM_MS + 0.25
    assert table(overhead_ms=0.25).raw_sum_ms(NETWORK) == SUM_MS + 0.25
    assert [o.op for o, _ in estimate.per_operation] == ["image", "stem", "skip", "conv", "add", "conv", "classifier", "resize", "argmax"]
    assert [ms for _, ms in estimate.per_operation] == [0.0, 1.25, 0.0, 0.5, 0.125, 0.5, 0.0625, 2.0, 4.0]


def test_logits_are_priced_without_the_argmax() -> None:
    logits = table(replace(TARGET, output_contract="logits"))
    assert logits.estimate(NETWORK).total_ms == SUM_MS - 4.0
    assert [o.op for o in priced_operations(NETWORK, logits.target)][-1] == "resize"


def test_a_calibrated_estimate_and_its_interval() -> None:
    found = table(overhead_ms=0.5, calibration=Calibration(scale=1.25, relative_sd=0.08)).estimate(NETWORK)
    total = 1.25 * (SUM_MS + 0.5)
    assert found.total_ms == pytest.approx(total, rel=1e-12)
    assert 1.25 * 0.5 + math.fsum(ms for _, ms in found.per_operation) == pytest.approx(total, rel=1e-12)
    # 5 % of a normal distribution lie above 1.645 standard deviations
    assert found.high_ms == pytest.approx(total * (1 + 1.644854 * 0.08), rel=1e-6)
    assert found.low_ms == pytest.approx(total / (1 + 1.644854 * 0.08), rel=1e-6)


def test_a_missing_entry_names_the_operation_and_the_command() -> None:
    known = table()
    stranger = replace(NETWORK.operations(64, 96)[3], kind=kind("conv", kernel=5))
    with pytest.raises(IncompatibleError) as caught:
        known.entry(stranger)
    message = str(caught.value)
    assert "'cas-tiny'" in message
    assert str(TARGET) in message
    assert "no entry for conv(kernel=5) 16x16x24 -> 16x16x24;" in message
    assert "measure it with `segnas profile cas-tiny --size 64x96 --threads 2`" in message
    assert caught.value.exit_code == 6


def test_a_table_of_another_size_knows_none_of_it() -> None:
    other = replace(TARGET, height=128)
    with pytest.raises(IncompatibleError, match="no entry for stem/4 3x128x96 -> 16x32x24"):
        table(other).estimate(NETWORK)


def test_what_is_missing_is_listed_once_and_in_order() -> None:
    operations = (*NETWORK.operations(64, 96), *NETWORK.operations(64, 96))
    empty = LatencyTable("s", TARGET, ())
    assert [o.op for o in empty.missing(operations)] == ["stem", "conv", "add", "classifier", "resize"]
    assert table().missing(operations) == ()


def test_what_is_nothing_at_run_time_needs_no_entry() -> None:
    feature = Shape(16, 8, 8)
    assert LatencyTable("s", TARGET, ()).price_ms(Operation(kind("skip"), 1, (feature,), feature)) == 0.0
    with pytest.raises(IncompatibleError, match="no entry for skip/2"):
        LatencyTable("s", TARGET, ()).price_ms(Operation(kind("skip"), 2, (feature,), Shape(16, 4, 4)))


# ---- calibration


def test_the_scale_is_the_median_ratio() -> None:
    odd = table().calibrated([Probe("a", 10.0, 11.0), Probe("b", 10.0, 30.0), Probe("c", 4.0, 4.8)])
    assert odd.calibration.scale == pytest.approx(1.2)  # of 1.1, 1.2, 3.0
    # residuals 1.1/1.2 - 1, 0, 3.0/1.2 - 1, over n - 1
    assert odd.calibration.relative_sd == pytest.approx(math.sqrt(((1.1 / 1.2 - 1) ** 2 + 0 + 1.5**2) / 2))
    even = table().calibrated([Probe(name, 1.0, ratio) for name, ratio in zip("abcd", (1.0, 1.5, 1.25, 9.0), strict=True)])
    assert even.calibration.scale == pytest.approx((1.25 + 1.5) / 2)
    assert even.entries == table().entries
    assert even.estimate(NETWORK).total_ms == pytest.approx(1.375 * SUM_MS)


def test_few_probes_claim_no_precision() -> None:
    assert table().calibrated([]) == table()
    assert table().calibrated([Probe("a", 2.0, 3.0)]).calibration == Calibration(1.5, 0.05, (Probe("a", 2.0, 3.0),), "scale")
    exact = [Probe(name, 2.0, 3.0) for name in "abcd"]
    assert table().calibrated(exact).calibration == Calibration(1.5, 0.005, tuple(exact), "scale")


def test_of_one_network_the_last_measurement_counts() -> None:
    once = table().calibrated([Probe("a", 1.0, 9.0), Probe("b", 1.0, 2.0), Probe("a", 1.0, 1.0)])
    assert once.calibration.probes == (Probe("a", 1.0, 1.0), Probe("b", 1.0, 2.0))
    assert once.calibration.scale == 1.5


@given(st.lists(st.floats(0.5, 2), min_size=1, max_size=9), st.floats(0.1, 10))
def test_the_scale_does_not_depend_on_an_earlier_calibration(ratios: list[float], before: float) -> None:
    probes = [Probe(str(i), 3.0, 3.0 * ratio) for i, ratio in enumerate(ratios)]
    assert table(calibration=Calibration(before)).calibrated(probes) == table().calibrated(probes)


# ---- targets

OTHER = {
    "device": "b cpu",
    "runtime": "torch",
    "runtime_version": "1.28.0",
    "precision": "fp16",
    "height": 65,
    "width": 97,
    "batch": 2,
    "threads": 1,
    "input_contract": "image",
    "output_contract": "logits",
    "scope": "gpu",
    "options": (("spinning", "on"),),
}


def test_the_cases_below_are_all_the_fields() -> None:
    assert list(OTHER) == [field.name for field in fields(Target)]


@pytest.mark.parametrize("name", OTHER)
def test_a_table_of_another_target_is_refused_by_the_field_that_differs(name: str) -> None:
    asked = replace(TARGET, **{name: OTHER[name]})
    assert TARGET.differences(asked) == ((name, getattr(TARGET, name), OTHER[name]),)
    with pytest.raises(IncompatibleError) as caught:
        table().for_target(asked)
    found = f"({name}: the table has {getattr(TARGET, name)!r}, asked for is {OTHER[name]!r}); run `segnas profile cas-tiny` on this one"
    allowed = "or let the fields pass with --allow-mismatch"
    assert str(caught.value) == f"this latency table belongs to another target {found}, {allowed}"
    used = table().for_target(asked, allow=(name,))
    assert used == replace(table(), target=asked, provenance=used.provenance)
    assert used.allowed_mismatch == f"{name}: the table has {getattr(TARGET, name)!r}, asked for is {OTHER[name]!r}"
    assert used.mismatch == (("allowed_mismatch", used.allowed_mismatch),)


def test_every_difference_is_named() -> None:
    asked = Target(**OTHER)
    assert table().for_target(TARGET) == table().for_target(TARGET, OTHER) == table()
    assert (table().allowed_mismatch, table().mismatch) == ("", ())
    with pytest.raises(IncompatibleError) as caught:
        table().for_target(asked)
    assert [part.split(":")[0] for part in str(caught.value).split("(", 1)[1].split("; ")[:12]] == list(OTHER)
    table().for_target(asked, allow=iter(OTHER))  # anything that can be gone through once
    with pytest.raises(IncompatibleError, match=r"\(scope: the table has 'end_to_end', asked for is 'gpu'\)"):
        table().for_target(asked, allow=(name for name in OTHER if name != "scope"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runtime": "onnx"}, "target runtime was given 'onnx'; allowed: onnxruntime, torch, tensorrt, tensorrt-rtx, aotinductor"),
        ({"precision": "bf16"}, "target precision was given 'bf16'; allowed: fp32, fp16, int8"),
        ({"input_contract": "raw"}, "target input_contract was given 'raw'; allowed: normalised, image"),
        ({"output_contract": "argmax"}, "target output_contract was given 'argmax'; allowed: labels, logits"),
        ({"scope": "cpu"}, "target scope was given 'cpu'; allowed: end_to_end, gpu, pipeline"),
        ({"height": 0}, "target height was given 0; at least 1 is needed"),
        ({"width": -1}, "target width was given -1"),
        ({"batch": 0}, "target batch was given 0"),
        ({"threads": 0}, "target threads was given 0"),
        ({"options": (("b", "1"), ("a", "1"))}, "must be sorted and name each option once"),
        ({"options": (("a", "1"), ("a", "1"))}, "must be sorted and name each option once"),
        ({"options": (("a", "1"), ("a", "2"))}, "must be sorted and name each option once"),
    ],
)
def test_a_target_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(TARGET, **change)
    assert message in str(caught.value)


def test_a_target_in_one_line() -> None:
    assert str(TARGET) == "a cpu, onnxruntime 1.27.0 fp32, 64x96, batch 1, 2 threads"
    assert str(replace(TARGET, threads=1)) == "a cpu, onnxruntime 1.27.0 fp32, 64x96, batch 1, 1 thread"
    assert str(replace(TARGET, scope="gpu")) == "a cpu, onnxruntime 1.27.0 fp32, 64x96, batch 1"


def test_sizes_are_written_height_x_width() -> None:
    assert parse_size("512x1024") == parse_size("512X1024") == (512, 1024)
    for text in ("512", "512x", "x512", "512x0", "-1x5", "5.0x4", "5x4x3", "5²x4", ""):
        with pytest.raises(InputError, match="it is written HEIGHTxWIDTH, such as 512x1024"):
            parse_size(text)


def random_networks(count: int) -> list[Architecture]:
    """Chains of convolutions and separable units in random numbers, which share their operations."""
    rng = random.Random(0)
    made = {}
    while len(made) < count:
        ops = [rng.choice(["conv", "separable", "max_pool"]) for _ in range(rng.randint(1, 9))]
        nodes = [Node(kind("image"), (), 3), Node(kind("stem"), (0,), 16, 4)]
        nodes += [Node(kind(op), (index,), 16) for index, op in enumerate(ops, 1)]
        nodes += [Node(kind("classifier"), (len(nodes) - 1,), 19), Node(kind("resize"), (len(nodes),), 19, up=4)]
        network = Architecture(tuple(nodes))
        made[network.digest] = network
    return list(made.values())


def wrong_table(networks: list[Architecture]) -> tuple[LatencyTable, dict[str, float]]:
    """A table that prices every operation at 1 ms, and each operation's true price."""
    operations = dict.fromkeys(o for network in networks for o in priced_operations(network, TARGET) if not o.is_free)
    true = {"conv": 1.3, "separable": 0.8, "max_pool": 1.1, "stem": 1.0, "classifier": 1.0, "resize": 0.9, "argmax": 1.0}
    kinds = {"stem": "fixed", "argmax": "fixed", "resize": "junction"}
    entries = tuple(Entry(o, kinds.get(o.op, "block"), 1.0, 0.01, 20, "series", "") for o in operations)
    return LatencyTable("test", TARGET, entries), true


def test_a_correction_for_each_entry_mends_a_wrong_table() -> None:
    networks = random_networks(70)
    table, true = wrong_table(networks)

    def clock(network: Architecture) -> float:
        return math.fsum(true[o.op] for o in priced_operations(network, TARGET) if not o.is_free)

    probes = [table.probe(network, clock(network)) for network in networks[:40]]
    errors = {
        level: max(abs(table.calibrated(probes, level).estimate(network).total_ms / clock(network) - 1) for network in networks[40:])
        for level in ("scale", "kinds", "entries")
    }
    assert errors["entries"] < 0.01 < errors["kinds"] <= errors["scale"] * 1.05
    fitted = table.calibrated(probes, "entries")
    for network in networks[40:]:
        estimate = fitted.estimate(network)
        assert math.fsum(ms for _, ms in estimate.per_operation) == pytest.approx(estimate.total_ms, rel=1e-9), "the parts sum to the whole"
        assert estimate.low_ms < clock(network) < estimate.high_ms


def test_the_next_network_to_measure_is_the_least_known() -> None:
    networks = random_networks(60)
    table, _ = wrong_table(networks)
    plain = [n for n in networks if not any(node.op == "max_pool" for node in n.nodes)]
    pooled = max(networks, key=lambda n: sum(node.op == "max_pool" for node in n.nodes) / len(n.nodes))
    rng = random.Random(1)
    fitted = table.calibrated([table.probe(n, table.raw_sum_ms(n) * rng.gauss(1, 0.03)) for n in plain], "entries")
    assert most_telling(fitted, [*plain, pooled]) is pooled
    measured = fitted.calibrated([*fitted.calibration.probes, fitted.probe(pooled, fitted.raw_sum_ms(pooled))], "entries")
    assert measured.model_sd(pooled) < fitted.model_sd(pooled)


def test_levels_that_need_counts_say_so() -> None:
    bare = [Probe(str(i), 10.0, 10.0 + i) for i in range(5)]
    assert table().calibrated(bare, "scale").calibration.level == "scale"
    with pytest.raises(InputError, match="a calibration network runs operation"):
        table().calibrated(bare, "entries")
    with pytest.raises(InputError, match="allowed: sum, scale, kinds, entries"):
        table().calibrated(bare, "level 2")
