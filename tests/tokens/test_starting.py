"""The process that workers come from, begun before the command line is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import tokentexts

import dsmem
from dsmem.tokens.cutting import PART_BYTES

NO_OTHER = (
    "import sys\nfrom dsmem import __main__\nfrom dsmem.tokens import starting\n"
    "def refuse(theirs): raise AssertionError('a fresh process is started')\n"
    "starting._start = refuse\n"
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than one process does by itself, in two parts."""
    texts = [text for text in tokentexts.documents(400) if len(text) > 100]
    times = -(-PART_BYTES // sum(len(text.encode()) for text in texts)) + 1
    return tokentexts.write_jsonl(tmp_path_factory.mktemp("large") / "large.jsonl", texts * times)


def typed(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"{code}__main__.main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line_forks_it_ahead(large: Path, tmp_path: Path) -> None:
    done = typed(NO_OTHER, "tokenize", large, "-o", tmp_path / "a.bin", "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert '"workers": 2' in done.stdout
    dsmem.tokenize(large, tmp_path / "b.bin", workers=1)
    for suffix in (".bin", ".idx", ".docs.npy"):
        made, expected = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
        assert made == expected
    assert not list(tmp_path.glob(".*"))


def test_where_it_is_not_wanted_or_not_used_nothing_of_it_is_left(large: Path, tmp_path: Path) -> None:
    small = tokentexts.write_jsonl(tmp_path / "small.jsonl", ["a", "b"])
    never = "starting.Nursery = None\n"  # it would be an error to start one
    for arguments in ([small], [small, "--tokenizer", "bytes"], []):
        done = typed(NO_OTHER + never, "tokenize", *arguments, "-o", tmp_path / "a.bin", "--force")
        assert done.returncode == (0 if arguments else 2), done.stderr
    done = typed(NO_OTHER, "tokenize", large, tmp_path / "there is none.jsonl", "-o", tmp_path / "c.bin")
    assert "no such file" in done.stderr and done.returncode
    assert not (tmp_path / "c.bin").exists()


def ended(process: psutil.Process) -> bool:
    """It is gone, or nobody has asked yet how it ended."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_it_ends_with_a_command_that_is_killed(large: Path, tmp_path: Path) -> None:
    code = NO_OTHER + "starting.nursery = lambda: input()\n"
    command = [sys.executable, "-c", f"{code}__main__.main()", "tokenize", str(large), "-o", str(tmp_path / "a.bin")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        there = psutil.Process(process.pid)
        while not (forked := there.children()):
            assert process.poll() is None
        process.kill()
        assert process.stdout.read() == b""  # nobody has it any more
    (child,) = forked
    until = time.monotonic() + 30
    while not ended(child):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_first_who_asks_gets_the_one_that_was_started_ahead(large: Path) -> None:
    code = (
        "import sys\nfrom dsmem import helpers\nfrom dsmem.tokens import starting\n"
        "with starting.ahead([sys.argv[1]]):\n"
        "    with starting.nursery() as first, starting.nursery() as second:\n"
        "        print(isinstance(first._process, helpers.Fork), isinstance(second._process, helpers.Fork))\n"
        "with starting.nursery() as third:\n"
        "    print(isinstance(third._process, helpers.Fork))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(large)], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["True", "False", "False"], "")


def test_a_nursery_that_is_killed_is_told(tmp_path: Path) -> None:
    path = tokentexts.write_jsonl(tmp_path / "a.jsonl", tokentexts.documents(100))

    def kill(done_bytes: int, total_bytes: int) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):  # or a zombie: it was killed before
                if "dsmem.tokens.nursery" in child.cmdline():
                    child.kill()

    with pytest.raises(dsmem.WorkerLost, match=r"signal 9"):
        dsmem.tokenize(path, tmp_path / "a.bin", part_bytes=1 << 14, workers=2, progress=kill)


def test_fastokens_keeps_no_texts_whatever_its_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents do not come again, and what it keeps of them has no bound."""
    names = "FASTOKENS_INPUT_CACHE", "FASTOKENS_SEGMENT_CACHE"
    for name in names:
        monkeypatch.setenv(name, "4096")
    path = tokentexts.write_jsonl(tmp_path / "a.jsonl", tokentexts.documents(100))
    told: list[str] = []

    def look(done_bytes: int, total_bytes: int) -> None:
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if "dsmem.tokens.nursery" in child.cmdline():
                    told.extend(child.environ()[name] for name in names)

    dsmem.tokenize(path, tmp_path / "a.bin", part_bytes=1 << 14, workers=2, progress=look)
    assert set(told) == {"0"}


def test_what_comes_from_a_nursery_has_a_standard_error(tmp_path: Path) -> None:
    """What is opened next would get its number: a worker makes it its standard output."""
    code = (
        "import os, sys\nfrom dsmem.tokens import nursery\n"
        "shown = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "def tell(): os.write(shown, os.readlink('/proc/self/fd/2').encode() + b'\\n')\n"
        "nursery._have_stderr(); tell()\nos.close(2)\nnursery._have_stderr(); tell()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "told")], check=True, stderr=subprocess.PIPE)
    first, second = (tmp_path / "told").read_text().splitlines()
    assert first.startswith("pipe:") and second == os.devnull
