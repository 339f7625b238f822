"""The known GPUs: the file, what serves whom, that every claim has a source, and that the page and doctor say the same."""

import json
import platform
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from segnas import doctor, gpus
from segnas.doctor import kernels_check, runtimes_check
from segnas.errors import IncompatibleError, InputError
from segnas.files import plain, unplain
from segnas.gpus import (
    DISTRIBUTIONS,
    SCHEMA,
    Gpu,
    GpuTable,
    Runtime,
    capability_of,
    cards_table,
    code_of,
    facts_table,
    find_gpu,
    gpu_table,
    in_project_range,
    instead_of,
    is_in_project_range,
    known_gpus,
    project_range,
    releases_for,
    releases_table,
    runs_on,
    sources,
    sources_table,
    supported_runtimes,
    what_to_install,
)

ROOT = Path(__file__).parents[1]
DEFAULT_BUILD = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")  # torch for CUDA 13, x86_64
LEGACY_BUILD = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")  # torch for CUDA 12.6, x86_64


def served(gpu: Gpu, *, inside: bool) -> set[str]:
    return {release.runtime for release in supported_runtimes(gpu) if is_in_project_range(release) or not inside}


# ---- the file


def test_the_file_and_the_table_are_the_same() -> None:
    table = gpu_table()
    assert {"schema": SCHEMA, **plain(table)} == json.loads(resources.files("segnas").joinpath("gpus.json").read_text())
    assert unplain(GpuTable, json.loads(json.dumps(plain(table)))) == table


def test_another_schema_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "SCHEMA", "segnas.gpus/2")
    with pytest.raises(IncompatibleError, match=r"reads segnas\.gpus/2"):
        gpus.gpu_table.__wrapped__()


def test_names_and_aliases_are_short_and_belong_to_one_gpu_each() -> None:
    names = [name for gpu in known_gpus() for name in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z0-9]+", alias) for gpu in known_gpus() for alias in gpu.aliases)


def test_every_fact_has_a_source_and_every_source_a_place() -> None:
    keys = {key for gpu in known_gpus() for key in (gpu.capability_source, gpu.memory_source, gpu.bandwidth_source)}
    assert keys | {key for release in gpu_table().releases for key in release.sources} == set(sources())
    assert all(release.sources for release in gpu_table().releases)
    assert all(re.search(r"https?://|reference/|torch/", source.where) for source in sources().values() if source.evidence != "recalled")


def test_no_compute_capability_and_no_release_is_merely_recalled() -> None:
    told = [gpu.capability_source for gpu in known_gpus()] + [key for release in gpu_table().releases for key in release.sources]
    assert "recalled" not in {sources()[key].evidence for key in told}


def test_what_a_release_is_limited_to_are_cards_of_the_table() -> None:
    assert {card for release in gpu_table().releases for card in release.cards} <= {gpu.name for gpu in known_gpus()}


# ---- what serves whom


@pytest.mark.parametrize("gpu", known_gpus(), ids=lambda gpu: gpu.aliases[0])
def test_every_gpu_has_a_runtime_with_exact_versions_and_a_source(gpu: Gpu) -> None:
    found = supported_runtimes(gpu)
    assert found
    assert all(re.fullmatch(r"\d+\.\d+( to \d+\.\d+)?", release.versions) for release in found)
    assert all(gpus.version_numbers(release.first) <= gpus.version_numbers(release.last) for release in found)


def test_pascal_is_served_by_torch_and_by_no_tensorrt_at_all() -> None:
    card = find_gpu("TITAN Xp")
    assert card.compute_capability == "6.1"
    assert served(card, inside=False) == served(card, inside=True) == {"torch", "onnxruntime"}
    assert [r.label for r in supported_runtimes(card) if r.runtime == "torch"] == ["2.11 to 2.14 (cu126)"]


def test_hopper_has_tensorrt_and_no_tensorrt_rtx_and_a_4090_has_all() -> None:
    assert served(find_gpu("h200"), inside=True) == {"torch", "tensorrt", "onnxruntime"}
    assert served(find_gpu("rtx4090"), inside=True) == set(DISTRIBUTIONS)


def test_xavier_has_nothing_within_the_ranges() -> None:
    assert served(find_gpu("xavier"), inside=True) == set()
    assert served(find_gpu("xavier"), inside=False) == {"torch", "tensorrt"}


