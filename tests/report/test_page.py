"""The report only reads, escapes what it reads, and calls noise noise."""

import json
import re
import warnings

import pytest
from run_folders import base_of, bits, certificate, change, evaluation, stage

from langext.artifacts import FileRecord, Manifest, read_as, write_json
from langext.errors import ConfigError
from langext.report import conditions, page, plots, standing
from langext.report.run_folder import gather
from langext.summaries import RowsRecord, StartRecord, TokenizerSummary, TrainSummary, VocabularyGain
from langext.text_summaries import BenchmarkRecord, Cut, FilterSummary, FunnelRow, FunnelStep, LanguageRecord

EVIL = "<script>alert('x')</script> & <b>"


@pytest.fixture
def run(tmp_path):
    row = FunnelRow(
        language="fra_Latn", domain=EVIL, origin=EVIL, documents_read=9, judged=9, bytes_read=1, dropped={"language_en": 2},
        train_documents=5, valid_documents=2, train_bytes=1000, valid_bytes=400,
        cut=Cut(rule="auto", labels=[EVIL], score=0.31, margins={EVIL: 3.0}, usual=0.5, sampled=9, right_frac=0.8,
                kept_frac=0.99, others={EVIL: 0.2}),
    )  # fmt: skip
    stage(tmp_path, 1, "filter", "Corpus", summary=FilterSummary(funnel=[row], source_files=[], lid_sha256=""))
    for number, name, model, french, english in ((2, "evaluate_base", "base", 2.0, 1.0), (4, "evaluate", "train", 1.5, 1.0001)):
        samples = [{"language": "fra_Latn", "prompt": EVIL, "text": f"{name} {EVIL}"}]
        kl = (
            {}
            if model == "base"
            else {"kl_to_base": {"eng_Latn": {"value": 0.001, "stderr": 0.0001, "passages": 3, "tokens": 9}}}
        )
        evaluation(tmp_path, number, name, model, french, english, samples=samples, **kl)
    train = TrainSummary(
        precision="bf16",
        lr=1e-3, penalties=[], tokens=100, steps=2, result_step=2, seconds=3.0, tokens_per_second=None, bits_per_byte={},
        kl_to_base=0.0123, dead_layers=[4, 7], weights={"active_blocks": 3.0}, shares={"fra_Latn/book": 1.0},
        epochs={"fra_Latn/book": 1.5},
    )  # fmt: skip
    folder = stage(tmp_path, 3, "train", "Model", {"model": "extend"}, train)
    rows = [
        {
            "step": s,
            "kind": "eval",
            "tokens": 50 * s,
            "sets": {"fra_Latn/book": {"bits_per_byte": 2 - s, "open": [0.5, 0.1]}},
        }
        for s in (0, 1)
    ] + [{"step": 1, "kind": "train", "losses": {"loss/fra_Latn": 3.0}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_nothing_from_the_data_becomes_markup(run):
    html = page.build(run).read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    outside = re.compile(
        r"(src|srcset|data|poster|action)\s*=|url\((?!#)|@import|https?://(?!www\.w3\.org)|<(link|iframe|object|embed|base)\b"
    )
    assert not outside.search(re.sub(r"&[a-z#0-9]+;|<title>.*?</title>", "", html)), outside.search(html)


def test_headline_tells_learning_from_noise(run):
    lines = page.headline(run, page.build(run))
    assert "learned: French, book" in lines and "-25.0%" in lines
    assert "kept, tasks not measured: English, news" in lines and "no change beyond noise" in lines


def test_what_moved_far_from_the_base_is_not_called_kept(run):
    """Bits per byte that do not change, or improve, are no proof: the model can say the same of a text by other ways."""
    path = run / "04-evaluate" / "scores.json"
    scores = json.loads(path.read_text())
    for kl, said, figure in (
        ({"eng_Latn": {"value": 0.0051, "tokens": 9}}, "moved", "moved"),
        ({"eng_Latn": {"value": 0.0002, "tokens": 9}}, "kept, but KL not for certain", "KL not for certain"),
        ({}, "KL not measured", "KL not measured"),
    ):
        path.write_text(json.dumps(scores | {"kl_to_base": kl}))
        lines, html = page.headline(run, page.build(run)), (run / "report.html").read_text()
        assert f"{said}: English, news" in lines and "kept: English" not in lines
        assert ("nothing beyond noise" in html) == ("certain" in said)
        assert figure in html if "certain" in said else f'<strong class="bad">{figure}</strong>' in html
    assert re.search(r"^distance: English \.+ KL to the base not measured$", lines, re.M)


def test_a_certificate_says_how_far_the_model_has_moved(run):
    change(run / "04-evaluate" / "scores.json", kl_to_base={"eng_Latn": {"value": 0.2, "tokens": 9}})
    assert "moved: English, news" in page.headline(run, run)
    stage(run, 5, "certify", "Neutrality", {"model": "train"}, certificate(0.0002, EVIL))
    lines, html = page.headline(run, page.build(run)), (run / "report.html").read_text()
    assert "kept, tasks not measured: English, news" in lines
    assert "KL to the base 0.0002 nats per token (95 %: at most 0.0003; kept up to 0.005); every gate closed for 99.0%" in lines
    assert '<h2 id="neutrality">' in html and html.count("&lt;script&gt;alert") > 3 and "<script" not in html
    assert "of them compared" in html
    stage(run, 6, "certify2", "Neutrality", {"model": "train"}, certificate(0.0002, kept_kl=0.0001))
    assert "moved: English, news" in page.headline(run, run)


def test_the_domain_that_moved_most_decides(run):
    found = certificate(0.003)
    rows = {"eng_Latn/news": found.total.model_copy(update={"kl": 0.0009}),
            "eng_Latn/code": found.total.model_copy(update={"kl": 0.0051})}  # fmt: skip
    stage(run, 5, "certify", "Neutrality", {"model": "train"}, found.model_copy(update={"sets": rows}))
    lines = page.headline(run, run)
    assert "moved: English, news" in lines
    assert (
        "KL to the base 0.0051 nats per token in eng_Latn/code, where it is farthest (95 %: at most 0.0066; kept up to 0.005)"
        in lines
    )


def test_a_domain_of_few_passages_leaves_it_open(run):
    found = certificate(0.001)
    few = found.total.model_copy(update={"kl": 0.0009, "passages": 2})
    rows = {"eng_Latn/news": found.total, "eng_Latn/code": few}
    stage(run, 5, "certify", "Neutrality", {"model": "train"}, found.model_copy(update={"sets": rows}))
    distance = standing.kl(gather(run), "eng_Latn")
    assert distance.value == 0.0009 and distance.high == pytest.approx(0.0009 * 1 + 12.706 * 0.00025, rel=1e-3)
    assert standing.of(gather(run), "eng_Latn") == "kept, tasks not measured"
    rows["eng_Latn/code"] = few.model_copy(update={"kl_error": None})
    stage(run, 6, "certify2", "Neutrality", {"model": "train"}, found.model_copy(update={"sets": rows}))
    assert standing.of(gather(run), "eng_Latn") == "kept, but KL not for certain"


def test_kept_needs_the_whole_interval_within_the_bound(run):
    stage(run, 5, "certify", "Neutrality", {"model": "train"}, certificate(0.004))
    assert "kept, but KL not for certain: English, news" in page.headline(run, page.build(run))
    assert "nothing beyond noise; KL not for certain" in (run / "report.html").read_text()
    stage(run, 6, "certify2", "Neutrality", {"model": "train"}, certificate(0.003))
    assert "kept, tasks not measured: English, news" in page.headline(run, run)


def test_a_stage_certify_before_the_last_model_does_not_count(run):
    """train -> certify -> recalibrate: nobody has certified what recalibrate made."""
    stage(run, 5, "certify", "Neutrality", {"model": "train"}, certificate(0.0002, kept_kl=0.004))
    assert "0.0002" in page.headline(run, run)
    stage(run, 6, "recalibrate", "Model", {"model": "train"})
    assert standing.certified(gather(run)) is None and "0.0002" not in page.headline(run, run)
    stage(run, 7, "again", "Neutrality", {"model": "recalibrate"}, certificate(0.0003))
    stage(run, 8, "earlier", "Neutrality", {"model": "train"}, certificate(0.0004))
    assert "KL to the base 0.0003" in page.headline(run, run)


def test_a_certificate_of_another_model_does_not_count(run):
    manifest = run / "03-train" / "manifest.json"
    file = {"name": "delta.safetensors", "bytes": 1, "sha256": "a"}
    write_json(manifest, read_as(manifest, Manifest).model_copy(update={"files": [FileRecord(**file)]}))
    for sha256, said in (("a", "KL to the base 0.0300"), ("b", "KL to the base 0.0010")):
        model = {"name": "mine", "architecture": "Llama", "files": [file | {"sha256": sha256}]}
        write_json(run / "neutrality.json", certificate(0.03, model=model))
        assert said in page.headline(run, run)


def test_a_language_whose_tasks_are_surely_worse_was_not_kept(run):
    def facts(share):
        return {"facts": {"acc": {"value": share, "items": 40, "each": [1.0] * int(40 * share) + [0.0] * int(40 - 40 * share)}}}

    def measured(then, now):
        for name, share in (("02-evaluate_base", then), ("04-evaluate", now)):
            change(run / name / "scores.json", tasks=facts(share), task_languages={"facts": "eng_Latn"})

    assert standing.of(gather(run), "eng_Latn") == "kept, tasks not measured"
    assert "nothing beyond noise; tasks not measured" in page.build(run).read_text()
    measured(0.5, 0.5)
    assert standing.of(gather(run), "eng_Latn") == "kept" and "kept: English, news" in page.headline(run, run)
    assert '<strong class="">nothing beyond noise</strong>' in page.build(run).read_text()
    measured(1.0, 0.5)
    assert "worse in tasks: English, news" in page.headline(run, page.build(run))
    assert '<strong class="bad">worse in tasks</strong>' in (run / "report.html").read_text()


def test_forgetting_is_called_forgetting(run):
    path = run / "04-evaluate" / "scores.json"
    scores = json.loads(path.read_text())
    scores["bits_per_byte"]["eng_Latn/news"] = bits(1.2)
    path.write_text(json.dumps(scores))
    assert "forgotten: English, news" in page.headline(run, run)


def test_a_token_with_its_own_gates_closed_is_told_from_one_that_is_computed_as_by_the_base(run):
    path = run / "04-evaluate" / "scores.json"
    scores = json.loads(path.read_text())
    scores["bits_per_byte"]["eng_Latn/book"] = bits(1.0) | {"closed": 0.975, "as_base": 0.565}
    path.write_text(json.dumps(scores))
    rows = page.build(run).read_text().split("<tr>")
    shown = {
        words: next(row for row in rows if words in row) for words in ("with all gates closed", "computed exactly as the base")
    }
    assert "97.5 %" in shown["with all gates closed"] and "56.5 %" in shown["computed exactly as the base"]


def test_what_one_of_several_sets_may_have_lost_by_chance_is_called_perhaps(run):
    for name, value in (("02-evaluate_base", 1.0), ("04-evaluate", 1.02)):
        path = run / name / "scores.json"
        scores = json.loads(path.read_text())
        scores["bits_per_byte"]["eng_Latn/book"] = bits(value)
        noise = [(-1.0) ** i * 7.0 for i in range(50)] if value > 1 else [0.0] * 50
        scores["bits_per_byte"]["eng_Latn/book"]["bits_each"] = [100 * value + x for x in noise]
        path.write_text(json.dumps(scores))
    html = page.build(run).read_text()
    p = next(row for row in gather(run).bits if row.name == "eng_Latn/book").difference.p
    assert 0.025 < p < 0.05 or pytest.fail(f"the example is off: {p}")
    assert "perhaps 2.0 %: one of 2 sets can be so by chance" in html and "most in eng_Latn/book: +2.0 %" in html


def test_what_nobody_knows_is_not_called_kept(run):
    for name, value in (("02-evaluate_base", 1.0), ("04-evaluate", 1.5)):
        path = run / name / "scores.json"
        scores = json.loads(path.read_text())
        scores["bits_per_byte"]["eng_Latn/news"] = bits(value, count=1)
        del scores["bits_per_byte"]["eng_Latn/news"]["stderr"]
        scores["kl_to_base"] = {"eng_Latn": {"value": 0.2, "tokens": 9}}
        path.write_text(json.dumps(scores))
    for path in run.glob("*/job.json"):
        change(path, original_languages=["eng_Latn", "deu_Latn"])
    lines = page.headline(run, page.build(run))
    assert "unknown: English, news" in lines and "error unknown" in lines and "not measured: German" in lines
    assert "nan" not in lines


def test_gates_of_a_training_without_evaluation_are_shown(run):
    path = run / "03-train" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"open"', '"gate"'))
    assert "These gates are never quite closed" in page.build(run).read_text()


def test_a_task_that_is_surely_worse_is_named(run):
    for name, each in (("02-evaluate_base", [1.0] * 40), ("04-evaluate", [1.0] * 20 + [0.0] * 20)):
        path = run / name / "scores.json"
        scores = json.loads(path.read_text())
        value = sum(each) / 40
        scores["tasks"]["facts"] = {"acc": {"value": value, "stderr": 0.07, "items": 40, "each": each}}
        scores["tasks"]["other"] = {"acc": {"value": 0.9 - value / 2, "stderr": 0.01, "items": 40}}
        scores["task_languages"] |= {"facts": "eng_Latn", "other": "eng_Latn"}
        path.write_text(json.dumps(scores))
    assert "worse: facts, acc<" in page.build(run).read_text()


def test_text_that_is_not_of_the_run_is_called_protected_or_not_and_changes_no_headline(run):
    path = run / "04-evaluate" / "scores.json"
    kl = {"kl_to_base": {"eng_Latn": {"value": 0.002, "tokens": 9}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | kl))
    before = page.headline(run, run).splitlines()
    roles = {"deu_Latn/web": ("protect", 1.0, 1.001), "slk_Latn/web": ("measure", 1.0, 1.5)}
    for number, name in enumerate(("02-evaluate_base", "04-evaluate"), 1):
        others = {key: {"role": row[0], "bits_per_byte": bits(row[number])} for key, row in roles.items()}
        if number == 2:
            others["slk_Latn/web"]["kl_to_base"] = {"value": 1.03, "tokens": 9}
        written = json.loads((run / name / "scores.json").read_text()) | {"others": others}
        (run / name / "scores.json").write_text(json.dumps(written))
    html = page.build(run).read_text()
    for part in ("deu_Latn/web (protected)", "slk_Latn/web (only measured, not protected)", "1.0300", "of the run"):
        assert part in html
    tiles = html.split("<h2")[0]
    assert "nothing beyond noise" in tiles and "slk_Latn" not in tiles and "Slovak" not in tiles
    after = page.headline(run, run).splitlines()
    assert [line for line in after if line in before] == before
    (slovak,) = [line for line in after if "slk_Latn" in line]
    assert "only measured, not protected: slk_Latn/web" in slovak and "1.500 bits per byte; KL to the base 1.0300" in slovak
    values = conditions.measures(gather(run))
    assert values["slk_Latn.bpb_increase"] == pytest.approx(0.5) and values["slk_Latn/web.kl"] == 1.03
    assert values["original.kl"] == 0.002 and values["original.worst_bpb_increase"] < 0.01
    assert conditions.table(gather(run))["others"]["deu_Latn/web"]["what"] == "protected"


def test_what_every_start_of_new_rows_came_to_is_shown(run):
    tried = {
        "sample": StartRecord(kl=2e-3, kl_unshifted=0.5, shift=4.0, loss=5.5, loss_after=4.25),
        EVIL: StartRecord(failure="x"),
    }
    rows = RowsRecord(start="sample", kl_budget=1e-4, tried=tried)
    gain = VocabularyGain(bytes_per_token_before=3.0, bytes_per_token_after=3.5, identical_documents_frac=0.987, documents=1234)
    gains = {"heldout": {"eng_Latn": gain}, "heldout_sets": {f"eng_Latn/{EVIL}": gain}}
    stage(run, 5, "extend_tokenizer", "Tokenizer", summary=TokenizerSummary(new_tokens=3, **gains, rows=rows))
    html = page.build(run).read_text()
    assert (
        "start as <i>sample</i>" in html
        and "at most 1.0e-04 nats per token of original text; on held-out text it is more.<" in html
        and "<script" not in html
    )
    for shown in ("1,234", "98.7 %", "2.0e-03", "5.0e-01", "5.500", "4.250"):
        assert f'<td class="n">{shown}</td>' in html


def test_sections_are_there(run):
    html = page.build(run).read_text()
    for part in (
        "Learning curves", "Gates", "Before and after", "Samples", "language_en", "continuation_fra_Latn",
        "0.0123 nats per token", "layers 4, 7 are closed", "active blocks: 3", "50 % of the gap closed", "nothing beyond noise",
        "(95 %: 43 to 57 %)", ">1.50<", "French: learned", "English: forgot", "&gt;= 0.31; runner-up",
    ):  # fmt: skip
        assert part in html


def test_keyboard_and_screen_reader_find_their_way(run):
    html = page.build(run).read_text()
    linked = re.findall(r'href="#([a-z]+)"', html)
    assert len(linked) > 8 and set(linked) <= set(re.findall(r' id="([a-z]+)"', html))
    assert '<html lang="en">' in html and html.count("<main") == html.count("<h1") == 1
    for opened in re.findall(r'<div class="scroll"[^>]*>', html):  # what scrolls sideways can be reached and has a name
        assert 'tabindex="0"' in opened and "aria-label=" in opened
    for svg in re.findall(r"<svg[^>]*>", html):
        assert 'role="img"' in svg and "aria-label=" in svg
    assert not re.search(r"<th(?! scope=)[ >]", html)


def test_an_unfinished_run_is_reported_as_far_as_it_is(tmp_path):
    stage(tmp_path, 1, "filter", "Corpus", summary=FilterSummary(funnel=[], source_files=[], lid_sha256=""))
    assert "No before and after yet" in page.build(tmp_path).read_text()
    with pytest.raises(ConfigError, match="no finished stage"):
        page.build(tmp_path / "01-filter")


def test_the_funnel_is_drawn_and_told(tmp_path):
    """Per source what was left after each step; names that come with the data are escaped."""
    steps = [("read", 10, 1000), ("language", 8, 800), ("duplicates", 6, 600), ("contamination", 5, 550)]
    row = FunnelRow(
        language="fra_Latn", domain="web", origin="web", documents_read=10, judged=10, bytes_read=1000, dropped={},
        train_documents=4, valid_documents=1, train_bytes=500, valid_bytes=50,
        steps=[FunnelStep(name=name, documents=n, bytes=size) for name, n, size in steps],
        tokens_per_byte=2.5, tokens_of=base_of(tmp_path, "a").content,
    )  # fmt: skip
    known = LanguageRecord(words="words", sources=["fra_Latn/web"], documents=9, stop_words=["<de>"], mean_word_length=[],
                           left_out={"ends of lines": "of lists"})  # fmt: skip
    benchmarks = [BenchmarkRecord(task="mine", items=7, short=2), BenchmarkRecord(task="lost", items=0, unread=EVIL)]
    more = {"duplicates": "near", "qualities": {"fra_Latn": known}, "benchmarks": benchmarks}
    summary = FilterSummary(funnel=[row], source_files=[], lid_sha256="", **more)
    stage(tmp_path, 1, "filter", "Corpus", summary=summary)
    html = page.build(tmp_path).read_text(encoding="utf-8")
    assert "fra_Latn/web (0.00 MB)" in html and "dropped: duplicates" in html and "dropped: quality" not in html
    for tokens in ("2,500", "2,000", "1,500", "1,375", "1,250", "125"):
        assert f'<td class="n">{tokens}</td>' in html
    base_of(tmp_path, "b")  # the text of a run of another base was taken
    assert '<td class="n">2,500</td>' not in page.build(tmp_path).read_text(encoding="utf-8")
    assert (
        "mine (7 items, 2 too short or too common to be found)" in html
        and "not compared with lost" in html
        and EVIL not in html
    )
    assert "&lt;de&gt;" in html and "without the rule on ends of lines, because of lists" in html


def test_the_bars_of_the_funnel_add_up():
    done = {"a": [("read", 100), ("language", 80), ("duplicates", 80)], "b": [("read", 0), ("language", 0)]}
    assert plots._lost(done["a"], "language") == 20 and plots._lost(done["a"], "duplicates") == 0 == plots._lost(done["b"], "x")
    assert plots.funnel({}) == "" and "dropped: language" in plots.funnel(done)


def test_the_names_of_many_sets_leave_room_for_the_curves():
    sets = {f"fra_Latn/set-{number}": {"bits_per_byte": 2.0} for number in range(26)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = plots.curves([{"kind": "eval", "tokens": 1000 * number, "sets": sets} for number in range(3)], "fra_Latn")
    assert all(f">{name}<" in svg for name in sets)
