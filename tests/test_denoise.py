"""Denoising: `sd-mini`'s own U-Net, its steps, its tiles, and what a file alone may ask for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model_registry import no_network, registry
from pillow_sdz import catalogue, chunks, container, demo, models, options, weights
from pillow_sdz.chunks import Denoising
from pillow_sdz.models import denoise, sd_mini_unet
from pillow_sdz.models.denoiser import Denoiser
from pillow_sdz.models.schedule import Schedule
from sdz_files import decode, encode, framed, shown

__all__ = ["no_network", "registry"]

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def recommending(data: bytes, denoising: Denoising) -> bytes:
    """The file with another recommendation."""
    return framed(
        [
            c._replace(data=denoising.pack()) if c.type == chunks.DENOISING.type else c
            for c in container.read(data)
        ]
    )


@pytest.fixture(scope="module")
def palette() -> bytes:
    """A photo of 256x256 pixels in the article's coding, which recommends 3 steps."""
    photo = demo.photo().crop((100, 0, 500, 400)).resize((256, 256), Image.Resampling.LANCZOS)
    return encode(photo, model="sd-mini", coding="palette")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The timesteps that the U-Net is asked for."""
    taken: list[int] = []
    forward = sd_mini_unet.UNet.forward

    def counting(network: sd_mini_unet.UNet, x: torch.Tensor, timestep: int) -> torch.Tensor:
        taken.append(timestep)
        return forward(network, x, timestep)

    monkeypatch.setattr(sd_mini_unet.UNet, "forward", counting)
    return taken


# The network and its steps


@pytest.mark.parametrize("timestep", [0, 29, 999])
def test_the_unet_is_the_one_that_diffusers_makes_of_its_folder(timestep: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra sd")
    unet = diffusers.UNet2DModel.from_pretrained(weights.SD_MINI_UNET.path.parent)
    x = torch.randn(1, 4, 20, 14, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = unet.float()(x, timestep).sample
        found = models.load_denoiser(catalogue.SD_MINI).predict(x, timestep, None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "betas",
    [
        SCHEDULE,
        {**SCHEDULE, "beta_schedule": "linear"},
        {**SCHEDULE, "beta_schedule": "squaredcos_cap_v2"},
        {**SCHEDULE, "rescale_betas_zero_snr": True},
        {"trained_betas": [0.01, 0.02, 0.03, 0.04, 0.05], "num_train_timesteps": 5},
    ],
)
@pytest.mark.parametrize(("strength", "steps"), [(0.03, 3), (0.04, 3), (0.5, 2), (0.9, 7)])
def test_steps_are_those_of_diffusers(
    prediction: str, betas: dict[str, Any], strength: float, steps: int
) -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra sd")
    schedule = Schedule.of({**betas, "prediction_type": prediction}, "")
    theirs = diffusers.DDIMScheduler(
        **betas,
        prediction_type=prediction,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    torch.testing.assert_close(schedule.kept, theirs.alphas_cumprod, atol=1e-6, rtol=1e-4)
    random = torch.Generator().manual_seed(0)
    x = latents = torch.randn(1, 4, 8, 8, generator=random)
    predicted = torch.randn(1, 4, 8, 8, generator=random)

    found = denoise.last_steps(latents, lambda *_: predicted, schedule, strength, steps)

    times = schedule.last(strength, steps)
    in_all = len(schedule.kept)
    theirs.set_timesteps(min(round(len(times) / strength), in_all))
    assert [time for time, _ in times] == theirs.timesteps[-len(times) :].tolist()
    x = x * theirs.alphas_cumprod[times[0][0]].sqrt()
    for time, _ in times:
        x = theirs.step(predicted, time, x, eta=0.0).prev_sample
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


# Tiles


def latents_of(size: tuple[int, int]) -> NDArray[np.float32]:
    """The latents of a photo, as coarse as those of a palette."""
    photo = demo.photo().resize(size, Image.Resampling.LANCZOS)
    exact = models.load(catalogue.SD_MINI).encode(np.asarray(photo))
    noise = np.random.default_rng(0).standard_normal(exact.shape, np.float32)
    return exact + 0.2 * noise


@pytest.mark.slow
def test_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the whole at once, in latents and pixels.

    The U-Net's norms see all of a tile, so that the difference is not 0.  It must have no edges: a
    seam would be one, all along a row or a column.  Tiles that are not blended have edges of 0.05.
    """
    coded = latents_of((1200, 800))
    denoiser = models.load_denoiser(catalogue.SD_MINI)
    tiled = denoise.denoise(coded, denoiser, 0.03, 3)
    monkeypatch.setattr(denoise, "TILE", 1000)
    whole = denoise.denoise(coded, denoiser, 0.03, 3)
    difference = tiled - whole
    edges = [np.abs(np.diff(difference, axis=n)).mean((1 - n, 2)).max() for n in (0, 1)]
    assert 0 < max(edges) < 0.02 * whole.std()

    network = models.load(catalogue.SD_MINI)
    with options.override(DTYPE="float32"):  # int8 rounds each of the two in its own way
        levels = np.abs(shown(network, tiled).astype(int) - shown(network, whole))
    assert levels.mean() < 0.25
    assert levels.max() <= 8


