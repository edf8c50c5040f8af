"""Training prototype networks: settings, stages, resuming, the run folder."""
