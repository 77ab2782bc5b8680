"""What share of the training tokens each source gets, from what the user says about some of them."""

from collections.abc import Mapping, Sequence

from langext.spec import ConfigError, near


def shares(
    sizes: Mapping[str, int], language: str, originals: Sequence[str], original_frac: float, given: Mapping[str, float]
) -> dict[str, float]:
    """Source, `<language>/<domain>` -> share of all tokens, summing to one.

    `sizes` are the sequences that each source has. `given` fixes the share of single languages or sources; what it leaves is
    `original_frac` for the original languages together, equally, the rest for the new one, and within a language by size.
    Raises ConfigError for names that are not there and for shares that do not add up.
    """
    codes = [code for code in (language, *originals) if any(name.split("/")[0] == code for name in sizes)]
    odd = next((name for name in given if name not in (*codes, *sizes)), None)
    if odd:
        raise ConfigError(f"shares: nothing to train on is called {odd!r}.{near(odd, [*codes, *sizes])}", at=("shares",))
    by_language = _languages([code for code in codes if code != language], original_frac, given)
    by_language[language] = given.get(language, 1 - sum(by_language.values()))
    if abs(sum(by_language.values()) - 1) > 1e-6:
        shown = ", ".join(f"{code} {share:.3g}" for code, share in by_language.items())
        raise ConfigError(f"shares: those of all languages must sum to 1; they are {shown}", at=("shares",))
    found: dict[str, float] = {}
    for code, share in by_language.items():
        found |= _sources(code, share, {name: size for name, size in sizes.items() if name.split("/")[0] == code}, given)
    return found


def _languages(originals: Sequence[str], original_frac: float, given: Mapping[str, float]) -> dict[str, float]:
    fixed = {code: given[code] for code in originals if code in given}
    free = [code for code in originals if code not in given]
    left = original_frac - sum(fixed.values())
    if left < -1e-9:
        raise ConfigError(
            f"shares: the original languages have {sum(fixed.values()):.3g}, more than original_frac {original_frac}",
            at=("shares",),
        )
    if not free and left > 1e-6:
        raise ConfigError(
            f"shares: the original languages have {sum(fixed.values()):.3g}, less than original_frac {original_frac}",
            at=("shares",),
        )
    return fixed | {code: max(0.0, left) / len(free) for code in free}


def _sources(code: str, share: float, sizes: Mapping[str, int], given: Mapping[str, float]) -> dict[str, float]:
    fixed = {name: given[name] for name in sizes if name in given}
    free = {name: size for name, size in sizes.items() if name not in given}
    left = share - sum(fixed.values())
    if left < -1e-9 or (not free and left > 1e-6):
        raise ConfigError(
            f"shares: the sources of {code} have {sum(fixed.values()):.3g}, the language {share:.3g}", at=("shares",)
        )
    total = sum(free.values())
    return fixed | {name: max(0.0, left) * size / total for name, size in free.items()}
