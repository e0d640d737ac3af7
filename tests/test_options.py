"""The process's settings: what they may be, from where they come, and for whom they hold."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest

from pillow_sdz import options

DEFAULTS: dict[str, Any] = {
    "DEVICE": None,
    "DTYPE": None,
    "ALLOW_DOWNLOADS": False,
    "DENOISE": None,
    "DENOISE_STEPS": None,
    "DECODER": None,
}

REFUSED = [
    ("DEVICE", ""),
    ("DEVICE", "the first"),
    ("DEVICE", 0),
    ("DTYPE", "int4"),
    ("ALLOW_DOWNLOADS", None),
    ("ALLOW_DOWNLOADS", 1),
    ("DENOISE", 1.5),
    ("DENOISE", -0.1),
    ("DENOISE", float("nan")),
    ("DENOISE", "yes"),
    ("DENOISE_STEPS", 0),
    ("DENOISE_STEPS", 1001),
    ("DENOISE_STEPS", 2.0),
    ("DECODER", 1),
]


def test_defaults() -> None:
    assert {name: getattr(options, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_refused_changes_nothing(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        setattr(options, name, value)
    with pytest.raises(ValueError, match=f"{name} must be"), options.override(**{name: value}):
        pass
    assert getattr(options, name) == DEFAULTS[name]


def test_assignment_holds_in_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "DENOISE_STEPS", 7)
    assert in_a_thread(lambda: options.DENOISE_STEPS) == 7


def test_overrides_nest_and_end() -> None:
    with options.override(DEVICE="cpu", DENOISE_STEPS=1):
        with options.override(DENOISE_STEPS=2):
            assert (options.DEVICE, options.DENOISE_STEPS) == ("cpu", 2)
        assert (options.DEVICE, options.DENOISE_STEPS) == ("cpu", 1)
    assert (options.DEVICE, options.DENOISE_STEPS) == (None, None)


def test_an_override_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), options.override(DENOISE_STEPS=1):
        raise KeyError
    assert options.DENOISE_STEPS is None


def test_an_override_is_the_threads_own() -> None:
    with options.override(DENOISE_STEPS=1):
        assert in_a_thread(lambda: options.DENOISE_STEPS) is None


@pytest.mark.parametrize("value", [0, 1])
def test_integers_switch_denoising(monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    with options.override(DENOISE=value):
        assert options.DENOISE is bool(value)
    monkeypatch.setattr(options, "DENOISE", value)
    assert options.DENOISE is bool(value)
    with options.override(DENOISE=1.0):
        assert type(options.DENOISE) is float


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="no setting 'COLOUR', only DEVICE, "):
        options.override(COLOUR="red").__enter__()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("DEVICE", "cuda:1", "cuda:1"),
        ("DTYPE", "bfloat16", "bfloat16"),
        ("ALLOW_DOWNLOADS", "1", True),
        ("ALLOW_DOWNLOADS", "off", False),
        ("DENOISE", "yes", True),
        ("DENOISE", "0", False),
        ("DENOISE", "0.04", 0.04),
        ("DENOISE_STEPS", "3", 3),
        ("DECODER", "taesd", "taesd"),
        ("DENOISE_STEPS", "42", 42),
        ("DENOISE_STEPS", "", None),
    ],
)
def test_environment(environment: dict[str, str], name: str, text: str, value: object) -> None:
    program = f"from pillow_sdz import options; print(repr(options.{name}))"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, f"SDZ_{name}": text},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == repr(value)


# Bad values, and the default that the setting has instead.
NONSENSE = [
    ("ALLOW_DOWNLOADS", "perhaps", False),
    ("DENOISE", "2", None),
    ("DENOISE", "1e-320", None),
    ("DENOISE", "nan", None),
    ("DENOISE_STEPS", "x", None),
    ("DENOISE_STEPS", "9" * 5000, None),
    ("DEVICE", "CUDA 0", None),
    ("DTYPE", "x", None),
    ("MEMORY_BUDGET", "1", 400_000_000),
    ("MEMORY_BUDGET", "9" * 30, 400_000_000),
]


@pytest.mark.parametrize(("name", "text", "default"), NONSENSE)
def test_a_bad_variable_never_breaks_the_import(
    environment: dict[str, str], name: str, text: str, default: object
) -> None:
    """The setting has its default. The import works even if warnings are errors."""
    run = subprocess.run(
        [sys.executable, "-Werror", "-c", "import pillow_sdz"],
        env={**environment, f"SDZ_{name}": text},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(("name", "text", "default"), NONSENSE)
def test_a_bad_variable_is_a_warning_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, default: object
) -> None:
    monkeypatch.setenv(f"SDZ_{name}", text)
    monkeypatch.setattr(options, "_complaints", {})
    options._read_environment()
    (complaint,) = options.complaints()
    assert complaint.startswith(f"the environment variable SDZ_{name} must be ")
    assert len(complaint) < 200
    assert complaint.isprintable()
    with pytest.warns(UserWarning, match=f"SDZ_{name} must be .*; options.{name} is {default}"):
        assert getattr(options, name) == default
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(options, name) == default  # once is enough


def test_a_bad_variable_is_forgotten_when_the_setting_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SDZ_DTYPE", "x")
    monkeypatch.setattr(options, "_complaints", {})
    options._read_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with options.override(DTYPE="float32"):
            assert options.DTYPE == "float32"
        options.DTYPE = None
        assert options.DTYPE is None
    assert options.complaints() == []


def in_a_thread(work: Any) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def test_the_least_strength() -> None:
    """A file cannot recommend a smaller strength."""
    with options.override(DENOISE=0.001):
        assert options.DENOISE == 0.001
    with pytest.raises(ValueError, match=r"DENOISE must be .* from 0\.001 to 1"):
        options.DENOISE = 0.00099


def test_a_misspelt_setting_is_not_set() -> None:
    with pytest.raises(AttributeError, match="no setting DENOIZE: did you mean DENOISE"):
        options.DENOIZE = False  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no setting QUALITY, only DEVICE"):
        options.QUALITY = 3  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no setting denoise: did you mean DENOISE"):
        options.denoise = False  # type: ignore[attr-defined]
    assert not hasattr(options, "DENOIZE")
    assert not hasattr(options, "denoise")
