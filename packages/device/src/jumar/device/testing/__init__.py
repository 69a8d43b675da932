"""Running the NPU's operations without an NPU: torch-npu's own schemas and shape kernels on CPU torch, with plain numerics.

For tests, also of those who build on jumar-device. Nothing here runs in a tool, and nothing is imported until it is asked for.
"""
