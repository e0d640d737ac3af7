"""A model's folder: what its configurations may say, and that they choose nothing else."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models as tiny
from model_registry import no_network, registry
from pillow_sdz import models, presets, register_model
from pillow_sdz.models import loading
from pillow_sdz.models.configurations import FIELDS
from pillow_sdz.models.sources import Folder

__all__ = ["no_network", "registry"]

CONFIGURATIONS = {
    "vae": "config.json",
    "unet": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return tiny.save_pipeline(tmp_path / "pipeline")


def change(pipeline: Path, part: str, **fields: object) -> None:
    """Change fields of a part's configuration. Fields that are `...` are removed."""
    path = pipeline / part / CONFIGURATIONS[part]
    settings = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not ...}))


def used(pipeline: Path) -> list[bytes]:
    """The results of all parts of a pipeline's folder for the same input."""
    spec = register_model("ours", pipeline)
    latents = models.load(spec).encode(np.full((16, 16, 3), 100, np.uint8))
    denoiser = models.load_denoiser(spec)
    assert denoiser.embed is not None
    with torch.inference_mode():
        prompt = denoiser.embed("a cat")
        noise = denoiser.predict(torch.ones(1, 4, 8, 8), 10, prompt)
    made = latents, prompt.numpy(), noise.numpy(), denoiser.schedule.kept.numpy()
    return [array.tobytes() for array in made]


# Nothing but data


@pytest.fixture
def outward(monkeypatch: pytest.MonkeyPatch, no_network: None) -> Iterator[None]:
    """Fail on each way out to the network, even if the tested code handles the error."""
    calls: list[object] = []

    def refuse(*arguments: object, **_: object) -> Any:
        calls.append(arguments)
        msg = "this is out of bounds"
        raise OSError(msg)

    kernels = ModuleType("kernels")
    kernels.__getattr__ = lambda name: refuse(name)  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    import huggingface_hub
    import transformers
    from huggingface_hub import file_download, hf_api

    for module in (huggingface_hub, file_download, hf_api, transformers.utils.hub):
        for name in ("hf_hub_download", "snapshot_download", "get_session", "model_info"):
            monkeypatch.setattr(module, name, refuse, raising=False)
    for name in ("model_info", "snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, refuse)
    for cls in (transformers.PreTrainedModel, tiny.diffusers.ModelMixin):
        monkeypatch.setattr(cls, "from_pretrained", refuse)  # which does what it is told
    yield
    assert calls == []


KERNEL = "kernels-community/flash-attn2"
CHOICES: dict[str, object] = {
    "attn_implementation": KERNEL,
    "_attn_implementation": KERNEL,
    "_attn_implementation_internal": KERNEL,
    "attn_processor": KERNEL,
    "use_kernels": True,
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "auto_map": {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]},
    "trust_remote_code": True,
    "_name_or_path": "stranger/model",
    "name_or_path": "stranger/model",
    "transformers_weights": "other.safetensors",
    "architectures": ["Evil"],
    "model_type": "evil",
    "tokenizer_class": "EvilTokenizer",
    "tokenizer_file": "/etc/passwd",
    "vocab_file": "/etc/passwd",
    "chat_template": "{{ evil }}",
    "dtype": "float64",
    "torch_dtype": "evil",
}


@pytest.mark.parametrize("part", CONFIGURATIONS)
def test_a_configuration_chooses_no_code(pipeline: Path, outward: None, part: str) -> None:
    expected = used(pipeline)
    (pipeline / part / "evil.py").write_text("raise SystemExit('code of a folder was run')")
    change(pipeline, part, **CHOICES)
    models._loaded.clear()
    assert used(pipeline) == expected


