"""Settings of the process.  Each is an attribute of this module.

The environment variable ``SDZ_X`` gives the first value of the setting ``X``.  You can assign
another one (``pillow_sdz.options.DEVICE = "cpu"``).  `override` sets it for a block of code.  A
wrong value raises ValueError when it is assigned.  If the environment has a wrong value, the
setting has its default, and there is a warning when it is first needed.
"""

from __future__ import annotations

import os
import re
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType, ModuleType
from typing import Any

DEVICE: str | None = None
"""Where networks run: "cpu", "cuda", "cuda:1", "mps" and so on.

With None, they run on CUDA if it is there, otherwise on MPS, otherwise on the CPU.  The embedded
autoencoders always run on the CPU.  Loaded modules that `register_model` was given run where they
are.
"""

DTYPE: str | None = None
"""The type of the networks' numbers: "float32", "float16", "bfloat16" or "int8".

With None, it is float16 on a GPU, otherwise float32; "int8" means the same for models of the hub.
The embedded models have int8 and float32.  With None, they run in int8.  Pixels differ by a few
grey levels at most (docs/format.md#arithmetic).

If values of an autoencoder leave float16's range, it runs again in float32.  If values of a U-Net
or a transformer leave it, that is an OSError.
"""

ALLOW_DOWNLOADS: bool = False
"""Whether loading and saving may download the weights of a model that is pinned in this package.

If False, only ``sdz models fetch`` downloads weights.
"""

DENOISE: bool | float | None = None
"""Whether a U-Net or a transformer takes the quantisation noise out of decoded latents.

With None, the file decides, within limits (docs/security.md).  A number from 0.001 to 1.0 is the
strength: the share of the noise schedule whose steps are run.  0.0 is no denoising.  The integers 0
and 1 are False and True.
"""

DENOISE_STEPS: int | None = None
"""How many steps it takes, 1 to 1000.  With None, the file decides.

There are no more steps than the strength's share of the schedule has: 40 of 1000 at 0.04.
"""

DECODER: str | None = None
"""The name of the model that decodes all files.  With None, each file names its own model.

The two models must share their latent space, as sd1 and taesd do.  The weights need not be those
that the file names.  This setting also holds for files of embedded models.  A file of another
latent space is an OSError.  If nobody here knows a file's family, its latents only need the model's
channels and factor.
"""

MEMORY_BUDGET: int = 400_000_000
"""How many bytes an embedded model may take while it decodes, at least 270 MB.

This includes the loaded model, but not the picture.  The budget decides how large a part of a
picture the networks compute at once.  Smaller parts take more time, and pixels differ by a grey
level at most.  Networks of other models, and effort above 4, take more memory than this.
"""

DTYPES = ("float32", "float16", "bfloat16", "int8")
SMALLEST_BUDGET = 270_000_000  # 100 megapixels take 264 MB with the smallest tiles (measured)
SMALLEST_STRENGTH = 0.001  # what a file can recommend; below, the number of steps overflows
MAX_STEPS = 1000  # as many as there are in the schedules of Stable Diffusion

_WORDS = {"1": True, "true": True, "yes": True, "on": True}
_WORDS |= {"0": False, "false": False, "no": False, "off": False}


def _is_integer(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


# For every setting, what it may be, and how to tell.
_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "DEVICE": (
        "the name of a device, such as cpu, cuda:0 or mps, or None",
        lambda v: v is None or (isinstance(v, str) and bool(re.fullmatch(r"[a-z]+(:\d+)?", v))),
    ),
    "DTYPE": (f"one of {', '.join(DTYPES)}, or None", lambda v: v is None or v in DTYPES),
    "ALLOW_DOWNLOADS": ("True or False", lambda v: isinstance(v, bool)),
    "DENOISE": (
        f"True, False, 0, a strength from {SMALLEST_STRENGTH} to 1, or None",
        lambda v: (
            v is None
            or (isinstance(v, (bool, int, float)) and (v == 0 or SMALLEST_STRENGTH <= v <= 1))
        ),
    ),
    "DENOISE_STEPS": (
        f"a whole number from 1 to {MAX_STEPS}, or None",
        lambda v: v is None or _is_integer(v, 1, MAX_STEPS),
    ),
    "MEMORY_BUDGET": (
        f"a number of bytes, at least {SMALLEST_BUDGET}",
        lambda v: _is_integer(v, SMALLEST_BUDGET, 1 << 62),
    ),
    "DECODER": ("the name of a model, or None", lambda v: v is None or isinstance(v, str)),
}


