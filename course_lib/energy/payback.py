"""After how many inferences has the fine-tuning paid for itself?

    n = E_once / (E_before − E_after)

All three energies must come from one tier and one boundary. In the declared tier the watts cancel, so that n is a ratio of
CPU times. Book: "When fewer MACs are not fewer joules", "When has the training paid for itself?".
"""
import dataclasses

from ..intervals import Estimate
from .quantity import Energy

__all__ = ["inferences_to_repay"]


def inferences_to_repay(once: Energy, before: Energy, after: Energy) -> Estimate:
    """How many inferences repay an energy that was spent once, with an interval.

    Args:   once: such as the energy of the fine-tuning; before, after: per inference, of the old and of the new model.
    Raises: ValueError if the new model may save nothing: then perhaps no number of inferences is enough;
            EnergyMismatch if the three were not found in the same way.
    """
    saved = before - after
    seen = saved.seconds or saved
    if seen.low <= 0:
        raise ValueError(f"the new model may save nothing: the difference per {saved.per} lies between {seen.low:.3g} and "
                         f"{seen.high:.3g} {'CPU seconds' if saved.seconds else 'J'}, so perhaps no number of inferences repays the cost")
    # One training is divided by the saving of one inference on purpose; all else must match.
    return (dataclasses.replace(once, per=saved.per) / saved).estimate
