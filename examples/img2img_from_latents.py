"""Image to image from a file's latents. Nothing is decoded and encoded in between.

python examples/img2img_from_latents.py lighthouse.sdz "a lighthouse in the morning" morning.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pillow_sdz


def main(pipe: Any, path: Path, prompt: str, *, strength: float = 0.5, **settings: Any) -> Any:
    """Run an image-to-image pipeline on the first latents in a file."""
    latents = pillow_sdz.open_latents(path).torch()
    if latents.ndim == 3:
        latents = latents[None]
    # If the input has as many channels as latents, the pipeline takes it as scaled latents.
    image = latents[:1].to(pipe.device, pipe.unet.dtype)
    return pipe(prompt, image=image, strength=strength, **settings).images[0]


if __name__ == "__main__":
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        torch_dtype=torch.float16,
        use_safetensors=True,
    ).to("cuda")
    main(pipe, Path(sys.argv[1]), sys.argv[2]).save(sys.argv[3])
