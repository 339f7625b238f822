"""TensorRT on a real GPU: build, open, compare, inspect. Run by hand where there is one: pytest -m tensorrt."""

import importlib.util
from pathlib import Path

import pytest

from segnas.building import build_engine
from segnas.cuda_driver import first_device
from segnas.verifying import verify_engine

_spec = importlib.util.spec_from_file_location("engines", Path(__file__).with_name("engines.py"))
assert _spec is not None
assert _spec.loader is not None
engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(engines)


@pytest.mark.tensorrt
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_is_built_run_and_proven(runtime: str, precision: str, tmp_path: Path) -> None:
    device = first_device()
    assert device is not None
    if runtime == "tensorrt-rtx" and device.compute_capability in ("9.0", "10.0"):
        pytest.skip(f"TensorRT-RTX has no code for {device.name}")
    shipped = build_engine(engines.written(tmp_path, engines.small_model(precision), precision), runtime=runtime)
    engine = shipped.engine
    assert engine.unrun == ()
    assert engine.parity is not None
    assert engine.parity.passed
    assert engine.precision[0].source.startswith("engine inspector")
    assert engine.precision[0].share(precision) > 0.5
    assert not verify_engine(shipped.path).failures
