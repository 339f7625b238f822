"""Files: every noun there and back, what is refused in a file, and that a file is whole or absent whatever happens while it is written."""

import dataclasses
import errno
import json
import os
import stat
import threading
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segnas.arch import Architecture, Node, Operation, Shape
from segnas.benchmark import Benchmark, SideBySide
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.files import SCHEMA_VERSIONS, atomic_path, noun_text, plain, read_json, read_noun, sha256_of, unplain, write_noun, write_text
from segnas.kinds import SCHEMAS, kind
from segnas.latency import Calibration, Entry, LatencyTable, Probe
from segnas.report import Accuracy, Engine, Evaluation, Report, Timing
from segnas.target import Target

TARGET = Target("a cpu", "onnxruntime", "1.27.0", "fp32", 64, 96, options=(("graph", "all"), ("spinning", "off")))
SMALL = Architecture((Node(kind("image"), (), 3), Node(kind("conv", dilation=2), (0,), 8, 2, label="first"), Node(kind("resize"), (1,), 8, up=2)))
OPERATION = SMALL.operations(64, 96)[1]
TABLE = LatencyTable(
    "cas-tiny",
    TARGET,
    (Entry(OPERATION, "block", 0.25, 0.01, 20, "chain", "ab" * 32),),
    0.02,
    Calibration(1.1, 0.05, (Probe("0123456789ab", 1.0, 1.1),)),
    (("kernel", "6.1"),),
)


