"""Many at once: threads, forked and spawned processes, and commands that are killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pillow_sdz import demo

ROOT = Path(__file__).parent.parent
HANGS = 240  # chosen: seconds, longer than anything here takes on a busy machine

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

# The start of the programs below. Tests of many threads or processes need fresh processes, in which
# nothing is loaded yet. There, a hang can be reported as an error.
START = """
import io, json, os, sys, threading
import numpy as np
from PIL import Image
import pillow_sdz

def decoded(path):
    with Image.open(path) as image:
        return np.array(image)
"""


def run(program: str, *arguments: object, environment: dict[str, str], folder: Path) -> str:
    """What a program prints. It runs from a file, because spawned processes also read it."""
    path = folder / "program.py"
    path.write_text(START + program)
    process = subprocess.run(
        [sys.executable, str(path), *map(str, arguments)],
        env={**environment, "PYTHONPATH": f"{environment['PYTHONPATH']}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six .sdz files. No two are alike."""
    folder = tmp_path_factory.mktemp("files")
    photo = demo.photo()
    paths = [folder / f"{number}.sdz" for number in range(6)]
    for number, path in enumerate(paths):
        photo.crop((50 * number, 0, 50 * number + 120, 90)).save(path, quality=20 + 10 * number)
    return paths


# threads


STRESS = """
import dataclasses
from benchmarks import many
print(json.dumps(dataclasses.asdict(many.stress(seconds=2, threads=16))))
"""


@pytest.mark.slow
def test_sixteen_threads_do_as_one(environment: dict[str, str], tmp_path: Path) -> None:
    """`python -m benchmarks.many` runs for a minute. docs/many.md has its result."""
    result = json.loads(run(STRESS, environment=environment, folder=tmp_path))
    assert result["pictures"] > 0  # how many they are in two seconds depends on the machine
    assert result["other_bytes"] == result["other_integers"] == 0
    # The network computes in floating point. torch may split sums differently in another thread.
    assert result["grey_levels"] <= 1
    # Measured: 7 MB for each thread. A copy of the networks for each would take three times that.
    assert result["peak"] - result["peak_of_one"] <= 16 * 16e6


LOADS = """
from pillow_sdz import weights
calls = []
checked = weights.sha256
def counting(path):
    calls.append(path.name)
    return checked(path)
weights.sha256 = counting  # of the weights: called whenever they are read

together = threading.Barrier(16)
pictures = []
def work():
    together.wait()
    pictures.append(decoded(sys.argv[1]).tobytes())
assert "torch" not in sys.modules
threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps([sorted(calls), len(pictures), len(set(pictures))]))
"""


def test_the_model_is_loaded_once(
    files: list[Path], environment: dict[str, str], tmp_path: Path
) -> None:
    """Sixteen threads want the model at once, as the first thing that the process does."""
    environment = {**environment, "SDZ_DTYPE": "float32"}
    printed = run(LOADS, files[0], environment=environment, folder=tmp_path)
    stages = [f"prior_{n}_{order}.onnx" for n in (0, 3) for order in ("first", "second")]
    graphs = ["mini_decoder.onnx", *stages, "product.onnx"]
    assert json.loads(printed) == [["mini.safetensors", *graphs, "tables.safetensors"], 16, 1]


# processes


LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset
from pillow_sdz import cores

class Pictures(Dataset):
    def __init__(self, paths):
        self.paths = paths
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        return torch.from_numpy(decoded(self.paths[index])), os.getpid(), cores.threads()

if __name__ == "__main__":
    way, *paths = sys.argv[1:]
    torch.set_num_threads(2)  # so that OpenMP has threads of its own before the fork
    pictures = Pictures(paths)
    expected = [picture for picture, *_ in map(pictures.__getitem__, range(len(paths)))]
    loader = DataLoader(pictures, batch_size=None, num_workers=2, multiprocessing_context=way)
    got, workers, threads = zip(*loader)
    levels = max((a.int() - b.int()).abs().max().item() for a, b in zip(got, expected))
    print(json.dumps([len(got), len(set(workers) - {os.getpid()}), max(threads), levels]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", [pytest.param("fork", marks=needs_fork), "spawn"])
def test_a_data_loaders_workers(
    way: str, files: list[Path], environment: dict[str, str], tmp_path: Path
) -> None:
    """Spawned workers import the program, and so the plugin.  Each works on its core alone."""
    environment = {k: v for k, v in environment.items() if k != "OMP_NUM_THREADS"}
    printed = run(LOADER, way, *files, environment=environment, folder=tmp_path)
    count, workers, threads, levels = json.loads(printed)
    assert (count, workers, threads) == (6, 2, 1)
    assert levels <= 1


FORKED = """
import torch
torch.set_num_threads(2)
path = sys.argv[1]
expected = decoded(path)

def child():
    process = os.fork()
    if not process:
        try:
            levels = np.abs(decoded(path).astype(int) - expected).max()
            os._exit(int(levels > 1))
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

stop = threading.Event()
def work():
    while not stop.is_set():
        decoded(path)
threads = [threading.Thread(target=work) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
print(json.dumps([child() for _ in range(10)]))
stop.set()
"""


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("threads", [0, 4])
def test_a_child_forked_after_decoding(
    threads: int, files: list[Path], environment: dict[str, str], tmp_path: Path
) -> None:
    """Other threads may decode during the fork, and may hold locks.

    The child does not wait for OpenMP's threads, which only the parent has.
    """
    printed = run(FORKED, files[0], threads, environment=environment, folder=tmp_path)
    assert json.loads(printed) == [0] * 10


# commands that are killed or interrupted


KILLED = """
from pathlib import Path
from benchmarks import killed
result = killed.killed(Path(sys.argv[1]), times=2, count=40)
print(json.dumps([result.kills, result.wrong, result.lost, result.finished]))
"""


@pytest.mark.slow
@posix_only
def test_a_killed_command_leaves_whole_files_and_the_next_one_does_the_rest(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """`python -m benchmarks.killed` does this 50 times. docs/many.md has its result."""
    (tmp_path / "work").mkdir()
    printed = run(KILLED, tmp_path / "work", environment=environment, folder=tmp_path)
    assert json.loads(printed) == [2, 0, 0, True]


@posix_only
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("command", ["encode", "decode"])
def test_ctrl_c_leaves_whole_files_and_nothing_else(
    command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    inputs, output = tmp_path / "inputs", tmp_path / "output"
    inputs.mkdir()
    suffix = ".png" if command == "encode" else ".sdz"
    demo.photo().resize((200, 150)).save(inputs / f"0{suffix}")
    for number in range(1, 100):
        shutil.copy(inputs / f"0{suffix}", inputs / f"{number}{suffix}")
    arguments = [sys.executable, "-m", "pillow_sdz", command, str(inputs), "-o", str(output)]
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + HANGS
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(random.Random(command).uniform(0, 0.1))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANGS)
    assert (process.returncode, errors) == (130, b"")
    written = list(output.iterdir())
    assert len(written) < 100
    for path in written:
        assert path.suffix == (".sdz" if command == "encode" else ".png")
        with Image.open(path) as image:
            image.load()
