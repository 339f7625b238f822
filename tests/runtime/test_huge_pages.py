"""Huge pages: known from how a process was started, by a process that was really started so."""

import os
import subprocess
import sys

import pytest

from segnas.doctor import huge_pages_check
from segnas.runtime.huge_pages import SETTING, huge_pages_allowed, is_asked_for

ASK = (
    "from segnas.runtime.onnxruntime_session import cpu_target; from segnas.runtime.huge_pages import huge_pages; import os; "
    "os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=0'; print(huge_pages(), dict(cpu_target(8, 8).options).get('huge_pages'))"
)


@pytest.mark.parametrize(
    ("tunables", "asked"),
    [
        ("", False),
        ("glibc.malloc.hugetlb=1", True),
        ("glibc.malloc.hugetlb=2", True),
        ("glibc.malloc.hugetlb=0", False),
        ("glibc.malloc.hugetlb", False),
        ("glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1", True),
        ("glibc.malloc.hugetlb=1:glibc.malloc.hugetlb=0", False),
        ("glibc.malloc.hugetlbs=1", False),
    ],
)
def test_what_a_setting_asks_for(tunables: str, asked: bool) -> None:
    assert is_asked_for(tunables) == asked


@pytest.mark.parametrize("on", [True, False])
def test_a_process_knows_how_it_was_started_whatever_is_set_later(on: bool) -> None:
    name, _, value = SETTING.partition("=")
    environment = {key: text for key, text in os.environ.items() if key != name} | ({name: value} if on else {})
    told = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True).stdout.split()
    given = on and huge_pages_allowed()
    assert told == [str(given), "on" if given else "None"]


def test_the_doctor_says_how_to_get_them() -> None:
    assert SETTING in huge_pages_check(on=False, allowed=True).advice
    assert huge_pages_check(on=False, allowed=False).advice == ""
    assert huge_pages_check(on=True, allowed=True).found == "on"
