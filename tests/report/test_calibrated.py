"""What calibrated gates do, as the report shows it: by source and layer, and along the dial."""

import re

import pytest
from run_folders import compared, evaluation, manifest_of, stage

from langext.artifacts import write_json
from langext.report import calibrated, page, plots
from langext.report.run_folder import gather
from langext.summaries import CalibrationRecord, DialPoint, ExtendSummary, GateShares, RecalibrateSummary
from langext.text_summaries import FilterSummary, FunnelRow

EVIL = "<script>x</script>"
LAYERS = [2, 3, 5]
ROLES = {"eng_Latn/news": "train", f"deu_Latn/{EVIL}": "protect", "slk_Latn/web": "measure", "fra_Latn/book": "train"}


def shares(tokens, closed, *opened):
    return GateShares(tokens=tokens, all_closed=closed, open=list(opened))


def source(name, role):
    language, domain = name.split("/", 1)
    counts = dict.fromkeys(("documents_read", "judged", "bytes_read", "train_documents", "train_bytes", "valid_bytes"), 9)
    return FunnelRow(language=language, domain=domain, origin="", dropped={}, valid_documents=9, role=role, **counts)


def record(closed=0.995, english=0.993):
    heldout = {
        "eng_Latn/news": shares(3000, english, 0.0, 0.001, 0.004),
        f"deu_Latn/{EVIL}": shares(1000, 0.98, 0.002, 0.001, 0.01),
        "slk_Latn/web": shares(1000, 0.2, 0.5, 0.6, 0.7),
        "fra_Latn/book": shares(3000, 0.01, 0.85, 0.9, 0.95),
        "fra_Latn/news": shares(1000, 0.02, 0.7, 0.8, 0.9),
    }
    return CalibrationRecord(closed=closed, layers=LAYERS, left_out={0: 0.12, 1: 0.34}, heldout=heldout)


def point(closed, gain, drift):
    bits = {"fra_Latn/book": 2.0 * (1 - gain), "eng_Latn/news": 1.0}
    every = {"fra_Latn/book": 0.01, "eng_Latn/news": closed}
    kl = {"eng_Latn/news": drift}
    return DialPoint(closed=closed, bits_per_byte=bits, kl_to_base=kl, all_closed=every, gain=gain, drift=drift, score=gain)


CURVE = [point(0.999, 0.1, 0.0), point(0.99, 0.15, 0.0031), point(0.95, 0.2, 0.0425)]


@pytest.fixture
def run(tmp_path):
    """A run that learned French; the stage extend has calibrated gates."""
    root = compared(tmp_path / "run", "neutral_residues", 1e-3, 1.5, 1.0001)
    text = FilterSummary(funnel=[source(*row) for row in ROLES.items()], source_files=[], lid_sha256="")
    write_json(root / "01-filter" / "manifest.json", manifest_of(text))
    more = ExtendSummary(method="neutral_residues", base_parameters=100, trainable_parameters=10, new_tokens=0, gates=record())
    write_json(root / "03-extend" / "manifest.json", manifest_of(more, kind="Model"))
    return root


def turned(root, max_kl, curve=CURVE, closed=0.99):
    summary = RecalibrateSummary(
        base={"fra_Latn/book": 2.0, "eng_Latn/news": 1.0}, curve=curve, max_kl=max_kl,
        gates=record(closed, english=0.97).model_copy(update={"left_out": {}}),
    )  # fmt: skip
    stage(root, 6, "recalibrate", "Model", {"model": "train"}, summary)
    return root


