"""Where a model's weights are: with this package, in a folder, in memory or in the hub's cache.

Folders have diffusers' layout: config.json lies beside the weights, and a whole pipeline has a
folder for each part. Only safetensors files are read as weights. Nothing here imports torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import options, weights
from ..presets import Preset, Snapshot
from ..weights import Weights
from . import configurations, hub, recorded
from .configurations import AUTOENCODERS, Numbers

if TYPE_CHECKING:
    from .any_autoencoder import Conventions

_STEMS = ("diffusion_pytorch_model", "model")  # names of weights: diffusers' and transformers'
_PICKLES = frozenset((".bin", ".ckpt", ".pt", ".pth"))
_WEIGHING = ("unet", "text_encoder")  # the parts of a denoiser that have weights
# Settings of U-Nets that take classes, sizes or images too, such as SDXL's.
_MORE_THAN_TEXT = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
)


class NotInstalled(OSError):
    """The weights are not on this computer; the message has the command that fetches them."""


class Folder(NamedTuple):
    """A part of a model on disk, and the sha256 that its weights must have; None allows any."""

    path: Path
    sha256: str | None = None


@dataclass(frozen=True)
class DenoiserParts:
    """A U-Net and the parts that it needs, each a `Folder` or a loaded object.

    For a flow model, it is a loaded ``pipeline`` instead.
    """

    unet: Any = None
    scheduler: Any = None
    text_encoder: Any = None
    tokenizer: Any = None
    pipeline: Any = None


@dataclass(frozen=True)
class Embedded:
    """The source of an embedded model: this package."""

    unet: Weights | None = None

    def check(self) -> None:
        pass

    def denoiser(self) -> DenoiserParts | None:
        if self.unet is None:
            return None
        folder = self.unet.path.parent
        unet = Folder(folder, self.unet.sha256)
        return DenoiserParts(unet, Folder(folder.parent / "scheduler"))


@dataclass(frozen=True)
class Given:
    """The source of a registered model."""

    autoencoder: Any  # a `Folder`, or the loaded autoencoder
    parts: DenoiserParts | None
    #: How the autoencoder is called, if it is not one of `AUTOENCODERS`.
    how: Conventions | None = None

    def check(self) -> None:
        pass

    def weights(self) -> tuple[Any, Preset | None]:
        """A `Folder`, or the loaded network itself, and the preset that it must be of."""
        return self.autoencoder, None

    def denoiser(self) -> DenoiserParts | None:
        return self.parts


@dataclass(frozen=True)
class Directory:
    """The source of a recorded model: the folder of an autoencoder or of a whole pipeline."""

    name: str
    record: recorded.Directory

    def check(self) -> None:
        if not self._path.is_dir():
            msg = (
                f"the directory {self._path} of model {self.name!r} is gone: "
                f"run 'sdz models add {self.name} DIRECTORY'"
            )
            raise NotInstalled(msg)

    def folder(self) -> Folder:
        """The autoencoder's folder; NotInstalled if there is none."""
        self.check()
        return Folder(autoencoder_folder(self._path), self.record.sha256)

    def weights(self) -> tuple[Any, Preset | None]:
        """A `Folder`, or the loaded network itself, and the preset that it must be of."""
        return self.folder(), None

    def denoiser(self) -> DenoiserParts | None:
        parts = denoiser_parts(self._path)
        recorded = {name: getattr(self.record, name) for name in _WEIGHING}
        return None if parts is None else with_hashes(parts, recorded)

    @property
    def _path(self) -> Path:
        return Path(self.record.directory)


@dataclass(frozen=True)
class Pinned:
    """The source of a preset: the hub's cache, once the weights are fetched."""

    name: str
    preset: Preset

    def check(self) -> None:
        self.folder()

    def folder(self) -> Folder:
        """The autoencoder's folder; NotInstalled if it is not in the cache."""
        snapshot = self.preset.autoencoder
        option = "" if snapshot.revision else " --pin"
        file = snapshot.files[-1]
        folder = _locate(
            snapshot, f"the model {self.name!r}", f"sdz models fetch {self.name}{option}"
        )
        return Folder((folder / file.path).parent, file.sha256)

    def weights(self) -> tuple[Any, Preset | None]:
        """A `Folder`, or the loaded network itself, and the preset that it must be of."""
        return self.folder(), self.preset

    def denoiser(self) -> DenoiserParts | None:
        snapshot = self.preset.denoiser
        if snapshot is None:
            return None
        command = f"sdz models fetch {self.name} --denoiser"
        root = _locate(snapshot, f"the U-Net of model {self.name!r}", command)
        hashes = {
            file.path.partition("/")[0]: file.sha256 for file in snapshot.files if file.sha256
        }
        parts = ("unet", "scheduler", "text_encoder", "tokenizer")
        return DenoiserParts(*(Folder(root / part, hashes.get(part)) for part in parts))


