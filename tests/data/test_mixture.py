"""The order of sequences, and that packed documents stay apart."""

import re
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langext.data.mixture import BYTES_PER_SEQUENCE, Mixture, Phase, shares
from langext.data.tokens import IGNORE, TokenFile
from langext.errors import ConfigError
from langext.models import loading


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


def mixture(tmp_path, shares, total, length=16, tokens=900, seed=1):
    files = {name: token_file(tmp_path, name, [tokens], base=60 * k) for k, name in enumerate(shares)}
    return Mixture(files, [Phase(total, shares)], "new", length, seed)


def errors(made, name, share):
    """(Largest distance of any prefix from its share, that of any 1,000 sequences in a row), in sequences."""
    seen = np.concatenate([[0], np.cumsum([made.names[k].startswith(name) for k in made.owner])])
    prefix = np.abs(seen - share * np.arange(len(seen))).max()
    return prefix, np.abs(seen[1000:] - seen[:-1000] - 1000 * share).max()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.013, 0.5, 0.3333])
def test_the_share_of_original_text_is_exact_in_every_prefix_and_every_thousand(tmp_path, share):
    made = mixture(tmp_path, {"new/a": 1 - share, "old/a": share}, 5000)
    prefix, window = errors(made, "old", share)
    assert prefix <= 0.5 + 1e-9 and window <= 1 + 1e-9


def test_many_sources_keep_to_their_shares(tmp_path):
    generator = np.random.default_rng(1)
    for turn in range(10):
        new, old = generator.dirichlet(np.ones(5)) * 0.8, generator.dirichlet(np.ones(3)) * 0.2
        shares = {f"new/{k}": w for k, w in enumerate(new)} | {f"old/{k}": w for k, w in enumerate(old)}
        made = mixture(tmp_path / str(turn), shares, 5000)
        assert max(errors(made, "old", 0.2)) <= 1 + 1e-9
        assert max(errors(made, name, share)[0] for name, share in shares.items()) < 1.4
        assert max(errors(made, name, share)[1] for name, share in shares.items()) < 2


def test_a_first_phase_has_its_own_share(tmp_path):
    files = {"new/a": token_file(tmp_path, "n", [500]), "old/a": token_file(tmp_path, "o", [500])}
    phases = [Phase(100, {"new/a": 0.5, "old/a": 0.5}), Phase(900, {"new/a": 1.0, "old/a": 0.0})]
    made = Mixture(files, phases, "new", 16, seed=1)
    assert [int((made.owner[at : at + 100] == 1).sum()) for at in (0, 100, 900)] == [50, 0, 0]
    assert made.count(0, 50, ["old"]) == 25 and made.count(2, 50, ["old"]) == 0


def test_an_epoch_uses_every_sequence_once_and_the_next_is_shuffled_anew(tmp_path):
    made = mixture(tmp_path, {"new/a": 1.0}, 30, tokens=161)
    starts = [tuple(made.batch([i]).input_ids[0].tolist()) for i in range(30)]
    epochs = [starts[at : at + 10] for at in (0, 10, 20)]
    assert all(sorted(e) == sorted(epochs[0]) for e in epochs)
    assert epochs[0] != epochs[1]
    assert made.epochs() == {"new/a": 3.0} and made.first_repeat() == 10
    assert len(made.cut(7)) == 7 and made.cut(7).first_repeat() == 7


