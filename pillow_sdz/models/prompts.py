"""Turns prompts into the input of a U-Net, with CLIP's tokenizer and text encoder."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from . import loading, sources
from .sources import DenoiserParts, Folder

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def embedding(unet: Any, parts: DenoiserParts) -> Callable[[str], Tensor]:
    """Turns a prompt into the U-Net's input.  The text encoder is loaded when it is first used."""

    @functools.cache
    def encoder() -> tuple[Any, Any]:
        text_encoder, tokenizer = parts.text_encoder, parts.tokenizer
        if isinstance(text_encoder, Folder):
            text_encoder = loading.network("CLIPTextModel", text_encoder, unet.dtype)
            text_encoder = text_encoder.to(unet.device)
        else:
            loading.check_finite(text_encoder, "this text encoder")
        if isinstance(tokenizer, Folder):
            tokenizer = _tokenizer(tokenizer.path, text_encoder.config)
        return text_encoder, tokenizer

    @functools.lru_cache(maxsize=16)  # chosen: the files of a batch mostly have one prompt
    @torch.no_grad()
    def embed(prompt: str) -> Tensor:
        text_encoder, tokenizer = encoder()
        tokens = tokenizer(
            prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        states: Tensor = text_encoder(tokens.input_ids.to(text_encoder.device))[0]
        return states.to(unet.device, unet.dtype)

    return embed


def _tokenizer(folder: Path, encoder: Any) -> Any:
    """A folder's tokenizer, made from its words and merges alone; OSError if it is damaged.

    transformers reads a new folder that is written here.  The configuration in the given folder
    could name another class, or its files.
    """
    import transformers

    words, merges = _words(folder)
    settings = {
        **_special_tokens(folder, words),
        "model_max_length": _longest(folder, encoder.max_position_embeddings),
    }
    if max(words.values()) >= encoder.vocab_size:
        msg = f"{folder} has other tokens than the text encoder: more than {encoder.vocab_size}"
        raise OSError(msg)
    try:
        with TemporaryDirectory(prefix="sdz-") as name:
            clean = Path(name)
            (clean / "vocab.json").write_text(json.dumps(words), "utf-8")
            (clean / "merges.txt").write_text("\n".join(("#version: 0.2", *merges, "")), "utf-8")
            (clean / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
            return transformers.CLIPTokenizer.from_pretrained(clean, local_files_only=True)
    except Exception as e:  # transformers and tokenizers raise many types
        msg = f"{folder} could not be loaded as CLIPTokenizer: {e}"
        raise OSError(msg) from e


def _words(folder: Path) -> tuple[Mapping[str, int], list[str]]:
    """Each token's number, and the pairs that are merged, in their order.

    They are in vocab.json and merges.txt.  Since transformers 5, they are in tokenizer.json.
    """
    part = Folder(folder)
    if (folder / "vocab.json").is_file():
        words: Any = sources.config(part, "vocab.json")
        try:
            lines = (folder / "merges.txt").read_text("utf-8").splitlines()
        except (OSError, ValueError) as e:
            msg = f"{folder / 'merges.txt'} cannot be read: {e}"
            raise OSError(msg) from e
        merges: Any = [line for line in lines if line and not line.startswith("#version")]
    else:
        model = sources.config(part, "tokenizer.json").get("model")
        if not isinstance(model, dict):
            msg = f"{folder / 'tokenizer.json'}: the field 'model' must be an object"
            raise OSError(msg)
        words, merges = model.get("vocab"), model.get("merges")
    if not isinstance(words, dict) or not words or not all(map(_is_index, words.values())):
        msg = f"{folder}: the vocabulary must give a number from 0 on for each token"
        raise OSError(msg)
    return words, _pairs(merges, folder)


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0


def _pairs(merges: object, folder: Path) -> list[str]:
    """Merges as the lines of merges.txt."""
    if isinstance(merges, list):
        lines = [
            " ".join(m) if isinstance(m, list) and all(map(_is_text, m)) else m for m in merges
        ]
        if all(_is_text(line) and len(line.split(" ")) == 2 for line in lines):
            return lines
    msg = f"{folder}: the merges must be pairs of tokens"
    raise OSError(msg)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _special_tokens(folder: Path, words: Mapping[str, int]) -> dict[str, str]:
    """The tokens that begin, end and fill a prompt, by the names that transformers has for them."""
    found = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            continue
        settings = sources.config(Folder(folder), file)
        for name in SPECIAL_TOKENS:
            value = settings.get(name)
            token = value.get("content") if isinstance(value, dict) else value
            if token is None:
                continue
            if not isinstance(token, str) or token not in words:
                msg = f"{folder / file}: the field {name!r} must be one of the tokens"
                raise OSError(msg)
            found[name] = token
    return found


def _longest(folder: Path, positions: int) -> int:
    """How many tokens a prompt is filled up or cut to."""
    file = "tokenizer_config.json"
    if not (folder / file).is_file():
        return positions
    # transformers writes 10^30 if there is no limit.
    length = sources.config(Folder(folder), file).get("model_max_length", positions)
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not length >= 1:
        msg = f"{folder / file}: the field 'model_max_length' must be a number from 1 on"
        raise OSError(msg)
    return int(min(length, positions))
