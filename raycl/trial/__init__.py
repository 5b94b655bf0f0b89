"""What a trial of any kind is and has: the protocol of a run, its row, its matrix, its state.

Images (``training``) and games (``rl``) stand above it, side by side.
"""
