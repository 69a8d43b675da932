"""One file a family, named after its Hugging Face model_type. To add one, add a file with a `FAMILY`."""
