"""Run by test_computed.py in processes of their own: an audit that stops after so many units."""

import sys
from pathlib import Path

from dimming import Dimming, DimmingSettings, small_birds, small_model

from protofast.audits import AuditedModel, run_audits


def main(folder: Path, units: int) -> None:
    out = folder / "audit"
    models = [AuditedModel(name="a", model=small_model())]
    result = run_audits(
        models,
        small_birds(folder),
        [Dimming(DimmingSettings())],
        out,
        batch_size=4,
        stop=lambda: len([*out.glob("units/a/dimming-paper/*.json")]) >= units,
        warn=print,
    )
    print("finished" if result.finished else "unfinished")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
