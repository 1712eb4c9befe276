"""PyTorch: data, model, losses, trainer, metrics. Produces checkpoints."""
