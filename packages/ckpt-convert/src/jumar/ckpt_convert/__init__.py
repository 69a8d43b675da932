"""Hugging Face <-> Megatron checkpoints, as planned and proven byte copies."""
