"""Calls in processes of their own: what becomes of one that hangs, dies or eats, and of those after it."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runs import alive, descendants, wait_for
from stubs import TESTS, a_million_bytes, do, limits, log

from pathfm.errors import InputError, SlideError
from pathfm.isolation import Call, Limits, isolated

FILE = Path("slide.tiff")
QUICK = Limits(deadline_s=2.0, memory_gib=1.0)
PATIENT = Limits(deadline_s=60.0, memory_gib=1.0)
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process that its parent was killed")


def begin(deed: str, wait_s: float = 0.0, limits: Limits = PATIENT) -> Call[int]:
    return isolated(FILE, limits, 2, do, deed, wait_s)


def test_a_call_runs_in_another_process_which_stays_for_the_next() -> None:
    pids = {begin("").result() for _ in range(20)}
    assert os.getpid() not in pids
    assert len(pids) <= 2


@pytest.mark.parametrize(
    ("deed", "reason", "said"),
    [
        ("hangs", "timeout", "was not read within 2 s"),
        ("segfaults", "crash", "made its reader crash (Segmentation fault"),
        ("aborts", "crash", "made its reader crash (Aborted"),
        ("exits", "crash", "made its reader crash (exit code 3)"),
        ("killed", "crash", "made its reader crash (Killed, as the system does where memory runs out"),
        ("eats", "memory", "needs more than 1 GiB"),
        ("oom", "memory", "needs more than 1 GiB"),
    ],
)
def test_a_call_that_goes_wrong_has_a_typed_reason_and_the_next_one_is_well(deed: str, reason: str, said: str) -> None:
    with pytest.raises(SlideError) as caught:
        begin(deed, limits=QUICK).result()
    assert (caught.value.path, caught.value.reason) == (FILE, reason)
    assert said in caught.value.message
    assert "; " in caught.value.message
    assert begin("").result()


def test_a_hang_costs_its_deadline_and_little_more_whatever_waits_behind_it() -> None:
    started_s = time.monotonic()
    calls = [begin("hangs", limits=QUICK) for _ in range(60)]
    with pytest.raises(SlideError):
        calls[0].result()
    for call in calls:
        call.cancel()
    assert begin("").result()
    assert 2.0 <= time.monotonic() - started_s < 60.0


def test_waiting_for_a_process_is_not_on_a_calls_time() -> None:
    calls = [begin("", 0.25, QUICK) for _ in range(18)]
    assert all(call.result() for call in calls)


def test_a_process_that_dies_between_two_calls_is_replaced_unnoticed() -> None:
    pids = {begin("", 0.05).result() for _ in range(4)}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not alive(pids), 10)
    assert begin("").result() not in pids


def test_ctrl_c_does_not_reach_the_processes() -> None:
    """It is sent to all of the group; a notebook goes on after it."""
    pid = isolated(FILE, PATIENT, 1, do, "").result()
    os.kill(pid, signal.SIGINT)
    assert isolated(FILE, PATIENT, 1, do, "", 0.2).result() == pid


def test_processes_that_are_killed_at_any_moment_cost_no_more_than_their_calls() -> None:
    """The system kills where memory runs out, also in the middle of an answer; each call still ends."""
    stop = threading.Event()
    pids: set[int] = set()
    ends = {"kills": 0, "well": 0, "crash": 0}

    def kill() -> None:
        moments = random.Random(0)
        while not stop.wait(moments.uniform(0.1, 0.3)):
            for pid in sorted(pids & descendants(os.getpid()))[:1]:
                os.kill(pid, signal.SIGKILL)
                ends["kills"] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    end_s = time.monotonic() + 60
    while ends["kills"] < 12 and time.monotonic() < end_s:
        calls = [isolated(FILE, PATIENT, 2, a_million_bytes) for _ in range(10)]
        for call in calls:
            try:
                pid, said = call.result()
                pids.add(pid)
                assert len(said) == 1 << 20
                ends["well"] += 1
            except SlideError as error:
                ends[error.reason] += 1
    stop.set()
    killer.join()
    assert ends["well"] > ends["kills"] >= 12
    assert ends["crash"] <= ends["kills"]


def test_what_a_call_raises_is_raised_here() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        isolated(FILE, PATIENT, 2, os.stat, "nowhere").result()
    assert caught.value.filename == "nowhere"
    assert "in a reading process" in caught.value.__notes__[0]


@pytest.mark.parametrize(("deed", "said"), [("odd", "OddError: very odd"), ("local", "LocalError: does not pickle")])
def test_an_error_that_cannot_be_carried_over_is_told_in_words(deed: str, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        begin(deed).result()
    assert begin("").result()


def test_a_function_that_the_process_cannot_import_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(do, "__module__", "stubs_that_are_nowhere")
    monkeypatch.setitem(sys.modules, "stubs_that_are_nowhere", sys.modules["stubs"])
    with pytest.raises(ModuleNotFoundError, match="stubs_that_are_nowhere"):
        begin("").result()


def test_what_a_process_logs_is_logged_here_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pathfm")
    isolated(FILE, PATIENT, 2, log, "one").result()
    with pytest.raises(ValueError, match="two"):
        isolated(FILE, PATIENT, 2, log, "two", fails=True).result()
    assert caplog.messages == ["one: <local>", "two: <local>"]
    caplog.set_level(logging.WARNING, "pathfm")
    isolated(FILE, PATIENT, 2, log, "three").result()
    assert len(caplog.messages) == 2


def test_a_relative_path_means_the_file_that_it_means_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "slide.tiff").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert isolated(FILE, PATIENT, 1, Path.read_text, FILE).result() == name


def test_a_process_has_its_memory_limit_leaves_no_core_and_ignores_what_others_printed() -> None:
    cores, memory = isolated(FILE, PATIENT, 2, limits).result()
    assert cores == (0, 0)
    if sys.platform == "linux":
        assert memory[0] == 1 << 30
    isolated(FILE, PATIENT, 1, os.write, 2, b"of another slide\n").result()
    with pytest.raises(SlideError) as caught:
        isolated(FILE, PATIENT, 1, do, "aborts").result()
    assert "another slide" not in caught.value.message


@pytest.mark.parametrize(
    "limits", [{"deadline_s": 0}, {"deadline_s": float("nan")}, {"memory_gib": 0.9}, {"memory_gib": float("nan")}]
)
def test_limits_that_nothing_can_be_read_under_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"--limits\.deadline_s"):
        Limits(**limits)


def test_limits_may_be_infinite() -> None:
    assert isolated(FILE, Limits(float("inf"), float("inf")), 1, do, "").result()


@pytest.mark.parametrize(("python", "said"), [("/nowhere/python", "No such file"), ("/bin/false", "exit code 1")])
def test_processes_that_cannot_be_started_are_one_line(monkeypatch: pytest.MonkeyPatch, python: str, said: str) -> None:
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(InputError, match=f"cannot be started .*{said}"):
        isolated(FILE, Limits(7.0, 1.125), 1, do, "").result()  # under another limit, so none is there


def test_calls_can_be_made_from_a_daemonic_process_that_was_forked_with_readers_open() -> None:
    program = f"""
