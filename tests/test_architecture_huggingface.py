"""Architectures are read from a T5's config.json and written to it."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.reference import t5_checkpoints

from march_search import Architecture
from march_search.errors import ArchitectureError


@pytest.mark.parametrize("checkpoint", t5_checkpoints(), ids=lambda checkpoint: checkpoint["name"])
def test_public_checkpoints_are_counted_exactly(checkpoint: dict[str, Any]) -> None:
    assert Architecture.from_huggingface(checkpoint).num_params == checkpoint["num_params"]


@pytest.mark.parametrize(
    "name",
    ["L12-D768-H12x64-F3072", "L4+2-D256-H3x32-F512-geglu", "L2-D64-H2x16-F96-gelu", "L2-D64-H2x16-F96-swiglu-untied"],
)
def test_a_written_config_is_read_back(name: str, tmp_path: Path) -> None:
    a = Architecture.parse(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(a.to_huggingface()))
    assert Architecture.from_huggingface(path) == Architecture.from_huggingface(str(path)) == a


def test_transformers_agrees_on_missing_keys() -> None:
    from transformers import T5Config

    config = T5Config().to_dict()
    assert Architecture.from_huggingface({"model_type": "t5"}) == Architecture.from_huggingface(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bart"}, 'config: model_type "bart" cannot be expressed. Known: gpt2, gpt_neox, llama,'),
        ({"relative_attention_num_buckets": 64}, "config: relative_attention_num_buckets is 64, but only 32 can be"),
        (
            {"feed_forward_proj": "tanh"},
            'config: feed_forward_proj "tanh" cannot be expressed. Known: relu, gelu, gelu_new,',
        ),
        ({"feed_forward_proj": ["relu"]}, "config: feed_forward_proj must be text, not ['relu']."),
        ({"d_model": 0}, "d_model must be a whole number of at least 1, not 0."),
    ],
)
def test_a_config_that_cannot_be_expressed_names_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as error:
        Architecture.from_huggingface(Architecture().to_huggingface() | change)
    assert str(error.value).startswith(message)


def test_a_shape_that_t5_cannot_express_names_the_field() -> None:
    with pytest.raises(ArchitectureError, match=r"position is 'rotary', but T5 supports only 'relative'\.$"):
        Architecture(position="rotary").to_huggingface()


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read"), ("{", "invalid JSON"), ("[]", "expected an object")]
)
def test_a_file_that_is_not_a_config_is_one_line(content: str | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArchitectureError, match=reason):
        Architecture.from_huggingface(path)
