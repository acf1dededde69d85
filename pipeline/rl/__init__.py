"""Reinforcement learning: policies, rollouts, rewards, train engines, PPO, and what GRPO and RLOO share."""
