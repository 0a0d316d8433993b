"""What a job imports inside the sandbox.

    from rapha_trainer import RaphaDataLoader, release

    for batch in RaphaDataLoader(batch_size=64, shuffle=True, seed=7, epochs=5):
        ...
    release.weights({"fc.weight": w})
    release.metric("loss", 0.31)

The same script runs at home on a `.npz` file named by `RAPHA_HOME_DATA`; see `rapha_trainer.home`, and
`rapha_trainer.mock` for a file of synthetic records.
"""

from rapha_trainer import release
from rapha_trainer.loader import RaphaDataLoader
from rapha_trainer.source import Field

__all__ = ["Field", "RaphaDataLoader", "release"]
