"""One table of operations, for each device: `table` says what they mean, `reference` is their meaning in plain torch."""
