"""Save the latents of a generated picture: a few kilobytes, without a second encoding.

``model`` is the family: "sd1", "flux", "flux2", "qwen-image", ...

python examples/save_from_pipeline.py "a lighthouse in a storm" lighthouse.sdz
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pillow_sdz


def main(pipe: Any, prompt: str, path: Path, *, model: str = "sd1", **settings: Any) -> Any:
    """Generate a picture, keep its latents in ``path``, and return the picture.

    Pipelines that pack latents into a sequence, such as FLUX's, need ``width`` and ``height``.
    """
    size = _size(settings)

    def keep(pipe: Any, step: int, timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        if step == pipe.num_timesteps - 1:
            latents = inputs["latents"]
            pillow_sdz.save_latents(latents, path, model=model, size=size, prompt=prompt)
        return inputs

    asked = {} if "prompt_embeds" in settings else {"prompt": prompt}
    return pipe(**asked, callback_on_step_end=keep, **settings).images[0]


def without_a_picture(
    pipe: Any, prompts: list[str], path: Path, *, model: str = "sd1", **settings: Any
) -> None:
    """Generate a batch without running the VAE. Its latents are the frames of one file.

    Pipelines that pack latents into a sequence need ``width`` and ``height``, as for `main`.
    """
    size = _size(settings)
    latents = pipe(prompts, output_type="latent", **settings).images
    pillow_sdz.save_latents(latents, path, model=model, size=size, quality=90)


def _size(settings: dict[str, Any]) -> tuple[int, int] | None:
    """The pictures' size, if the settings of the pipeline say it."""
    return (settings["width"], settings["height"]) if "width" in settings else None


if __name__ == "__main__":
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        torch_dtype=torch.float16,
        use_safetensors=True,
    ).to("cuda")
    main(pipe, sys.argv[1], Path(sys.argv[2])).show()
