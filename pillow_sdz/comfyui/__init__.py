"""Nodes for ComfyUI: this folder is a custom node, and `sdz comfyui` links it.

ComfyUI loads it by its path.  With it, ComfyUI's own LoadImage lists and opens `.sdz` files.
Dropping an `.sdz` file on the canvas restores its workflow (web/sdz.js asks `workflow_of`).
"""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

import pillow_sdz  # registers the format with Pillow, for LoadImage
from pillow_sdz.comfyui.nodes import LoadLatents, SaveImages, SaveLatents
from pillow_sdz.comfyui.workflow import workflow_of

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY", "pillow_sdz"]

NODE_CLASS_MAPPINGS = {
    "SdzSaveLatents": SaveLatents,
    "SdzLoadLatents": LoadLatents,
    "SdzSaveImages": SaveImages,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "SdzSaveLatents": "Save Latents (.sdz)",
    "SdzLoadLatents": "Load Latents (.sdz)",
    "SdzSaveImages": "Save Images (.sdz)",
}
WEB_DIRECTORY = str(Path(__file__).parent / "web")

# LoadImage lists the files whose MIME type is that of an image.
mimetypes.add_type("image/x-sdz", ".sdz")


def _add_route() -> None:
    """Let the browser ask for the workflow in a file that was dropped on the canvas."""
    from aiohttp import web  # ComfyUI's
    from server import PromptServer

    async def answer(request: Any) -> Any:
        try:
            return web.json_response(workflow_of(await request.read()))
        except (OSError, ValueError) as e:
            return web.json_response({"error": str(e)}, status=400)

    PromptServer.instance.routes.post("/sdz/workflow")(answer)


# ComfyUI loads this file under its path.  Python loads it again as the package of the nodes.
if __name__ != "pillow_sdz.comfyui":
    _add_route()
