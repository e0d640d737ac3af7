"""Loaded autoencoders of any class: their behaviour counts, not the name of their class."""

from __future__ import annotations

import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pillow_sdz import models, open_latents, options, register_model, save_latents
from sdz_files import decode, encode

# Evaluation is not part of the installed package. Only the checkout has it.
sys.path.append(str(Path(__file__).parent.parent))
from evaluation import taef2

diffusers = pytest.importorskip("diffusers", reason="needs the extra sd")


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_registered", {})


@pytest.fixture
def photo() -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, 52), np.linspace(0, 255, 37))
    return Image.fromarray(np.stack([x, y, 255 - x], 2).astype(np.uint8))


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


class Blocks:
    """An autoencoder that is not even a torch module.

    Its latents are means of 8x8 blocks in 0..1.
    """

    def encode(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 8)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_any_object_with_encode_and_decode(photo: Image.Image) -> None:
    spec = register_model("blocks", Blocks(), pixel_range=(0, 1), scaling=4, shift=0.5)
    assert (spec.channels, spec.factor) == (3, 8)
    data = encode(photo, model="blocks", coding="float32")
    kept = open_latents(BytesIO(data)).latents
    assert -2 <= kept.min() < kept.max() <= 2
    means = photo.crop((0, 0, 48, 32)).reduce(8)
    shown = decode(data).crop((0, 0, 48, 32)).reduce(8)
    assert np.abs(np.asarray(means, int) - np.asarray(shown, int)).max() <= 1


def test_another_latent_space_of_its_own_shape(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="sd1 latents have 4 channels at a factor of 8"):
        register_model("blocks", Blocks(), latent_space="sd1")


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        ({"channels": 4}, OSError, "has 3 as its channels, not 4"),
        ({"factor": 16}, OSError, "has 8 as its factor, not 16"),
        ({"chanels": 3}, ValueError, "has no 'chanels', only channels, factor, pixel_range"),
        ({"factor": "8"}, ValueError, "factor must be a whole number from 1 to 255, not '8'"),
        ({"channels": 0}, ValueError, "channels must be a whole number from 1"),
        ({"pixel_range": (1, 0)}, ValueError, "pixel_range must be two numbers, first that of bl"),
        ({"pixel_range": (0, 1, 2)}, ValueError, "pixel_range must be two numbers"),
        ({"scaling": 0}, ValueError, "scaling must be a number above 0"),
        ({"scaling": np.full(2, 1.5)}, ValueError, "scaling has 2 numbers, but the latents 3 ch"),
        ({"shift": float("nan")}, ValueError, "shift must be a number from"),
    ],
)
def test_conventions_that_do_not_hold(
    given: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        register_model("blocks", Blocks(), **given)


def test_a_scaling_in_an_array(photo: Image.Image) -> None:
    register_model("blocks", Blocks(), scaling=torch.full((1, 3, 1, 1), 4.0), shift=np.zeros(3))
    assert decode(encode(photo, model="blocks")).size == photo.size


@pytest.mark.parametrize(
    ("encoded", "decoded", "complaint"),
    [
        (Tensor.numpy, None, "must return a tensor of floating point latents, not float32"),
        (Tensor.long, None, "must return a tensor of floating point latents, not torch.int64"),
        (lambda z: None, None, "must return a tensor of floating point latents, not NoneType"),
        (torch.flatten, None, r"became latents of the shape \(192,\)"),
        (lambda z: z[..., :0], None, r"became latents of the shape \(1, 3, 8, 0\)"),
        (lambda z: z[..., :7, :7], None, r"became latents of the shape \(1, 3, 7, 7\)"),
        (lambda z: z[..., :4], None, r"became latents of the shape \(1, 3, 8, 4\)"),
        (None, lambda x: x[..., :8], r"came back as torch.Size\(\[1, 3, 64, 8\]\)"),
        (None, lambda x: None, "came back as NoneType"),
    ],
)
def test_what_encode_and_decode_must_return(encoded: Any, decoded: Any, complaint: str) -> None:
    class Wrong(Blocks):
        def encode(self, images: Tensor) -> Any:
            latents = super().encode(images)
            return encoded(latents) if encoded else latents

        def decode(self, latents: Tensor) -> Any:
            images = super().decode(latents)
            return decoded(images) if decoded else images

    with pytest.raises(OSError, match=f"this Wrong is no autoencoder of pictures: .*{complaint}"):
        register_model("wrong", Wrong())


class Four(Blocks):
    """The same with 4 channels, as latents of SD1."""

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images).repeat(1, 2, 1, 1)[:, :4]

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents[:, :3])


