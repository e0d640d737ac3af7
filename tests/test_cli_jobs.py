"""`--jobs`: many files in several processes say and write what one process says and writes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pillow_sdz.atomic import replacing
from pillow_sdz.cli import main, running
from pillow_sdz.cli.reports import Report
from pillow_sdz.cli.workers import Workers
from pillow_sdz.cores import Share, _quotas, at_once, cores, threads
from pillow_sdz.models import tiles

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def folder(photo: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with album/: four pictures, one of which is broken."""
    monkeypatch.chdir(tmp_path)
    Path("album").mkdir()
    for number in range(4):
        photo.rotate(40 * number).save(f"album/{number}.png")
    Path("album/2.png").write_bytes(b"broken")
    # Several processes from the second file on, however fast the first was.
    monkeypatch.setattr(running, "ALONE", 0)


def written(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_the_same_files_and_messages_in_the_same_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {}
    for number in ("1", "2"):
        assert main(["encode", "album", "-o", f"out{number}", "-v", "-j", number]) == 1
        out, err = capsys.readouterr()
        said[number] = (out.replace(f"out{number}", "out"), err)
    assert said["1"] == said["2"]
    assert said["1"][1] == "sdz: album/2.png: not a picture that Pillow can read\n"
    assert "3 done, 0 skipped, 1 failed" in said["1"][0]
    assert written("out1") == written("out2")


@pytest.mark.slow
def test_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "album", "-o", "out", "-j", "1"]) == 1
    capsys.readouterr()
    for command in (
        ["decode", "out", "-o", "back"],
        ["compare", "album", "--json"],
    ):
        said = []
        for jobs in ("1", "2"):
            status = main([*command, "-j", jobs, *(["--force"] if "-o" in command else [])])
            said.append((status, capsys.readouterr()))
        assert said[0] == said[1]


def test_caches(capsys: pytest.CaptureFixture[str]) -> None:
    """A remark about all files is printed once, whichever process makes it."""
    for number in range(4):
        np.savez(f"{number}.npz", latents=np.zeros((4, 8, 6), np.float32))
    assert main(["encode", *(f"{n}.npz" for n in range(4)), "-o", "out", "-j", "2"]) == 0
    assert capsys.readouterr().err == (
        "sdz: latents are assumed to be of sd1 (--model names another model)\n"
    )
    assert len(written("out")) == 4


def test_a_short_run_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "ALONE", 1000)
    monkeypatch.setattr(
        "pillow_sdz.cli.workers.Workers", lambda *_: pytest.fail("a process is started")
    )
    assert main(["encode", "album", "-o", "out", "-j", "4"]) == 1


@pytest.mark.parametrize("jobs", ["0", "-1", "x", "1001", "1.5", "9" * 5000])
def test_numbers_of_jobs_that_are_none(jobs: str) -> None:
    with pytest.raises(SystemExit):
        main(["encode", "album", f"--jobs={jobs}"])


# the processes


def tell_threads(item: str, report: Report) -> None:
    report.say(f"{item}: {os.environ['OMP_NUM_THREADS']}")


def die(item: str, report: Report) -> None:
    if item == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    report.say(item)


class Terminated:
    """A process that gets a signal to end when this object is deleted."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def end(item: str, report: Report) -> None:
    with replacing(Path(item)) as file:
        file.write(b"half")
        Terminated()
    report.say("Python has ignored an exception")


def test_a_process_has_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillow_sdz.cli.workers.cores", lambda: 5)
    with Workers(tell_threads, 2) as workers:
        lines = [report.lines for report in workers.map(["a", "b"])]
    assert lines == [[(False, "a: 2")], [(False, "b: 2")]]


@posix_only
def test_a_process_that_is_killed_costs_its_file_alone() -> None:
    """The system kills processes like this when memory runs out."""
    with Workers(die, 2) as workers:
        reports = list(workers.map(["a", "b", "c", "d"]))
    assert [report.failed for report in reports] == [False, True, False, False]
    assert reports[1].lines == [
        (
            True,
            "sdz: b: the process that worked on it ended with signal 9; was there enough memory?",
        )
    ]


@posix_only
def test_a_process_that_is_told_to_end_does_so_anywhere(capfd: pytest.CaptureFixture[str]) -> None:
    """It ends at once, without a traceback and without leaving a file."""
    with Workers(end, 1) as workers:
        (report,) = workers.map(["a"])
    assert report.lines == [
        (
            True,
            "sdz: a: the process that worked on it ended with status 143; was there enough memory?",
        )
    ]
    assert capfd.readouterr().err == ""
    assert os.listdir() == ["album"]


@posix_only
def test_a_process_that_has_ended_before_it_gets_work() -> None:
    with Workers(tell_threads, 1) as workers:
        reports = workers.map(["a", "b", "c"])
        assert not next(reports).failed
        (worker,) = workers._workers
        worker.process.kill()
        worker.process.join()
        assert [report.failed for report in reports] == [True, False]


# Ctrl-C

SLOW = """
import multiprocessing, signal, sys, time
from pathlib import Path
from PIL import Image
import pillow_sdz
from pillow_sdz.cli import main, running

save = Image.Image.save

def slowly(image, *arguments, **options):
    if "SDZ" not in arguments:  # exact pixels are saved as WebP first
        return save(image, *arguments, **options)
    Path(f"started-{time.time_ns()}").touch()
    if multiprocessing.parent_process() is None:
        save(image, *arguments, **options)
    else:
        time.sleep(1000)

