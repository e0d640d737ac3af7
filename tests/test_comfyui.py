"""The nodes in a real ComfyUI, on a CPU, over its HTTP API.

COMFYUI is the folder of a checkout of ComfyUI, and COMFYUI_PYTHON the Python that runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import pillow_sdz
from pillow_sdz import chunks, container, open_latents, save_latents
from pillow_sdz.cli import main
from pillow_sdz.comfyui import workflow
from pillow_sdz.container import Chunk
from pillow_sdz.header import Header
from sdz_files import framed

CHECKOUT = os.environ.get("COMFYUI", "")


class Server(NamedTuple):
    address: str
    folder: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, data: bytes) -> Any:
        request = urllib.request.Request(self.address + path, data)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def run(self, prompt: dict[str, Any], graph: Any = None) -> dict[str, Any]:
        """Run a workflow, and return what its nodes tell the browser."""
        body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": graph}}}
        number = self.post("/prompt", json.dumps(body).encode())["prompt_id"]
        for _ in range(600):
            if found := self.get(f"/history/{number}"):
                assert found[number]["status"]["status_str"] == "success", found[number]["status"]
                outputs: dict[str, Any] = found[number]["outputs"]
                return outputs
            time.sleep(0.1)
        raise AssertionError("the workflow did not end")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (Path(CHECKOUT) / "main.py").is_file():
        pytest.skip("needs a checkout of ComfyUI: COMFYUI=FOLDER, COMFYUI_PYTHON=PYTHON")
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
        (folder / name).mkdir()
    assert main(["comfyui", str(folder)]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    package = str(Path(pillow_sdz.__file__).parents[1])
    command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    log = (folder / "log.txt").open("wb")
    process = subprocess.Popen(
        [*command, "--base-directory", str(folder), "--database-url", "sqlite:///:memory:"],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": package},
        stdout=log,
        stderr=log,
    )
    found = Server(f"http://127.0.0.1:{port}", folder)
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            try:
                found.get("/system_stats")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield found
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def test_the_nodes_register(server: Server) -> None:
    for name in ("SdzSaveLatents", "SdzLoadLatents", "SdzSaveImages"):
        assert server.get(f"/object_info/{name}")[name]["category"] == "sdz"
    families = server.get("/object_info/SdzSaveLatents")["SdzSaveLatents"]["input"]["required"]
    assert {"sd1", "flux", "flux2", "qwen-image", "wan21"} <= set(families["family"][0])


@pytest.mark.parametrize(
    ("family", "empty", "shape"),
    [
        ("sd1", {"class_type": "EmptyLatentImage"}, (2, 4, 8, 8)),
        ("sd3", {"class_type": "EmptySD3LatentImage"}, (2, 16, 8, 8)),
        ("hunyuan-video", {"class_type": "EmptyHunyuanLatentVideo"}, (2, 16, 3, 8, 8)),
    ],
)
def test_latents_there_and_back(
    family: str, empty: dict[str, Any], shape: tuple[int, ...], server: Server
) -> None:
    """Empty latents are saved and loaded, and ComfyUI's own SaveLatent writes what was loaded."""
    inputs = {"width": 64, "height": 64, "batch_size": 2, "length": 9}
    if family != "hunyuan-video":
        del inputs["length"]
    prompt = {
        "1": empty | {"inputs": inputs},
        "2": {
            "class_type": "SdzSaveLatents",
            "inputs": {
                "samples": ["1", 0],
                "filename_prefix": f"latents/{family}",
                "family": family,
                "lossless": True,
                "step": 0.1,
            },
        },
    }
    graph = {"nodes": [{"id": 1, "title": "Grüße"}]}
    outputs = server.run(prompt, graph)["2"]
    (told,) = outputs["latents"]
    path = server.folder / "output" / told["subfolder"] / told["filename"]
    found = open_latents(path)
    assert found.model == family
    assert server.post("/sdz/workflow", path.read_bytes()) == {"prompt": prompt, "workflow": graph}
    (preview,) = outputs["images"]
    assert (server.folder / "temp" / preview["filename"]).is_file()

    shutil.copy(path, server.folder / "input" / "there.sdz")
    again = {
        "1": {"class_type": "SdzLoadLatents", "inputs": {"file": "there.sdz"}},
        "2": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "b"}},
    }
    (told,) = server.run(again)["2"]["latents"]
    from safetensors.torch import load_file

    kept = load_file(server.folder / "output" / told["filename"])["latent_tensor"]
    assert kept.shape == shape
    assert torch.equal(kept, torch.zeros(shape))


