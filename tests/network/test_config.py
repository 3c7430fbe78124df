"""Network configurations: presets, validation, JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from satunet.errors import PlanError
from satunet.jobs.records import from_plain, to_plain
from satunet.network import NetworkConfig


def small(**changes: Any) -> NetworkConfig:
    base = NetworkConfig.auto(
        features_per_stage=(4, 6, 8),
        strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
        text_dim=10,
        query_dim=12,
        num_scales=2,
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("config", [NetworkConfig.nano(), NetworkConfig.pro(), small()])
def test_json_round_trip(config: NetworkConfig) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(config))), NetworkConfig, source="f") == config


@given(
    stages=st.integers(2, 6),
    width=st.integers(1, 400),
    heads=st.integers(1, 8),
    strides=st.lists(st.tuples(*[st.integers(1, 2)] * 3), min_size=5, max_size=5),
)
def test_auto_accepts_what_a_planner_may_ask(
    stages: int, width: int, heads: int, strides: list[tuple[int, int, int]]
) -> None:
    config = NetworkConfig.auto(
        features_per_stage=tuple(range(8, 8 + stages)),
        strides=[(1, 1, 1), *strides[: stages - 1]],
        kernel_sizes=[(3, 3, 3)] * stages,
        text_dim=384,
        query_dim=width,
        num_scales=heads,
    )
    assert config.query_dim % config.num_heads == 0
    assert len(config.mask_heads) == min(heads, stages - 1) == len(config.scales)
    for axis in range(3):
        product = 1
        for stride in strides[: stages - 1]:
            product *= stride[axis]
        assert config.divisor[axis] == product
    assert from_plain(to_plain(config), NetworkConfig, source="f") == config


def test_scales_follow_the_strides() -> None:
    assert NetworkConfig.nano().scales == ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8))
    assert NetworkConfig.nano().divisor == (32, 32, 32)
    assert small().scales == ((1, 1, 1), (2, 2, 1))
    assert small().divisor == (4, 4, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "large"},
        {"adapter": "mlp"},
        {"features_per_stage": (4, 6)},
        {"n_conv_per_stage_decoder": (2, 2, 2)},
        {"strides": ((2, 1, 1), (2, 2, 1), (2, 2, 2))},
        {"kernel_sizes": ((3, 3, 2), (3, 3, 3), (3, 3, 3))},
        {"n_conv_per_stage": (2, 0, 2)},
        {"num_query_layers": 0},
        {"num_heads": 5},
        {"dropout": 1.0},
        {"mask_heads": ()},
        {"mask_heads": ((8, 5),)},
        {"mask_heads": ((8, 4), (8, 6), (8, 8))},
        {"adapter": "none"},
    ],
    ids=lambda changes: next(iter(changes)) + "=" + str(next(iter(changes.values()))),
)
def test_impossible_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"\d|allowed"):
        small(**changes)


def test_json_with_a_wrong_field_is_refused() -> None:
    content = to_plain(small())
    with pytest.raises(PlanError, match="colour"):
        from_plain(content | {"colour": 1}, NetworkConfig, source="f", error=PlanError)
    del content["query_dim"]
    with pytest.raises(PlanError, match="query_dim"):
        from_plain(content, NetworkConfig, source="f", error=PlanError)
