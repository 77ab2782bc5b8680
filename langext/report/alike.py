"""Whether two runs were measured alike. The one rule: figures on other text, or by other settings, are not put side by side."""

from typing import Any

from langext.report.run_folder import Run


def alike(run: Run, first: Run) -> bool:
    """Whether the bits per byte, and KL where both have it, of two runs can be compared. Tasks have a plane of their own."""
    return _measured(run) == _measured(first) and _same_distance(run, first)


def _measured(run: Run) -> tuple[Any, ...]:
    """On what and how a run was measured; equal for two runs whose bits per byte can be compared.

    The passages are known by their sizes in bytes, for the base and the model. Then come the settings of the evaluations, and
    those in which the evaluations of base and model differ.
    """
    evaluations = [evaluation for evaluation in (run.base_scores, run.model_scores) if evaluation]
    sizes = sorted((name, bits.bytes_each) for evaluation in evaluations for name, bits in evaluation.bits_per_byte.items())
    measuring = {key: values for key, values in run.measuring.items() if key != "lm_eval"}
    return sizes, measuring, run.measured_differently


def _same_distance(run: Run, first: Run) -> bool:
    """Whether KL was measured on as many tokens of each set in both, where both have it and their bases count tokens alike."""
    tokens = [{name: kl.tokens for name, kl in one.model_scores.kl_by_set.items()} for one in (run, first) if one.model_scores]
    if run.settings["base_model"] != first.settings["base_model"] or len(tokens) < 2 or not all(tokens):
        return True
    return tokens[0] == tokens[1]