def test_what_fits_into_one_tile_is_not_cut(steps: list[int]) -> None:
    denoise.denoise(latents_of((512, 512)), models.load_denoiser(catalogue.SD_MINI), 0.03, 3)
    assert steps == [29, 19, 9]


@pytest.mark.parametrize(("multiple", "margin"), [(1, 16), (4, 16), (8, 16), (16, 16), (32, 32)])
def test_tiles_see_the_margin_of_their_neighbours(multiple: int, margin: int) -> None:
    """Margins are in latents.

    If a U-Net halves its input more often, the margin is one of its units.
    """
    heights = []

    def predict(x: torch.Tensor, *_: object) -> torch.Tensor:
        heights.append(x.shape[2])
        return x

    denoiser = Denoiser(
        predict, Schedule.of(SCHEDULE, ""), torch.device("cpu"), torch.float32, multiple
    )
    denoise.denoise(np.zeros((288, 32, 1), np.float32), denoiser, 0.03, 1)
    assert len(heights) > 1
    assert sum(heights) == 288 + 2 * margin * (len(heights) - 1)


@pytest.mark.parametrize("multiple", [1, 2, 8, 32])
@pytest.mark.parametrize("size", [(1, 1), (63, 65), (64, 200), (131, 97)])
def test_every_latent_is_predicted_once_in_all(multiple: int, size: tuple[int, int]) -> None:
    """Tiles have sizes that the U-Net can halve, and their weights add up to 1."""
    seen = []

    def predict(x: torch.Tensor, *_: object) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()  # nothing is kept for gradients
        assert x.shape[2] % multiple == x.shape[3] % multiple == 0
        seen.append(x.shape[2] * x.shape[3])
        return x

    sample = Schedule.of({**SCHEDULE, "prediction_type": "sample"}, "")
    denoiser = Denoiser(predict, sample, torch.device("cpu"), torch.float32, multiple)
    coded = np.random.default_rng(0).standard_normal((*size, 4)).astype(np.float32)
    kept = sample.kept[29].sqrt().item()
    np.testing.assert_allclose(denoise.denoise(coded, denoiser, 0.03, 1), kept * coded, rtol=1e-5)
    assert max(seen) <= (denoise.TILE + 2 * denoise.MARGIN) ** 2 or multiple > denoise.MARGIN


