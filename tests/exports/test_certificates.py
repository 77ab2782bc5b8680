"""What is measured of a trained model in a run folder, and on which text."""

import gzip
import json

import pytest
import torch
from cases import method, stir
from run_folders import certificate, manifest_of, stage
from test_exports import CARD
from toy import ENGLISH, GERMAN, sentences

from langext.artifacts import Corpus, Model, write_json
from langext.errors import ConfigError, RunFailed
from langext.evaluation.certificate import read_file
from langext.evaluation.kl import BaseKL
from langext.evaluation.neutrality import Settings
from langext.exports import certificates, write
from langext.methods import extended
from langext.models import bases, loading
from langext.text_summaries import FilterSummary, FunnelRow

QUICK = Settings(batch=2, continuations=1, new_tokens=2)
RESIDUES = {"name": "neutral_residues", "gate": "hard_sigmoid", "width": 16, "init": "lecun"}


def trained(root, base, settings):
    """A run folder with its base and a model as after training."""
    started = bases.prepare(str(base), None, root / "base")
    record = loading.read_record(started)
    live = extended.build(
        loading.load_base(record.base, torch.bfloat16), loading.load_tokenizer(record.base), method(settings), 0, record.earlier
    )
    stir(live, 0.05)
    folder = stage(root, 1, "train", "Model", {"model": "extend"})
    loading.save_delta(folder, live.delta())
    return loading.write_record(folder, loading.Record(record.base, method(settings), None, record.earlier))


def english(count=4):
    text = certificates.Text(files=[])
    text.documents, text.roles = {"eng_Latn/book": sentences(ENGLISH, count, 3)}, {"eng_Latn/book": "original"}
    return text


def certified(pair, text=None):
    return certificates.measure(pair, text or english(), QUICK, 1000, 0.005, "cpu")[0]


@pytest.mark.parametrize("settings", [RESIDUES, {"name": "lora", "rank": 4}, {"name": "full"}], ids=lambda s: s["name"])
def test_any_method_is_measured_against_what_its_run_began_with(tmp_path, pico, settings):
    model = trained(tmp_path, pico, settings)
    found = certified(certificates.of_live(model, None, "cpu"))
    assert (found.total.closed is not None) == (settings is RESIDUES) and found.total.same_ids == 1.0
    live = loading.load(model, torch.float32)
    kl = BaseKL(loading.load_base(pico, torch.float32), live.tokenizer, english().documents["eng_Latn/book"])
    assert found.total.kl == pytest.approx(kl.measure(live.net), rel=1e-3) and found.total.kl > 1e-4
    named = certified(certificates.of_live(model, Model(tmp_path / "base"), "cpu"))
    assert named.model_copy(update={"seconds": found.seconds}) == found


def test_a_second_language_is_measured_against_the_first_or_against_the_base(tmp_path, pico):
    first = trained(tmp_path / "first", pico, RESIDUES)
    second = trained(tmp_path / "second", first.path.parent, RESIDUES | {"width": 24})
    to_first = certified(certificates.of_live(second, None, "cpu"))
    base = bases.prepare(str(pico), None, tmp_path / "again" / "base")
    to_base = certified(certificates.of_live(second, base, "cpu"))
    assert to_first.total.closed is not None and to_base.total.closed is not None
    assert to_base.total.closed < to_first.total.closed, "the first language's gates count as well"
    for found, of in ((to_first, "first"), (to_base, pico.name)):
        assert found.total.hidden_identical == found.total.as_base and found.base.name == of and not found.base.public
    assert to_first.base.extended and not to_base.base.extended


@pytest.mark.parametrize("form", ["native", "remote"])
def test_an_export_of_a_second_language_is_measured_as_its_model_in_the_run(tmp_path, pico, form):
    first = trained(tmp_path / "first", pico, RESIDUES)
    second = trained(tmp_path / "second", first.path.parent, RESIDUES | {"width": 24})
    write.write(second, tmp_path / "out", form, english().documents["eng_Latn/book"][:2], CARD)
    live = certified(certificates.of_live(second, None, "cpu")).total
    export = certificates.of_export(tmp_path / "out", Model(tmp_path / "second" / "base"), "cpu", trust=True)
    found = certified(export)
    assert (found.total.closed, found.total.as_base) == pytest.approx((live.closed, live.as_base))
    assert 0 < found.total.closed < 1 and found.settings.earlier == 1


def test_weights_that_overflow_are_a_failure(tmp_path, pico):
    model = trained(tmp_path, pico, {"name": "full"})
    net = loading.load(model, torch.float32)
    loading.save_delta(model.path, {name: value.fill_(float("nan")) for name, value in net.delta().items()})
    with pytest.raises(RunFailed, match="no finite number"):
        certified(certificates.of_live(model, None, "cpu"))


