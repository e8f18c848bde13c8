"""What a page leaves out where it would be too large: the rest is right, and the page says so."""

import base64
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pretraining.errors import UserError
from pretraining.publish.explore import pack
from pretraining.publish.explore.tokens import reduce_table


def test_a_large_table_is_reduced_and_says_so():
    torch.manual_seed(0)
    weights = torch.randn(600, 8) @ torch.randn(8, 96) + 0.01 * torch.randn(600, 96)
    labels = [str(number) for number in range(600)]
    whole = reduce_table(weights, labels, 600 * 96)
    assert whole.rows.shape == (600, 96) and not whole.reduction
    fewer = reduce_table(weights, labels, 600 * 70)
    assert fewer.rows.shape == (600, 70) and fewer.reduction.startswith("96 dimensions are reduced to 70, with 100%")
    one, other = (normalize(table.rows.double(), dim=-1) for table in (whole, fewer))
    assert torch.allclose(one @ one.T, other @ other.T, atol=0.02)  # it has eight directions that matter
    least = reduce_table(weights, labels, 64 * 100 + 5)
    assert least.rows.shape == (100, 64) and least.labels == labels[:100]
    assert least.reduction.startswith("the first 100 of 600 entries are here")


def packed(shapes: list[tuple[int, ...]], room: int, **more: Any) -> list[dict[str, Any]]:
    """Maps of noise, as a page of that many bytes holds them."""
    torch.manual_seed(0)
    maps = [dict(more) for _ in shapes]
    pack.fit(maps, [torch.rand(shape) for shape in shapes], room)
    return maps


def test_layers_are_left_out_where_texts_are_too_long_for_a_page():
    (whole,) = packed([(6, 2, 9, 9)], 6 * 2 * 81)
    assert whole["layers"] == [0, 1, 2, 3, 4, 5] and "note" not in whole
    one, other = packed([(6, 2, 9, 9), (6, 2, 9, 9)], 6 * 2 * 81)
    assert one["layers"] == other["layers"] == [1, 3, 5] and one["note"].startswith("3 of 6 layers are here")
    assert one["maps"]["shape"] == [6, 9, 9]
    with pytest.raises(UserError, match="more than a page of 2 MB holds"):
        packed([(6, 2, 9, 9)], 2 * 81 - 1)


def test_queries_are_left_out_where_images_are_too_many_for_a_page():
    (whole,) = packed([(2, 3, 17, 17)], 2 * 3 * 17 * 17, grid=4)
    assert whole["queries"] == list(range(16)) and whole["layers"] == [0, 1] and "note" not in whole
    (fewer,) = packed([(2, 3, 17, 17)], 2 * 3 * 17 * 17 - 1, grid=4)
    assert fewer["queries"] == [0, 2, 8, 10] and fewer["note"].startswith("Of the patches 4 can be chosen")
    assert fewer["maps"]["shape"] == [6, 5, 17] and fewer["layers"] == [0, 1]
    torch.manual_seed(0)
    weights = torch.rand(2, 3, 17, 17)
    expected = (weights[1, 2, 1 + 8] / weights[1, 2, [0, 1, 3, 9, 11]].max() * 255).round()
    found = np.frombuffer(base64.b64decode(fewer["maps"]["bytes"]), dtype=np.uint8).reshape(6, 5, 17)
    assert np.array_equal(found[5, 3], expected.numpy())
    with pytest.raises(UserError, match="more than a page of 2 MB holds"):
        packed([(2, 3, 17, 17)], 2 * 3 * 17, grid=4)