if __name__ == "__main__":
    # A shell may have started this test without Ctrl-C, as it does in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
Image.Image.save = slowly
running.ALONE = 0
if __name__ == "__main__":
    sys.exit(main(["encode", "album", "-o", "out", "-j", "2"]))
"""


@posix_only
@pytest.mark.parametrize("whom", ["process", "group"])
def test_ctrl_c_ends_all_processes(whom: str, environment: dict[str, str]) -> None:
    """They end within seconds, print nothing, and leave only complete files.

    A terminal sends SIGINT to the whole group of processes, and ``kill`` sends it to one.
    """
    Path("slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "slow.py"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(Path().glob("started-*"))) < 3:  # one alone, then one in each process
            assert time.monotonic() < deadline, process.stderr
            assert process.poll() is None
            time.sleep(0.05)
        children = processes_of(process.pid)
        begin = time.monotonic()
        if whom == "group":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert os.listdir("out") == ["0.sdz"]
    while any(is_alive(child) for child in children):  # multiprocessing's own ends a moment later
        assert time.monotonic() - begin < 20
        time.sleep(0.05)


def processes_of(parent: int) -> list[int]:
    """The children of a process, on systems that have /proc."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{parent}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def is_alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# how many cores there are


def control_groups(root: Path, own: str, **limits: str) -> tuple[Path, Path]:
    """Files like Linux's, with a limit for each named group."""
    groups = root / "cgroup"
    groups.write_text(f"0::{own}\n")
    for name, text in limits.items():
        folder = root / "fs" / name.replace("_", "/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(text)
    return groups, root / "fs"


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("/", {}, []),
        ("/a/b", {"a_b": "max 100000"}, []),
        ("/a/b", {"a_b": "150000 100000"}, [1.5]),
        ("/a/b", {"a": "200000 100000", "a_b": "max 100000"}, [2]),
        ("/a/b", {"a": "nonsense", "a_b": "1 0"}, []),
    ],
)
def test_the_limits_of_a_container(
    tmp_path: Path, own: str, limits: dict[str, str], expected: list[float]
) -> None:
    """The limits of the group itself count, and those of the groups above it."""
    assert list(_quotas(*control_groups(tmp_path, own, **limits))) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert list(_quotas(tmp_path / "none", tmp_path / "none")) == []


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    quotas: list[float] = []
    monkeypatch.setattr("pillow_sdz.cores._quotas", lambda *_: iter(quotas))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5, 7}, raising=False)
    assert cores() == 4
    quotas.append(1.6)
    assert cores() == 2
    quotas.append(0.1)
    assert cores() == 1


# how many threads work on a picture


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillow_sdz.cores.cores", lambda: 4)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("variable", "expected"),
    [(None, 4), ("1", 1), ("3", 3), (" 2,1 ", 2), ("16", 4), ("0", 4), ("many", 4), ("", 4)],
)
def test_threads_of_a_process(
    variable: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert threads() == expected


@pytest.mark.usefixtures("four_cores")
def test_a_thread_that_shares_the_work_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [*at_once(lambda _: threads(), range(3), 2)] == [1, 1, 1]
    assert [*at_once(lambda _: threads(), range(3), 1)] == [4, 4, 4]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_work_that_is_shared_often(workers: int) -> None:
    with Share(workers) as share:
        for count in range(5):
            assert share(lambda n: n * n, range(count)) == [n * n for n in range(count)]
        with pytest.raises(ZeroDivisionError):
            share(lambda n: 1 // n, [1, 0, 1])
        with pytest.raises(ZeroDivisionError):
            share(lambda n: 1 // n, [0, 1, 1])
        assert share(lambda n: n * n, [2, 3]) == [4, 9]


@posix_only
@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("variable", "expected"), [(None, 1), ("3", 3)])
def test_threads_of_a_process_that_works_beside_others(
    variable: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each of many processes made tiles for all cores, they would compute many margins."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    with multiprocessing.get_context("fork").Pool(1) as pool:  # it keeps the four cores
        assert pool.apply(threads) == expected


def test_a_spawned_process_works_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(threads) == 1


@pytest.mark.parametrize(
    ("size", "count", "scale", "expected"),
    [
        (100, 1, 1, 1),
        (100, 2, 1, 2),
        (100, 4, 1, 4),
        (100, 4, 2, 4),
        (100, 4, 4, 1),
        (100, 4, 8, 1),
        (48, 2, 1, 2),
        (48, 2, 2, 2),
        (47, 2, 1, 1),
        (47, 2, 2, 1),
        (192, 2, 4, 2),
        (191, 2, 4, 1),
    ],
)
def test_a_picture_has_a_tile_for_each_thread_if_that_is_worth_it(
    size: int, count: int, scale: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a smaller scale, a tile takes less work, but its margins stay as large."""
    monkeypatch.setattr("pillow_sdz.cores.threads", lambda: count)
    pieces = tiles.decode(
        (size, size, 1),
        lambda tile: tile.place,
        lambda place: np.zeros((*tiles.shape(place), 3), np.uint8),
        factor=1,
        side=lambda workers: size,
        margin=13,
        scale=scale,
    )
    assert len(list(pieces)) == expected