def test_a_release_that_names_its_cards_serves_those_alone() -> None:
    labels = {alias: [r.label for r in supported_runtimes(find_gpu(alias))] for alias in ("agxorin", "orinnano")}
    assert "11.4 (JetPack 7.2.2)" in labels["agxorin"]
    assert "11.4 (JetPack 7.2.2)" not in labels["orinnano"]


@pytest.mark.parametrize(
    ("code", "capability", "runs"),
    [
        ("6.0", "6.1", True),
        ("6.1", "6.0", False),
        ("8.6", "8.9", True),
        ("8.9", "9.0", False),
        ("8.0", "8.7", False),  # integrated: its own code alone
        ("8.7", "8.9", False),
        ("8.7", "8.7", True),
        ("9.0a", "9.0", True),
        ("12.0a", "12.1", False),
        ("12.0", "12.1", True),
        ("9.0+PTX", "12.0", True),
        ("12.0+PTX", "9.0", False),
        ("9.0", "10.0", False),
    ],
)
def test_code_runs_where_cuda_says_so(code: str, capability: str, runs: bool) -> None:
    assert runs_on(code, capability) is runs


def test_the_rule_and_the_architectures_are_those_of_the_installed_torch() -> None:
    """Independent of the table: torch's own list of what it is built for, and of what runs where."""
    cuda = pytest.importorskip("torch.cuda")
    if not hasattr(cuda, "PYTORCH_RELEASES_CODE_CC"):
        pytest.skip("this torch keeps no such list")
    for code, devices in cuda.DEVICE_REQUIREMENT.items():
        for gpu in known_gpus():
            device = int(gpu.compute_capability.replace(".", ""))
            if (code, device) != (101, 110):  # Thor's earlier number
                assert runs_on(f"{code // 10}.{code % 10}", gpu.compute_capability) is (device in devices), (code, device)
    ours = {(r.build, r.machine): {int(c.replace(".", "")) for c in r.capabilities} for r in gpu_table().releases if r.runtime == "torch"}
    for version, builds in cuda.PYTORCH_RELEASES_CODE_CC.items():
        for machine, codes in builds.items():
            assert ours.get((f"cu{version.replace('.', '')}", machine), codes) == codes


def test_names_of_architectures() -> None:
    assert [code_of(name) for name in ("sm_61", "sm_90a", "sm_100f", "compute_120")] == ["6.1", "9.0a", "10.0", "12.0+PTX"]
    with pytest.raises(InputError, match="gfx942"):
        code_of("gfx942")


# ---- finding one


