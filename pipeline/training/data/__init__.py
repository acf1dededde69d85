"""From rows to batches: encoding, packing, padding, collating, length-bucketed batches."""
