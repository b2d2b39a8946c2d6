"""The mask becomes a smaller model, and the model a checkpoint."""
