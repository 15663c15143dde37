"""What should be deployed: a checkpoint in every shape, precision and runtime, timed in turn and evaluated."""
