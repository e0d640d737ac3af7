"""The registry of models: names, latent spaces and hashes.  To look one up loads nothing heavy.

A name is a key of this registry. It is never a path or a repository. A model is one of these:
 - embedded: its weights come with this package (`catalogue.EMBEDDED`),
 - registered: this process called `register_model`,
 - recorded: the user ran `sdz models add` (see recorded.py),
 - a preset (`presets.PRESETS`): its weights are in the hub's cache once they are fetched.
"""

from __future__ import annotations

import dataclasses
import os
import pkgutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import catalogue, forks, options
from ..catalogue import EMBEDDED, NOT_NAMED, ModelSpec, all_spaces
from ..presets import PRESETS
from . import recorded, sources, specs
from .given import described
from .sources import DenoiserParts, Folder, NotInstalled, Source

if TYPE_CHECKING:
    from .denoiser import Denoiser as Denoiser
    from .network import Loader, Network


class _Entry(NamedTuple):
    spec: ModelSpec
    source: Source


_registered: dict[str, _Entry] = {}


def names() -> list[str]:
    """The names of all models, sorted, installed or not; OSError for a damaged models file."""
    found = {*EMBEDDED, *_registered, *PRESETS}
    with suppress(_Unreadable):
        found.update(_recorded())
    return sorted(found)


def encoders() -> list[str]:
    """The names of the models that encode, sorted; OSError as in `names`."""
    return [name for name in names() if name not in EMBEDDED or EMBEDDED[name].encodes]


def spec(name: str) -> ModelSpec:
    """The model called ``name``; KeyError if there is none, OSError if the models file is damaged.

    The models file is read only for names that this package and this process do not know.
    """
    return _entry(name).spec


def source(name: str) -> Source:
    """Where the weights of a model are; the same errors as `spec`."""
    return _entry(name).source


class _Unreadable(OSError):
    """The models file cannot be read, for instance because there is no home directory."""


def _recorded() -> dict[str, recorded.Record]:
    try:
        return recorded.read()
    except OSError as e:
        if e.errno is None and not isinstance(e, recorded.Homeless):
            raise  # the file could be read, but it is damaged
        msg = f"the list of added models cannot be read: {e}"
        raise _Unreadable(msg) from e


def _entry(name: str) -> _Entry:
    if name in EMBEDDED:
        return _Entry(EMBEDDED[name], sources.Embedded(EMBEDDED[name].unet))
    if name in _registered:
        return _registered[name]
    try:
        record = _recorded().get(name)
    except _Unreadable as e:
        if name not in PRESETS:
            msg = f"pillow-sdz does not know a model {name!r}, and {e}"
            raise OSError(msg) from e
        record = None
    if isinstance(record, recorded.Directory):
        digest = bytes.fromhex(record.sha256)[:4]
        spec = ModelSpec(name, record.channels, record.factor, digest, record.latent_space)
        if complaint := specs.misplaced(spec):
            msg = f"the models file {recorded.path()} is damaged: model {name!r}: {complaint}"
            raise OSError(msg)
        return _Entry(spec, sources.Directory(name, record))
    preset = PRESETS[name]
    if record is not None:
        preset = preset.pinned(record.revision, record.sha256)
    sha256 = preset.autoencoder.files[-1].sha256
    digest = bytes.fromhex(sha256)[:4] if sha256 else NOT_NAMED
    space = all_spaces()[preset.latent_space]
    spec = ModelSpec(name, space.channels, space.factor, digest, space.name)
    return _Entry(spec, sources.Pinned(name, preset))


def decoder_for(spec: ModelSpec, digest: bytes, tune: str) -> ModelSpec:
    """The model that decodes a file.

    ``spec`` is the result of `catalogue.judge` for the file's header, ``digest`` (4 bytes) is the
    header's, and ``tune`` is what the file recommends.  The decoder is the model that the file
    names, or that model's second decoder for this tune, or the one in `options.DECODER`.
    ValueError if `options.DECODER` is not the name of a model.  OSError if the model is not known
    or not on this computer; the message has the command that helps.  OSError also if the file's
    weights or latents are not the model's.
    """
    name = spec.name
    wanted = _wanted(spec)
    if wanted is None:
        of = f"{name} latents" if catalogue.known(name) else _shape(spec)
        msg = (
            f"this SDZ file needs the model {name!r}, which is not known here: "
            f"{specs.remedy(spec)}, or set options.DECODER to a model of {of}"
        )
        raise OSError(msg)
    if (spec.channels, spec.factor) != (wanted.channels, wanted.factor):
        msg = (
            f"the latents of this SDZ file have {spec.channels} channels at a factor of "
            f"{spec.factor}, but those of the model {name!r} have {wanted.channels} at "
            f"{wanted.factor}"
        )
        raise OSError(msg)
    if options.DECODER is not None:
        decoder = _decoder_asked_for(options.DECODER, wanted)
    elif NOT_NAMED in (digest, wanted.digest) or digest == wanted.digest:
        whole = catalogue.whole_of(wanted)
        other = wanted.space.decoders.get(tune) or (whole.name if whole else None)
        decoder = wanted if other is None else _entry(other).spec
    else:
        msg = (
            f"this SDZ file needs the model {name!r} with the weights {digest.hex()}, but the "
            f"installed weights are {wanted.digest.hex()}"
        )
        raise OSError(msg)
    source(decoder.name).check()
    return decoder


