"""One training step: gradients as they stand or compiled, optimizer, target networks; from a batch to metrics."""
