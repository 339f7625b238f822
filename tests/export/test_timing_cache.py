"""The timing cache: whole in its file, joined with what others wrote meanwhile, refused from another GPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.export.timing_cache import keep_cache, use_cache
from segnas.tensorrt_api import Api, api_of

_spec = importlib.util.spec_from_file_location("fake_tensorrt", Path(__file__).with_name("fake_tensorrt.py"))
assert _spec is not None
assert _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake)

HELD = """
import fcntl, sys, time
stream = open(sys.argv[1], "a")
fcntl.flock(stream, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(0.4)
open(sys.argv[2], "wb").write(b"theirs")
"""


def given(**script: Any) -> tuple[Api, Any]:
    """TensorRT 11 as recorded, and a configuration of it."""
    api = api_of("tensorrt", fake.fake_tensorrt("tensorrt-11.4.0.106", fake.Script(**script)))
    return api, api.module.Builder(api.logger).create_builder_config()


def test_a_new_file_then_the_same_again(tmp_path: Path) -> None:
    api, config = given(cached=b"ours")
    path = tmp_path / "deep" / "timings.cache"
    assert use_cache(api, config, path) == "new"
    keep_cache(api, config, path)
    assert path.read_bytes() == b"ours"
    again, config = given()
    digest = use_cache(again, config, path)
    assert len(digest) == 64
    assert config._cache._plan == b"ours"


def test_what_another_build_wrote_meanwhile_stays(tmp_path: Path) -> None:
    """Another process holds the lock and writes; this one waits for it and joins the two."""
    api, config = given(cached=b"ours")
    path = tmp_path / "timings.cache"
    use_cache(api, config, path)
    other = subprocess.Popen([sys.executable, "-c", HELD, tmp_path / "timings.cache.lock", path], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    keep_cache(api, config, path)
    assert other.wait() == 0
    other.stdout.close()
    assert path.read_bytes() == bytes(dict.fromkeys(b"ourstheirs"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["timings.cache", "timings.cache.lock"]


def test_a_cache_of_another_gpu_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "timings.cache"
    path.write_bytes(b"other GPU")
    api, config = given()
    with pytest.raises(IncompatibleError, match="of another GPU or of another release"):
        use_cache(api, config, path)
    api, config = given(gives_nothing=frozenset({"create_timing_cache"}))
    with pytest.raises(InputError, match="could not read the timing cache"):
        use_cache(api, config, path)


def test_a_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    api, config = given(cached=b"ours")
    with pytest.raises(RequirementError, match="cannot be read"):
        use_cache(api, config, tmp_path)
    (tmp_path / "file").write_text("")
    path = tmp_path / "new.cache"
    use_cache(api, config, path)
    with pytest.raises(RequirementError, match="could not be written"):
        keep_cache(api, config, tmp_path / "file" / "timings.cache")
