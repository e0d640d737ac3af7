"""The caller's settings of torch for its own networks change nothing here, and they stay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny_models as tiny
from model_registry import no_network, registry
from pillow_sdz import models, register_model
from pillow_sdz.models import loading
from pillow_sdz.models.mini import search
from sdz_files import decode, encode

__all__ = ["no_network", "registry"]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


CALLERS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "default device": default_device,
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
}


def settings() -> tuple[object, ...]:
    """All settings that the callers above have changed, and the state of their random numbers."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_device(),
        torch.get_default_dtype(),
        torch.get_rng_state().numpy().tobytes(),
    )


Using = Callable[[], bytes]


def saved_and_loaded(photo: Image.Image, **keywords: Any) -> Using:
    """A file, and its pixels."""

    def using() -> bytes:
        data = encode(photo, **keywords)
        return data + decode(data).tobytes()

    return using


def mini(photo: Image.Image) -> Using:
    return saved_and_loaded(photo.resize((32, 32)), effort=5)


def perceptual(photo: Image.Image) -> Using:
    return saved_and_loaded(photo, tune="perceptual")


def sd_mini(photo: Image.Image) -> Using:
    return saved_and_loaded(photo, model="sd-mini")


def denoised(photo: Image.Image) -> Using:
    return saved_and_loaded(photo, model="sd-mini", denoise=0.1)


def folder(photo: Image.Image, tmp_path: Path) -> Using:
    """The folder of a whole pipeline: autoencoder, text encoder and U-Net."""
    register_model("ours", tiny.save_pipeline(tmp_path / "pipeline"), latent_space="sd1")
    return saved_and_loaded(photo, model="ours", denoise=0.1, prompt="a cat")


def tiny_folder(photo: Image.Image, tmp_path: Path) -> Using:
    tiny.autoencoder_tiny().save_pretrained(tmp_path / "tiny")
    register_model("ours", tmp_path / "tiny", latent_space="sd1")
    return saved_and_loaded(photo, model="ours")


def modules(photo: Image.Image, tmp_path: Path) -> Using:
    """The same pipeline, registered as loaded modules."""
    parts = tiny.pipeline_parts(tmp_path)
    names = ("unet", "scheduler", "text_encoder", "tokenizer")
    used = {name: parts[name] for name in names}
    config: dict[str, Any] = {
        "latents_mean": [0.1, 0.2, 0.3, 0.4],
        "latents_std": [1.0, 2.0, 3.0, 4.0],
    }
    register_model("ours", tiny.autoencoder_kl(**config), **used, latent_space="sd1")
    return saved_and_loaded(photo, model="ours", denoise=0.1, prompt="a cat")


