"""Methods on sequences of games, one file each."""
