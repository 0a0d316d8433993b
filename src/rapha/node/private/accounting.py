"""How much noise a promise takes: the node computes it, and believes no trainer about it.

The mechanism is the Poisson-subsampled Gaussian, composed over all steps, under neighbours that differ in one
patient who is added or removed. The accountants are Google's and our own (`rapha.spec.accountant`), both by
Rényi divergence: an upper bound for every order, so what is promised holds. The privacy loss distribution
would give a little less noise, at ten times the node's time for each job.

Sources: Abadi et al., CCS 2016; Mironov, CSF 2017; Mironov, Talwar and Zhang, arXiv 1908.10530, 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rapha.spec.accountant import ORDERS, spent
from rapha.spec.disclosure import ACCOUNTANT, Guarantee
from rapha.spec.private import PrivateTraining
from rapha.spec.refusals import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST: Final = 0.3
"""Below it the bound of the accountant is loose, and no promise up to 16 needs so little."""
MOST: Final = 1024.0
"""Where nothing is learned any more."""
_PRECISION: Final = 1e-3
"""Relative: how far the noise may be above the least that would do."""


def guarantee(private: PrivateTraining) -> Guarantee:
    """What the declared training is promised, with the least noise that keeps the promise.

    Raises:
        Refused: `policy.private` where no noise up to `MOST` keeps it.
    """
    noise = noise_multiplier(private)
    return Guarantee(
        epsilon=private.epsilon,
        delta=private.delta,
        noise_multiplier=noise,
        sample_rate=private.sample_rate,
        steps=private.steps,
        clip=private.clip,
        accountant=ACCOUNTANT,
    )


def noise_multiplier(private: PrivateTraining) -> float:
    """The smallest noise, in units of the clip, that keeps the declared epsilon; never below it.

    Raises:
        Refused: `policy.private`.
    """
    most = _accountant(private.sample_rate, private.steps, private.delta)
    low, high = LEAST, LEAST
    if most(low) <= private.epsilon:
        return low
    while most(high) > private.epsilon:
        low, high = high, 2 * high
        if high > MOST:
            raise Refused(
                "policy.private",
                f"epsilon {private.epsilon:g} at delta {private.delta:g} needs more than {MOST:g} times the "
                "clip as noise: take fewer steps, a smaller sample_rate, or a larger epsilon",
            )
    while high - low > _PRECISION * low:
        middle = (low + high) / 2
        low, high = (low, middle) if most(middle) <= private.epsilon else (middle, high)
    return high


def epsilon(noise: float, sample_rate: float, steps: int, delta: float) -> float:
    """An upper bound of what so many steps at this noise tell of one patient."""
    return _accountant(sample_rate, steps, delta)(noise)


def _accountant(sample_rate: float, steps: int, delta: float) -> Callable[[float], float]:
    # Imported here, since it takes a second and only a private job needs it.
    import dp_accounting
    from dp_accounting import rdp

    def most(noise: float) -> float:
        accountant = rdp.RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        step = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
        # Google's calls it 0 where rounding makes a divergence negative; ours is what a receipt is held to.
        return max(float(accountant.get_epsilon(delta)), spent(noise, sample_rate, steps, delta))

    return most
