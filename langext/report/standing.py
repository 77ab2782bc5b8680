"""Whether an original language was kept. The one rule: it is called so only when KL, bits per byte and tasks all say so.

Bits per byte alone can improve although the model has moved far from its base: any raw text repairs a base that was trained to
chat, or stored with few bits.
"""

from math import isnan

from langext import languages
from langext.artifacts import Model
from langext.evaluation import certificate, significance
from langext.evaluation.certificate import KEPT_KL, Certificate, Row
from langext.evaluation.significance import Change, Mean
from langext.report.run_folder import Run

KEPT, MOVED, FORGOTTEN, WORSE_IN_TASKS, NO_KL = "kept", "moved", "forgotten", "worse in tasks", "KL not measured"
NO_TASKS = "kept, tasks not measured"
"""Of a language that is kept as far as KL and bits per byte say."""
UNSURE = "kept, but KL not for certain"
"""Of a language whose KL is within the bound, and the end of its 95 % interval is not, or is not known."""
NOTHING_LOST = (KEPT, NO_TASKS, UNSURE)
"""Of languages that nothing was seen to be lost of."""
NO_WORSE = "no worse"
"""Of a set of held-out text, in a language that has lost something elsewhere."""
NOT_KNOWN = ("unknown", "unmeasured")
"""Verdicts on bits per byte that say nothing."""


def certified(run: Run) -> Certificate | None:
    """What stage certify measured of the run's last trained model, or `langext certify` on the run; None if neither did."""
    models = [manifest for _, manifest in run.stages if manifest.kind == Model.__name__ and manifest.trained]
    if not models:
        return None
    for _, manifest in reversed(run.stages):
        found = manifest.summary_as(Certificate)
        if found and manifest.inputs["model"].fingerprint == models[-1].fingerprint:
            return found
    path = run.root / certificate.FILE
    found = certificate.read_file(path) if path.is_file() else None
    return found if found and {file.name: file.sha256 for file in found.model.files} == models[-1].hashes else None


def most_kl(run: Run) -> float:
    """An original language counts as kept up to this KL, in nats per token."""
    found = certified(run)
    return found.kept_kl if found else KEPT_KL


def kl(run: Run, code: str) -> Mean | None:
    """KL(base || model) on text of a language, in nats per token, with its 95 % interval; None if not measured.

    As certified, of the domain where it is farthest; or else as evaluated, over the text of all its domains.
    """
    found = certified(run)
    if found and code in found.languages:
        return _of_domain(_by_domain(found, code)[_farthest(found, code)])
    measured = run.model_scores.kl_to_base if run.model_scores else {}
    return significance.farthest([code], {code: measured[code]} if code in measured else {})


def _by_domain(found: Certificate, code: str) -> dict[str, Row]:
    return {name: row for name, row in found.sets.items() if name.split("/")[0] == code}


def _of_domain(row: Row) -> Mean:
    return significance.interval(row.kl, row.kl_error, row.passages)


def _farthest(found: Certificate, code: str) -> str:
    """The domain whose KL is largest, if that is above the bound; or else the one whose interval reaches farthest."""
    domains = {name: _of_domain(row) for name, row in _by_domain(found, code).items()}
    far = max(domains, key=lambda name: domains[name].value)
    if domains[far].value > found.kept_kl:
        return far
    return max(domains, key=lambda name: significance.unknown_last(domains[name].high))


def of(run: Run, code: str) -> str:
    """What became of an original language: `KEPT`, `NO_TASKS`, `UNSURE`, `MOVED`, `FORGOTTEN`, `WORSE_IN_TASKS`, `NO_KL`, or
    one of `NOT_KNOWN`.

    It was kept when bits per byte are no worse beyond their interval in any set, tasks were measured and none is surely worse
    (see `significance.surely_worse`), and KL to the base, up to the end of its interval, is at most `most_kl`.
    """
    if "precision" in run.measured_differently:  # rounding alone makes a difference then
        return NOT_KNOWN[0]
    tasks = run.tasks_by_language().get(code, [])
    rows = [row for row in run.bits if row.name.split("/")[0] == code]
    if any(row.verdict == "worse" for row in rows):
        return FORGOTTEN
    if significance.surely_worse(tasks):
        return WORSE_IN_TASKS
    if odd := next((row.verdict for row in rows if row.verdict in NOT_KNOWN), None):
        return odd
    distance = kl(run, code)
    if distance is None or isnan(distance.value):
        return NO_KL
    if distance.value > most_kl(run):
        return MOVED
    if not distance.high <= most_kl(run):  # nor is an end that is not known
        return UNSURE
    return KEPT if any(row.verdict not in NOT_KNOWN for row in tasks) else NO_TASKS


def title(run: Run, row: Change) -> str:
    """A row of `Run.bits` in words, like "learned: French, handbook"."""
    code, domain = row.name.split("/", 1)
    if row.verdict in NOT_KNOWN:
        verb = row.verdict
    elif code == run.new.code:
        verb = "learned" if row.verdict == "better" else "not learned"
    elif row.verdict == "worse":
        verb = FORGOTTEN
    else:
        standing = of(run, code)
        verb = NO_WORSE if standing in (FORGOTTEN, *NOT_KNOWN) else standing
    return f"{verb}: {languages.find(code).name}, {domain}"


def distance(run: Run, code: str) -> str:
    """KL to the base on a language in words, with the bound and, of gates that close, how many tokens are as by the base."""
    value = kl(run, code)
    if value is None:
        return "KL to the base not measured"
    found = certified(run)
    many = found is not None and len(_by_domain(found, code)) > 1
    where = f" in {_farthest(found, code)}, where it is farthest" if found and many else ""
    sure = "" if isnan(value.high) else f"95 %: at most {value.high:.4f}; "
    words = f"KL to the base {value.value:.4f} nats per token{where} ({sure}kept up to {most_kl(run):g})"
    row = found.languages.get(code) if found else None
    if row and row.closed is not None and row.as_base is not None:
        words += f"; every gate closed for {row.closed:.1%} of the tokens, {row.as_base:.1%} computed as by the base"
    return words