def test_a_large_noise_mask_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latents are kept.  This needs no ComfyUI."""
    from pillow_sdz.comfyui import nodes

    path = tmp_path / "a.sdz"
    monkeypatch.setattr(nodes, "_targets", lambda *about: [(path, {})])
    monkeypatch.setattr(nodes, "_metadata", lambda *about: {})
    monkeypatch.setattr(nodes, "_previews", lambda pictures: [])
    samples = {"samples": torch.ones(1, 4, 8, 6), "noise_mask": torch.ones(1, 1, 1024, 1025)}
    with pytest.warns(UserWarning, match=r"noise mask has 4,198,400 bytes .* at most 4,194,304"):
        nodes.SaveLatents().save(samples, "a", "sd1", True, 0.1)
    found = open_latents(path)
    assert found.latents.shape == (4, 8, 6)
    assert "others" not in found.info["provenance"]


def test_a_noise_mask_comes_back(server: Server) -> None:
    prompt = {
        "1": {"class_type": "SolidMask", "inputs": {"value": 0.25, "width": 64, "height": 48}},
        "2": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 64, "height": 48, "batch_size": 1},
        },
        "3": {
            "class_type": "SetLatentNoiseMask",
            "inputs": {"samples": ["2", 0], "mask": ["1", 0]},
        },
        "4": {
            "class_type": "SdzSaveLatents",
            "inputs": {
                "samples": ["3", 0],
                "filename_prefix": "masked",
                "family": "sd1",
                "lossless": False,
                "step": 0.5,
            },
        },
    }
    (told,) = server.run(prompt)["4"]["latents"]
    provenance = open_latents(server.folder / "output" / told["filename"]).info["provenance"]
    assert provenance["others"]["noise_mask"][:2] == ["float32", [1, 1, 48, 64]]
    shutil.copy(server.folder / "output" / told["filename"], server.folder / "input" / "masked.sdz")
    again = {
        "1": {"class_type": "SdzLoadLatents", "inputs": {"file": "masked.sdz"}},
        "2": prompt["4"] | {"inputs": prompt["4"]["inputs"] | {"samples": ["1", 0]}},  # type: ignore[operator]
    }
    (told,) = server.run(again)["2"]["latents"]
    twice = open_latents(server.folder / "output" / told["filename"]).info["provenance"]
    assert twice["others"] == provenance["others"]


def test_pictures(server: Server) -> None:
    """Save two pictures; LoadImage lists them, opens them, and saves what they show."""
    prompt = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 48, "height": 32, "batch_size": 2, "color": 0x4080C0},
        },
        "2": {
            "class_type": "SdzSaveImages",
            "inputs": {
                "images": ["1", 0],
                "filename_prefix": "p",
                "quality": 60,
                "effort": 1,
                "tune": "psnr",
            },
        },
    }
    graph = {"nodes": []}
    outputs = server.run(prompt, graph)["2"]
    assert len(outputs["sdz"]) == len(outputs["images"]) == 2
    path = server.folder / "output" / outputs["sdz"][0]["filename"]
    assert server.post("/sdz/workflow", path.read_bytes()) == {"prompt": prompt, "workflow": graph}
    shutil.copy(path, server.folder / "input" / "photo.sdz")
    listed = server.get("/object_info/LoadImage")["LoadImage"]["input"]["required"]["image"][0]
    assert "photo.sdz" in listed
    again = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "photo.sdz"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "q"}},
    }
    (told,) = server.run(again)["2"]["images"]
    with Image.open(server.folder / "output" / told["filename"]) as shown, Image.open(path) as own:
        difference = np.asarray(shown.convert("RGB"), int) - np.asarray(own.convert("RGB"), int)
        assert np.abs(difference).max() <= 1


# Without ComfyUI


def test_a_workflow_of_a_file_without_one() -> None:
    file = BytesIO()
    save_latents(np.zeros((4, 2, 2), np.float32), file, model="sd1")
    assert workflow.workflow_of(file.getvalue()) == {}
    with pytest.raises(OSError, match=r"not an SDZ file|truncated"):
        workflow.workflow_of(b"\x89PNG")


def test_a_workflow_is_read_as_latents_are() -> None:
    """It is read with the same table of chunks and the same judgement of the header."""
    file = BytesIO()
    provenance = {"metadata": {"prompt": '{"1": 2}', "workflow": 3, "other": "4"}}
    zeros = np.zeros((4, 2, 2), np.float32)
    save_latents(zeros, file, model="sd1", provenance=provenance)
    assert workflow.workflow_of(file.getvalue()) == {"prompt": {"1": 2}}
    head, *rest = container.read(file.getvalue())
    header = Header.parse(head.data)
    for wrong in (header._replace(channels=16), header._replace(coding=99)):
        data = framed([head._replace(data=wrong.pack()), *rest])
        with pytest.raises(OSError, match=r"16 channels|coding 99"):
            workflow.workflow_of(data)
    bands = Chunk(chunks.BANDS.type, chunks.BANDS.pack(1))
    for data in (framed([head, bands, *rest]), file.getvalue()[:-1]):
        with pytest.raises(OSError, match=r"bands of 1 rows|truncated"):
            workflow.workflow_of(data)


def test_where_the_nodes_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = Path(pillow_sdz.__file__).parent / "comfyui"
    assert main(["comfyui"]) == 0
    assert str(nodes) in capsys.readouterr().out
    assert main(["comfyui", str(tmp_path)]) == 1
    assert "has no folder custom_nodes" in capsys.readouterr().err
    (tmp_path / "custom_nodes").mkdir()
    for _ in range(2):  # the second time it is there
        assert main(["comfyui", str(tmp_path)]) == 0
    assert (tmp_path / "custom_nodes" / "pillow-sdz").resolve() == nodes.resolve()
