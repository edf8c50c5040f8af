"""A tiny run made by the real code: trained, projected, evaluated, explained."""

from pathlib import Path
from typing import Any

from threads import one_thread

from protofast.data import Batches, Splits
from protofast.evaluation import predict, write_evaluation
from protofast.explain import explain_run
from protofast.explain.files import read_summary
from protofast.training import RunFolder, build_data, load_settings, train

Trained = tuple[RunFolder, Splits]

SETTINGS = """
[data]
kind = "birds"
size = [48, 64]
classes = 4
train_per_class = 10
test_per_class = 8

[model]
backbone = "small"
weights = "none"
depth = 8
prototypes_per_class = 3
prototype_init = "patches"

[training]
batch_size = 20
accelerator = "cpu"
workers = 0

[training.schedule]
epochs = 5
warm_epochs = 1
project_from = 2
project_every = 0
project_last = {projected}
last_layer_epochs = 2
passes = 1
last_layer_passes = 1

[training.optimizer]
joint = {{ backbone = 2e-3, add_on = 3e-3, prototypes = 3e-3 }}
"""


def train_tiny(folder: Path, *, projected: bool = True) -> Trained:
    """Trains for a second or two; `projected=False` never projects."""
    file = folder.with_suffix(".toml")
    file.write_text(SETTINGS.format(projected=str(projected).lower()))
    settings = load_settings(file)
    data = build_data(settings.data, threads=1)
    with one_thread():
        return train(settings, folder, data=data).folder, data


def explain_tiny(run: RunFolder, data: Splits, *, evaluate: bool = True, **options: int) -> Path:
    """Evaluates and explains the best checkpoint, as the command line does."""
    name = run.resolve("best")
    model = run.load_model(name).model
    if evaluate:
        predictions = predict(model, Batches(data.test, 16))
        write_evaluation(run.path, predictions, data.test, checkpoint=name)
    rows = run.read(name)[2]["prototypes"]
    return explain_run(run.path, model, data, checkpoint=name, prototypes=rows, **options)


def summary_of(run: Path) -> dict[str, Any]:
    """What the run's explanations say, which must be there."""
    found = read_summary(run)
    assert found is not None
    return found
