"""What surrounds the steps of a run: checkpoints, logs, locks, processes, alarms, profiles."""