@pytest.mark.parametrize("part", CONFIGURATIONS)
def test_a_configuration_chooses_no_class(pipeline: Path, outward: None, part: str) -> None:
    """The class of an autoencoder or a U-Net is a known one, or refused.

    Other parts have one class.
    """
    expected = used(pipeline)
    change(pipeline, part, _class_name="Evil")
    models._loaded.clear()
    if part in ("vae", "unet"):
        with pytest.raises(OSError, match="Evil, not"):
            used(pipeline)
    else:
        assert used(pipeline) == expected


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("vae", "diffusion_pytorch_model.safetensors.index.json"),
        ("unet", "diffusion_pytorch_model.safetensors.index.fp16.json"),
        ("unet", "adapter_config.json"),
        ("text_encoder", "adapter_config.json"),
        ("text_encoder", "model.safetensors.index.json"),
        ("tokenizer", "added_tokens.json"),
        ("tokenizer", "chat_template.jinja"),
    ],
)
def test_other_files_of_a_folder_are_not_read(
    pipeline: Path, outward: None, part: str, name: str
) -> None:
    expected = used(pipeline)
    (pipeline / part / name).write_text('{"weight_map": {}, "base_model_name_or_path": "a/b"}')
    models._loaded.clear()
    assert used(pipeline) == expected


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("AutoencoderKL", tiny.autoencoder_kl),
        ("AutoencoderTiny", tiny.autoencoder_tiny),
        ("UNet2DModel", tiny.unet),
        ("UNet2DConditionModel", tiny.conditional_unet),
        ("CLIPTextModel", tiny.text_encoder),
    ],
)
def test_networks_are_those_that_were_saved(
    tmp_path: Path, kind: str, make: Callable[[], Any]
) -> None:
    """All tensors are the same, and the configuration, and buffers that are not saved."""
    make().save_pretrained(tmp_path)
    found, expected = loading.network(kind, Folder(tmp_path), torch.float32), make()
    for one, other in zip(
        (*found.state_dict().items(), *found.named_buffers()),
        (*expected.state_dict().items(), *expected.named_buffers()),
        strict=True,
    ):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    assert type(found) is type(expected)
    assert not found.training


def renamed(folder: Path, names: Callable[[str], str]) -> None:
    (path,) = folder.glob("*.safetensors")
    save_file({names(name): tensor for name, tensor in load_file(path).items()}, path)


def test_former_names_of_tensors(pipeline: Path) -> None:
    """diffusers renamed tensors of attention, and transformers those of a text encoder."""
    expected = used(pipeline)
    former = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }

    def of_attention(name: str) -> str:
        for today, before in former.items():
            name = name.replace(today, before)
        return name

    renamed(pipeline / "vae", of_attention)
    renamed(
        pipeline / "text_encoder", lambda name: f"text_model.{name.removeprefix('text_model.')}"
    )
    models._loaded.clear()
    assert used(pipeline) == expected


