"""The order of sequences, and that packed documents stay apart."""

import numpy as np
import pytest
import torch

from langext import modeling
from langext.mixture import IGNORE, Mixture, TokenFile


def token_file(tmp_path, name, lengths, base=0):
    return TokenFile.write(tmp_path / name, [[base + i % 50 for i in range(n)] for n in lengths])


def test_tokens_survive_the_file(tmp_path):
    file = TokenFile.write(tmp_path / "a", [[1, 2, 3], [70000, 5]])
    assert file.tokens.tolist() == [1, 2, 3, 70000, 5] and file.starts.tolist() == [0, 3]


def test_labels_and_positions_stop_at_documents(tmp_path):
    file = TokenFile.write(tmp_path / "a", [[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    sequence = file.sequence(0, 8)
    assert sequence.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sequence.labels.tolist() == [2, 3, IGNORE, 5, IGNORE, 7, 8, 9]
    assert sequence.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]


def test_a_document_over_the_edge_is_labelled_across_it(tmp_path):
    file = TokenFile.write(tmp_path / "a", [list(range(9)), list(range(9))])
    assert file.sequence(0, 4).labels.tolist() == [1, 2, 3, 4]
    assert file.sequence(1, 4).labels.tolist() == [5, 6, 7, 8]
    assert file.sequence(2, 4).labels.tolist() == [IGNORE, 1, 2, 3]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.013, 0.5])
def test_shares_are_exact_in_every_prefix(tmp_path, share):
    files = {"new": token_file(tmp_path, "n", [500]), "old": token_file(tmp_path, "o", [500])}
    mixture = Mixture(files, {"new": 1 - share, "old": share}, 16, 3000, seed=1)
    seen = np.cumsum(mixture.owner == 1)
    wanted = share * np.arange(1, 3001)
    assert np.abs(seen - wanted).max() <= 1


def test_an_epoch_uses_every_sequence_once_and_the_next_is_shuffled_anew(tmp_path):
    files = {"new": token_file(tmp_path, "n", [161])}
    mixture = Mixture(files, {"new": 1.0}, 16, 30, seed=1)
    starts = [tuple(mixture.sequence(i)[1].input_ids) for i in range(30)]
    epochs = [starts[at : at + 10] for at in (0, 10, 20)]
    assert all(sorted(e) == sorted(epochs[0]) for e in epochs)
    assert epochs[0] != epochs[1]
    assert mixture.epochs() == {"new": 3.0}


def test_order_does_not_depend_on_processes_or_micro_batches(tmp_path):
    files = {"new": token_file(tmp_path, "n", [900]), "old": token_file(tmp_path, "o", [900], base=100)}

    def order(micro, world):
        mixture = Mixture(files, {"new": 0.7, "old": 0.3}, 16, 32, seed=1)
        rows = {}
        for rank in range(world):
            for number, batch in enumerate(mixture.micro_batches(1, 8, micro, rank, world)):
                for k in range(micro):
                    rows[(number * world + rank) * micro + k] = batch.input_ids[k].tolist()
        return [rows[i] for i in range(8)]

    assert order(8, 1) == order(2, 1) == order(2, 2) == order(1, 4)


def test_a_packed_neighbour_changes_nothing(pico):
    """Logits of a document are the same alone and behind another one. Without the positions they differ."""
    net = modeling.load_base(pico, torch.float32)
    one, two = torch.arange(20, 50)[None], torch.arange(100, 130)[None]
    positions = torch.cat([torch.arange(30), torch.arange(30)])[None]
    with torch.no_grad():
        alone = net(input_ids=two).logits
        packed = net(input_ids=torch.cat([one, two], 1), position_ids=positions, use_cache=False).logits[:, 30:]
        leaking = net(input_ids=torch.cat([one, two], 1), use_cache=False).logits[:, 30:]
    assert (alone - packed).abs().max() < 1e-5
    assert (alone - leaking).abs().max() > 1e-2