#: Each has two methods.  ``check`` raises NotInstalled if the autoencoder's weights are not on this
#: computer.  ``denoiser`` returns the parts of the model's U-Net, or None if the model has none;
#: NotInstalled if they are not on this computer.
Diffusers = Given | Directory | Pinned
Source = Embedded | Diffusers


def _locate(snapshot: Snapshot, what: str, command: str) -> Path:
    folder = hub.locate(snapshot)
    if folder is None and options.ALLOW_DOWNLOADS and snapshot.revision:
        folder = hub.fetch(snapshot)
    if folder is None:
        msg = f"{what} is not installed: run '{command}'"
        raise NotInstalled(msg)
    return folder


def autoencoder_folder(directory: Path) -> Path:
    """The autoencoder's folder: a directory itself, or a folder in a whole pipeline's directory."""
    for folder in (directory, directory / "vae"):
        if (folder / "config.json").is_file():
            return folder
    msg = (
        f"{directory} holds no model in diffusers' layout: it has no config.json and no "
        "vae/config.json"
    )
    raise OSError(msg)


def denoiser_parts(directory: Path) -> DenoiserParts | None:
    """The parts for denoising in a pipeline's directory; None if it has no U-Net."""
    unet, *others = (
        Folder(directory / part) if (directory / part).is_dir() else None
        for part in ("unet", "scheduler", "text_encoder", "tokenizer")
    )
    return None if unet is None else DenoiserParts(unet, *others)


def hashes(parts: DenoiserParts | None) -> dict[str, str]:
    """The sha256 of the weights of each part that is a folder, by the part's name."""
    found = {}
    for name in _WEIGHING:
        part = getattr(parts, name, None)
        if isinstance(part, Folder):
            with suppress(OSError):  # a part that cannot be read is refused when it is needed
                found[name] = weights.sha256(weights_file(part.path))
    return found


def with_hashes(parts: DenoiserParts, hashes: Mapping[str, str]) -> DenoiserParts:
    """The parts, with the sha256 that the weights of each must have; an empty one allows any."""
    folders = {name: getattr(parts, name) for name, sha256 in hashes.items() if sha256}
    pinned = {
        name: part._replace(sha256=hashes[name])
        for name, part in folders.items()
        if isinstance(part, Folder)
    }
    return replace(parts, **pinned)


def weights_file(folder: Path) -> Path:
    """The safetensors file with a part's weights; the half-precision one if there is no other.

    OSError if there is none.  The message says so if there are only pickles.
    """
    for suffix in (".safetensors", ".fp16.safetensors"):
        for stem in _STEMS:
            if (path := folder / (stem + suffix)).is_file():
                return path
    if folder.is_dir() and any(path.suffix in _PICKLES for path in folder.iterdir()):
        msg = (
            f"{folder} has its weights only as a pickle, which is not read because it may hold any "
            "program: save them as safetensors"
        )
    else:
        msg = f"{folder} has no weights: no diffusion_pytorch_model.safetensors"
    raise OSError(msg)


def check_weights(folder: Folder) -> Path:
    """A part's file of weights; OSError if it is missing, or has another sha256."""
    path = weights_file(folder.path).resolve()  # the hub's cache has links
    if folder.sha256 is not None:
        weights.check_sha256(path, folder.sha256)
    return path


