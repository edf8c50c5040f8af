"""Run by test_computed.py in a process of its own: goes on with an audit that was begun there."""

import sys
from pathlib import Path

from dimming import Dimming, DimmingSettings, small_birds, small_model

from protofast.audits import AuditedModel, run_audits


def main(folder: Path) -> None:
    models = [AuditedModel(name="a", model=small_model())]
    audits = [Dimming(DimmingSettings())]
    images = small_birds(folder)
    result = run_audits(models, images, audits, folder / "audit", batch_size=4, warn=print)
    print("finished" if result.finished else "unfinished")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
