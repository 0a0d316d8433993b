"""What the node starts: `train` or `predict`."""

from __future__ import annotations

import sys

from rapha_trainer.private.settings import Settings


def main(arguments: list[str]) -> int:
    """Run one of the two. Returns the exit status."""
    settings = Settings.read()
    if arguments == ["train"]:
        from rapha_trainer.private.training import train

        train(settings)
        return 0
    if arguments == ["predict"]:
        from rapha_trainer.private.prediction import predict

        predict(settings)
        return 0
    sys.stderr.write("usage: python -m rapha_trainer.private train|predict\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
