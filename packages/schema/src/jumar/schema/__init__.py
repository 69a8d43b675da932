"""What the jumar tools share: families, weight rules, parallel layouts, manifests, errors."""