def values_of(type_: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation; networks and targets, which are checked when made, are drawn from a few."""
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    known = {
        Architecture: st.just(SMALL),
        Target: st.sampled_from([TARGET, dataclasses.replace(TARGET, scope="gpu", options=())]),
        Operation: st.sampled_from(SMALL.operations(64, 96)),
        float: st.floats(allow_nan=False, allow_infinity=False),
        int: st.integers(),
        str: st.text(max_size=6),
        bool: st.booleans(),
        types.NoneType: st.none(),
    }
    if type_ in known:
        return known[type_]
    if dataclasses.is_dataclass(type_) or hasattr(type_, "_fields"):
        return st.builds(type_, **{name: values_of(hint) for name, hint in typing.get_type_hints(type_).items()})
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    assert origin in (typing.Union, types.UnionType), type_
    return st.one_of(*map(values_of, arguments))


# ---- there and back


@pytest.mark.parametrize("type_", SCHEMA_VERSIONS, ids=lambda t: t.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_every_noun_comes_back_from_its_file(tmp_path: Path, type_: type, data) -> None:
    noun, path = data.draw(values_of(type_)), tmp_path / "noun.json"
    write_noun(path, noun)
    again = read_noun(path, type_)
    assert again == noun
    assert type(again) is type(noun)
    assert noun_text(again) == path.read_text(encoding="utf-8")


def test_a_network_of_every_operation_comes_back_with_its_labels(tmp_path: Path, every_op: Architecture) -> None:
    write_noun(tmp_path / "a.json", every_op)
    again = read_noun(tmp_path / "a.json", Architecture)
    assert again == every_op
    assert again.digest == every_op.digest
    assert [node.label for node in again.nodes] == [node.label for node in every_op.nodes]
    assert {type(n.kind.attributes) for n in again.nodes} == {tuple}
    assert hash(again) == hash(every_op)


def test_every_kind_comes_back_typed() -> None:
    for op in SCHEMAS:
        made = kind(op)
        again = unplain(type(made), json.loads(json.dumps(plain(made))))
        assert again == made
        assert [type(value) for _, value in again.attributes] == [type(value) for _, value in made.attributes]


def test_the_text_is_what_is_documented() -> None:
    text = noun_text(TARGET)
    assert text.startswith('{\n "schema": "segnas.target/1",\n "device": "a cpu",')
    assert text.endswith("}\n")
    assert json.loads(text)["options"] == [["graph", "all"], ["spinning", "off"]]
    assert list(json.loads(text)) == ["schema", *(field.name for field in dataclasses.fields(Target))]
    assert json.loads(noun_text(OPERATION))["inputs"] == [[3, 64, 96]]
    assert isinstance(unplain(Operation, plain(OPERATION)).output, Shape)


def test_an_integer_serves_as_a_float_and_not_the_reverse() -> None:
    assert unplain(float, 3) == 3.0
    assert type(unplain(float, 3)) is float
    for type_, value in ((int, 3.0), (int, True), (float, True), (bool, 1), (str, 3), (float, "3"), (int, None)):
        with pytest.raises(InputError, match=rf"the file is {value!r}; {type_.__name__} is needed"):
            unplain(type_, value)


def test_what_is_not_finite_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            write_noun(path, dataclasses.replace(TABLE, overhead_ms=bad))
    assert os.listdir(tmp_path) == []


# ---- what is refused


def changed(noun: object, path: Path, change) -> Path:
    """The noun's file after `change` has had its JSON object."""
    data = json.loads(noun_text(noun))
    change(data)
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(colour=1, age=2),
            "the file has unknown keys age, colour; known: space, target, entries, overhead_ms, calibration, provenance",
        ),
        (lambda d: d["target"].update(gpu="x"), "target has unknown keys gpu; known: device, runtime, "),
        (lambda d: d.pop("entries"), "the file lacks entries"),
        (lambda d: (d["entries"][0].pop("spread"), d["entries"][0].pop("kind")), "entries[0] lacks kind, spread"),
        (lambda d: d["entries"][0].update(median_ms="fast"), "entries[0].median_ms is 'fast'; float is needed"),
        (lambda d: d["entries"][0].update(samples=2.5), "entries[0].samples is 2.5; int is needed"),
        (lambda d: d.update(entries={}), "entries is {}; a list is needed"),
        (lambda d: d.update(target=[]), "target is list; an object is needed"),
        (lambda d: d["provenance"].append(["alone"]), "provenance[1] has 1 items; 2 are needed"),
        (lambda d: d["entries"][0]["operation"].update(output=[8, 32]), "entries[0].operation.output has 2 items; 3 are needed"),
        (lambda d: d["entries"][0]["operation"]["output"].__setitem__(2, None), "entries[0].operation.output[2] is None; int is needed"),
        (lambda d: d["entries"][0]["operation"]["kind"].update(op="magic"), "unknown operation 'magic'; known operations: add"),
        (lambda d: d["target"].update(precision="fp64"), "target precision was given 'fp64'; allowed: fp32, fp16, int8"),
        (lambda d: d["calibration"]["probes"][0].update(sum_ms=None), "calibration.probes[0].sum_ms is None; float is needed"),
    ],
)
def test_a_file_that_is_not_quite_the_noun_is_refused_with_the_place(tmp_path: Path, change, message: str) -> None:
    path = changed(TABLE, tmp_path / "table.json", change)
    with pytest.raises(InputError) as caught:
        read_noun(path, LatencyTable)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_network_that_cannot_be_is_refused_with_the_file(tmp_path: Path) -> None:
    path = changed(SMALL, tmp_path / "arch.json", lambda d: d["nodes"][1].update(stride=4))
    with pytest.raises(InputError) as caught:
        read_noun(path, Architecture)
    assert str(caught.value) == f"{path}: node 1 'first' (conv): stride 4 was given; allowed: 1, 2"


@pytest.mark.parametrize("type_", SCHEMA_VERSIONS, ids=lambda t: t.__name__)
def test_another_schema_version_is_incompatible_and_another_noun_is_not_this_one(tmp_path: Path, type_: type) -> None:
    path, (name, version) = tmp_path / "x.json", SCHEMA_VERSIONS[type_]
    path.write_text(json.dumps({"schema": f"{name}/{version + 1}"}))
    with pytest.raises(IncompatibleError) as caught:
        read_noun(path, type_)
    assert str(caught.value) == f"{path} has schema '{name}/{version + 1}'; this version of segnas reads {name}/{version}"
    assert caught.value.exit_code == 6
    for schema in ("other/1", f"{name}s/{version}", None, 1, ["a"]):
        path.write_text(json.dumps({"schema": schema}))
        with pytest.raises(InputError) as caught_input:
            read_noun(path, type_)
        assert str(caught_input.value) == f"{path} has schema {schema!r}; a file of schema {name}/{version} is needed"


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path, text = tmp_path / "target.json", noun_text(TARGET)
    for length in range(len(text) - 2):  # without the last brace; the line feed may be missing
        path.write_text(text[:length])
        with pytest.raises(InputError, match=r"is no complete JSON file: .* at line \d+, column \d+"):
            read_noun(path, Target)


