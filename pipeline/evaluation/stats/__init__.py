"""Statistics: intervals, paired differences, calibration, divergence, win rates. No I/O."""
