"""First outputs of real programs."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

from slimgpu.bench.output import MOST, NoOutputError, Wanted, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVER = """
import http.server, json, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.answer(self.path.encode())
    def do_POST(self): self.answer(self.rfile.read(int(self.headers["Content-Length"])))
    def answer(self, data):
        self.send_response(503 if self.path == "/busy" else 200); self.end_headers(); self.wfile.write(data)
    def log_message(self, *_): pass
time.sleep(0.2)
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.serve_forever()
"""


class Started:
    """A program as engines hand it over."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdout: IO[bytes] = process.stdout
        self.stderr: IO[bytes] = process.stderr
        self.pid = process.pid
        self.poll = process.poll
        self.kill = process.kill
        self.wait = process.wait


@contextmanager
def program(code: str, *arguments: str) -> Iterator[Started]:
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield Started(process)
        finally:
            process.kill()


def first(code: str, wanted: Wanted) -> str:
    with program(code) as started:
        return Watch(started, wanted).first().text


def test_the_first_line() -> None:
    assert first("print('one'); print('two')", Wanted()) == "one"


def test_empty_lines_are_no_output() -> None:
    assert first("print(); print('one')", Wanted()) == "one"


def test_what_is_said_beside_is_no_output() -> None:
    code = "import sys; print('warning', file=sys.stderr, flush=True); print('one')"
    assert first(code, Wanted()) == "one"


def test_only_what_was_expected_counts_and_is_compared() -> None:
    code = "print('loading'); print('took 1.7 s: answer 42 in 0.3 s')"
    assert first(code, Wanted(expect=r"answer \d+")) == "answer 42"


def test_a_program_that_goes_on() -> None:
    assert first("import time; print('one', flush=True); time.sleep(60)", Wanted()) == "one"


def test_a_long_line_is_cut() -> None:
    assert first(f"print('x' * {2 * MOST})", Wanted()) == MOST * "x"


def test_bytes_that_are_no_text() -> None:
    assert first("import sys; sys.stdout.buffer.write(b'\\xff\\n')", Wanted()) == "\ufffd"


def test_a_program_that_ends_without_a_word() -> None:
    with pytest.raises(NoOutputError, match=r"ended with status 3 before .* \(it said nothing\)"):
        first("import sys; sys.exit(3)", Wanted())


def test_the_last_words_are_told_and_harmless() -> None:
    with pytest.raises(NoOutputError, match=r"ended with status 1 .*ValueError: \\x1b\[31mred"):
        first("raise ValueError('\\x1b[31mred')", Wanted())


def test_a_program_that_never_prints_what_is_expected() -> None:
    code = "import time; print('still loading', flush=True); time.sleep(60)"
    with pytest.raises(NoOutputError, match=r"no first output within 0\.5 s.*still loading"):
        first(code, Wanted(expect="done", timeout=0.5))


def test_a_program_that_prints_more_than_a_pipe_holds() -> None:
    code = "import sys; sys.stderr.write('y' * 1_000_000); print('one')"
    assert first(code, Wanted()) == "one"


def test_the_first_answer_and_a_second(unused_port: int) -> None:
    wanted = Wanted(url=f"http://127.0.0.1:{unused_port}/health?deep=1")
    with program(_SERVER, str(unused_port)) as started:
        watch = Watch(started, wanted)
        assert watch.first().text == "/health?deep=1"
        assert watch.again() is not None


def test_data_is_posted(unused_port: int) -> None:
    wanted = Wanted(url=f"http://127.0.0.1:{unused_port}/", data='{"prompt": [1]}')
    with program(_SERVER, str(unused_port)) as started:
        assert Watch(started, wanted).first().text == '{"prompt": [1]}'


def test_an_answer_that_is_no_success_does_not_count(unused_port: int) -> None:
    wanted = Wanted(url=f"http://127.0.0.1:{unused_port}/busy", timeout=1.0)
    with (
        program(_SERVER, str(unused_port)) as started,
        pytest.raises(NoOutputError, match="no first output within 1 s"),
    ):
        Watch(started, wanted).first()


def test_lines_have_no_second_answer() -> None:
    with program("print('one')") as started:
        watch = Watch(started, Wanted())
        watch.first()
        assert watch.again() is None
