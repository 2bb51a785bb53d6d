"""Files, locks, progress, processes: what everything else stands on."""
