"""Training of the prior in waves: what is trained is what the package computes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pillow_sdz.arrays import Ints
from pillow_sdz.codings.wave_prior import WavePrior
from sample_latents import correlated_latents

# Training is not part of the installed package. Only the checkout has it.
sys.path.append(str(Path(__file__).parent.parent))

from training.wave_prior import FloatPrior, Samples, integers

CHANNELS, STEP = 3, 0.25


@pytest.fixture
def samples() -> Samples:
    """All places of two pictures."""
    latents = [correlated_latents(9, 11, CHANNELS), correlated_latents(9, 11, CHANNELS)[::-1]]
    quantised = torch.from_numpy(np.rint(np.stack(latents) / STEP) * STEP).float()
    rows, columns = np.indices((9, 11)).reshape(2, 1, -1).repeat(2, 1)
    return Samples.at(
        quantised.permute(0, 3, 1, 2),
        torch.full((2,), STEP),
        torch.from_numpy(rows),
        torch.from_numpy(columns),
    )


@pytest.fixture
def model() -> FloatPrior:
    torch.manual_seed(0)
    model = FloatPrior(CHANNELS, (12, 7))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def test_integers_predict_what_the_floats_do(model: FloatPrior, samples: Samples) -> None:
    """At every place, those at the borders too."""
    with torch.no_grad():
        mean, octaves = (x.reshape(CHANNELS, 2, 9, 11).numpy() for x in model(samples))
    prior = WavePrior(integers(model, samples))
    symbols = np.rint(samples.target.reshape(CHANNELS, 2, 9, 11).numpy() / STEP).astype(np.int64)
    for number in range(2):
        wanted = symbols[:, number].transpose(1, 2, 0)
        means, scales = np.zeros(wanted.shape), np.zeros(wanted.shape)

        class Recorder:
            """A coder that returns the symbols and keeps what was predicted."""

            def code(self, volume: str, index: tuple[Any, ...], mean: Ints, scale: Ints) -> Ints:
                means[index], scales[index] = mean, scale  # noqa: B023
                chosen: Ints = wanted[index]  # noqa: B023
                return chosen

        prior.code(Recorder(), 9, 11, round(1024 * STEP))
        # Means are rounded to eighths of a step, or up to a whole one where the scale is wide.
        unit = 2 ** np.clip(scales // 8 - 4, 0, 3) * STEP / 8
        error = np.abs(means * STEP / 8 - mean[:, number].transpose(1, 2, 0))
        assert (error < unit / 2 + 0.02).all()
    assert np.ptp(mean) > 1
    assert np.ptp(octaves) > 0.2


def test_the_first_fit_saves_bits(model: FloatPrior, samples: Samples) -> None:
    fresh = FloatPrior(CHANNELS)
    with torch.no_grad():
        before = fresh.bits(samples).mean()
        fresh.begin(samples)
        assert fresh.bits(samples).mean() < 0.9 * before
