"""Rows of tokens in batches."""

import pytest

from langext.data import batches


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [
        ([3, 9, 3, 5], 10, [[1], [3, 0], [2]]),
        ([20, 2], 10, [[0], [1]]),  # a row that is longer than a batch may be stands alone
        ([0, 1, 0], 2, [[1, 0], [2]]),
        ([], 10, []),
    ],
)
def test_rows_of_like_lengths_are_together_the_longest_first(lengths, most, expected):
    assert list(batches.by_length([[7] * length for length in lengths], most)) == expected


def test_rows_are_padded_on_the_right():
    assert batches.padded([[1, 2], [], [3]]).tolist() == [[1, 2], [0, 0], [3, 0]]
    assert batches.padded([[1, 2], [3]], -100).tolist() == [[1, 2], [3, -100]]