def _wanted(spec: ModelSpec) -> ModelSpec | None:
    """The model that a file names; None if this computer does not know it.

    A family's name is only the name of a model if the user has given it to one.  Otherwise the
    model in `options.DECODER` can decode such files, also those of an unknown family.  The model of
    a family can also decode the family's 2x2 patches.
    """
    whole = catalogue.whole_of(spec)
    for name in (spec.name, *([whole.name] if whole else [])):
        try:
            found = _entry(name).spec
        except KeyError:
            continue
        return found if name == spec.name else spec
    return None if options.DECODER is None else spec


def _decoder_asked_for(name: str, wanted: ModelSpec) -> ModelSpec:
    try:
        decoder = spec(name)
    except KeyError:
        msg = f"options.DECODER must be one of {', '.join(names())}, not {name!r}"
        raise ValueError(msg) from None
    whole = catalogue.whole_of(wanted)
    if _latents(decoder) in [_latents(each) for each in (wanted, whole) if each]:
        return decoder
    if catalogue.known(wanted.latent_space) or decoder.space.is_own:
        msg = (
            f"options.DECODER is {name!r}, which decodes {decoder.latent_space} latents, but this "
            f"SDZ file has {wanted.latent_space} latents of {wanted.name!r}"
        )
        raise OSError(msg)
    # Nobody here knows the family.  The user says that the model can decode it.
    if (decoder.channels, decoder.factor) != (wanted.channels, wanted.factor):
        msg = (
            f"options.DECODER is {name!r}, which decodes latents of {_shape(decoder)}, but those "
            f"of this SDZ file, of {wanted.name!r}, have {_shape(wanted)}"
        )
        raise OSError(msg)
    return decoder


def _latents(spec: ModelSpec) -> tuple[str, int, int]:
    """What two models must have in common to decode each other's latents."""
    return spec.latent_space, spec.channels, spec.factor


def _shape(spec: ModelSpec) -> str:
    """What a model's latents have, for a message."""
    return f"{spec.channels} channels at a factor of {spec.factor}"


_loaded: dict[ModelSpec, Network] = {}
_denoisers: dict[tuple[ModelSpec, str | None, str | None], Denoiser] = {}
_loading = forks.Lock()


def load(spec: ModelSpec) -> Network:
    """The model's network, loaded once in a process.  Models of the hub import torch.

    OSError if the weights are missing or damaged, or if their hash is not the registry's.
    """
    with _loading:
        if spec not in _loaded:
            entry = _entry_of(spec)
            _loaded[spec] = _network(entry)
        return _loaded[spec]


def _network(entry: _Entry) -> Network:
    source = entry.source
    if isinstance(source, sources.Embedded):
        loader: Loader = pkgutil.resolve_name(entry.spec.loader)
        return loader(load)
    if isinstance(source, sources.Given) and source.how is not None:
        from .any_autoencoder import AnyAutoencoder

        return AnyAutoencoder(source.autoencoder, source.how)
    from .stable_diffusion import DiffusersAutoencoder

    alone = entry.spec.space.deviation_alone
    return DiffusersAutoencoder(*source.weights(), deviation_alone=alone)


def _entry_of(spec: ModelSpec) -> _Entry:
    """The model's entry; OSError if there is only its family, or if another has its name by now."""
    try:
        entry = _entry(spec.name)
    except KeyError:
        entry = None
    if entry is None and catalogue.known(spec.name):
        raise OSError(specs.only_a_family(spec))
    if entry is None or entry.spec != spec:
        msg = f"the model {spec.name!r} has been replaced or removed: open the file again"
        raise OSError(msg)
    return entry


def load_denoiser(spec: ModelSpec, *, on_cpu: bool = False) -> Denoiser:
    """A U-Net or transformer for a model's latents, loaded once per process; imports torch.

    It is the model's own, or that of another model of the same latent space. Diffusers is imported,
    unless the network comes with this package. With ``on_cpu``, the network is loaded on the CPU in
    float32, and replaces the one that was loaded.

    OSError if this computer has no such network; the message has the command that fetches it.
    OSError also if it is damaged, if it is not made for these latents, or if it was registered
    already loaded and ``on_cpu`` asks to move it.
    """
    with _loading:
        reason = ""
        for entry in _same_space(spec):
            key = entry.spec, options.DEVICE, options.DTYPE
            loaded = _denoisers.get(key)
            if loaded is not None and not (on_cpu and loaded.device.type != "cpu"):
                return loaded
            try:
                parts = entry.source.denoiser()
            except NotInstalled as e:
                reason = reason or str(e)
                continue
            if parts is not None:
                if on_cpu and not isinstance(parts.unet, Folder):
                    kind = "U-Net" if parts.pipeline is None else "pipeline"
                    msg = f"the {kind} was registered already loaded: move it to the CPU yourself"
                    raise OSError(msg)
                _denoisers.clear()  # one at a time: they are large
                with options.override(**({"DEVICE": "cpu", "DTYPE": "float32"} if on_cpu else {})):
                    return _denoisers.setdefault(key, _denoiser(entry, parts))
    msg = (
        reason or f"no denoiser of {spec.latent_space} latents is known: register a model with one"
    )
    raise NotInstalled(msg)


