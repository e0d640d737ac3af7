"""`sdz models`: list models, fetch and check their weights, and add models of your own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .. import catalogue, weights
from .. import models as registry
from .. import options as settings
from ..models import hub, recorded, sources, specs
from . import arguments
from .arguments import Commands
from .messages import StdoutError, complain, reason, say, say_json


def add_models(commands: Commands) -> None:
    """Add `models` to the commands of `sdz`."""
    parser = commands.add_parser(
        "models",
        help="list models, and get their weights",
        description="List models, fetch and check their weights, and add models of your own.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, run: Callable[[argparse.Namespace], None], help: str) -> Any:
        added = actions.add_parser(name, help=help, description=help)
        added.set_defaults(run=lambda options: _run(run, options))
        return added

    listing = action("list", _list, "List the models that files can name.")
    listing.add_argument(
        "--json", action="store_true", help="print a JSON list with one object for each model"
    )

    fetch = action("fetch", _fetch, "Download a model's weights into the Hugging Face hub's cache.")
    fetch.add_argument("name", metavar="NAME")
    fetch.add_argument(
        "--denoiser", action="store_true", help="fetch its U-Net and text encoder, too"
    )
    fetch.add_argument(
        "--pin",
        action="store_true",
        help="if pillow-sdz knows no hash of the weights: trust what the hub has today, and accept"
        " nothing else later",
    )

    verify = action("verify", _verify, "Check that a model's weights are the right ones.")
    verify.add_argument("name", metavar="NAME")

    add = action(
        "add",
        _add,
        "Add an AutoencoderKL or AutoencoderTiny, or a pipeline with one, from a directory in"
        " diffusers' layout.",
    )
    add.add_argument("name", metavar="NAME", help="the name that files will use for it")
    add.add_argument("directory", metavar="DIRECTORY", type=arguments.path)
    add.add_argument(
        "--latent-space",
        metavar="SPACE",
        help="such as sd1; models of one space can decode each other's files; default: a space of"
        " its own",
    )

    path = action(
        "path",
        _path,
        "Print where a model's weights are.",
    )
    path.add_argument(
        "name", metavar="NAME", nargs="?", help="default: print where the list of added models is"
    )

    action(
        "repair",
        _repair,
        "Write a damaged list of added models again with its sound entries, and keep the old one"
        " beside it.",
    )


def _run(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    try:
        with settings.override(ALLOW_DOWNLOADS=False):  # only `fetch` downloads
            run(options)
    except BrokenPipeError:
        raise
    except StdoutError:
        raise
    except Exception as error:  # the libraries that read weights raise anything
        complain("models", reason(error))
        return 1
    return 0


def _source(name: str) -> sources.Source:
    try:
        return registry.source(name)
    except KeyError:
        if family := catalogue.known(name):
            raise ValueError(specs.only_a_family(family)) from None
        msg = f"no model is called {name!r}, only {', '.join(registry.names())}"
        raise ValueError(msg) from None


def _list(options: argparse.Namespace) -> None:
    described = [_describe(name) for name in registry.names()]
    if options.json:
        say_json(described)
    else:
        _say_table(described)
    # Elsewhere, added models are left out if their list cannot be read. Here, this is an error.
    with suppress(recorded.Homeless):
        recorded.read()


def _say_table(described: list[dict[str, Any]]) -> None:
    # Names have up to 32 characters; two spaces after the longest.
    width = 2 + max(len(model["name"]) for model in described)
    say(f"{'name':<{width}}{'latents':<24}{'weights':<10}{'U-Net':<7}state")
    for model in described:
        latents = f"{model['latent_space']}, {model['channels']} at 1/{model['factor']}"
        denoiser = "yes" if model["denoiser"] else "-"
        state = "installed" if model["installed"] else model["hint"].rpartition(": ")[2]
        name, digest = model["name"], model["digest"] or "-"
        say(f"{name:<{width}}{latents:<24}{digest:<10}{denoiser:<7}{state}")


def _describe(name: str) -> dict[str, Any]:
    spec, source = registry.spec(name), registry.source(name)
    hint = None
    try:
        source.check()
    except OSError as e:  # not installed, or damaged
        hint = reason(e)
    try:
        denoiser = source.denoiser() is not None
    except OSError:
        denoiser = False
    return {
        "name": name,
        "latent_space": spec.latent_space,
        "channels": spec.channels,
        "factor": spec.factor,
        "digest": None if spec.digest == catalogue.NOT_NAMED else spec.digest.hex(),
        "installed": hint is None,
        "denoiser": denoiser,
        "hint": hint,
    }


def _fetch(options: argparse.Namespace) -> None:
    name = options.name
    source = _source(name)
    if not isinstance(source, sources.Pinned):
        msg = f"the weights of {name!r} are on this computer: there is nothing to fetch"
        raise ValueError(msg)
    preset = source.preset
    if options.denoiser and preset.denoiser is None:
        msg = f"pillow-sdz knows no U-Net for {name!r}: add a pipeline's directory instead"
        raise ValueError(msg)
    snapshot = preset.autoencoder
    if snapshot.revision is None:
        if not options.pin:
            msg = (
                f"pillow-sdz has no hash to check the weights of {name!r} with: "
                f"'sdz models fetch {name} --pin' trusts what {snapshot.repository} has today, "
                f"'sdz models add {name} DIRECTORY' takes what you have"
            )
            raise ValueError(msg)
        snapshot = snapshot._replace(revision=hub.latest(snapshot.repository))
        path = hub.fetch(snapshot) / snapshot.files[-1].path
        pin = recorded.Pin(str(snapshot.revision), weights.sha256(path))
        recorded.write(name, pin)
        say(f"{name}: pinned to {pin.revision}, sha256 {pin.sha256}")
    else:
        path = hub.fetch(snapshot) / snapshot.files[-1].path
    say(f"{name}: {path}")
    if options.denoiser and preset.denoiser is not None:
        say(f"{name}: {hub.fetch(preset.denoiser)}")


def _verify(options: argparse.Namespace) -> None:
    source = _source(options.name)
    if not isinstance(source, (sources.Directory, sources.Pinned)):
        registry.load(registry.spec(options.name))  # which checks its hash
        say(f"{options.name}: the weights that come with pillow-sdz are sound")
    else:
        say(f"{options.name}: {sources.check_weights(source.folder())} is sound")
    try:
        denoiser = source.denoiser()
    except sources.NotInstalled:
        return
    for part in vars(denoiser).values() if denoiser else ():
        # A scheduler and a tokenizer have no weights.
        if isinstance(part, sources.Folder) and part.sha256:
            say(f"{options.name}: {sources.check_weights(part)} is sound")


def _add(options: argparse.Namespace) -> None:
    spec = registry.record_model(options.name, options.directory, options.latent_space)
    say(
        f"{spec.name}: {spec.channels} channels at 1/{spec.factor}, "
        f"latent space {spec.latent_space}, weights {spec.digest.hex()}"
    )


def _path(options: argparse.Namespace) -> None:
    if options.name is None:
        say(str(recorded.path()))
        return
    source = _source(options.name)
    if not isinstance(source, (sources.Directory, sources.Pinned)):
        msg = f"the weights of {options.name!r} are part of pillow-sdz"
        raise ValueError(msg)
    say(str(source.folder().path))


def _repair(options: argparse.Namespace) -> None:
    repair = recorded.repair()
    if repair is None:
        say(f"the list of added models {recorded.path()} is sound")
        return
    say(f"the damaged list is kept as {repair.aside}")
    for name in repair.kept:
        say(f"{name}: kept")
    for name in repair.lost:
        say(f"{name}: left out, add it again")
