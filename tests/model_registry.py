"""A registry of models and a hub's cache that hold only what a test puts there."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pillow_sdz import models


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only pillow-sdz's own models, and no models file."""
    monkeypatch.setenv("SDZ_MODELS", str(tmp_path / "config" / "models.json"))
    for name in ("_registered", "_loaded", "_denoisers"):
        monkeypatch.setattr(models, name, {})


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if anything tries to reach the network, even if the tested code handles the error."""
    calls: list[object] = []

    def refuse(*arguments: object, **_: object) -> Any:
        calls.append(arguments)
        msg = "the network is out of bounds"
        raise OSError(msg)

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert calls == []


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, which is empty."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra sd")
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def autoencoder_directory(folder: Path, weights: bytes = b"weights", **config: object) -> Path:
    """A directory that can be registered. Its weights are fake and cannot be loaded."""
    folder.mkdir(parents=True)
    settings = {
        "_class_name": "AutoencoderKL",
        "latent_channels": 4,
        "block_out_channels": [4, 4, 4, 4],
        **config,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    return folder