MEMORY = """
import io, sys, torch
torch.set_num_threads(1)
torch.zeros(1)
from PIL import Image
import pillow_sdz

def status(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(lines[name].split()[0])

before = status("VmRSS")
with Image.open(io.BytesIO(sys.stdin.buffer.read())) as im:
    im.load()
print(status("VmHWM") - before - 4 * im.width * im.height)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "keywords", [{}, {"model": "sd-mini", "coding": "context", "denoise": 0.03}]
)
def test_the_memory_budget_is_kept(environment: dict[str, str], keywords: dict[str, Any]) -> None:
    """A process decodes 3 megapixels, with and without denoising. The picture does not count.

    Without a budget, sd-mini takes 331 MB (measured).
    """
    photo = demo.photo().resize((1984, 1536))
    data = encode(photo, effort=0, **keywords)
    budget = options.SMALLEST_BUDGET
    done = subprocess.run(
        [sys.executable, "-c", MEMORY],
        input=data,
        env={**environment, "SDZ_MEMORY_BUDGET": str(budget), "SDZ_DENOISE_STEPS": "1"},
        capture_output=True,
        check=True,
    )
    assert 0 < int(done.stdout) < budget


# What a file alone may ask for


def test_a_file_alone_has_three_steps_at_most(palette: bytes, steps: list[int]) -> None:
    decode(recommending(palette, Denoising(200, 20)))
    assert len(steps) == 3
    for asked in ({"DENOISE": True}, {"DENOISE_STEPS": 20}):
        steps.clear()
        with options.override(**asked):
            decode(recommending(palette, Denoising(200, 20)))
        assert len(steps) == 20


@pytest.mark.parametrize(("most", "taken"), [(3, 3), (2, 2), (1.5, 1), (1, 1)])
def test_of_more_pixels_it_has_fewer_steps(
    palette: bytes, steps: list[int], monkeypatch: pytest.MonkeyPatch, most: float, taken: int
) -> None:
    monkeypatch.setattr(denoise, "UNASKED_WORK", int(most * 32 * 32))
    decode(palette)
    assert len(steps) == taken


def test_of_too_many_pixels_it_has_none(
    palette: bytes, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with options.override(DENOISE=False):
        plain = decode(palette).tobytes()
    monkeypatch.setattr(denoise, "UNASKED_WORK", 32 * 32 - 1)
    with pytest.warns(UserWarning, match="32x32 latents are too many: set options.DENOISE to True"):
        assert decode(palette).tobytes() == plain
    assert steps == []
    with options.override(DENOISE=True):
        decode(palette)
    assert len(steps) == 3


def test_the_bound_is_four_megapixels() -> None:
    """docs/security.md promises this bound."""
    most = Denoising(200, 20)
    assert denoise.wanted(most, 256 * 256) == (0.2, 3)
    assert denoise.wanted(most, 256 * 256 + 1) == (0.2, 2)
    assert denoise.wanted(most, 3 * 256 * 256) == (0.2, 1)
    assert denoise.wanted(most, 3 * 256 * 256 + 1) == (0.2, 0)


IMPORTS = """
import io, sys, warnings
warnings.simplefilter("error")
from PIL import Image
import pillow_sdz
Image.open(io.BytesIO(sys.stdin.buffer.read())).load()
print([name for name in ("diffusers", "transformers", "accelerate") if name in sys.modules])
"""


def test_a_file_alone_imports_no_other_library(palette: bytes, environment: dict[str, str]) -> None:
    """The article's pipeline runs by default, with the parts of this package alone."""
    run = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(run, input=palette, env=environment, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"[]\n", b"")


def test_a_file_alone_downloads_no_unet(palette: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []
    load = models.load_denoiser

    def watched(spec: catalogue.ModelSpec) -> Denoiser:
        allowed.append(options.ALLOW_DOWNLOADS)
        return load(spec)

    monkeypatch.setattr(models, "load_denoiser", watched)
    with options.override(ALLOW_DOWNLOADS=True):
        decode(palette)
        with options.override(DENOISE=True):
            decode(palette)
    assert allowed == [False, True]


def test_memory_that_runs_out_is_an_oserror(
    palette: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        msg = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."
        raise RuntimeError(msg)

    monkeypatch.setattr(sd_mini_unet.UNet, "forward", fail)
    with pytest.raises(OSError, match=r"the U-Net failed: .*can't allocate memory"):
        decode(palette)