def reduced(photo: Image.Image) -> Using:
    data = encode(photo)

    def using() -> bytes:
        with Image.open(BytesIO(data)) as im:
            im.draft(None, (im.width // 2, im.height // 2))
            return im.tobytes()

    return using


# The results of this package's models, which take a second or more.
EXPECTED: dict[Callable[..., Using], bytes] = {}
MODELS = [mini, perceptual, reduced, sd_mini, denoised, folder, tiny_folder, modules]


@pytest.mark.parametrize(
    "model", [mini, *(pytest.param(m, marks=pytest.mark.slow) for m in MODELS[1:])]
)
@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
def test_the_callers_settings_change_nothing_and_stay(
    photo: Image.Image,
    tmp_path: Path,
    model: Callable[..., Using],
    caller: Callable[[], contextlib.AbstractContextManager[object]],
) -> None:
    """The settings hold while a model is built, while it runs, or during both."""
    of_a_folder = model in (folder, tiny_folder, modules)
    using = model(photo, tmp_path) if of_a_folder else model(photo)
    if of_a_folder or model not in EXPECTED:
        EXPECTED[model] = using()
    expected = EXPECTED[model]
    models._loaded.clear()
    models._denoisers.clear()
    with caller():
        before = settings()
        assert using() == expected
        assert settings() == before
    assert using() == expected


@pytest.fixture
def medium() -> Iterator[None]:
    """Products in bfloat16, on CPUs that have it."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("medium")
def test_a_search_multiplies_in_float32() -> None:
    """Searches overlap: the first one ends while the second one runs."""
    first, second = search.float32_products(), search.float32_products()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "highest"
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.usefixtures("medium")
def test_a_search_is_as_good_with_a_caller_who_wants_less_precision(photo: Image.Image) -> None:
    less = mini(photo)()
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")
    assert less == mini(photo)()


def test_a_search_leaves_what_is_set_for_single_libraries(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises RuntimeError if such settings differ and somebody asks for one of all."""

    def differ() -> str:
        raise RuntimeError

    def set(precision: str) -> None:
        raise AssertionError(precision)

    monkeypatch.setattr(torch, "get_float32_matmul_precision", differ)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", set)
    assert mini(photo)()


# Memory that runs out

FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")


def fail(*_: object, **__: object) -> Any:
    raise FULL


class Exhausted:
    """A session of ONNX Runtime's without memory; the text is one of ONNX Runtime 1.32."""

    def run(self, *_: object) -> Any:
        msg = "Failed to allocate memory for requested buffer of size 4294967296"
        raise RuntimeError(msg)


@pytest.fixture
def exhausted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    models._loaded.clear()
    monkeypatch.setattr("pillow_sdz.models.runtime.session", lambda *_: Exhausted())
    yield
    models._loaded.clear()


@pytest.mark.parametrize(
    "keywords", [{}, {"tune": "perceptual"}, {"model": "mini-half"}, {"model": "sd-mini"}]
)
def test_memory_that_runs_out_is_an_oserror(
    photo: Image.Image, keywords: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    data = encode(photo, **keywords)
    request.getfixturevalue("exhausted")
    for use in (lambda: decode(data), lambda: encode(photo, **keywords)):
        with pytest.raises(OSError, match=r"needs more memory than there is: .*allocate memory"):
            use()


@pytest.mark.parametrize(
    "text",
    [
        "2 : INVALID_ARGUMENT : Failed to load model with error: std::bad_alloc",
        "6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc",
    ],
)
def test_memory_that_runs_out_while_a_network_is_built(
    photo: Image.Image, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts are those of ONNX Runtime 1.32."""

    def full(*_: object, **__: object) -> Any:
        raise RuntimeError(text)

    models._loaded.clear()
    monkeypatch.setattr("onnxruntime.InferenceSession", full)
    with pytest.raises(OSError, match=r"needs more memory than there is: .*std::bad_alloc"):
        encode(photo)
    models._loaded.clear()


def test_memory_that_runs_out_in_the_search_is_an_oserror(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pillow_sdz.models.mini.refinement.RateModel.bits", fail)
    with pytest.raises(OSError, match=r"needs more memory than there is: .*can't allocate memory"):
        encode(photo, effort=5)


def test_memory_that_runs_out_while_a_draft_is_decoded(
    photo: Image.Image, request: pytest.FixtureRequest
) -> None:
    using = reduced(photo)
    request.getfixturevalue("exhausted")
    with pytest.raises(OSError, match="needs more memory than there is"):
        using()


def test_networks_are_built_outside_of_inference_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors made inside of it could not be used outside, where the same network runs later."""
    spec = register_model("ours", tiny.save_pipeline(tmp_path / "pipeline"), latent_space="sd1")
    modes = []

    def network(*arguments: Any) -> Any:
        modes.append(torch.is_inference_mode_enabled())
        return built(*arguments)

    built = loading.network
    monkeypatch.setattr(loading, "network", network)
    with torch.inference_mode():
        models.load(spec)
        models.load_denoiser(spec)
    assert len(modes) >= 2
    assert not any(modes)