def test_a_tokenizer_as_it_is_saved_today(pipeline: Path) -> None:
    """It is in tokenizer.json, and there are no vocab.json and merges.txt."""
    expected = used(pipeline)
    folder = pipeline / "tokenizer"
    model = {"type": "BPE", "vocab": json.loads((folder / "vocab.json").read_text()), "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}))
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    models._loaded.clear()
    assert used(pipeline) == expected


# Fields

TOO_MANY = 10**9
BAD: dict[str, dict[str, list[object]]] = {
    "vae": {
        "scaling_factor": [0, -1, None, 10**400, "0.18215", [0.5], float("nan"), True],
        "latents_std": [1.0, [1.0], [0.0] * 4, [-1.0] * 4, [None] * 4, [float("inf")] * 4],
        "shift_factor": ["0", [0.0], float("nan")],
        "latents_mean": [1.0, "0", [0.0], [0.0] * 5, ["0"] * 4, [float("inf")] * 4],
        "latent_channels": [0, -4, 4.0, "4", None, TOO_MANY],
        "block_out_channels": [[], 4, None, [0, 4], [4.0], ["4"], [4] * 9, [TOO_MANY] * 4],
        "down_block_types": ["DownEncoderBlock2D", ["Evil"] * 4, ["DownEncoderBlock2D"]],
        "layers_per_block": [0, TOO_MANY, 1.5, None],
        "norm_num_groups": [0, "2", None],
        "act_fn": ["evil", 1],
        "in_channels": [1, "3"],
    },
    "unet": {
        "block_out_channels": [[], [0, 8], [TOO_MANY, 8]],
        "layers_per_block": [0, TOO_MANY, "1"],
        "down_block_types": [["Evil", "DownBlock2D"], ["DownBlock2D"]],
        "cross_attention_dim": ["8", 0, TOO_MANY],
        "attention_head_dim": [0, "4"],
        "transformer_layers_per_block": [TOO_MANY],
        "norm_eps": [-1, "0"],
        "time_cond_proj_dim": [256],
        "conv_in_kernel": [1],
    },
    "text_encoder": {
        "hidden_size": ["8", 0, TOO_MANY],
        "num_hidden_layers": [TOO_MANY, 0],
        "vocab_size": [TOO_MANY, "54"],
        "max_position_embeddings": [0, TOO_MANY],
        "hidden_act": ["evil"],
        "layer_norm_eps": ["0", -1],
    },
    "scheduler": {
        "num_train_timesteps": [0, TOO_MANY, 10.5, "1000", None],
        "beta_start": [0, -1, 2, "0.1", None, float("nan")],
        "beta_end": [0, 1, "steep", [0.1]],
        "beta_schedule": ["evil", None, 1],
        "trained_betas": [0.1, [], [0.0], [1.0], ["0.1"], [float("nan")]],
        "prediction_type": ["flow_prediction", None],
        "rescale_betas_zero_snr": ["yes"],
    },
    "tokenizer": {
        "model_max_length": [0, "77", None, float("nan"), [77]],
        "bos_token": [1, "<nowhere>", {"content": 1}],
        "pad_token": [["<|endoftext|>"]],
    },
}


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [(part, field, v) for part, fields in BAD.items() for field, vs in fields.items() for v in vs],
)
def test_a_malformed_field_is_named(pipeline: Path, part: str, field: str, value: object) -> None:
    change(pipeline, part, **{field: value})
    with pytest.raises(OSError, match=rf"{CONFIGURATIONS[part]}.*'{field}'"):
        used(pipeline)


@pytest.mark.parametrize(
    "field", ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule"]
)
def test_what_is_no_schedule_of_a_diffusion_model(pipeline: Path, field: str) -> None:
    """An example is flow matching. Libraries have different defaults for a missing field."""
    change(pipeline, "scheduler", **{field: ..., "trained_betas": ...})
    message = f"no schedule of a diffusion model: it lacks '{field}'"
    with pytest.raises(OSError, match=message):
        used(pipeline)


@pytest.mark.parametrize("name", ["DPMSolverSDEScheduler", "LMSDiscreteScheduler", "EvilScheduler"])
def test_a_schedulers_class_need_not_be_installed(pipeline: Path, name: str) -> None:
    """Only its noise schedule counts."""
    expected = used(pipeline)
    change(pipeline, "scheduler", _class_name=name)
    models._denoisers.clear()
    assert used(pipeline) == expected


@pytest.mark.parametrize("value", [None, 0.0, float("nan"), "1"])
def test_a_loaded_autoencoders_scaling(value: object) -> None:
    module = tiny.autoencoder_kl()
    module.register_to_config(scaling_factor=value)
    with pytest.raises(OSError, match="this AutoencoderKL: the field 'scaling_factor' must be"):
        register_model("ours", module)


def test_a_loaded_scheduler_of_another_kind() -> None:
    scheduler = tiny.diffusers.FlowMatchEulerDiscreteScheduler()
    spec = register_model("ours", tiny.autoencoder_kl(), unet=tiny.unet(), scheduler=scheduler)
    message = "this FlowMatchEulerDiscreteScheduler: no schedule of a diffusion model"
    with pytest.raises(OSError, match=message):
        models.load_denoiser(spec)


