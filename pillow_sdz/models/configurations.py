"""The fields of diffusers' and transformers' configurations that are read, and how.

A configuration comes with weights, and anybody may have made them.  The fields here say how large a
network is, how its latents are scaled, and which of the usual layers it has.  All other fields are
ignored.  So they cannot choose an attention kernel, a quantiser, a class or a module to import.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from ..header import MAX_CHANNELS, MAX_FACTOR

# Chosen: several times the numbers of published networks of these kinds (SDXL's U-Net: 3 widths of
# up to 1280, 10 layers; CLIP bigG: 32 layers of 1280, 49,408 tokens, 77 of them in a prompt).
MOST_STAGES, MOST_LAYERS, WIDEST = 8, 64, 8192
MOST_TOKENS, LONGEST_PROMPT = 1_000_000, 1024
MOST_TIMESTEPS = 10_000  # Stable Diffusion's schedule has 1000
LARGEST_SCALE = 1e6  # latents beyond it would be no numbers in float16

#: One number, or one for each channel.
Numbers = float | Sequence[float]


class Field(NamedTuple):
    """A rule for a field: its description and its check."""

    what: str
    fits: Callable[[Any], bool]

    def or_none(self) -> Field:
        return Field(f"{self.what}, or null", lambda value: value is None or self.fits(value))


def checked(kind: str, settings: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The fields of a configuration that this kind of network, or a scheduler, needs.

    OSError with the field's name if a value is not allowed.  Missing fields have the library's own
    default.  A scheduler's fields have no default, because libraries differ.
    """
    found = {}
    for name, field in FIELDS[kind].items():
        if name in settings:
            if not field.fits(settings[name]):
                shown = reprlib.repr(settings[name])
                msg = f"{where}: the field {name!r} must be {field.what}, and is {shown}"
                raise OSError(msg)
            found[name] = settings[name]
    if complaint := _contradiction(found) or (_missing(found) if kind == "scheduler" else None):
        msg = f"{where}: {complaint}"
        raise OSError(msg)
    return found


def scaling(settings: Mapping[str, Any]) -> tuple[Numbers, Numbers]:
    """The scaling and shift in checked settings; 1 and 0 if they say none."""
    factor = settings.get("scaling_factor") or 1.0
    shift = settings.get("latents_mean") or settings.get("shift_factor") or 0.0
    std = settings.get("latents_std")
    return (tuple(factor / each for each in std) if std else factor), shift


def _contradiction(settings: Mapping[str, Any]) -> str | None:
    """Why fields do not fit each other, or None."""
    for name, other in (
        ("down_block_types", "block_out_channels"),
        ("up_block_types", "block_out_channels"),
        ("num_encoder_blocks", "encoder_block_out_channels"),
        ("num_decoder_blocks", "decoder_block_out_channels"),
    ):
        if name in settings and len(settings[name]) != len(settings.get(other, settings[name])):
            return f"the fields {name!r} and {other!r} must be of one length"
    channels = settings.get("latent_channels", 4)  # diffusers' default
    for name in ("latents_mean", "latents_std"):
        values = settings.get(name)
        if isinstance(values, (list, tuple)) and len(values) != channels:
            return f"the field {name!r} has {len(values)} values for {channels} channels"
    return None


def _missing(settings: Mapping[str, Any]) -> str | None:
    """What a scheduler's configuration lacks to be that of a diffusion model, or None."""
    if settings.get("trained_betas") is not None:
        return None
    needed = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    lacking = [name for name in needed if name not in settings]
    return f"no schedule of a diffusion model: it lacks {lacking[0]!r}" if lacking else None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _number(low: float, high: float) -> Field:
    return Field(
        f"a number from {low:g} to {high:g}",
        lambda value: _is_number(value) and low <= value <= high,
    )


def _positive(high: float) -> Field:
    return Field(
        f"a number above 0, at most {high:g}", lambda value: _is_number(value) and 0 < value <= high
    )