def _denoiser(entry: _Entry, parts: DenoiserParts) -> Denoiser:
    if isinstance(entry.source, sources.Embedded) and entry.spec.denoiser:
        denoiser: Denoiser = pkgutil.resolve_name(entry.spec.denoiser)(parts)
        return denoiser
    if parts.pipeline is not None:
        from . import flow

        return flow.load(parts.pipeline, entry.spec.channels)
    from . import unets

    return unets.load(parts, entry.spec.channels)


def _same_space(spec: ModelSpec) -> Iterator[_Entry]:
    """The models of the same latent space, the model itself first."""
    yield _entry_of(spec)
    for name in names():
        with suppress(OSError):  # if the record of one model is wrong, others may still be right
            entry = _entry(name)
            if name != spec.name and _latents(entry.spec) == _latents(spec):
                yield entry


def register_model(
    name: str,
    source: Any,
    *,
    unet: Any = None,
    scheduler: Any = None,
    text_encoder: Any = None,
    tokenizer: Any = None,
    pipeline: Any = None,
    latent_space: str | None = None,
    **conventions: Any,
) -> ModelSpec:
    """Make a model known to this process. It replaces a registered model of the same name.

    ``name`` goes into files: 1 to 32 characters of a-z 0-9 . _ -, the first one of a-z 0-9.
    ``source`` is a directory in diffusers' layout, of an autoencoder or of a whole pipeline. It may
    also be a loaded autoencoder: one of diffusers' classes, or any object whose ``encode`` turns
    pictures (B, 3, H, W) into latents and whose ``decode`` turns them back. Denoising needs
    ``unet``, ``scheduler``, ``text_encoder`` and ``tokenizer``; each is a directory or a loaded
    object. A pipeline's directory already has them. Flow models (SD3, FLUX.1, FLUX.2, Qwen-Image)
    need ``pipeline`` instead: a loaded pipeline of diffusers with its transformer and its text
    encoders. A loaded network is used as it is, on its device, without a copy. It must not be in
    training mode.

    Files also name the weights: by the sha256 of a directory's file, or by the sha256 of a loaded
    autoencoder's tensors (`stable_diffusion.digest`). If a directory's weights change after this
    call, they are refused. Give ``latent_space``, such as "sd1", if models of that space can decode
    each other's files.

    A loaded autoencoder of another class is tried on a small grey picture. For such an autoencoder
    you can give ``conventions``. ``pixel_range`` has its values of black and white, by default
    (-1, 1). Pipelines scale its latents to (x - ``shift``) * ``scaling``. Both are one number, or
    one for each channel, and by default those of its configuration. ``channels`` and ``factor``
    must be those of its latents.

    Warns if its scaling is not that of other models of its latent space. ValueError if the name or
    the latent space belongs to another model, if a convention is not possible, or if a network is
    in training mode. OSError if the model is damaged or of a kind that cannot be used.
    """
    network, sha256, shape, parts, how = described(source, conventions)
    given = {
        part: Folder(Path(value).absolute()) if isinstance(value, (str, os.PathLike)) else value
        for part, value in (
            ("unet", unet),
            ("scheduler", scheduler),
            ("text_encoder", text_encoder),
            ("tokenizer", tokenizer),
            ("pipeline", pipeline),
        )
        if value is not None
    }
    for part, value in {"source": source, **given}.items():
        if getattr(getattr(value, "transformer", value), "training", False):
            msg = f"{part}, a {type(value).__name__}, is in training mode: call its eval() first"
            raise ValueError(msg)
    if given:
        parts = dataclasses.replace(parts or DenoiserParts(), **given)
    spec = specs.new(name, shape, parts, sha256, latent_space, PRESETS)
    if pipeline is not None:
        from . import flow

        flow.load(pipeline, spec.channels)  # OSError if it cannot be used
    if parts is not None:
        parts = sources.with_hashes(parts, sources.hashes(parts))
    with _loading:
        _registered[name] = _Entry(spec, sources.Given(network, parts, how))
        _loaded.pop(spec, None)
        _denoisers.clear()
    return spec


def record_model(name: str, directory: Path, latent_space: str | None = None) -> ModelSpec:
    """Make a model known to all processes of this user, as `register_model` does for one."""
    directory = directory.absolute()
    _, sha256, shape, parts, _ = described(directory, {})
    spec = specs.new(name, shape, parts, sha256, latent_space, PRESETS)
    hashes = sources.hashes(parts)
    record = recorded.Directory(
        str(directory),
        sha256,
        spec.latent_space,
        spec.channels,
        spec.factor,
        hashes.get("unet", ""),
        hashes.get("text_encoder", ""),
    )
    recorded.write(name, record)
    return spec