def test_sizes_that_the_weights_do_not_have_take_no_memory(pipeline: Path) -> None:
    """The configuration asks for a network of half a terabyte."""
    change(pipeline, "unet", block_out_channels=[8192, 8192], layers_per_block=64)
    with pytest.raises(OSError, match=r"unet.* lacks"):
        used(pipeline)


def test_weights_of_another_network(pipeline: Path) -> None:
    path = pipeline / "vae" / tiny.WEIGHTS
    save_file({**load_file(path), "more.weight": torch.zeros(1)}, path)
    with pytest.raises(OSError, match=r"this AutoencoderKL has no 'more\.weight'"):
        used(pipeline)


@pytest.mark.parametrize("known", [register_model, models.record_model])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_are_replaced_later_are_refused(
    pipeline: Path, known: Callable[[str, Path], Any], part: str
) -> None:
    """A model of the same name must not show other pictures later."""
    spec = known("ours", pipeline)
    (path,) = (pipeline / part).glob("*.safetensors")
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)

    def prompted() -> object:
        embed = models.load_denoiser(spec).embed
        return embed and embed("a cat")

    with pytest.raises(OSError, match="sha256"):
        prompted()


def test_words_that_the_text_encoder_does_not_know(pipeline: Path) -> None:
    path = pipeline / "tokenizer" / "vocab.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "z" * 9: 54}))
    with pytest.raises(OSError, match="other tokens than the text encoder: more than 54"):
        used(pipeline)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vocab.json", "[]"),
        ("vocab.json", '{"a": -1}'),
        ("vocab.json", '{"a": "b"}'),
        ("vocab.json", "{}"),
        ("merges.txt", "a\n"),
        ("merges.txt", "a b c\n"),
        ("merges.txt", "a b\n"),
    ],
)
def test_damaged_words(pipeline: Path, name: str, text: str) -> None:
    (pipeline / "tokenizer" / name).write_text(text)
    with pytest.raises(OSError, match="tokenizer"):
        used(pipeline)


def test_all_families_of_models_are_read() -> None:
    """The fields of each preset's class are known."""
    assert {preset.class_name for preset in presets.PRESETS.values()} <= set(FIELDS)


def rules() -> Iterator[tuple[str, str, Callable[[object], bool]]]:
    """Every field of every kind of configuration: its name, its description, and its check."""
    for kind, fields in FIELDS.items():
        for name, field in fields.items():
            yield f"{kind} {name}", field.what, field.fits


@pytest.mark.parametrize(("name", "what", "fits"), [*rules()], ids=[name for name, *_ in rules()])
def test_both_ends_of_a_range_are_in_it(
    name: str, what: str, fits: Callable[[object], bool]
) -> None:
    """The range in the message is the range that is accepted."""
    if match := re.fullmatch(r"a whole number from (-?\d+) to (\d+)(, or null)?", what):
        low, high = int(match[1]), int(match[2])
        assert fits(low)
        assert fits(high)
        assert not fits(low - 1)
        assert not fits(high + 1)
    elif match := re.fullmatch(r"a number from (\S+) to (\S+?)(, or null)?", what):
        low, high = float(match[1]), float(match[2])
        assert fits(low)
        assert fits(high)
        assert not fits(math.nextafter(low, -math.inf))
        assert not fits(math.nextafter(high, math.inf))
    elif match := re.fullmatch(r"a number above 0, at most (\S+?)(, or null)?", what):
        high = float(match[1])
        assert fits(high)
        assert fits(5e-324)
        assert not fits(0)
        assert not fits(math.nextafter(high, math.inf))
    assert fits(None) == what.endswith("null") or what.startswith("null")


def test_what_the_fields_of_a_text_encoder_may_be() -> None:
    """transformers writes -1 for a token that does not exist."""
    fields = FIELDS["CLIPTextModel"]
    assert {name: fields[name].what for name in ("bos_token_id", "pad_token_id")} == {
        "bos_token_id": "a whole number from 0 to 1000000, or null",
        "pad_token_id": "a whole number from -1 to 1000000, or null",
    }
