"""Run by test_ranks.py: trains on two ranks, and says what each of them ended with.

torchrun's own launcher starts them, but by forking this process, where all is imported already.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.launcher import LaunchConfig, elastic_launch

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
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port, as torchrun --standalone
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(launch, main)(Path(sys.argv[1]), Path(sys.argv[2]))
