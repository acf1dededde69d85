"""The models of PPO: the policy, its value function and its reference."""