def test_a_scaling_that_contradicts_the_family() -> None:
    """Files name the family.  So others scale the latents back as the family says."""
    for given in (
        {"scaling": 0.13025},
        {"scaling": 0.18215, "shift": 0.5},
        {"scaling": [1, 2, 1, 1]},
    ):
        with pytest.warns(UserWarning, match=r"not 0\.18215 and 0\. If they are meant, choose"):
            register_model("four", Four(), latent_space="sd1", **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_model("four", Four(), latent_space="sd1", scaling=0.18215)
        register_model("four", Four(), latent_space="sd1")  # its latents are scaled already
        register_model("four", Four(), scaling=0.13025)  # of a latent space of its own


def test_the_scaling_in_the_configuration_of_a_known_class() -> None:
    import tiny_models as tiny

    with pytest.warns(
        UserWarning, match=r"pictures of other flux models .*0\.18215 and 0, not 0\.3"
    ):
        register_model("ours", tiny.autoencoder_kl(channels=16), latent_space="flux")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae = tiny.autoencoder_kl(channels=16, scaling_factor=0.3611, shift_factor=0.1159)
        register_model("ours", vae, latent_space="flux")


@pytest.mark.parametrize(("family", "channels"), [("glm-image", 16), ("sana", 32)])
def test_a_family_without_an_autoencoder(photo: Image.Image, family: str, channels: int) -> None:
    """Messages only propose what can work: only some classes are read from folders."""
    file = BytesIO()
    save_latents(np.zeros((channels, 2, 2), np.float32), file, model=family)
    with pytest.raises(OSError, match=rf"register_model\('{family}', AUTOENCODER\)") as opened:
        decode(file.getvalue())
    with pytest.raises(OSError, match=rf"register_model\('{family}', AUTOENCODER\)") as saved:
        encode(photo, model=family)
    proposed = [f"sdz models add {family} DIRECTORY" in str(e.value) for e in (opened, saved)]
    assert proposed == [family == "glm-image"] * 2


def test_what_is_no_autoencoder_of_pictures() -> None:
    class Sound:
        def encode(self, waves: Tensor) -> Tensor:
            raise RuntimeError("expected 2 axes")

        decode = encode

    with pytest.raises(OSError, match="is no autoencoder of pictures: RuntimeError: expected 2"):
        register_model("sound", Sound())
    with pytest.raises(OSError, match=r"this object is no .* has not encode and decode"):
        register_model("sound", object())
    with pytest.raises(ValueError, match="Sound is a class: register an object of it"):
        register_model("sound", Sound)


def test_a_class_derived_from_a_known_one(photo: Image.Image) -> None:
    """A derived class is known whatever its name is. The name alone does not make a class known."""
    import tiny_models as tiny

    derived = type("Mine", (diffusers.AutoencoderTiny,), {})
    vae = tiny.autoencoder_tiny()
    vae.__class__ = derived
    spec = register_model("mine", vae, latent_space="sd1")
    assert not hasattr(models.load(spec), "_how")
    register_model("theirs", type("AutoencoderKL", (Blocks,), {})(), pixel_range=(0, 1))
    assert decode(encode(photo, model="theirs")).size == photo.size


def test_a_file_of_an_unknown_family_is_shown_by_another_model(photo: Image.Image) -> None:
    """Nobody here knows which models have its latents, so the user's word counts."""
    register_model("blocks", Blocks(), pixel_range=(0, 1))
    means = photo.crop((0, 0, 48, 32)).reduce(8)
    latents = np.asarray(means, np.float32).transpose(2, 0, 1) / 255
    file = BytesIO()
    save_latents(latents, file, model="theirs", factor=8, lossless="float32")
    text = (
        "call register_model('theirs', AUTOENCODER), or set options.DECODER to a model of "
        "3 channels at a factor of 8"
    )
    with pytest.raises(OSError, match="not known here: run 'sdz models add theirs") as e:
        decode(file.getvalue())
    assert text in str(e.value)
    with options.override(DECODER="blocks"):
        shown = decode(file.getvalue()).reduce(8)
    assert np.abs(np.asarray(means, int) - np.asarray(shown, int)).max() <= 1
    # A model of the file's name that has a latent space of its own does not change that.
    register_model("theirs", Blocks())
    with options.override(DECODER="blocks"):
        assert decode(file.getvalue()).reduce(8).tobytes() == shown.tobytes()


def test_a_file_of_an_unknown_family_is_not_shown_by_what_cannot(photo: Image.Image) -> None:
    register_model("blocks", Blocks())
    file = BytesIO()
    save_latents(np.zeros((24, 4, 4), np.float32), file, model="theirs", factor=8, step=1)
    with (
        options.override(DECODER="blocks"),
        pytest.raises(OSError, match=r"latents of 3 channels at a factor of 8, but .* 24 channels"),
    ):
        decode(file.getvalue())
    # Only `mini` has latents with a hyperprior, even if others have their shape.
    wide = BytesIO()
    save_latents(np.zeros((384, 4, 4), np.float32), wide, model="theirs", factor=16, step=1)
    with (
        options.override(DECODER="mini"),
        pytest.raises(OSError, match="which decodes mini latents, but this"),
    ):
        decode(wide.getvalue())


# diffusers' classes.  Only the sizes and the weights are not real.


def flux2() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        layers_per_block=1,
    )


