"""Run by test_ranks.py under torchrun: trains and says what each rank ended with."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed

from protofast.training import build_data, build_model, load_settings, train
from protofast.training.progress import Silence


class Count(Silence):
    """Adds up the images that the bar of the run is told of."""

    total = done = 0

    def begin(self, *, total: int, done: int) -> None:
        self.total = total

    def advance(self, images: int, **_: object) -> None:
        self.done += images


def main(settings_file: Path, folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    settings = load_settings(settings_file)
    model = build_model(settings.model, settings.data, num_classes=3)
    data = build_data(settings.data, threads=1)
    count = Count()
    result = train(settings, folder, data=data, model=model, progress=count)
    weights = torch.cat([value.double().flatten() for value in model.state_dict().values()])
    said: dict[str, object] = {
        "sum": float(weights.sum()),
        "finished": result.finished,
        "best": result.best,
    }
    said["images"] = [count.done, count.total]
    try:
        train(settings, folder, data=data)
    except Exception as error:
        said["again"] = f"{type(error).__name__}: {error}"
    rank = distributed.get_rank()
    (folder.parent / f"rank-{rank}.json").write_text(json.dumps(said))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    # gloo's threads sometimes abort while the interpreter is taken down, when all is done.
    os._exit(0)
