"""What a long computation needs of this machine: screen, signals, memory, precision."""
