"""How the processes of a stage share its work: batches divided, weights sharded, figures summed."""
