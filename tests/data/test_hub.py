"""What is said of datasets on the hub that cannot be read as they are named."""

from langext.data import hub


def test_of_many_configurations_some_are_named_and_the_nearest_ones():
    names = [f"{letter}aa_Latn" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["fra_Latn"]
    said = str(hub.problem(ValueError(f"BuilderConfig 'fra_latn' not found. Available: {names}"), "org/web"))
    assert "'jaa_Latn' and 17 more]. Did you mean fra_Latn" in said and said.endswith("Name one with the key config")
