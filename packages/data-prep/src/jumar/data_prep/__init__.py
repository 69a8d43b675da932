"""People's files to Megatron datasets (`jumar-data`)."""
