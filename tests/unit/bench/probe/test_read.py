"""What comes out of a container: anything at all."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.bench.probe import read
from slimgpu.bench.probe.read import FOLDER, Told, probe_environment, read_events
from slimgpu.events import Event, Stage

SINCE = 10.0
GOOD = Event(Stage.IMPORT, 11, 12, "torch")
LINE = b'{"stage":"import","begin":11,"end":12,"what":"torch","pid":7}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "told"


def _line(**changes: Any) -> bytes:
    return json.dumps({**json.loads(LINE), **changes}).encode() + b"\n"


def test_the_folder_comes_first_in_the_images_own_path() -> None:
    assert probe_environment("/p", "/f", {}) == {"PYTHONPATH": "/p", "SLIMGPU_PROBE": "/f"}
    assert probe_environment("/p", "/f", {"PYTHONPATH": ""})["PYTHONPATH"] == "/p"
    assert probe_environment("/p", "/f", {"PYTHONPATH": "/a:/b", "X": "y"}) == {
        "PYTHONPATH": "/p:/a:/b",
        "SLIMGPU_PROBE": "/f",
    }


def test_what_is_injected_is_there() -> None:
    assert {"sitecustomize.py", "_slimgpu_hooks.py"} <= {path.name for path in FOLDER.iterdir()}


def test_lines_are_events(file: Path) -> None:
    file.write_bytes(LINE + _line(stage="load weights", begin=12.5, end=13, what="m"))
    assert read_events(file, SINCE) == Told((GOOD, Event(Stage.LOAD, 12.5, 13, "m")), 0)


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 100 + b"\n",
        b"\xff" * 100 + b"\n",
        LINE[:-3] + b"\n",
        LINE[:-1] + LINE,
        b"[" * 4000 + b"\n",
        b'{"a":' * 700 + b"\n",
        b"[" + LINE[:-1] + b"]\n",
        b'"' + b"x" * 60 + b'"\n',
        _line(what="x" * 5000),
        _line(stage="first output"),
        _line(stage="pull"),
        _line(stage="unheard of"),
        _line(stage=["import"]),
        _line(stage=None),
        _line(begin="11"),
        _line(begin=True),
        _line(begin=None),
        _line(begin=float("nan")),
        _line(end=float("inf")),
        _line(end=10**1000),
        _line(begin=-(10**1000)),
        _line(begin=12.5),
        _line(begin=9.5),
        _line(begin=1, end=2),
        _line(end=1e12),
        _line(begin=1e12, end=1e12),
    ],
)
def test_lines_that_are_none_are_dropped(line: bytes, file: Path) -> None:
    file.write_bytes(line + LINE + b"\n\n")
    assert read_events(file, SINCE) == Told((GOOD,), 1)


def test_the_future_is_dropped(file: Path) -> None:
    now = time.monotonic()
    file.write_bytes(_line(begin=now, end=now) + _line(begin=now, end=now + 100))
    assert read_events(file, now) == Told((Event(Stage.IMPORT, now, now, "torch"),), 1)


def test_a_tick_before_the_start_is_the_start(file: Path) -> None:
    file.write_bytes(_line(begin=SINCE - 0.005))
    assert read_events(file, SINCE).events == (Event(Stage.IMPORT, SINCE, 12, "torch"),)


@pytest.mark.parametrize("process", ["7", None, [7], 10**1000, -1])
def test_a_process_that_is_none_does_not_matter(process: object, file: Path) -> None:
    file.write_bytes(_line(pid=process))
    assert read_events(file, SINCE) == Told((GOOD,), 0)


def test_names_are_harmless(file: Path) -> None:
    file.write_bytes(_line(what="\x1b[2Ja\ud800\u202e\n" + "x" * 500) + _line(what={"a": 1}))
    first, second = read_events(file, SINCE).events
    assert first.what == "?[2Ja???" + "x" * 192
    assert second.what == ""


def test_a_program_that_executes_another_is_as_old_as_its_process(file: Path) -> None:
    file.write_bytes(
        _line(stage="interpreter", begin=10, end=11)
        + _line(begin=11, end=14)
        + _line(stage="interpreter", begin=10, end=15)
        + _line(stage="interpreter", begin=10, end=16, pid=8)
    )
    found = [(event.begin, event.end) for event in read_events(file, SINCE).events if event.stage is Stage.INTERPRETER]
    assert found == [(10, 11), (14, 15), (10, 16)]


def test_a_huge_file_is_read_to_a_bound(file: Path) -> None:
    file.write_bytes(LINE * 40_000)
    told = read_events(file, SINCE)
    assert len(told.events) == 20_000
    assert told.dropped == 20_000
    with file.open("ab") as stream:
        stream.truncate(1 << 40)
    told = read_events(file, SINCE)
    assert set(told.events) == {GOOD}
    assert told.dropped > 20_000


def test_newlines_alone_are_nothing(file: Path) -> None:
    file.write_bytes(b"\n" * read._MOST_BYTES)
    assert read_events(file, SINCE) == Told((), 0)


def test_what_is_no_plain_file_is_nothing(tmp_path: Path, file: Path) -> None:
    (tmp_path / "secret").write_bytes(LINE)
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(file)
    (tmp_path / "folder").mkdir()
    for path in (file, tmp_path / "link", tmp_path / "folder", tmp_path / "none", Path("/dev/zero"), tmp_path / "x/y"):
        assert read_events(path, SINCE) == Told((), 0)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
_DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "stage": st.sampled_from(["import", "interpreter", "GPU context"]) | _JSON,
        "begin": st.floats(0, 50) | _JSON,
        "end": st.floats(0, 50) | _JSON,
        "what": _JSON,
        "pid": st.integers(1, 3) | _JSON,
    },
)


@given(st.lists(_DOCUMENTS.map(lambda one: json.dumps(one).encode()) | st.binary()))
def test_anything_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "anything"
    file.write_bytes(b"\n".join(lines))
    told = read_events(file, SINCE)
    assert len(told.events) + told.dropped == sum(1 for line in b"\n".join(lines).split(b"\n") if line)
    assert all(SINCE <= event.begin <= event.end for event in told.events)
    assert all(event.what.isprintable() for event in told.events)
