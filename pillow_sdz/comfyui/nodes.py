"""The nodes. ComfyUI's own modules can be imported only inside of their methods."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from .. import catalogue, interchange, keywords, latents
from ..atomic import replacing
from ..interchange import LatentFile, Origin
from ..interchange.origin import MAX_OTHER
from . import workflow

CATEGORY = "sdz"
LAYOUT, FORMAT = "comfyui", ".latent"  # latents are kept as ComfyUI's SaveLatent keeps them
SAMPLES, MASK = "latent_tensor", "noise_mask"

_HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
_PREFIX = ("STRING", {"default": "ComfyUI"})


def families() -> list[str]:
    """The families of latents that a node offers."""
    # Patches are recognised by their channels, so they need no choice of their own.
    patches = {space.patches for space in catalogue.all_spaces().values()}
    return [
        name
        for name, space in catalogue.all_spaces().items()
        if not space.is_own and name not in patches
    ]


def _targets(prefix: str, count: int, width: int, height: int) -> list[tuple[Path, dict[str, str]]]:
    """Where to write files, as ComfyUI's own nodes do, and what to tell the browser of each."""
    import folder_paths

    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    found = []
    for number in range(counter, counter + count):
        file = f"{name}_{number:05}_.sdz"
        told = {"filename": file, "subfolder": subfolder, "type": "output"}
        found.append((Path(folder) / file, told))
    return found


def _metadata(prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """The prompt and the workflow, unless ComfyUI was told to keep none."""
    from comfy.cli_args import args

    return {} if args.disable_metadata else workflow.metadata(prompt, extra_pnginfo)


def _previews(pictures: list[Image.Image]) -> list[dict[str, str]]:
    """Write pictures as PNG for the browser, which cannot show `.sdz` files."""
    import folder_paths

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    told = []
    for picture in pictures:
        digest = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
        name = f"sdz_{digest}.png"
        picture.save(folder / name, compress_level=1)
        told.append({"filename": name, "subfolder": "", "type": "temp"})
    return told


class SaveLatents:
    """Writes latents as one `.sdz` file, with the prompt and the workflow."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Saves latents as an .sdz file: exactly, or in steps of this size in the latents' own unit."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "filename_prefix": _PREFIX,
                "family": (families(), {"default": catalogue.DEFAULT_FAMILY}),
                "lossless": ("BOOLEAN", {"default": True}),
                "step": ("FLOAT", {"default": 0.1, "min": 0.001, "max": 16.0, "step": 0.001}),
            },
            "hidden": _HIDDEN,
        }

    def save(
        self,
        samples: Mapping[str, Any],
        filename_prefix: str,
        family: str,
        lossless: bool,
        step: float,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        tensor = samples["samples"].detach().cpu()
        dtype = str(tensor.dtype).removeprefix("torch.")
        array = (tensor.float() if dtype == "bfloat16" else tensor).numpy()
        origin = Origin(
            LAYOUT,
            FORMAT,
            dtype,
            shape=None if array.ndim == 4 else array.shape,
            metadata=_metadata(prompt, extra_pnginfo),
        )
        part = LatentFile(array, origin)
        if (mask := samples.get(MASK)) is not None:
            part = _with_mask(part, mask.detach().cpu().float().numpy())
        ((path, told),) = _targets(filename_prefix, 1, *array.shape[:-3:-1])
        precision: dict[str, Any] = {"lossless": True} if lossless else {"step": step}
        with replacing(path) as file:
            latents.imported(part, file, model=family, **precision)
        return {"ui": {"latents": [told], "images": _previews([_sketch(array)])}}


def _with_mask(part: LatentFile, mask: np.ndarray[Any, Any]) -> LatentFile:
    """The part with its noise mask.  Warns if the mask is too large to be kept."""
    if mask.nbytes > MAX_OTHER:
        msg = f"the noise mask has {mask.nbytes:,} bytes and is not kept: at most {MAX_OTHER:,} are"
        warnings.warn(msg, stacklevel=2)
        return part
    return part.with_others({MASK: interchange.kept(mask)})


def _sketch(array: np.ndarray[Any, Any]) -> Image.Image:
    """The first three channels of the first latents, from their least to their largest value.

    It shows what is where, without the autoencoder.
    """
    first = array[0] if array.ndim == 4 else array[0, :, 0]
    planes = first[:3] if len(first) >= 3 else first[:1].repeat(3, 0)
    low, high = planes.min((1, 2), keepdims=True), planes.max((1, 2), keepdims=True)
    levels = 255 * (planes - low) / np.maximum(high - low, 1e-6)
    small = Image.fromarray(levels.transpose(1, 2, 0).astype(np.uint8))
    return small.resize((4 * small.width, 4 * small.height), Image.Resampling.BICUBIC)


class LoadLatents:
    """Reads the latents of an `.sdz` file, as ComfyUI has them."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "load"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        import folder_paths

        folder = Path(folder_paths.get_input_directory())
        return {"required": {"file": (sorted(path.name for path in folder.glob("*.sdz")),)}}

    def load(self, file: str) -> tuple[dict[str, Any]]:
        import folder_paths
        import torch

        part = latents.exported(folder_paths.get_annotated_filepath(file), FORMAT)
        found = interchange.arrays_of(part, LAYOUT)
        samples = {"samples": torch.from_numpy(np.array(found[SAMPLES], np.float32))}
        if MASK in found:
            samples[MASK] = torch.from_numpy(np.array(found[MASK]))
        return (samples,)

    @classmethod
    def IS_CHANGED(cls, file: str) -> str:
        import folder_paths

        data = Path(folder_paths.get_annotated_filepath(file)).read_bytes()
        return hashlib.sha256(data).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, file: str) -> bool | str:
        import folder_paths

        return bool(folder_paths.exists_annotated_filepath(file)) or f"there is no file {file}"


class SaveImages:
    """Writes pictures as `.sdz` files, with the prompt and the workflow."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY
    DESCRIPTION = "Saves pictures as .sdz files of a few kilobytes."
    TUNES: ClassVar[tuple[str, ...]] = catalogue.DEFAULT.space.tunes

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        default = {"quality": keywords.DEFAULT_QUALITY, "effort": keywords.DEFAULT_EFFORT}
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": _PREFIX,
                "quality": ("INT", {"default": default["quality"], "min": 1, "max": 100}),
                "effort": ("INT", {"default": default["effort"], "min": 0, "max": 9}),
                "tune": (list(cls.TUNES),),
            },
            "hidden": _HIDDEN,
        }

    def save(
        self,
        images: Any,
        filename_prefix: str,
        quality: int,
        effort: int,
        tune: str,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        levels = np.rint(np.clip(255 * images.cpu().numpy(), 0, 255)).astype(np.uint8)
        height, width = levels.shape[1:3]
        exif = workflow.exif(_metadata(prompt, extra_pnginfo))
        told, shown = [], []
        targets = _targets(filename_prefix, len(levels), width, height)
        for picture, (path, about) in zip(map(Image.fromarray, levels), targets, strict=True):
            picture.save(path, "SDZ", quality=quality, effort=effort, tune=tune, exif=exif)
            told.append(about)
            with Image.open(path) as kept:  # the preview shows the file, not the given picture
                shown.append(kept.convert("RGB"))
        return {"ui": {"sdz": told, "images": _previews(shown)}}
