"""The graphs that ship are those that the training code builds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pillow_sdz import weights

pytest.importorskip("onnx", reason='building graphs needs pip install ".[train]"')
sys.path.append(str(Path(__file__).parent.parent))

from training.graph import Graph
from training.graphs import networks


def test_the_graphs_that_ship_are_built_from_the_code() -> None:
    seen = set()
    for name, (build, tensors) in networks().items():
        for suffix in ("", "_int8", "_precise"):
            if name + suffix in weights.GRAPHS:
                data = build(Graph(tensors, int8=bool(suffix), precise=suffix == "_precise"))
                assert data == weights.graph(name + suffix).checked().read_bytes()
                seen.add(name + suffix)
    assert seen == set(weights.GRAPHS)
