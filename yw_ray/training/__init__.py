"""One plain training loop and what it needs: optimiser, schedule, EMA, freezing, checkpoints."""