SOURCES = {"new/a": 0.55, "new/b": 0.15, "old/a": 0.3}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Token files of different sizes, which are read again after 13, 5 and 7 sequences."""
    folder, counts = tmp_path_factory.mktemp("sources"), (13, 5, 7)
    return {
        name: token_file(folder, f"{name[:3]}{k}", [3 + k] * (8 * count // (3 + k)) + [9], base=60 * k)
        for k, (name, count) in enumerate(zip(SOURCES, counts, strict=True))
    }


def steps(files, plan, batch):
    """By step, what all processes together train on. `plan` has, for each start of a training, its steps, processes and size of
    a micro-batch. Every process of every start plans the order anew, as it does after a kill.
    """
    total, done = sum(count for count, *_ in plan) * batch, []
    for count, world, micro in plan:
        order = [Mixture(files, [Phase(total, SOURCES)], "new", 8, seed=3) for _ in range(world)]
        for step in range(len(done), len(done) + count):
            shares = [list(order[rank].micro_batches(step, batch, micro, rank, world)) for rank in range(world)]
            assert len({len(share) for share in shares}) == 1  # else some processes would wait for ever
            turns = [part for turn in zip(*shares, strict=True) for part in turn]
            assert [i for part in turns for i in part.indices] == list(range(step * batch, (step + 1) * batch))
            fields = ([getattr(part, name) for part in turns] for name in ("input_ids", "labels", "position_ids"))
            done.append([torch.cat(field) for field in fields] + [[code for part in turns for code in part.languages]])
    return done


def splits(batch):
    """Every number of processes with every size of a micro-batch by which `batch` sequences can be divided."""
    sizes = range(1, batch + 1)
    return [(world, micro) for world in sizes for micro in sizes if batch % (world * micro) == 0]


def same(one, two):
    pairs = [pair for step in zip(one, two, strict=True) for pair in zip(*step, strict=True)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@given(st.data(), st.integers(1, 24))
@settings(max_examples=15, deadline=None)
def test_order_is_the_same_for_all_processes_micro_batches_and_restarts(sources, data, batch):
    """To the bit: over all divisors of the batch, and with other ones after every restart."""
    alone = steps(sources, [(4, 1, 1)], batch)
    for world, micro in splits(batch):
        assert same(steps(sources, [(1, world, micro)], batch), steps(sources, [(1, 1, batch)], batch))
    cuts = sorted(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    counts = np.diff([0, *cuts, 4]).tolist()
    restarts = [(count, *data.draw(st.sampled_from(splits(batch)))) for count in counts]
    assert same(steps(sources, restarts, batch), alone)


def test_another_seed_is_another_order(sources):
    orders = [Mixture(sources, [Phase(20, SOURCES)], "new", 8, seed) for seed in (3, 4)]
    assert [orders[0].locate(i) for i in range(20)] != [orders[1].locate(i) for i in range(20)]


def test_a_sequence_names_its_documents(tmp_path):
    files = {"new/a": TokenFile.write(tmp_path / "a", [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1, 1, 1, 1, 1]])}
    made = Mixture(files, [Phase(3, {"new/a": 1.0})], "new", 4, seed=1)
    found = {int(made.batch([i]).input_ids[0, 0]): made.documents(i) for i in range(3)}
    assert found == {1: ("new/a", [0, 1]), 5: ("new/a", [1, 2]), 9: ("new/a", [2, 3])}


SIZES = {"fra_Latn/web": 300, "fra_Latn/wiki": 100, "eng_Latn/web": 50, "deu_Latn/web": 10}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0.6, 0.2, 0.1, 0.1]),
        ({"fra_Latn/wiki": 0.5}, [0.3, 0.5, 0.1, 0.1]),
        ({"deu_Latn": 0.05}, [0.6, 0.2, 0.15, 0.05]),
        ({"fra_Latn/wiki": 0.0}, [0.8, 0.0, 0.1, 0.1]),
    ],
)
def test_shares(given, expected):
    found = shares(SIZES, "fra_Latn", ["eng_Latn", "deu_Latn"], 0.2, given)
    assert [found[name] for name in SIZES] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fra_Latn/wikipedia": 0.1}, "nothing to train on is called 'fra_Latn/wikipedia'. Did you mean"),
        ({"deu_Latn": 0.3}, "the original languages have 0.3, more than original_frac 0.2"),
        ({"deu_Latn": 0.05, "eng_Latn": 0.05}, "the original languages have 0.1, less than original_frac 0.2"),
        ({"fra_Latn": 0.5}, "must sum to 1; they are eng_Latn 0.1, deu_Latn 0.1, fra_Latn 0.5"),
        ({"fra_Latn/wiki": 0.9}, "the sources of fra_Latn have 0.9, the language 0.8"),
        ({"fra_Latn/wiki": 0.1, "fra_Latn/web": 0.1}, "the sources of fra_Latn have 0.2, the language 0.8"),
    ],
)
def test_shares_that_do_not_add_up_are_refused(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        shares(SIZES, "fra_Latn", ["eng_Latn", "deu_Latn"], 0.2, given)


def test_sources_without_a_whole_sequence_are_refused():
    empty = {"fra_Latn/web": 10, "eng_Latn/web": 0, "eng_Latn/wiki": 0}
    with pytest.raises(ConfigError, match="eng_Latn/web, eng_Latn/wiki: not one whole sequence"):
        shares(empty, "fra_Latn", ["eng_Latn"], 0.2, {})


def test_original_text_that_is_not_there_is_refused():
    only = {"fra_Latn/web": 10}
    with pytest.raises(ConfigError, match="original_frac is 0.2, but there is no training text of eng_Latn, deu_Latn"):
        shares(only, "fra_Latn", ["eng_Latn", "deu_Latn"], 0.2, {})
    assert shares(only, "fra_Latn", ["eng_Latn"], 0.0, {}) == {"fra_Latn/web": 1.0}


def test_the_memory_that_an_order_is_said_to_take_is_what_it_takes(tmp_path):
    total = 200_000
    names = {f"{code}/{k}": 1 / 8 for code in ("new", "old") for k in range(4)}
    files = {name: token_file(tmp_path, name, [900]) for name in names}
    tracemalloc.start()
    Mixture(files, [Phase(total, names)], "new", 16, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.5 * BYTES_PER_SEQUENCE < peak / total < BYTES_PER_SEQUENCE


def test_a_packed_neighbour_changes_nothing(pico):
    """Logits of a document are the same alone and behind another one. Without the positions they differ."""
    net = loading.load_base(pico, torch.float32)
    one, two = torch.arange(20, 50)[None], torch.arange(100, 130)[None]
    positions = torch.cat([torch.arange(30), torch.arange(30)])[None]
    with torch.no_grad():
        alone = net(input_ids=two).logits
        packed = net(input_ids=torch.cat([one, two], 1), position_ids=positions, use_cache=False).logits[:, 30:]
        leaking = net(input_ids=torch.cat([one, two], 1), use_cache=False).logits[:, 30:]
    assert (alone - packed).abs().max() < 1e-5
    assert (alone - leaking).abs().max() > 1e-2