def test_passages_are_shorter_where_a_model_has_few_positions(tmp_path, pico):
    pair = certificates.of_live(trained(tmp_path, pico, RESIDUES), None, "cpu")
    texts = [" ".join(sentences(ENGLISH, 9, 4))]
    passages, most = certificates._passages("eng_Latn/a", texts, 3000, pair)
    assert most < 1000 and all(len(pair.base.tokenizer(text).input_ids) < 256 for text in passages)
    few = certificates.Pair(pair.base, pair.model, pair.of_base, pair.of_model, positions=3, earlier=0)
    with pytest.raises(ConfigError, match="passages of 16 bytes are longer than the 3 positions"):
        certificates._passages("eng_Latn/a", texts, 3000, few)


def source(name, role):
    language, domain = name.split("/")
    counts = dict.fromkeys(("documents_read", "judged", "bytes_read", "train_documents", "train_bytes", "valid_bytes"), 9)
    return FunnelRow(language=language, domain=domain, origin="", dropped={}, valid_documents=9, role=role, **counts)


def test_the_heldout_text_of_a_run_is_all_but_its_new_language(tmp_path):
    roles = {"eng_Latn/book": "train", "deu_Latn/book": "measure", "deu_Latn/web": "protect", "fra_Latn/book": "train"}
    summary = FilterSummary(funnel=[source(*row) for row in roles.items()], source_files=[], lid_sha256="")
    write_json(tmp_path / "manifest.json", manifest_of(summary))
    for name in roles:
        words = ENGLISH if name.startswith("eng") else GERMAN
        path = tmp_path / "documents" / "valid" / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in sentences(words, 2, 1))
    text = certificates.Text()
    certificates.heldout(text, Corpus(tmp_path), "fra_Latn", ["eng_Latn"])
    assert text.roles == {"eng_Latn/book": "original", "deu_Latn/book": "measured", "deu_Latn/web": "protected"}
    assert [file.set for file in text.files] == list(text.documents) == list(text.roles)
    with pytest.raises(ConfigError, match="no held-out text of swh_Latn to measure on"):
        certificates.heldout(certificates.Text(), Corpus(tmp_path), "fra_Latn", ["eng_Latn", "swh_Latn"])
    with pytest.raises(ConfigError, match="eng_Latn/x: there is no text in book"):
        certificates.Text().add("eng_Latn/x", [" \n"], "given", [tmp_path / "book"])


@pytest.mark.parametrize(
    ("name", "role"),
    [("eng_Latn/x", "original"), ("deu_Latn/web", "protected"), ("deu_Latn/new", "protected"), ("deu_Latn/book", "measured"),
     ("slk_Latn/web", "measured")],
)  # fmt: skip
def test_what_a_set_of_a_run_is(name, role):
    funnel = [source("eng_Latn/book", "train"), source("deu_Latn/web", "protect"), source("deu_Latn/book", "measure")]
    assert certificates.role_of(name, ["eng_Latn"], funnel) == role


def test_protected_text_counts_and_measured_text_is_said_not_to_be_protected(tmp_path, pico):
    pair = certificates.of_live(trained(tmp_path, pico, RESIDUES), None, "cpu")
    text = english()
    for name, role in (("deu_Latn/web", "protected"), ("deu_Latn/book", "measured")):
        text.documents[name], text.roles[name] = sentences(GERMAN, 4, 3), role
    found = certified(pair, text)
    rows = found.sets
    assert found.total.tokens == rows["eng_Latn/book"].tokens + rows["deu_Latn/web"].tokens and rows["deu_Latn/book"].tokens
    card = certificates.section(found, True, False)
    assert "| deu_Latn/web (protected) |" in card and "| deu_Latn/book (measured only, not protected) |" in card


def test_the_record_is_written_last(tmp_path, monkeypatch):
    certificates.lay(tmp_path, certificate(0.1), "before\n", export=True)
    put = certificates.write_text

    def killed(path, text):
        if path.name == "README.md":
            raise KeyboardInterrupt
        put(path, text)

    monkeypatch.setattr(certificates, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        certificates.lay(tmp_path, certificate(0.2), "after\n", export=True)
    assert (tmp_path / "neutrality.jsonl").read_text() == "after\n" and read_file(tmp_path / "neutrality.json").total.kl == 0.1
    monkeypatch.setattr(certificates, "write_text", put)
    certificates.lay(tmp_path, certificate(0.2), None, export=False)
    assert read_file(tmp_path / "neutrality.json").total.kl == 0.2 and not (tmp_path / "neutrality.jsonl").exists()
