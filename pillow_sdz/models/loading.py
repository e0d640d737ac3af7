"""Networks of diffusers and transformers, built only from the weights in a folder.

The libraries' own `from_pretrained` is not used. It lets a configuration choose quantisers, other
files of weights, and attention kernels that it downloads.  Here, this file names the class of a
network, `configurations` lets only some fields of its configuration through, and its weights come
from one file whose sha256 was checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file

from . import configurations, hub, sources
from .running import undisturbed
from .sources import Folder

try:
    import diffusers
except ImportError as e:
    msg = f"this model {hub.NEEDS_EXTRA}"
    raise OSError(msg) from e

# Old names of tensors.  diffusers used them until 0.15, and files that are pinned still have them.
# transformers used some until 5.
_FORMER_NAMES = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)
_FORMER_PREFIX = "text_model."


@torch.inference_mode(False)
@undisturbed()
def network(kind: str, folder: Folder, dtype: torch.dtype) -> Any:
    """A network of a folder, on the CPU; OSError if its files are damaged or of another kind."""
    path = sources.check_weights(folder)
    settings = configurations.checked(kind, sources.config(folder), folder.path / "config.json")
    try:
        # The tensors are copied: loaded ones are only mapped into memory, and the file may change.
        tensors = {name: t.to(dtype, copy=True) for name, t in load_file(path).items()}
        module = _empty(kind, settings)
    except Exception as e:  # diffusers, transformers, safetensors and torch raise many types
        raise _failure(folder, kind, e) from e
    own = module.state_dict()
    tensors = {_name_today(name, own): tensor for name, tensor in tensors.items()}
    # Missing weights would be random.
    if missing := sorted(own.keys() - tensors.keys()):
        msg = f"{path} is damaged: it lacks {len(missing)} tensors, such as {missing[0]}"
        raise OSError(msg)
    # A text encoder's file may also hold a pooling layer, which is not used.
    if kind != "CLIPTextModel" and (foreign := sorted(tensors.keys() - own.keys())):
        msg = f"{path} does not fit its configuration: this {kind} has no {foreign[0]!r}"
        raise OSError(msg)
    try:
        module.load_state_dict({name: tensors[name] for name in own}, assign=True)
    except RuntimeError as e:
        raise _failure(folder, kind, e) from e
    check_finite(module, path)
    return module.eval().requires_grad_(False)


def _failure(folder: Folder, kind: str, error: Exception) -> OSError:
    return OSError(f"{folder.path} could not be loaded as {kind}: {error}")


def _empty(kind: str, settings: Mapping[str, Any]) -> Any:
    """A network without weights.  It takes no memory, however large its configuration makes it."""
    with torch.device("meta"):
        if kind != "CLIPTextModel":
            return getattr(diffusers, kind)(**settings)
        import transformers

        # Every torch can compute attention in this way.
        chosen: dict[str, Any] = {**settings, "attn_implementation": "eager"}
        config = transformers.CLIPTextConfig(**chosen)
        module = transformers.CLIPTextModel(config)
    for part in module.modules():
        if hasattr(part, "position_ids"):  # these are not weights, so files do not have them
            part.position_ids = torch.arange(config.max_position_embeddings)[None]
    return module


def _name_today(name: str, own: Iterable[str]) -> str:
    """What a tensor is called in the network."""
    names = [name, name.removeprefix(_FORMER_PREFIX), _FORMER_PREFIX + name]
    names += [name.replace(former, today) for former, today in _FORMER_NAMES]
    return next((candidate for candidate in names if candidate in own), name)


def check_finite(module: torch.nn.Module, name: object) -> None:
    """OSError if weights are infinite or not a number."""
    for tensor, values in module.state_dict().items():
        # Tensors that accelerate has offloaded are on "meta", without values, until they are
        # needed.
        if values.is_floating_point() and not values.is_meta and not values.isfinite().all():
            msg = f"{name} is damaged: {tensor} has values that are infinite or not a number"
            raise OSError(msg)


def copied(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A copy of a loaded network, elsewhere or in other numbers."""
    tensors = {name: t.to("cpu", dtype, copy=True) for name, t in module.state_dict().items()}
    with torch.device("meta"):
        copy = type(module).from_config(module.config)
    copy.load_state_dict(tensors, assign=True)
    return copy.eval().to(device)
