"""Where a model's time goes on this processor: nodes as the runtime ran them, beside the floor of the machine."""
