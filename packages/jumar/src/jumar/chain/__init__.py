"""The chain of tools: what is installed of it, and launch scripts of Megatron-LM and MindSpeed-LLM as commands of it."""
