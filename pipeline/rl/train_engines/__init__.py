"""Train engines: optimizer steps of PPO in one process or sharded."""
