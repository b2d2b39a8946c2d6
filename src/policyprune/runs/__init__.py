"""The life of a run: its folder, record, state, signals, stages."""