def config(part: Any, name: str = "config.json") -> Mapping[str, Any]:
    """The configuration of a part; OSError if its file is missing or damaged."""
    if not isinstance(part, Folder):
        found = getattr(part, "config", {})
        settings = found if isinstance(found, Mapping) else getattr(found, "to_dict", dict)()
        return {**settings, "_class_name": _class_of(part) or type(part).__name__}
    path = part.path / name
    try:
        settings = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        msg = f"{part.path} has no {name}"
        raise OSError(msg) from e
    except (ValueError, RecursionError) as e:
        msg = f"{path} is damaged: {e}"
        raise OSError(msg) from e
    if not isinstance(settings, dict):
        msg = f"{path} is damaged: it holds no object"
        raise OSError(msg)
    return settings


def is_any(part: Any) -> bool:
    """Whether this is a loaded autoencoder of a class that is not in `AUTOENCODERS`."""
    if isinstance(part, Folder) or not (hasattr(part, "encode") and hasattr(part, "decode")):
        return False
    return _class_of(part) is None


class Shape(NamedTuple):
    """What is known of an autoencoder's latents.  `configurations.scaling` has the last two."""

    channels: int
    factor: int
    scaling: Numbers
    shift: Numbers


def shape(part: Any) -> Shape:
    """The shape of an autoencoder's latents; OSError if its class is unknown."""
    settings = config(part)
    kind = str(settings.get("_class_name"))
    if kind not in AUTOENCODERS:
        known = " or ".join(AUTOENCODERS)
        if isinstance(part, Folder):
            msg = (
                f"{part.path} is no autoencoder that can be read: it is {kind}, not {known}. "
                "Load it yourself, and call register_model"
            )
        else:
            msg = f"this {kind} is no autoencoder that can be used: it has not encode and decode"
        raise OSError(msg)
    # The other fields of a loaded network do not matter here.
    fields = kind if isinstance(part, Folder) else "scaling"
    where = part.path / "config.json" if isinstance(part, Folder) else f"this {kind}"
    found = configurations.checked(fields, settings, where)
    channels = found.get("latent_channels", 4)  # diffusers' default
    return Shape(channels, AUTOENCODERS[kind].factor(settings), *configurations.scaling(found))


def _class_of(part: Any) -> str | None:
    """Which one of `AUTOENCODERS` is the class of a loaded autoencoder, or a base of it."""
    library = sys.modules.get("diffusers")
    kinds = (name for name in AUTOENCODERS if isinstance(part, getattr(library, name, ())))
    return next(kinds, None)


def check_denoiser(parts: DenoiserParts, channels: int) -> None:
    """OSError if a U-Net is not made for this many channels, or lacks a part that it needs."""
    if parts.unet is None:
        msg = "a scheduler, a text encoder or a tokenizer needs a U-Net: give unet as well"
        raise OSError(msg)
    settings = config(parts.unet)
    kind = settings.get("_class_name")
    if kind not in ("UNet2DModel", "UNet2DConditionModel"):
        msg = f"the U-Net is of class {kind}, not UNet2DModel or UNet2DConditionModel"
        raise OSError(msg)
    for side in ("in_channels", "out_channels"):
        if settings.get(side) != channels:
            msg = f"the U-Net has {settings.get(side)} {side}, but the latents have {channels}"
            raise OSError(msg)
    needed = ["scheduler"]
    if kind == "UNet2DConditionModel":
        needed += ["text_encoder", "tokenizer"]
    if missing := [name for name in needed if getattr(parts, name) is None]:
        msg = f"the U-Net is a {kind}, which also needs: {', '.join(missing)}"
        raise OSError(msg)
    if more := [name for name in _MORE_THAN_TEXT if settings.get(name) is not None]:
        msg = f"the U-Net needs more inputs than a prompt, which is not supported: {more[0]}"
        raise OSError(msg)
    for part, fields, file in (
        (parts.unet, kind, "config.json"),
        (parts.scheduler, "scheduler", "scheduler_config.json"),
        (parts.text_encoder, "CLIPTextModel", "config.json"),
    ):
        if isinstance(part, Folder):
            configurations.checked(fields, config(part, file), part.path / file)
    if kind == "UNet2DConditionModel":
        widths = settings.get("cross_attention_dim", 1280)  # diffusers' default
        width = config(parts.text_encoder).get("hidden_size")
        each = widths if isinstance(widths, (list, tuple)) else [widths]
        if width is not None and any(wanted != width for wanted in each):
            msg = f"the U-Net takes texts of width {widths}, but its text encoder makes {width}"
            raise OSError(msg)