def test_gates_are_shown_by_source_and_role(run):
    html = page.build(run).read_text()
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th><td>(new|original|protected|not protected)</td>(.*?)</tr>', html)
    figures = {name: (role, *re.findall(r">([\d.,]+)", cells)) for name, role, cells in rows}
    assert figures == {
        "fra_Latn/book": ("new", "3,000", "1.00", "90.00"), "fra_Latn/news": ("new", "1,000", "2.00", "80.00"),
        "eng_Latn/news": ("original", "3,000", "99.30", "0.17"),
        "deu_Latn/&lt;script&gt;x&lt;/script&gt;": ("protected", "1,000", "98.00", "0.43"),
        "slk_Latn/web": ("not protected", "1,000", "20.00", "60.00"),
    }  # fmt: skip
    assert [row[1] for row in rows] == ["new", "new", "original", "protected", "not protected"]
    assert "layer 0 (it would open for 12 % of the tokens), layer 1 (34 %).</p>" in html
    assert html.count('href="#gates"') == 1 and 'id="dial"' not in html and "<script" not in html
    svg = next(found for found in re.findall(r"<svg.*?</svg>", html, re.S) if "as calibrated" in found)
    assert "no block: would have been open" in svg and "fra_Latn/book" in svg and "slk_Latn/web" in svg


def test_the_run_ends_with_one_line_about_gates(run):
    (line,) = [line for line in page.headline(run, run).splitlines() if "gates" in line]
    assert re.fullmatch(r"gates \.+ all closed for 99\.3% of English tokens, open for 87\.5% of French", line)
    turned(run, 0.005)
    assert "all closed for 97.0% of English tokens" in page.headline(run, run), "those of the model in the end"


def test_a_run_without_calibrated_gates_says_nothing_of_them(tmp_path):
    run = compared(tmp_path, "lora", 1e-3, 1.5, 1.0)
    assert "gates" not in page.headline(run, run) and 'id="gates"' not in page.build(run).read_text()


@pytest.mark.parametrize(
    ("max_kl", "curve", "closed", "said"),
    [
        (0.005, CURVE, 0.99, "Kept is closed 0.99, which gains most within the budget of 0.005 nats per token (French +15.0 %, "
         "drift 0.0031 nats per token)."),
        (0.0, CURVE[1:], 0.99, "No setting is within the budget of 0 nats per token; kept is closed 0.99, which drifts least "
         "(French +15.0 %"),
        (None, CURVE, 0.95, "Kept is closed 0.95, which gains most (French +20.0 %"),
    ],
)  # fmt: skip
def test_the_dial_says_what_is_kept_and_why(run, max_kl, curve, closed, said):
    found = calibrated.dial(gather(turned(run, max_kl, curve, closed)))
    html = page.build(run).read_text()
    assert found is not None and found.words.startswith(said) and said in html
    rows = re.findall(r'<tr><th scope="row">(0\.\d+)</th>(.*?)</tr>', html)
    assert [row[0] for row in rows] == [f"{point.closed:g}" for point in curve]
    assert [row[0] for row in rows if "<td>yes</td>" in row[1]] == [f"{closed:g}"]
    assert "layer 0 (it would open for 12 % of the tokens)" in html, "the stage extend left it out"
    svg = next(drawn for drawn in re.findall(r"<svg.*?</svg>", html, re.S) if 'aria-label="The dial' in drawn)
    for label in (*(f"{point.closed:g}" for point in curve), "kept"):
        assert f">{label}</text>" in svg
    assert ("budget" in svg) == (max_kl is not None)
    assert "neutral_residues, recalibrate" in gather(run).method


def test_layers_of_the_trained_gates_have_their_numbers(run):
    opened = {"fra_Latn/book": {"open": [0.9, 0.8, 0.7]}, "eng_Latn/news": {"open": [0.0, 0.0, 0.1]}}
    evaluation(run, 7, "evaluate2", "train", 1.5, 1.0)
    assert page._layers(gather(run), {name: row["open"] for name, row in opened.items()}) == LAYERS
    assert page._layers(gather(run), {"eng_Latn/news": [0.5] * 6}) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("drifts", [[0.0, 0.0], [0.0, 0.01], [0.002, 0.4]])
def test_a_curve_can_be_drawn_where_nothing_drifts(drifts):
    svg = plots.dial([(drift, 0.1, "0.9") for drift in drifts], 0, 0.0)
    assert svg.count(">0.9</text>") == len(drifts)


def test_a_plot_of_gates_needs_no_text_to_be_kept():
    assert "fra_Latn/book" in plots.open_shares([0], {"fra_Latn/book": [1.0]}, {}, {})