@pytest.mark.parametrize("given", ["RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "8.9", "sm89", "SM_89"])
def test_a_gpu_by_name_alias_or_capability(given: str) -> None:
    assert find_gpu(given).name == "RTX 4090"


def test_capabilities_of_two_digits() -> None:
    assert find_gpu("sm120").name == "RTX 5090"
    assert find_gpu("10.0").name == "B200"


@pytest.mark.parametrize("given", ["rtx9090", "", "9.9", "sm", "nvidia"])
def test_an_unknown_gpu_is_refused_with_the_known_ones(given: str) -> None:
    with pytest.raises(InputError) as refused:
        find_gpu(given)
    assert all(gpu.name in str(refused.value) and gpu.compute_capability in str(refused.value) for gpu in known_gpus())


def test_a_gpu_or_a_capability_of_which_no_card_is_known() -> None:
    assert capability_of("rtx4090") == ("8.9", find_gpu("rtx4090"))
    assert [capability_of(given) for given in ("8.9", "sm121", "6.0")] == [("8.9", None), ("12.1", None), ("6.0", None)]
    with pytest.raises(InputError, match="no GPU 'rtx9090'"):
        capability_of("rtx9090")


def test_what_serves_a_gpu_instead() -> None:
    assert instead_of("tensorrt-rtx", "9.0", "x86_64") == ("tensorrt", "aotinductor-cuda", "torch", "onnxruntime-cuda")
    assert instead_of("tensorrt", "6.1", "x86_64") == ("torch", "onnxruntime-cuda")  # Triton, and so AOTInductor, starts at 7.0
    assert instead_of("tensorrt", "7.2", "aarch64") == ()


# ---- the project's ranges


@pytest.mark.parametrize("runtime", DISTRIBUTIONS)
def test_the_ranges_are_those_of_pyproject(runtime: Runtime) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    written = [line for group in (project["dependencies"], *project["optional-dependencies"].values()) for line in group]
    assert f"{DISTRIBUTIONS[runtime]}{project_range(runtime)}" in {line.partition(";")[0].strip() for line in written}


@pytest.mark.parametrize(
    ("runtime", "version", "inside"),
    [
        ("tensorrt", "10.11.0.33", False),
        ("tensorrt", "10.12.0.36", True),
        ("tensorrt", "11.4.0.106", True),
        ("tensorrt", "12.0.0.1", False),
        ("tensorrt-rtx", "1.7.1.116", True),
        ("torch", "2.13.0+cpu", True),
    ],
)
def test_releases_inside_the_ranges(runtime: Runtime, version: str, inside: bool) -> None:
    assert in_project_range(runtime, version) is inside


def test_what_to_install_within_the_range_outside_it_and_never() -> None:
    assert what_to_install("torch", "6.1", "x86_64") == "install torch 2.11 to 2.14 (cu126)"
    outside = what_to_install("torch", "7.2", "aarch64")
    assert project_range("torch") in outside
    assert "outside it 2.0 to 2.1 (NVIDIA's wheel, JetPack 5.1) does" in outside
    assert what_to_install("tensorrt-rtx", "9.0", "x86_64").endswith("serves compute capability 9.0 on x86_64")


def test_a_capability_without_a_card_in_the_table_is_answered_too() -> None:
    assert {release.build for release in releases_for("5.2", "x86_64")} == {"cu126"}


# ---- what doctor says


def test_doctor_on_a_gpu_that_the_build_serves() -> None:
    check = kernels_check("NVIDIA GeForce RTX 4090", "8.9", "x86_64", "2.14.0+cu132", DEFAULT_BUILD)
    assert (check.ok, check.advice) == (True, "")
    assert check.found == "NVIDIA GeForce RTX 4090: sm_80 sm_86 in torch 2.14.0+cu132"
    assert runtimes_check("NVIDIA GeForce RTX 4090", "8.9", "x86_64").advice == ""


def test_doctor_on_a_titan_xp_under_the_default_build() -> None:
    check = kernels_check("NVIDIA TITAN Xp", "6.1", "x86_64", "2.15.0+cu132", DEFAULT_BUILD)
    assert not check.ok
    assert "none for compute capability 6.1 in torch 2.15.0+cu132, which has sm_75" in check.found
    assert check.advice == "install torch 2.11 to 2.14 (cu126)"
    assert kernels_check("NVIDIA TITAN Xp", "6.1", "x86_64", "2.14.0+cu126", LEGACY_BUILD).ok
    runtimes = runtimes_check("NVIDIA TITAN Xp", "6.1", "x86_64")
    assert runtimes.found == "NVIDIA TITAN Xp: torch, ONNX Runtime CUDA"
    assert runtimes.advice.endswith("of TensorRT, TensorRT-RTX")


def test_doctor_on_a_gpu_that_nothing_within_the_ranges_serves() -> None:
    check = runtimes_check("Xavier", "7.2", "aarch64")
    assert (check.ok, check.found) == (False, "Xavier: none known")
    assert "within the project's range" in kernels_check("Xavier", "7.2", "aarch64", "2.14.0+cu130", ("sm_80",)).advice


def test_doctor_asks_torch_about_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    cards = [("NVIDIA TITAN Xp", (6, 1)), ("NVIDIA H200", (9, 0))]
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: cards[i][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: cards[i][1])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(DEFAULT_BUILD))
    checks = doctor._torch()
    assert checks[1].found == "NVIDIA TITAN Xp (compute capability 6.1), NVIDIA H200 (compute capability 9.0)"
    assert [(check.name, check.ok) for check in checks[2:]] == [("cuda kernels", False), ("cuda kernels", True), *[("cuda runtimes", True)] * 2]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert len(doctor._torch()) == 2


# ---- the page

TABLES = {"cards": cards_table, "releases": releases_table, "facts": facts_table, "sources": sources_table}


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_the_table(name: str) -> None:
    page = (ROOT / "docs" / "gpus.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- generated: {name} -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == TABLES[name](), f"docs/gpus.md is behind segnas/gpus.json: put there what segnas.gpus.{name}_table() returns"
