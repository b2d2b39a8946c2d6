"""How a smaller model is trained back: what on, by which loss, and when it ends."""
