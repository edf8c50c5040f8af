"""Training prototype networks: settings, stages, resuming, the run folder."""

from protofast.training.build import build_data, build_model, check_start
from protofast.training.images import other_images
from protofast.training.perturb import Perturb
from protofast.training.progress import for_terminal
from protofast.training.refine import Refined, project_run, prune_run
from protofast.training.run_folder import LoadedModel, RunFolder, check_classes
from protofast.training.settings import Settings
from protofast.training.settings_file import (
    anchored,
    differences,
    load_settings,
    recipe_parts,
    recipes,
)
from protofast.training.train import Result, check_changes, train

__all__ = [
    "LoadedModel",
    "Perturb",
    "Refined",
    "Result",
    "RunFolder",
    "Settings",
    "anchored",
    "build_data",
    "build_model",
    "check_changes",
    "check_classes",
    "check_start",
    "differences",
    "for_terminal",
    "load_settings",
    "other_images",
    "project_run",
    "prune_run",
    "recipe_parts",
    "recipes",
    "train",
]
