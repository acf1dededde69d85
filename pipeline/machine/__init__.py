"""The machine a run is on: its disks, its limits of cores and memory, its environment."""
