"""The settings by which gates with a threshold are calibrated. langext.models.calibration says how."""

from pydantic import Field

from langext.spec import Spec


class Calibrate(Spec):
    """How much stays closed on the original language, and how much text decides it."""

    closed: float = Field(default=0.995, ge=0.5, lt=1)
    """Share of the tokens of original and protected text together for which the gates of all layers are closed. Text close to
    the new language is open more often than the rest: see what the calibration says of each source. This is the dial between
    cautious and eager: 0.999 moves the original language less, 0.95 lets the new one learn more. It can be changed after
    training, without training again (stage recalibrate, `langext dial`)."""
    original_tokens: int = Field(default=40_000, ge=100, le=10**7)
    """Tokens of original and protected text, the same number from every source. Half of them fit the rows, the other half set
    the thresholds. Their scores are kept, 4 bytes for each layer and token. More are read where a wide base or a high `closed`
    needs more."""
    new_tokens: int = Field(default=20_000, ge=100, le=10**7)
    """Tokens of the new language. Half of them fit the rows, the other half show how many open the gates. More are
    read where the base is wide: at least four times its width."""
    min_open: float = Field(default=0.5, ge=0, lt=1)
    """A layer gets no block when its gate opens for a smaller share of the new language: it tells the languages apart badly,
    and without it the thresholds of the others can be lower."""