def _checked(name: str, value: object, shown_as: str) -> object:
    """The value in the form in which it is kept; ValueError if the setting may not have it."""
    may_be, accepts = _RULES[name]
    if not accepts(value):
        msg = f"{shown_as} must be {may_be}, not {reprlib.repr(value)}"
        raise ValueError(msg)
    return bool(value) if name == "DENOISE" and isinstance(value, int) else value


# What `override` has set in this thread or task.
_overrides: ContextVar[Mapping[str, Any]] = ContextVar(
    "overrides",
    default=MappingProxyType({}),
)


@contextmanager
def override(**settings: Any) -> Iterator[None]:
    """Set some settings for the body of a ``with`` statement, in this thread or task only.

        with pillow_sdz.options.override(DEVICE="cpu", DENOISE=False):
            image.load()

    Overrides nest. ValueError for an unknown setting or a value that it may not have.
    """
    for name, value in settings.items():
        if name not in _RULES:
            msg = f"there is no setting {name!r}, only {', '.join(_RULES)}"
            raise ValueError(msg)
        settings[name] = _checked(name, value, name)
    token = _overrides.set({**_overrides.get(), **settings})
    try:
        yield
    finally:
        _overrides.reset(token)


class _Settings(ModuleType):
    """This module's type: attributes read as this thread overrides them, and checked when set.

    If a setting's environment variable is wrong, the first read of the setting gives a warning.
    """

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in _RULES:
            return value
        overrides = _overrides.get()
        if name in overrides:
            return overrides[name]
        if complaint := _complaints.pop(name, None):
            warnings.warn(f"{complaint}; options.{name} is {value!r}", stacklevel=2)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name in _RULES:
            value = _checked(name, value, name)
            _complaints.pop(name, None)
        elif not name.startswith("_") and name not in self.__dict__:
            import difflib  # here, because it takes milliseconds

            near = difflib.get_close_matches(name.upper(), _RULES, n=1)
            hint = f": did you mean {near[0]}?" if near else f", only {', '.join(_RULES)}"
            msg = f"there is no setting {name}{hint}"
            raise AttributeError(msg)
        super().__setattr__(name, value)


def _parse(name: str, text: str) -> Any:
    """The value of a setting in the text of an environment variable."""
    word = text.strip().lower()
    if name in ("ALLOW_DOWNLOADS", "DENOISE") and word in _WORDS:
        return _WORDS[word]
    number: type[int] | type[float] | None = {
        "DENOISE": float,
        "DENOISE_STEPS": int,
        "MEMORY_BUDGET": int,
    }.get(name)
    try:
        return number(word) if number else text.strip()
    except ValueError:
        return text  # the setting's rule will refuse it


# By setting: what is wrong with its environment variable.  The setting has its default until it is
# set.
_complaints: dict[str, str] = {}


def _read_environment() -> None:
    for name in _RULES:
        if text := os.environ.get(f"SDZ_{name}", ""):
            value = _parse(name, text)
            try:
                globals()[name] = _checked(name, value, f"the environment variable SDZ_{name}")
            except ValueError as e:
                # Importing works whatever the environment is. `_Settings` warns later.
                _complaints[name] = str(e)


def complaints() -> list[str]:
    """What is wrong with the environment variables; their settings have the defaults."""
    return [*_complaints.values()]


_read_environment()
sys.modules[__name__].__class__ = _Settings