def test_what_is_no_json_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match=r"x\.json does not exist"):
        read_json(path)
    with pytest.raises(InputError, match=r"cannot be read: .*Is a directory"):
        read_json(tmp_path)
    for content, message in (
        (b"[1, 2]", "holds list; a JSON object is needed"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b'{"a": NaN}', "holds NaN, which is no JSON number"),
        (b'{"a": -Infinity}', "holds -Infinity, which is no JSON number"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_json(path)


# ---- whole or absent


def only(folder: Path, content: str | None) -> None:
    """The folder holds `out.json` with that content, or nothing at all."""
    assert {name: (folder / name).read_text() for name in os.listdir(folder)} == ({} if content is None else {"out.json": content})


@pytest.mark.parametrize("before", [None, "old"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO], ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("step", ["pathlib.Path.write_bytes", "segnas.files.os.fsync", "segnas.files.os.replace", "segnas.files.tempfile.mkstemp"])
def test_a_write_that_fails_leaves_nothing_and_changes_nothing(tmp_path: Path, monkeypatch, before: str | None, code: int, step: str) -> None:
    path = tmp_path / "out.json"
    if before is not None:
        path.write_text(before)

    def fail(*args: object, **options: object) -> None:
        if isinstance(args[0] if args else None, Path) and step.endswith("write_bytes"):
            with open(typing.cast(Path, args[0]), "wb") as stream:  # the disk fills up half way
                stream.write(b'{"sche')
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(RequirementError) as caught:
            write_text(path, "new")
    reason = "the disk is full" if code in (errno.ENOSPC, errno.EDQUOT) else os.strerror(code)
    assert str(caught.value).startswith(f"{path} could not be written: {reason}; nothing was left behind")
    assert caught.value.exit_code == 3
    only(tmp_path, before)
    write_text(path, "new")
    only(tmp_path, "new")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, FileNotFoundError])
def test_an_interrupted_write_changes_nothing_and_is_no_disk_error(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(path := tmp_path / "out.json", "old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    only(tmp_path, "old")


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequirementError, match=r"file/out\.json could not be written: "):
        write_text(tmp_path / "file" / "out.json", "new")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(RequirementError, match="folder could not be written: Is a directory"):
        write_text(tmp_path / "folder", "new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "inner"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_must_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RequirementError, match="Permission denied"):
            write_text(tmp_path / "out.json", "new")
    finally:
        tmp_path.chmod(0o700)


def test_folders_are_made_and_files_are_readable_by_all(tmp_path: Path) -> None:
    write_text(path := tmp_path / "a" / "b" / "out.json", "ä")
    assert path.read_bytes() == "ä".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    only(path.parent, "ä")


def test_a_reader_beside_a_writer_sees_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    nouns = [dataclasses.replace(TABLE, space=name, entries=TABLE.entries * count) for name, count in (("a", 1), ("b", 300))]
    write_noun(path, nouns[0])
    done, failures = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            for turn in range(20):
                write_noun(path, nouns[turn % 2])
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[str] = []
    while not done.is_set():
        table = read_noun(path, LatencyTable)
        seen.append(table.space)
        assert len(table.entries) == {"a": 1, "b": 300}[table.space]
    writer.join()
    assert not failures
    assert seen
    assert os.listdir(tmp_path) == ["table.json"]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_every_noun_has_a_schema_of_its_own() -> None:
    assert set(SCHEMA_VERSIONS) == {
        Architecture,
        Operation,
        Target,
        LatencyTable,
        Engine,
        Timing,
        Accuracy,
        Evaluation,
        Report,
        Benchmark,
        SideBySide,
    }
    assert len({name for name, _ in SCHEMA_VERSIONS.values()}) == len(SCHEMA_VERSIONS)


def test_objects_with_names_of_their_own_are_read_by_the_type_of_their_values() -> None:
    assert unplain(dict[str, int], {"a": 1, "b": 2}, "x") == {"a": 1, "b": 2}
    with pytest.raises(InputError, match=r"x\.b is 'two'; int is needed"):
        unplain(dict[str, int], {"a": 1, "b": "two"}, "x")
    with pytest.raises(InputError, match="x is 3; an object is needed"):
        unplain(dict[str, int], 3, "x")