def _count(most: int, least: int = 1) -> Field:
    return Field(
        f"a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def _word(*words: str) -> Field:
    return Field(
        f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words
    )


def _list(of: Field, most: int = MOST_STAGES) -> Field:
    return Field(
        f"a list of 1 to {most}, each {of.what}",
        lambda value: (
            isinstance(value, (list, tuple))
            and 1 <= len(value) <= most
            and all(map(of.fits, value))
        ),
    )


def _either(one: Field, other: Field) -> Field:
    return Field(f"{one.what}, or {other.what}", lambda v: one.fits(v) or other.fits(v))


def _only(value: object) -> Field:
    """A field with one allowed value, because other values are not supported."""
    shown = "null" if value is None else repr(value)
    return Field(f"{shown}, all else is not supported", lambda found: found == value)


_FLAG = Field("true or false", lambda value: isinstance(value, bool))
_EPSILON = _positive(1)
_WIDTH, _LAYERS = _count(WIDEST), _count(MOST_LAYERS)
_WIDTHS = _list(_WIDTH)
_CHANNELS = _count(MAX_CHANNELS)
_SCALE, _SHIFT = _positive(LARGEST_SCALE), _number(-LARGEST_SCALE, LARGEST_SCALE)
_SAMPLE_SIZE = _either(_WIDTH, _list(_WIDTH)).or_none()  # not used here, but pipelines read it

#: How latents are scaled.  These fields also count for loaded autoencoders.
_SCALING = {
    "latent_channels": _CHANNELS,
    "scaling_factor": _SCALE,
    "shift_factor": _SHIFT.or_none(),
    "latents_mean": _list(_SHIFT, MAX_CHANNELS).or_none(),
    "latents_std": _list(_SCALE, MAX_CHANNELS).or_none(),
}
#: How a loaded autoencoder of any class is called: what users may give to `register_model`.
CONVENTIONS: Mapping[str, Field] = {
    "channels": _CHANNELS,
    "factor": _count(MAX_FACTOR),
    "pixel_range": Field(
        "two numbers, first that of black",
        lambda value: _list(_SHIFT, 2).fits(value) and len(value) == 2 and value[0] < value[1],
    ),
    "scaling": _either(_SCALE, _list(_SCALE, MAX_CHANNELS)),
    "shift": _either(_SHIFT, _list(_SHIFT, MAX_CHANNELS)),
}
_OF_DIFFUSERS = {
    "act_fn": _word("silu", "swish", "mish", "gelu", "relu"),
    "norm_num_groups": _count(WIDEST),
    "block_out_channels": _WIDTHS,
    "sample_size": _SAMPLE_SIZE,
}


class AutoencoderClass(NamedTuple):
    """A class of diffusers' autoencoders: its fields, and what its code assumes.

    ``widths`` names the field with the widths of its stages.  Each stage has half the resolution of
    the stage before, and the last stage has the resolution of latents.
    """

    fields: Mapping[str, Field]
    widths: str
    #: diffusers' default, if a configuration lacks that field.
    default_widths: tuple[int, ...]
    #: The only latents that the class decodes in tiles: channels and factor.  None: any.
    tiles: tuple[int, int] | None = None

    def factor(self, settings: Mapping[str, Any]) -> int:
        """How many pixels there are along a side of a latent."""
        return 1 << (len(settings.get(self.widths, self.default_widths)) - 1)


_AUTOENCODER_KL = {
    **_SCALING,
    **_OF_DIFFUSERS,
    "in_channels": _only(3),
    "out_channels": _only(3),
    "down_block_types": _list(_word("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
    "up_block_types": _list(_word("UpDecoderBlock2D", "AttnUpDecoderBlock2D")),
    "layers_per_block": _LAYERS,
    "force_upcast": _FLAG,
    "use_quant_conv": _FLAG,
    "use_post_quant_conv": _FLAG,
    "mid_block_add_attention": _FLAG,
}
_AUTOENCODER_TINY = {
    **_SCALING,
    "in_channels": _only(3),
    "out_channels": _only(3),
    "act_fn": _OF_DIFFUSERS["act_fn"],
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "upsample_fn": _word("nearest", "bilinear", "bicubic"),
    "upsampling_scaling_factor": _only(2),
    "num_encoder_blocks": _list(_LAYERS),
    "num_decoder_blocks": _list(_LAYERS),
    "latent_magnitude": _SCALE,
    "latent_shift": _SHIFT,
    "force_upcast": _FLAG,
}
#: The classes of autoencoders that are read from folders.  AutoencoderTiny of diffusers 0.42 has
#: numbers of Stable Diffusion's latents in its tiling.
AUTOENCODERS: Mapping[str, AutoencoderClass] = {
    "AutoencoderKL": AutoencoderClass(_AUTOENCODER_KL, "block_out_channels", (64,)),
    "AutoencoderTiny": AutoencoderClass(
        _AUTOENCODER_TINY, "encoder_block_out_channels", (64, 64, 64, 64), tiles=(4, 8)
    ),
}
_UNET = {
    **_OF_DIFFUSERS,
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "center_input_sample": _FLAG,
    "flip_sin_to_cos": _FLAG,
    "freq_shift": _number(0, 1),
    "downsample_padding": _count(1, 0),
    "mid_block_scale_factor": _positive(LARGEST_SCALE),
    "norm_eps": _EPSILON,
    "dropout": _number(0, 1),
    "resnet_time_scale_shift": _word("default", "scale_shift"),
    "time_embedding_dim": _WIDTH.or_none(),
}
_UNET_2D = {
    **_UNET,
    "time_embedding_type": _word("positional", "fourier"),
    "down_block_types": _list(_word("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")),
    "mid_block_type": _word("UNetMidBlock2D").or_none(),
    "up_block_types": _list(_word("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")),
    "layers_per_block": _LAYERS,
    "downsample_type": _word("conv", "resnet"),
    "upsample_type": _word("conv", "resnet"),
    "attention_head_dim": _WIDTH.or_none(),
    "attn_norm_num_groups": _WIDTH.or_none(),
    "add_attention": _FLAG,
}
_UNET_2D_CONDITION = {
    **_UNET,
    "time_embedding_type": _only("positional"),
    "down_block_types": _list(_word("DownBlock2D", "CrossAttnDownBlock2D")),
    "mid_block_type": _word("UNetMidBlock2DCrossAttn", "UNetMidBlock2D").or_none(),
    "up_block_types": _list(_word("UpBlock2D", "CrossAttnUpBlock2D")),
    "layers_per_block": _either(_LAYERS, _list(_LAYERS)),
    "only_cross_attention": _either(_FLAG, _list(_FLAG)),
    "cross_attention_dim": _either(_WIDTH, _WIDTHS),
    "transformer_layers_per_block": _either(_LAYERS, _list(_LAYERS)),
    "attention_head_dim": _either(_WIDTH, _WIDTHS),
    "num_attention_heads": _either(_WIDTH, _WIDTHS).or_none(),
    "dual_cross_attention": _FLAG,
    "use_linear_projection": _FLAG,
    "upcast_attention": _FLAG,
    "mid_block_only_cross_attention": _FLAG.or_none(),
    **{
        name: _only(None)
        for name in (
            "reverse_transformer_layers_per_block",
            "time_embedding_act_fn",
            "timestep_post_act",
            "time_cond_proj_dim",
            "cross_attention_norm",
        )
    },
    "resnet_skip_time_act": _only(False),
    "resnet_out_scale_factor": _only(1),
    "conv_in_kernel": _only(3),
    "conv_out_kernel": _only(3),
    "attention_type": _only("default"),
}
_TEXT_ENCODER = {
    "vocab_size": _count(MOST_TOKENS),
    "hidden_size": _WIDTH,
    "intermediate_size": _count(8 * WIDEST),
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _WIDTH,
    "max_position_embeddings": _count(LONGEST_PROMPT),
    "hidden_act": _word("quick_gelu", "gelu", "relu", "silu"),
    "layer_norm_eps": _EPSILON,
    # Only the feature of the whole text depends on these tokens, and it is not used.
    "bos_token_id": _count(MOST_TOKENS, 0).or_none(),
    "eos_token_id": _count(MOST_TOKENS, 0).or_none(),
    "pad_token_id": _count(MOST_TOKENS, -1).or_none(),
}
_BETA = _positive(0.999)
_SCHEDULER = {
    "num_train_timesteps": _count(MOST_TIMESTEPS),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": _word("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": _list(_BETA, MOST_TIMESTEPS).or_none(),
    "prediction_type": _word("epsilon", "sample", "v_prediction"),
    "rescale_betas_zero_snr": _FLAG,
}

#: The fields that are read, by kind of network; also those of schedulers and of the scaling.
FIELDS: Mapping[str, Mapping[str, Field]] = {
    **{name: kind.fields for name, kind in AUTOENCODERS.items()},
    "UNet2DModel": _UNET_2D,
    "UNet2DConditionModel": _UNET_2D_CONDITION,
    "CLIPTextModel": _TEXT_ENCODER,
    "scheduler": _SCHEDULER,
    "scaling": _SCALING,
}