def qwen() -> Any:
    return diffusers.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1)


def wan() -> Any:
    return diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1)


def sana() -> Any:
    return diffusers.AutoencoderDC(
        latent_channels=32,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(32,) * 6,
        decoder_block_out_channels=(32,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.41407,
    )


def qwen2() -> Any:
    return diffusers.AutoencoderKLQwenImage21(base_dim=8, num_res_blocks=1)


def wan22() -> Any:
    space = models.catalogue.all_spaces()["wan22"]
    return diffusers.AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=48,
        num_res_blocks=1,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        scale_factor_spatial=16,
        latents_mean=list(space.shift),
        latents_std=[1 / each for each in space.scaling],
    )


def hunyuan_image() -> Any:
    return diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=64,
        block_out_channels=(32, 32, 32, 32, 64, 128),
        layers_per_block=1,
        spatial_compression_ratio=32,
        sample_size=64,
        scaling_factor=0.75289,
    )


def hunyuan_video() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )


def hunyuan_video15() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=32, block_out_channels=(32, 32, 64, 64, 64), layers_per_block=1
    )


def cogvideox() -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
    )


def mochi() -> Any:
    return diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )


def ltx() -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=128,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    vae.latents_mean.uniform_(-1, 1)
    vae.latents_std.uniform_(0.5, 2)
    return vae


def glm() -> Any:
    import tiny_models as tiny

    return tiny.autoencoder_kl(
        channels=16, latents_mean=[0.1 * n for n in range(16)], latents_std=[2.0] * 16
    )


CLASSES = [
    (flux2, "flux2"),
    (qwen, "qwen-image"),
    (qwen2, "qwen-image-2"),
    (wan, "wan21"),
    (wan22, "wan22"),
    (sana, "sana"),
    (hunyuan_image, "hunyuan-image"),
    (hunyuan_video, "hunyuan-video"),
    (hunyuan_video15, "hunyuan-video-1.5"),
    (cogvideox, "cogvideox"),
    (mochi, "mochi"),
    (ltx, "ltx"),
    (glm, "glm-image"),
]


def statistics_of(vae: Any) -> tuple[Any, Any]:
    """The mean and deviation of each channel. LTX has buffers of them, others a configuration."""
    buffers = dict(vae.named_buffers())
    if "latents_mean" in buffers:
        return buffers["latents_mean"], buffers["latents_std"]
    return vae.config.latents_mean, vae.config.latents_std