import multiprocessing, sys
sys.path.insert(0, {str(TESTS)!r})
from stubs import do_in_a_reader
mine = do_in_a_reader()
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply(do_in_a_reader) != mine)
"""
    assert _run(program).stdout == "True\n"


def test_a_script_needs_no_guard_and_runs_once() -> None:
    program = f"""
import sys
print("once")
sys.path.insert(0, {str(TESTS)!r})
from stubs import do_in_a_reader
do_in_a_reader()
"""
    assert _run(program).stdout == "once\n"


@pytest.mark.parametrize("deed", ["", pytest.param("hangs", marks=linux)])
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=linux)])
def test_processes_end_with_the_program_however_it_ends(deed: str, killed: bool) -> None:
    program = f"""
import os, sys, time
sys.path.insert(0, {str(TESTS)!r})
from stubs import Limits, Path, do, do_in_a_reader, isolated
pids = [do_in_a_reader("", 0.2)]
calls = [isolated(Path(), Limits(60.0, 1.0), 2, do, {deed!r}, 0 if {deed!r} else 30) for _ in range(5)]
time.sleep(0.5)
print(os.getpid(), flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        readers = descendants(process.pid)
        assert len(readers) == 2
        process.kill() if killed else process.stdin.close()
        assert process.wait(20) == (-signal.SIGKILL if killed else 0)
    assert wait_for(lambda: not alive(readers), 5)


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