@pytest.mark.slow
@pytest.mark.parametrize(("make", "space"), CLASSES)
def test_diffusers_classes(make: Any, space: str, photo: Image.Image) -> None:
    vae = seeded(make)
    spec = register_model("ours", vae, latent_space=space)
    network = models.load(spec)
    latents = network.encode(np.asarray(photo))
    # As pipelines scale them.
    pixels = np.asarray(photo)
    height, width = (-n % spec.factor for n in pixels.shape[:2])
    padded = np.pad(pixels, ((0, height), (0, width), (0, 0)), mode="edge")
    images = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 127.5 - 1
    if space == "qwen-image-2":  # with an alpha channel
        images = torch.cat([images, torch.ones_like(images[:, :1])], 1)
    with torch.no_grad():
        out = vae.encode(images[:, :, None] if spec.space.video else images)
    own = out.latent if space == "sana" else out.latent_dist.mode()
    own = own[:, :, 0] if spec.space.video else own
    if spec.space.scaling is None:  # it comes with the weights
        mean, std = (torch.as_tensor(part).view(1, -1, 1, 1) for part in statistics_of(vae))
        expected = (own - mean) / std
        np.testing.assert_allclose(expected[0].permute(1, 2, 0), latents, atol=1e-5)
        assert decode(encode(photo, model="ours")).size == photo.size
        return
    file = BytesIO()
    save_latents(own, file, model="ours", scaled=False, step=1 / 64)
    saved = open_latents(BytesIO(file.getvalue()))
    bound = 1 / 64 * np.max(spec.space.scaling) + 1e-5
    assert np.abs(saved.latents.transpose(1, 2, 0) - latents).max() <= bound
    assert decode(encode(photo, model="ours")).size == photo.size


def test_flux2_from_its_pipeline(photo: Image.Image) -> None:
    """The pipeline's latents are 2x2 patches, normalised, and decode to the same picture."""
    vae = seeded(flux2)
    spec = register_model("ours", vae, latent_space="flux2")
    register_model("other", seeded(sana), latent_space="sana")
    own = models.load(spec).encode(np.asarray(photo.resize((48, 32))))
    space = models.catalogue.all_spaces()["flux2-patches"]
    tensor = torch.from_numpy(own).permute(2, 0, 1)[None]
    patches = diffusers.Flux2Pipeline._patchify_latents(tensor)
    scaling, shift = (torch.tensor(v)[:, None, None] for v in (space.scaling, space.shift))
    packed = diffusers.Flux2Pipeline._pack_latents((patches - shift) * scaling)
    file, plain = BytesIO(), BytesIO()
    save_latents(packed, file, model="flux2", size=(48, 32), lossless="float32")
    save_latents(own.transpose(2, 0, 1), plain, model="ours", lossless="float32")
    with options.override(DECODER="ours"):
        found, expected = (np.asarray(decode(f.getvalue()), int) for f in (file, plain))
    assert np.abs(found - expected).max() <= 1
    with pytest.raises(OSError, match=r"needs .* not known here: call register_model\('flux2', "):
        decode(file.getvalue())
    register_model("flux2", vae)
    assert np.abs(np.asarray(decode(file.getvalue()), int) - expected).max() <= 1
    with (
        options.override(DECODER="other"),
        pytest.raises(OSError, match="decodes sana latents, but"),
    ):
        decode(file.getvalue())


# Real weights


def test_real_taef2(photo: Image.Image) -> None:
    path = taef2.weights()
    if path is None:
        pytest.skip("needs the weights of taef2: TAEF2=FILE")
    module = taef2.load(Path(path))
    spec = register_model("taef2", module, latent_space="flux2", pixel_range=(0, 1))
    assert (spec.channels, spec.factor) == (32, 8)
    picture = photo.resize((96, 64))
    images = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        own = module.decode(module.encode(images))[0].clamp(0, 1).permute(1, 2, 0).numpy() * 255
    exact = decode(encode(picture, model="taef2", coding="float32"))
    assert np.abs(np.asarray(exact) - own).max() <= 0.51
    near = [decode(encode(picture, model="taef2", quality=75, effort=e)) for e in (0, 4)]
    rounded, diffused = (np.abs(np.asarray(im) - own).mean() for im in near)
    assert rounded < 2
    assert diffused <= rounded
